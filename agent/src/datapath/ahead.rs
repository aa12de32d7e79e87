//! Attaching ahead: an interface gets its programs when the CNI makes it, not when the pod's first process shows whose it is.
//!
//! The kernel takes its time over a new TCX link (it waits for every packet that is under way), and twice that would be most
//! of what a held pod waits for. So while a pod of this node is being made, an interface that has just come and leads into
//! some namespace gets our programs: without an entry in `ENDPOINTS` they let everything pass and the control group's program
//! holds. One that turns out to be nobody's is left again.

use std::collections::HashSet;

use super::Datapath;
use super::attach::Backend;

/// What is attached ahead.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Interfaces that lead into namespaces, as of the last look; `None` before the first.
    known: Option<HashSet<u32>>,
    /// Of these, the ones that have our programs and no pod yet.
    attached: HashSet<u32>,
}

impl Datapath {
    /// Looks at the interfaces that lead into namespaces, `ends`.
    pub(super) fn attach_ahead(&mut self, ends: &[u32]) {
        let before = self.ahead.known.replace(ends.iter().copied().collect());
        self.ahead.attached.retain(|ifindex| ends.contains(ifindex));
        // What earlier layouts left at work must not be replaced by programs that know no policy for it.
        let Some(before) = before.filter(|_| self.applied_once && self.formers.is_empty() && self.attacher.backend == Backend::Tcx) else {
            return;
        };
        if !self.pods_are_missing() {
            return;
        }
        for ifindex in ends.iter().copied().filter(|ifindex| !before.contains(ifindex) && self.slots.of(*ifindex).is_none()) {
            match self.attacher.interface(&mut self.netlink, &self.maps, &self.programs, ifindex) {
                Ok(()) => drop(self.ahead.attached.insert(ifindex)),
                // It may be gone again; whose it is will show.
                Err(error) => tracing::debug!(%error, ifindex, "a new interface could not be attached to ahead"),
            }
        }
    }

    /// Whether an interface has our programs and waits for its pod.
    pub(super) fn waits_for_its_pod(&self, ifindex: u32) -> bool {
        self.ahead.attached.contains(&ifindex) && self.pods_are_missing()
    }

    fn pods_are_missing(&self) -> bool {
        self.endpoints.values().any(|endpoint| !endpoint.found() && !endpoint.info.host_network)
    }
}
