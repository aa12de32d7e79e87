//! The kinds of alert: each a row of data and one small function that weighs a contact.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::contact::{Contact, Outcome};
use super::keyed::Keyed;
use super::window::{Window, target_workload};

const SECOND: u64 = 1_000_000_000;

/// Window of failed contacts.
const FAILED_SPAN: u64 = 60 * SECOND;
/// Distinct failed ports or hosts in [`FAILED_SPAN`].
const FAILED: u32 = 5;
/// Window of all contacts.
const ANY_SPAN: u64 = 10 * SECOND;
/// Distinct ports in [`ANY_SPAN`], whatever came of them.
const ANY: u32 = 15;
/// Keys of each kind of window.
const KEYS: usize = 65_536;

/// Ports at which a scan is worse: remote control, data stores, the cluster's own.
pub(super) const SENSITIVE: [u16; 20] =
    [22, 23, 111, 135, 139, 445, 1433, 2375, 2379, 2380, 3306, 3389, 5432, 5900, 5985, 6379, 6443, 9200, 10250, 27017];

/// A source of contacts as the windows number it.
pub(super) type Source = u32;

/// What a kind puts together into one incident of a source.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Scope {
    /// One target: a workload or an address.
    Target(u32),
    /// Many targets.
    Many,
    /// One protocol.
    Protocol(u8),
    /// The source itself.
    Itself,
}

/// What weighing a contact says.
pub(super) struct Crossing {
    /// The number that was reached.
    pub(super) threshold: u32,
    /// The time over which it was counted.
    pub(super) span: u64,
    /// The contacts that reached it.
    pub(super) contacts: Vec<Arc<Contact>>,
}

/// A kind of alert.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) version: u32,
    pub(super) attack: &'static [&'static str],
    /// 1 info .. 5 critical, before context.
    pub(super) severity: u8,
    /// 0 to 100, at the threshold.
    pub(super) confidence: u32,
    /// Least time between records of one alert.
    pub(super) gap_ns: u64,
    /// Whether a contact is for this kind at all.
    pub(super) wants: fn(&Contact) -> bool,
    /// Whether it adds to an alert that is open.
    pub(super) adds: fn(&Contact) -> bool,
    /// What is one incident; the number is that of the target.
    pub(super) scope: fn(&Contact, u32) -> Scope,
    /// Notes a contact and says whether a threshold is crossed now.
    pub(super) weigh: fn(&mut Memory, Source, &Contact) -> Option<Crossing>,
    /// One line for a person; names are those of source and target.
    pub(super) title: fn(&str, &str) -> String,
}

/// The windows of all kinds.
pub(super) struct Memory {
    ports: Keyed<(Source, IpAddr), Window<(u8, u16)>>,
    hosts: Keyed<(Source, u8, u16, bool), Window<IpAddr>>,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self { ports: Keyed::new(KEYS), hosts: Keyed::new(KEYS) }
    }

    /// Keys that were dropped for want of room.
    pub(super) fn dropped(&self) -> u64 {
        self.ports.dropped() + self.hosts.dropped()
    }
}

/// Every kind.
pub(super) const KINDS: [Kind; 3] = [
    Kind {
        name: "scan.vertical",
        version: 1,
        attack: &["T1046"],
        severity: 3,
        confidence: 70,
        gap_ns: 60 * SECOND,
        wants: |c| c.outcome != Outcome::Spoofed && c.outcome != Outcome::Answered,
        adds: |c| c.outcome.failed(),
        scope: |_, target| Scope::Target(target),
        weigh: vertical,
        title: |source, target| format!("{source} scans the ports of {target}"),
    },
    Kind {
        name: "scan.horizontal",
        version: 1,
        attack: &["T1046", "T1018"],
        severity: 3,
        confidence: 70,
        gap_ns: 60 * SECOND,
        wants: |c| c.outcome.failed(),
        adds: |c| c.outcome.failed(),
        scope: |c, _| Scope::Protocol(c.protocol),
        weigh: horizontal,
        title: |source, _| format!("{source} tries one port on many hosts"),
    },
    Kind {
        name: "spoof.ip",
        version: 1,
        attack: &["T1557.002", "T1498"],
        severity: 4,
        confidence: 95,
        gap_ns: 300 * SECOND,
        wants: |c| c.outcome == Outcome::Spoofed,
        adds: |_| true,
        scope: |_, _| Scope::Itself,
        weigh: |_, _, contact| Some(Crossing { threshold: 1, span: 0, contacts: vec![Arc::new(contact.clone())] }),
        title: |source, claimed| format!("{source} sends from {claimed}, which is not its own"),
    },
];

/// Many ports of one address: 5 failed ones in a minute, or 15 of any kind in ten seconds.
fn vertical(memory: &mut Memory, source: Source, contact: &Contact) -> Option<Crossing> {
    let window = memory.ports.entry(&(source, contact.target.ip), Window::new);
    window.note((contact.protocol, contact.port), contact);
    let now = contact.time_ns;
    if contact.outcome.failed() && window.len() >= FAILED as usize && window.failed(now, FAILED_SPAN).count() >= FAILED as usize {
        let contacts = window.failed(now, FAILED_SPAN).map(|m| m.contact.clone()).collect();
        return Some(Crossing { threshold: FAILED, span: FAILED_SPAN, contacts });
    }
    if window.len() >= ANY as usize && window.met(now, ANY_SPAN).count() >= ANY as usize {
        let contacts = window.met(now, ANY_SPAN).map(|m| m.contact.clone()).collect();
        return Some(Crossing { threshold: ANY, span: ANY_SPAN, contacts });
    }
    None
}

/// One port on many hosts: 5 failed ones in a minute, of two workloads at least or two addresses that nobody has. A client with a stale list of one
/// workload's addresses is no scan. Service addresses are counted apart from pods'.
fn horizontal(memory: &mut Memory, source: Source, contact: &Contact) -> Option<Crossing> {
    let key = (source, contact.protocol, contact.port, contact.target.is_service());
    let window = memory.hosts.entry(&key, Window::new);
    window.note(contact.target.ip, contact);
    if window.len() < FAILED as usize {
        return None;
    }
    let contacts: Vec<_> = window.failed(contact.time_ns, FAILED_SPAN).map(|m| m.contact.clone()).collect();
    let workloads: BTreeSet<_> = contacts.iter().filter_map(|c| target_workload(c)).collect();
    let nobodys = contacts.iter().filter(|c| c.target.identity.is_none()).count();
    let spread = workloads.len() >= 2 || nobodys >= 2;
    (contacts.len() >= FAILED as usize && spread).then_some(Crossing { threshold: FAILED, span: FAILED_SPAN, contacts })
}
