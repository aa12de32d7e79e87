//! What changes far away may wait for.
//!
//! A change of policies, of namespaces or of this node's pods is taken at once. What changes elsewhere waits until as much time has
//! passed as keeps large clusters from costing this node a processor. But where a pod has lost an address, the wait is short: whoever
//! gets the address next must not be taken for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::pump::Pump;
use crate::inventory::Snapshot;

/// How long changes far away rest after a compile, in multiples of the processor time it took, and at most.
const REST: u32 = 10;
const LONGEST_REST: Duration = Duration::from_secs(2);
/// The same where an address was lost.
const BRIEF: u32 = 2;
const LONGEST_BRIEF: Duration = Duration::from_millis(100);

/// See the module.
#[derive(Default)]
pub(super) struct Rest {
    /// When a snapshot was taken last.
    taken: Option<Instant>,
    /// When a snapshot with changes far away may be taken next, and one in which an address was lost.
    until: Option<Instant>,
    brief_until: Option<Instant>,
    /// Generations that have been found to hold nothing that is urgent, and no lost address.
    resting: u64,
    kept: u64,
}

impl Rest {
    /// How long no snapshot has been taken.
    pub(super) fn quiet_for(&self, now: Instant) -> Duration {
        self.taken.map_or(Duration::ZERO, |taken| now.saturating_duration_since(taken))
    }
}

impl Pump {
    /// A snapshot has been taken, for so much processor time.
    pub(super) fn rest_from(&mut self, now: Instant, cost: Duration) {
        self.rest.taken = Some(now);
        self.rest.until = Some(now + (cost * REST).min(LONGEST_REST));
        self.rest.brief_until = Some(now + (cost * BRIEF).min(LONGEST_BRIEF));
    }

    /// Whether a new snapshot is taken now.
    pub(super) fn may_take(&mut self, next: &Arc<Snapshot>, instant: Instant) -> bool {
        if !self.synced || self.rest.until.is_none_or(|until| instant >= until) {
            return true;
        }
        let before = &self.base;
        if self.rest.resting != next.generation {
            let same = Arc::ptr_eq(&before.policies, &next.policies)
                && (Arc::ptr_eq(&before.namespaces, &next.namespaces) || before.namespaces == next.namespaces)
                && (Arc::ptr_eq(&before.pods, &next.pods) || self.local_pods(next).eq(self.local.iter()));
            if !same {
                return true;
            }
            self.rest.resting = next.generation;
        }
        if self.rest.brief_until.is_some_and(|until| instant < until) || self.rest.kept == next.generation {
            return false;
        }
        if address_lost(before, next) {
            return true;
        }
        self.rest.kept = next.generation;
        false
    }
}

/// What this thread has had of a processor.
pub(super) fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Whether a pod has lost an address between the two.
fn address_lost(before: &Snapshot, next: &Snapshot) -> bool {
    if Arc::ptr_eq(&before.pods, &next.pods) {
        return false;
    }
    // Both are in order: one walk along both.
    let mut others = next.pods.iter().peekable();
    before.pods.iter().any(|(name, pod)| {
        while others.next_if(|(other, _)| *other < name).is_some() {}
        let new = others.peek().filter(|(other, _)| *other == name).map(|(_, new)| *new);
        let keeps = |new: &Arc<_>| {
            let new: &crate::inventory::Pod = new;
            new.uid == pod.uid && new.finished == pod.finished && pod.addresses().iter().all(|ip| new.addresses().contains(ip))
        };
        !pod.addresses().is_empty() && !pod.finished && !new.is_some_and(|new| Arc::ptr_eq(new, pod) || keeps(new))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::files;

    fn snapshot(pods: &[(&str, &str, &str)]) -> Arc<Snapshot> {
        let text: Vec<String> = pods
            .iter()
            .map(|(name, uid, status)| {
                format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, uid: u{uid}}}\nspec: {{nodeName: far}}\nstatus: {{{status}}}")
            })
            .collect();
        files::snapshot_of(&text.join("\n---\n"))
    }

    #[test]
    fn only_a_lost_address_is_urgent() {
        let before = snapshot(&[
            ("a", "1", "podIP: 10.0.0.1"),
            ("b", "2", ""),
            ("c", "3", "podIP: 10.0.0.3"),
            ("d", "4", "phase: Failed, podIP: 10.0.0.4"),
        ]);
        let lost = |pods: &[(&str, &str, &str)]| address_lost(&before, &snapshot(pods));
        let (a, c) = (("a", "1", "podIP: 10.0.0.1"), ("c", "3", "podIP: 10.0.0.3"));
        assert!(!lost(&[a, ("b", "2", "podIP: 10.0.0.2"), c]), "gained one; finished and nameless ones lose nothing");
        assert!(!lost(&[a, ("aa", "9", "podIP: 10.0.0.9"), c]), "a new pod");
        assert!(lost(&[a]) && lost(&[c]), "gone");
        assert!(lost(&[("a", "7", "podIP: 10.0.0.1"), c]), "another pod of that name");
        assert!(lost(&[("a", "1", "podIP: 10.0.0.8"), c]), "another address");
        assert!(lost(&[("a", "1", "phase: Succeeded, podIP: 10.0.0.1"), c]), "finished");
    }
}
