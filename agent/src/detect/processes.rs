//! Who made the contacts of an incident: processes by the number of their contacts.

use std::sync::Arc;

use sekisho_proto as proto;

use crate::flow::{ProcessInfo, process};

/// Processes that one incident tells apart. When another one comes, the one with the fewest contacts makes room.
const KEPT: usize = 32;
/// Processes that an alert lists.
const LISTED: usize = 8;

/// See the module. A command that is started anew for each contact, as in a shell's loop, counts as one process, with the id of the
/// first.
#[derive(Default)]
pub(super) struct Processes(Vec<(Arc<ProcessInfo>, u64)>);

impl Processes {
    /// One more contact of that process.
    pub(super) fn count(&mut self, process: &Arc<ProcessInfo>) {
        self.add(process, 1);
    }

    /// So many more contacts of that process.
    pub(super) fn add(&mut self, process: &Arc<ProcessInfo>, contacts: u64) {
        if let Some((_, count)) = self.0.iter_mut().find(|(known, _)| is_same(known, process)) {
            *count += contacts;
            return;
        }
        if self.0.len() < KEPT {
            self.0.push((process.clone(), contacts));
        } else if let Some(least) = self.0.iter_mut().min_by_key(|(_, count)| *count) {
            *least = (process.clone(), contacts);
        }
    }

    /// In no order.
    pub(super) fn all(&self) -> &[(Arc<ProcessInfo>, u64)] {
        &self.0
    }

    /// The process with the most contacts; of equals the one that came first.
    pub(super) fn first(&self) -> Option<&ProcessInfo> {
        self.sorted().first().map(|(process, _)| &**process)
    }

    /// Most contacts first.
    pub(super) fn list(&self) -> Vec<proto::ProcessContacts> {
        let listed = self.sorted().into_iter().take(LISTED);
        listed.map(|(info, contacts)| proto::ProcessContacts { process: Some(process(info)), contacts: *contacts }).collect()
    }

    fn sorted(&self) -> Vec<&(Arc<ProcessInfo>, u64)> {
        let mut sorted: Vec<_> = self.0.iter().collect();
        sorted.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        sorted
    }
}

fn is_same(one: &ProcessInfo, other: &ProcessInfo) -> bool {
    (&one.comm, &one.exe, one.uid, &one.container_id) == (&other.comm, &other.exe, other.uid, &other.container_id)
}
