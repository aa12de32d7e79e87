//! Failed contacts with declared ports. A client comes back to the same targets; a scanner passes each of them once.
//!
//! Nothing can tell the two apart at the first contact, so these contacts wait. A target that the source tries again is what it
//! depends on, and never counts. Targets that it has not tried again after [`HOLD`] were walked past: [`WALKED`] of them within
//! a minute are a scan. So an alert for a sweep that meets only pods which declare the port comes late, and one for a scraper whose
//! targets are down, or behind a policy, does not come at all.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::contact::Contact;
use super::keyed::Keyed;
use super::kinds::Source;
use super::window::target_workload;

const SECOND: u64 = 1_000_000_000;

/// How long a source has to come back. Prometheus marks samples as stale after 5 minutes, so its users scrape at least every 2 minutes.
pub(super) const HOLD: u64 = 150 * SECOND;
/// Targets within [`SPAN`] that were not tried again. Twice what undeclared ports take: a client that starts while its dependencies are
/// down tries each of them once as well.
pub(super) const WALKED: u32 = 10;
/// Of so many workloads at least: one workload's pods are one dependency.
const WORKLOADS: usize = 3;
/// The time within which they count together.
pub(super) const SPAN: u64 = 60 * SECOND;
/// A later contact is a return, no retry of the same attempt. Nobody scrapes more often.
const RETURN: u64 = 5 * SECOND;
/// Sources and ports that are followed, and targets of each.
const WALKS: usize = 128;
const STEPS: usize = 512;

/// Source, protocol, port, and whether the target is a Service.
pub(super) type WalkKey = (Source, u8, u16, bool);

struct Step {
    first_ns: u64,
    flow: Option<u64>,
    /// The contact, as long as the source has not come back.
    contact: Option<Arc<Contact>>,
}

#[derive(Default)]
struct Walk {
    steps: HashMap<IpAddr, Step>,
    /// When it is looked at.
    due: Option<u64>,
}

/// See the module.
pub(super) struct Walks {
    open: Keyed<WalkKey, Walk>,
    /// No walk is due before that time.
    next: u64,
    dropped: u64,
}

impl Walks {
    pub(super) fn new() -> Self {
        Self { open: Keyed::new(WALKS), next: u64::MAX, dropped: 0 }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped + self.open.dropped()
    }

    /// Contacts to which their source has not come back yet.
    pub(super) fn waiting(&self) -> impl Iterator<Item = &Arc<Contact>> {
        self.open.iter().flat_map(|(_, walk)| walk.steps.values()).filter_map(|step| step.contact.as_ref())
    }

    /// Notes a failed contact with a declared port.
    pub(super) fn note(&mut self, source: Source, contact: &Contact) {
        let key = (source, contact.protocol, contact.port, contact.target.is_service());
        let walk = self.open.entry(&key, Walk::default);
        if let Some(step) = walk.steps.get_mut(&contact.target.ip) {
            let other = step.flow.is_none() || step.flow != contact.flow;
            if other && contact.time_ns >= step.first_ns + RETURN {
                step.contact = None;
            }
            return;
        }
        if walk.steps.len() >= STEPS {
            self.dropped += 1;
            return;
        }
        let step = Step { first_ns: contact.time_ns, flow: contact.flow, contact: Some(Arc::new(contact.clone())) };
        walk.steps.insert(contact.target.ip, step);
        let alone = || walk.steps.values().filter(|step| step.contact.is_some()).count();
        if walk.due.is_none() && walk.steps.len() >= WALKED as usize && alone() >= WALKED as usize {
            walk.due = Some(contact.time_ns + HOLD);
            self.next = self.next.min(contact.time_ns + HOLD);
        }
    }

    /// What was walked past, by source; `gone` says whose target is not there any more.
    pub(super) fn due(&mut self, now_ns: u64, gone: impl Fn(&Contact) -> bool) -> Vec<(WalkKey, Vec<Arc<Contact>>)> {
        if now_ns < self.next {
            return Vec::new();
        }
        self.next = u64::MAX;
        let mut found = Vec::new();
        for (key, walk) in self.open.iter_mut() {
            match walk.due {
                Some(due) if due <= now_ns => {
                    let passed = walk.passed(now_ns, &gone);
                    if !passed.is_empty() {
                        found.push((*key, passed));
                    }
                }
                _ => {}
            }
            self.next = self.next.min(walk.due.unwrap_or(u64::MAX));
        }
        found
    }
}

impl Walk {
    /// The contacts that count; what waited long enough is known afterwards.
    fn passed(&mut self, now_ns: u64, gone: &impl Fn(&Contact) -> bool) -> Vec<Arc<Contact>> {
        let aged = self.steps.values_mut().filter(|step| step.first_ns + HOLD <= now_ns);
        let mut contacts: Vec<Arc<Contact>> = aged.filter_map(|step| step.contact.take()).filter(|contact| !gone(contact)).collect();
        contacts.sort_by_key(|contact| contact.time_ns);
        let younger = self.steps.values().filter(|step| step.contact.is_some()).count();
        self.due = (younger >= WALKED as usize).then_some(now_ns + HOLD);
        let mut from = 0;
        let mut best = 0..0;
        for (to, contact) in contacts.iter().enumerate() {
            while contacts[from].time_ns + SPAN < contact.time_ns {
                from += 1;
            }
            if to + 1 - from > best.len() {
                best = from..to + 1;
            }
        }
        let walked = contacts.get(best).unwrap_or_default();
        let workloads: BTreeSet<_> = walked.iter().map(|contact| target_workload(contact)).collect();
        if walked.len() < WALKED as usize || workloads.len() < WORKLOADS {
            return Vec::new();
        }
        walked.to_vec()
    }
}
