//! Proof that what should be seen is seen: programs attached, first, ours; no direction that passes by.

use std::collections::HashSet;
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Datapath;
use super::attach::{Attacher, Backend, Finding, cgroup_of, interface_of};
use super::cgroup::PodCgroup;
use super::endpoint::{Attach, Coverage, CoverageEvent};
use super::follow::Endpoint;

/// How long one step of a check takes: a pod that comes meanwhile waits for it.
const STEP: Duration = Duration::from_millis(1);

/// One step of a check.
#[derive(Debug)]
pub struct Check {
    /// What was found.
    pub events: Vec<CoverageEvent>,
    /// Whether all endpoints have been looked at.
    pub through: bool,
}

impl Datapath {
    /// Looks at endpoints' hooks and evidence, one after the other; attaches again what is missing. Begin every few seconds,
    /// and go on in short steps until it is through.
    pub fn check(&mut self) -> Check {
        let began = Instant::now();
        let mut events = Vec::new();
        while let Some(uid) = self.next_to_check() {
            let Some(mut endpoint) = self.endpoints.remove(&uid) else { break };
            if endpoint.info.ready {
                self.check_hooks(&mut endpoint, &mut events);
                self.check_evidence(&mut endpoint, &mut events);
            }
            self.endpoints.insert(Arc::clone(&uid), endpoint);
            self.checked = Some(uid);
            if began.elapsed() > STEP {
                return Check { events, through: false };
            }
        }
        self.checked = None;
        self.attach_ready();
        self.follow_hold();
        self.tidy();
        Check { events, through: true }
    }

    fn next_to_check(&self) -> Option<Arc<str>> {
        let after = self.checked.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.endpoints.range::<str, _>((after, Bound::Unbounded)).next().map(|(uid, _)| Arc::clone(uid))
    }

    fn check_hooks(&mut self, endpoint: &mut Endpoint, events: &mut Vec<CoverageEvent>) {
        let backend = if endpoint.info.attach == Attach::Clsact { Backend::Clsact } else { Backend::Tcx };
        let finding = match (endpoint.ifindex(), &endpoint.cgroup) {
            (Some(ifindex), _) => Attacher::check_interface(&mut self.netlink, &self.programs, ifindex, backend),
            (None, Some(cgroup)) => self.attacher.check_cgroup(&self.programs, cgroup.id),
            (None, None) => return,
        };
        let problem = match finding {
            // Of an interface that went away the next reconciliation says so.
            Ok(Finding::Good) | Err(_) => return,
            Ok(Finding::Missing) => "our program was not attached any more",
            Ok(Finding::NotFirst) => "another program ran before ours",
        };
        if finding.is_ok_and(|finding| finding == Finding::NotFirst)
            && let Some(ifindex) = endpoint.ifindex()
            && let Err(error) = self.come_first(ifindex, backend)
        {
            tracing::warn!(%error, ifindex, "our program could not be put in front");
        }
        let event = match self.attach(endpoint) {
            Ok(attach) => {
                endpoint.info.attach = attach;
                event(endpoint, "reattached", format!("{problem}; it is attached again"))
            }
            Err(error) => {
                endpoint.info.ready = false;
                endpoint.info.attach = Attach::None;
                endpoint.info.coverage = Coverage::Unseen;
                event(endpoint, "attach_failed", format!("{problem}, and attaching again failed: {error}"))
            }
        };
        events.push(event);
    }

    /// Evidence that one direction passes by: watch the control group instead, or say so.
    fn check_evidence(&mut self, endpoint: &mut Endpoint, events: &mut Vec<CoverageEvent>) {
        let Ok(Some(state)) = self.maps.states.get(&endpoint.info.index) else { return };
        let fresh = state.one_way > endpoint.one_way;
        endpoint.one_way = state.one_way;
        if !fresh || endpoint.ifindex().is_none() || endpoint.info.coverage == Coverage::OneWay {
            return;
        }
        if endpoint.cgroup.as_ref().is_some_and(PodCgroup::alive) {
            match self.switch_to_cgroup(endpoint) {
                Ok(former) => {
                    let message = "replies pass by its interface unseen; it is watched at its control group now".into();
                    return events.push(CoverageEvent { former: Some(former), ..event(endpoint, "switched", message) });
                }
                Err(error) => tracing::warn!(uid = %endpoint.info.uid, %error, "an endpoint could not be switched to its control group"),
            }
        }
        endpoint.info.coverage = Coverage::OneWay;
        endpoint.info.message = Some(
            "one_way: one direction of its traffic passes by its interface unseen, and it has no control group to watch instead".into(),
        );
        events.push(event(endpoint, "one_way", "one direction of its traffic passes by its interface unseen".into()));
    }

    /// The cgroup hooks first, then the interface goes: for a moment both judge, never none. Tells the number it had.
    fn switch_to_cgroup(&mut self, endpoint: &mut Endpoint) -> std::io::Result<u32> {
        let former = endpoint.info.number;
        let index = self.slots.cgroup(super::sizes::ENDPOINTS).ok_or_else(|| std::io::Error::other("no slot is free"))?;
        let number = sekisho_core::layout::CGROUP_ENDPOINT | index;
        let before = (endpoint.info.clone(), endpoint.written);
        endpoint.info.number = number;
        endpoint.info.index = index;
        endpoint.info.interface = None;
        match self.watch_at_cgroup(endpoint) {
            Ok(attach) => endpoint.info.attach = attach,
            Err(error) => {
                (endpoint.info, endpoint.written) = before;
                self.withdraw(number, endpoint.cgroup.as_ref().map(|cgroup| cgroup.id))?;
                return Err(error);
            }
        }
        endpoint.info.message = Some("its interface does not see both directions; it is watched at its control group".into());
        endpoint.watched = endpoint.cgroup.as_ref().map(|cgroup| cgroup.id);
        endpoint.blind = true;
        endpoint.one_way = 0;
        self.withdraw(former, None).map(|()| former)
    }

    /// Clears the slot and writes the entry of an endpoint that has a new number, then attaches it.
    fn watch_at_cgroup(&mut self, endpoint: &mut Endpoint) -> std::io::Result<Attach> {
        let index = endpoint.info.index;
        self.clear_slot(index)?;
        if let Some(entry) = &mut endpoint.written {
            entry.index = index;
            self.maps.endpoints.put(&endpoint.info.number, entry)?;
        }
        self.attach(endpoint)
    }

    /// Removes what nobody needs any more: links of devices that are gone, and former layouts once all is attached here.
    fn tidy(&mut self) {
        let interfaces: Vec<u32> = self.slots.numbers().map(|(number, _)| number).collect();
        let cgroups: Vec<u64> = self.maps.cgroups.entries().unwrap_or_default().into_iter().map(|(id, _)| id).collect();
        let ours = |name: &str| {
            let interface = interface_of(name).map(|ifindex| interfaces.contains(&ifindex));
            let root = name.starts_with("root-").then_some(true);
            interface.or_else(|| cgroup_of(name).map(|id| cgroups.contains(&id))).or(root)
        };
        if let Err(error) = self.attacher.sweep(&ours) {
            tracing::warn!(%error, "stale pins could not be removed");
        }
        // What does not hold any more is attached again at the next look.
        self.holding.roots.retain(|root, _| self.attacher.holds(*root));
        if self.has_settled() && self.formers.iter().any(|former| !former.done) {
            self.finish_migration();
        }
    }

    /// Whether nothing is left to former layouts: what they attached is attached here, or belongs to no pod. A pod that has not
    /// been found holds this up only while it may be whom an unclaimed endpoint belongs to.
    fn has_settled(&self) -> bool {
        let claimed: HashSet<u32> = self.endpoints.values().map(|endpoint| endpoint.info.number).collect();
        self.applied_once
            && self.endpoints.values().all(|endpoint| endpoint.info.ready || !endpoint.found())
            && self.slots.numbers().all(|(number, _)| claimed.contains(&number))
    }
}

fn event(endpoint: &Endpoint, event: &'static str, message: String) -> CoverageEvent {
    let info = &endpoint.info;
    CoverageEvent {
        uid: Arc::clone(&info.uid),
        number: info.number,
        former: None,
        event,
        attach: info.attach,
        interface: info.interface.clone(),
        message,
    }
}
