//! The kinds of alert: each a row of data and one small function that weighs a contact.

use std::net::IpAddr;
use std::sync::Arc;

use super::contact::{Contact, Outcome};
use super::declared::Declared;
use super::keyed::Keyed;
use super::walk::{self, Walks};
use super::window::{Member, Window, target_workload};

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

/// What weighing a contact says: a threshold is crossed. A flood crosses it with every packet, so the contacts that did are gathered
/// only where an incident opens.
#[derive(Clone, Copy)]
pub(super) struct Crossing {
    /// The number that was reached.
    pub(super) threshold: u32,
    /// The time over which it was counted.
    pub(super) span: u64,
    /// Only failed contacts were counted.
    failed: bool,
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
    /// The contacts that crossed it.
    pub(super) gather: fn(&Memory, Source, &Contact, Crossing) -> Vec<Arc<Contact>>,
    /// One line for a person; names are those of source and target.
    pub(super) title: fn(&str, &str) -> String,
}

/// The windows of all kinds.
pub(super) struct Memory {
    ports: Keyed<(Source, IpAddr), Window<(u8, u16)>>,
    hosts: Keyed<(Source, u8, u16, bool), Window<IpAddr>>,
    pub(super) walks: Walks,
    pub(super) declared: Declared,
}

impl Memory {
    pub(super) fn new() -> Self {
        Self { ports: Keyed::new(KEYS), hosts: Keyed::new(KEYS), walks: Walks::new(), declared: Declared::default() }
    }

    /// The newest contacts that windows hold, and those with declared ports to which nobody has come back yet, at most `limit`.
    pub(super) fn recent(&self, since_ns: u64, limit: usize) -> Vec<Arc<Contact>> {
        let ports = self.ports.iter().flat_map(|(_, window)| window.met_since(since_ns));
        let hosts = self.hosts.iter().flat_map(|(_, window)| window.met_since(since_ns));
        let mut all: Vec<_> = ports.chain(hosts).chain(self.walks.waiting()).cloned().collect();
        all.sort_by_key(|contact| std::cmp::Reverse(contact.time_ns));
        all.truncate(limit);
        // In the order in which they came.
        all.reverse();
        all
    }

    /// Keys that were dropped for want of room.
    pub(super) fn dropped(&self) -> u64 {
        self.ports.dropped() + self.hosts.dropped() + self.walks.dropped()
    }
}

/// Every kind.
pub(super) const KINDS: [Kind; 4] = [
    Kind {
        name: "scan.vertical",
        version: 1,
        attack: &["T1046"],
        severity: 3,
        confidence: 70,
        gap_ns: 60 * SECOND,
        wants: |c| !matches!(c.outcome, Outcome::Spoofed | Outcome::Rogue | Outcome::Answered),
        adds: |c| c.outcome.failed(),
        scope: |_, target| Scope::Target(target),
        weigh: vertical,
        gather: |memory, source, c, crossing| gather(memory.ports.get(&(source, c.target.ip)), c, crossing),
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
        gather: |memory, source, c, crossing| gather(memory.hosts.get(&hosts_of(source, c)), c, crossing),
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
        weigh: |_, _, _| Some(Crossing { threshold: 1, span: 0, failed: false }),
        gather: |_, _, contact, _| vec![Arc::new(contact.clone())],
        title: |source, claimed| format!("{source} sends from {claimed}, which is not its own"),
    },
    Kind {
        name: "spoof.router",
        version: 1,
        attack: &["T1557"],
        severity: 4,
        confidence: 95,
        gap_ns: 300 * SECOND,
        wants: |c| c.outcome == Outcome::Rogue,
        adds: |_| true,
        scope: |_, _| Scope::Itself,
        weigh: |_, _, _| Some(Crossing { threshold: 1, span: 0, failed: false }),
        gather: |_, _, contact, _| vec![Arc::new(contact.clone())],
        title: |source, _| format!("{source} speaks as a router or DHCP server"),
    },
];

/// The members of a window that crossed a threshold.
fn gather<T: Eq>(window: Option<&Window<T>>, contact: &Contact, crossing: Crossing) -> Vec<Arc<Contact>> {
    let Some(window) = window else { return Vec::new() };
    let (now, span) = (contact.time_ns, crossing.span);
    if crossing.failed {
        window.failed(now, span).map(|m| m.contact.clone()).collect()
    } else {
        window.met(now, span).map(|m| m.contact.clone()).collect()
    }
}

/// What a walk over declared ports crosses.
pub(super) const WALKED: Crossing = Crossing { threshold: walk::WALKED, span: walk::SPAN, failed: true };
/// The place in [`KINDS`] of what a walk is.
pub(super) const HORIZONTAL: usize = 1;

/// Many ports of one address: 5 failed ones in a minute, or 15 of any kind in ten seconds. Ports that the target declares do not count.
fn vertical(memory: &mut Memory, source: Source, contact: &Contact) -> Option<Crossing> {
    let failed = contact.outcome.failed();
    if failed && memory.declared.has(contact) {
        return None;
    }
    let window = memory.ports.entry(&(source, contact.target.ip), Window::new);
    window.note((contact.protocol, contact.port), contact);
    let now = contact.time_ns;
    if failed && window.failed(now, FAILED_SPAN).nth(FAILED as usize - 1).is_some() {
        return Some(Crossing { threshold: FAILED, span: FAILED_SPAN, failed: true });
    }
    let undeclared = |m: &&Member<_>| !memory.declared.has(&m.contact);
    if window.len() >= ANY as usize && window.met(now, ANY_SPAN).filter(undeclared).nth(ANY as usize - 1).is_some() {
        return Some(Crossing { threshold: ANY, span: ANY_SPAN, failed: false });
    }
    None
}

/// The key of one port on many hosts; Service addresses are counted apart from pods'.
fn hosts_of(source: Source, contact: &Contact) -> (Source, u8, u16, bool) {
    (source, contact.protocol, contact.port, contact.target.is_service())
}

/// One port on many hosts: 5 failed ones in a minute, of two workloads at least or two addresses that nobody has. A client with a stale list of one
/// workload's addresses is no scan, and hosts that declare the port are walked past or returned to: see [`walk`].
fn horizontal(memory: &mut Memory, source: Source, contact: &Contact) -> Option<Crossing> {
    if memory.declared.has(contact) {
        memory.walks.note(source, contact);
        return None;
    }
    let window = memory.hosts.entry(&hosts_of(source, contact), Window::new);
    window.note(contact.target.ip, contact);
    let failed = || window.failed(contact.time_ns, FAILED_SPAN).map(|m| &*m.contact);
    failed().nth(FAILED as usize - 1)?;
    let first = failed().find_map(target_workload);
    let nobodys = failed().filter(|c| c.target.identity.is_none()).take(2).count();
    let spread = nobodys == 2 || failed().filter_map(target_workload).any(|workload| Some(workload) != first);
    spread.then_some(Crossing { threshold: FAILED, span: FAILED_SPAN, failed: true })
}
