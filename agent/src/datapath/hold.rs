//! Holding pods until their policy is in force, or counting what passes before.
//!
//! A program stands at the control group that contains all pods (`kubepods`), inherited by groups that are made later. What
//! belongs to a *live* pod, one whose endpoint is attached with its policy and whose addresses are in the tables, is none of its
//! business. Of others it drops everything where the posture is `hold`, and counts everything where it is `open`. It is pinned
//! as everything else, so a pod that starts while no agent runs waits for the next one, or is counted.
//!
//! The group is learnt from pods of this node, never guessed: on a machine with several nodes each holds its own.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use sekisho_core::layout::{Hold, hold, mode};

use super::Datapath;
use super::cgroup::{PodCgroup, level_bits};
use super::endpoint::boundary;
use super::follow::Endpoint;

/// Levels below `kubepods` at which pods lie: guaranteed ones directly, the others in the group of their class.
const POD_LEVELS: [u32; 2] = [1, 2];

/// What is in the kernel.
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// [`Hold::on`]; nothing before the posture is known.
    wanted: u32,
    /// Live pods' groups; `None` = not read yet.
    live: Option<BTreeSet<u64>>,
    /// Those of them that an earlier agent let go, and no pod has named yet.
    inherited: BTreeSet<u64>,
    /// Groups that are held, by id.
    pub(super) roots: BTreeMap<u64, PodCgroup>,
    written: Option<Hold>,
}

impl Holding {
    /// Whether pods below this group are held.
    fn holds(&self, path: &Path) -> bool {
        self.roots.values().any(|root| root.path == path)
    }
}

impl Datapath {
    /// Says whether pods without a policy in force are held. Takes effect in mode enforce.
    pub fn set_hold(&mut self, wanted: bool) {
        let wanted = if wanted { hold::HELD } else { hold::COUNTED };
        if self.holding.wanted != wanted {
            let text = if wanted == hold::HELD { "pods are held until their policy is in force" } else { "pods are not held" };
            tracing::info!("{text}");
        }
        self.holding.wanted = wanted;
        self.follow_hold();
    }

    /// Brings the kernel in step with the endpoints.
    pub(super) fn follow_hold(&mut self) {
        if self.applied_once
            && let Err(error) = self.try_follow_hold()
        {
            tracing::warn!(%error, "holding pods could not be brought up to date");
        }
    }

    fn try_follow_hold(&mut self) -> io::Result<()> {
        if self.holding.wanted == 0 {
            return Ok(());
        }
        self.follow_live()?;
        let cgroups = self.endpoints.values().filter_map(|endpoint| endpoint.cgroup.as_ref());
        let places: BTreeMap<&Path, Option<u32>> = cgroups.filter_map(root_above).collect();
        let roots = places.into_iter().filter_map(|(path, level)| {
            let id = std::fs::metadata(path).ok()?.ino();
            Some(PodCgroup { path: path.into(), id, level })
        });
        let fresh: Vec<PodCgroup> = roots.filter(|root| !self.holding.roots.contains_key(&root.id)).collect();
        let mut levels: u32 = self.holding.written.map_or(0, |hold| hold.levels);
        for root in &fresh {
            levels |= POD_LEVELS.iter().fold(0, |bits, below| bits | level_bits(root.level, *below));
        }
        self.write_hold(Hold { on: self.holding.wanted, levels })?;
        for root in fresh {
            self.attacher.hold(&self.programs, &root)?;
            tracing::info!(group = %root.path.display(), "new pods begin here");
            self.holding.roots.insert(root.id, root);
        }
        Ok(())
    }

    /// Whether the sockets of a pod that is about to be attached for the first time have been held since it began. Not where it was
    /// there before this agent: nobody knows what held it then.
    pub(super) fn was_held(&self, endpoint: &Endpoint) -> bool {
        let held = self.holding.written.is_some_and(|hold| hold.on == hold::HELD) && self.config.mode == mode::ENFORCE;
        let below = endpoint.cgroup.as_ref().and_then(root_above).is_some_and(|(path, _)| self.holding.holds(path));
        held && below && !endpoint.from_start && !endpoint.live
    }

    /// Live pods: those whose programs are attached, and whose addresses others know. They stay so until their group or their
    /// place is gone.
    fn follow_live(&mut self) -> io::Result<()> {
        let Holding { live, inherited, .. } = &mut self.holding;
        let live = if let Some(live) = live {
            live
        } else {
            inherited.extend(self.maps.live.entries()?.into_iter().map(|(id, _)| id));
            live.insert(inherited.clone())
        };
        let mut wanted = BTreeSet::new();
        for endpoint in self.endpoints.values_mut().filter(|endpoint| endpoint.found()) {
            let Some(id) = endpoint.cgroup.as_ref().map(|cgroup| cgroup.id) else { continue };
            // Before that its first connection would be a stranger's to whoever it dials.
            let known = endpoint.info.addresses.iter().all(|address| self.tables.addresses.contains_key(&boundary(*address)));
            let speaks = endpoint.info.ready && (known || endpoint.info.host_network);
            // Whom an earlier agent let go is judged by its programs.
            endpoint.live |= speaks | inherited.remove(&id);
            if endpoint.live {
                wanted.insert(id);
            }
        }
        // While some pod has not been found, a group from before this agent may be its. Whose groups this agent let go is known.
        if self.endpoints.values().all(|endpoint| endpoint.found() && endpoint.cgroup.is_some()) {
            inherited.clear();
        }
        // First room is made, or a node on which pods come and go would some day let no pod go any more.
        for gone in live.iter().filter(|id| !wanted.contains(id) && !inherited.contains(id)).copied().collect::<Vec<_>>() {
            self.maps.live.remove(&gone)?;
            live.remove(&gone);
        }
        for id in wanted {
            if !live.contains(&id) {
                self.maps.live.put(&id, &1)?;
                live.insert(id);
            }
        }
        Ok(())
    }

    fn write_hold(&mut self, hold: Hold) -> io::Result<()> {
        if self.holding.written != Some(hold) {
            self.maps.hold.put(&0, &hold)?;
            self.holding.written = Some(hold);
        }
        Ok(())
    }
}

/// The group of all pods above a pod's, and its level where that is known.
fn root_above(pod: &PodCgroup) -> Option<(&Path, Option<u32>)> {
    let below = |above: &Path| {
        let name = above.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name == "kubepods" || name == "kubepods.slice" || name.ends_with("-kubepods.slice")
    };
    let (up, path) = (0u32..).zip(pod.path.ancestors()).skip(1).find(|(_, path)| below(path))?;
    Some((path, pod.level.and_then(|level| level.checked_sub(up))))
}
