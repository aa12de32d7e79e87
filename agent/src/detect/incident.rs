//! An incident: what belongs to one alert from its opening to its end, and the alert as it stands.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use sekisho_proto as proto;

use super::contact::{Contact, Outcome, Party};
use super::kinds::{Crossing, Kind, SENSITIVE};
use super::processes::Processes;
use crate::flow::{Identity, Owner, flow_id_text, letters, mac_text, process, protocol_name, timestamp};

/// Lists in an alert are cut to this length; the counts are not.
const LISTED: usize = 32;
/// Distinct ports and targets that one incident remembers.
const REMEMBERED: usize = 4096;
/// Release of ATT&CK that the technique ids are of.
pub(super) const ATTACK_VERSION: &str = "19";
/// Failed ports from which a scan is severe.
const MANY_PORTS: usize = 20;

/// See the module.
pub(super) struct Incident {
    pub(super) id: String,
    pub(super) source: Party,
    pub(super) first: u64,
    pub(super) last: u64,
    /// Packet time of the last contact.
    pub(super) last_ns: u64,
    /// What makes the alert grow: distinct (target, port) pairs, or packets.
    pub(super) count: u64,
    /// Outcomes by (target, protocol, port), as bits, and whether a process is known.
    pub(super) pairs: BTreeMap<(IpAddr, u8, u16), u8>,
    /// Pairs beyond what is remembered.
    pub(super) unlisted: u64,
    pub(super) targets: Vec<Party>,
    pub(super) target_count: u32,
    pub(super) first_flags: BTreeSet<u8>,
    pub(super) flows: Vec<u64>,
    pub(super) processes: Processes,
    pub(super) claimed: Option<(Party, [u8; 6])>,
    pub(super) threshold: u32,
    pub(super) span: u64,
    /// The session of its source.
    pub(super) session: String,
    /// How often it was open before.
    pub(super) reopened: u32,
}

/// A bit beside those of outcomes: the pair has been counted for a process.
const ATTRIBUTED: u8 = 1 << 7;

/// How many kinds of alert within one session make each of them worse.
const KINDS_TOGETHER: usize = 3;

impl Incident {
    pub(super) fn open(id: String, crossing: Crossing, contacts: &[Arc<Contact>]) -> Option<Self> {
        let first = contacts.iter().min_by_key(|c| c.time_ns)?;
        let mut incident = Self {
            id,
            source: first.source.clone(),
            first: first.wall_ns,
            last: first.wall_ns,
            last_ns: first.time_ns,
            count: 0,
            pairs: BTreeMap::new(),
            unlisted: 0,
            targets: Vec::new(),
            target_count: 0,
            first_flags: BTreeSet::new(),
            flows: Vec::new(),
            processes: Processes::default(),
            claimed: None,
            threshold: crossing.threshold,
            span: crossing.span,
            session: String::new(),
            reopened: 0,
        };
        for contact in contacts {
            incident.add(contact);
        }
        Some(incident)
    }

    /// Adds a contact. The same pair a second time does not make the alert grow, unless each packet counts.
    pub(super) fn add(&mut self, contact: &Contact) {
        self.last = self.last.max(contact.wall_ns);
        self.last_ns = self.last_ns.max(contact.time_ns);
        if let Some(flow) = contact.flow
            && self.flows.len() < LISTED
            && !self.flows.contains(&flow)
        {
            self.flows.push(flow);
        }
        if contact.outcome == Outcome::Spoofed {
            self.count += 1;
            self.claimed = contact.claimed.clone().or(self.claimed.take());
        }
        self.first_flags.extend(contact.first_flags);
        self.meet(contact);
        self.attribute(contact);
    }

    fn meet(&mut self, contact: &Contact) {
        let pair = (contact.target.ip, contact.protocol, contact.port);
        if let Some(outcomes) = self.pairs.get_mut(&pair) {
            *outcomes |= contact.outcome.bit();
            return;
        }
        let grows = u64::from(contact.outcome != Outcome::Spoofed);
        if self.pairs.len() >= REMEMBERED {
            self.unlisted += 1;
            self.count += grows;
            return;
        }
        self.count += grows;
        let known = self.pairs.range((contact.target.ip, 0, 0)..=(contact.target.ip, u8::MAX, u16::MAX)).next().is_some();
        if !known {
            self.target_count += 1;
            if self.targets.len() < LISTED {
                self.targets.push(contact.target.clone());
            }
        }
        self.pairs.insert(pair, contact.outcome.bit());
    }

    /// Counts the contact for its process: each pair once, each packet where packets count. The kernel's array tells of contacts without
    /// their process; the record of the same contact has it.
    fn attribute(&mut self, contact: &Contact) {
        let Some(process) = &contact.process else { return };
        if contact.outcome != Outcome::Spoofed {
            let pair = (contact.target.ip, contact.protocol, contact.port);
            let Some(outcomes) = self.pairs.get_mut(&pair) else { return };
            if *outcomes & ATTRIBUTED != 0 {
                return;
            }
            *outcomes |= ATTRIBUTED;
        }
        self.processes.count(process);
    }

    /// Notes that a port of the incident answered after all.
    pub(super) fn answered(&mut self, contact: &Contact) {
        let pair = (contact.target.ip, contact.protocol, contact.port);
        if self.pairs.contains_key(&pair) || self.pairs.len() < REMEMBERED {
            *self.pairs.entry(pair).or_default() |= Outcome::Answered.bit();
        }
    }

    /// Who it is about.
    pub(super) fn source(&self) -> &Party {
        &self.source
    }

    /// The alert as it stands; `kinds` is how many kinds of alert its session has.
    pub(super) fn alert(&self, kind: &Kind, status: &str, kinds: usize) -> proto::Alert {
        let target = self.claimed.as_ref().map(|(claimed, _)| claimed).or(self.targets.first());
        let mut targets: Vec<_> = self.targets.iter().map(peer).collect();
        if let [only] = &mut targets[..] {
            only.port = self.only_port();
        }
        let severity = self.severity(kind) + u8::from(kinds >= KINDS_TOGETHER);
        proto::Alert {
            id: self.id.clone(),
            rule: kind.name.to_owned(),
            version: kind.version,
            title: (kind.title)(&display(&self.source), &target.map(display).unwrap_or_default()),
            severity: ["info", "info", "low", "medium", "high", "critical"][usize::from(severity.min(5))].to_owned(),
            confidence: self.confidence(kind),
            status: status.to_owned(),
            source: Some(peer(&self.source)),
            targets,
            target_count: self.target_count,
            evidence: Some(self.evidence()),
            attack: kind.attack.iter().map(|id| (*id).to_owned()).collect(),
            attack_version: ATTACK_VERSION.to_owned(),
            first: Some(timestamp(self.first)),
            last: Some(timestamp(self.last)),
            count: self.count,
            process: self.processes.first().map(process),
            flows: self.flows.iter().map(|id| flow_id_text(*id)).collect(),
            incident: Some(self.session.clone()),
            reopened: Some(self.reopened).filter(|times| *times > 0),
            processes: self.processes.list(),
        }
    }

    fn with(&self, outcome: Outcome) -> impl Iterator<Item = &(IpAddr, u8, u16)> {
        self.pairs.iter().filter(move |(_, outcomes)| **outcomes & outcome.bit() != 0).map(|(pair, _)| pair)
    }

    fn number(&self, outcome: Outcome) -> Option<u32> {
        u32::try_from(self.with(outcome).count()).ok().filter(|n| *n > 0)
    }

    fn failed(&self) -> impl Iterator<Item = &(IpAddr, u8, u16)> {
        let failed = Outcome::Refused.bit() | Outcome::Denied.bit() | Outcome::Silent.bit();
        self.pairs.iter().filter(move |(_, outcomes)| **outcomes & failed != 0).map(|(pair, _)| pair)
    }

    fn only_port(&self) -> Option<u32> {
        let ports: BTreeSet<u16> = self.pairs.keys().map(|(_, _, port)| *port).filter(|port| *port != 0).collect();
        (ports.len() == 1).then(|| ports.first().map(|port| u32::from(*port))).flatten()
    }

    fn evidence(&self) -> proto::Evidence {
        let open: BTreeSet<u16> = self.with(Outcome::Answered).map(|(_, _, port)| *port).collect();
        let answered_only = Outcome::Answered.bit();
        let tried: BTreeSet<u16> = self
            .pairs
            .iter()
            .filter(|(_, outcomes)| **outcomes & !ATTRIBUTED != answered_only)
            .map(|((_, _, port), _)| *port)
            .filter(|p| *p != 0)
            .collect();
        let protocols: BTreeSet<u8> = self.pairs.keys().map(|(_, protocol, _)| *protocol).collect();
        let spoofed = self.claimed.as_ref();
        let list = |ports: &BTreeSet<u16>| ports.iter().take(LISTED).map(|port| u32::from(*port)).collect();
        proto::Evidence {
            ports: list(&tried),
            port_count: u32::try_from(tried.len()).ok().filter(|n| *n > 0),
            open_ports: list(&open),
            failed: u32::try_from(self.failed().count() as u64 + self.unlisted).ok().filter(|_| spoofed.is_none()),
            refused: self.number(Outcome::Refused),
            denied: self.number(Outcome::Denied),
            silent: self.number(Outcome::Silent),
            answered: self.number(Outcome::Answered),
            window_s: u32::try_from(self.span / 1_000_000_000).ok().filter(|n| *n > 0),
            threshold: Some(self.threshold),
            first_flags: self.first_flags.iter().map(|flags| letters(*flags)).collect(),
            protocol: (protocols.len() == 1).then(|| protocols.first().map(|p| protocol_name(*p))).flatten(),
            claimed_ip: spoofed.map(|(party, _)| party.ip.to_string()),
            claimed_owner: spoofed.and_then(|(party, _)| party.identity.is_some().then(|| peer(party))),
            mac: spoofed.map(|(_, mac)| *mac).filter(|mac| *mac != [0; 6]).map(mac_text),
        }
    }

    /// The kind's severity, one step more for many or sensitive ports, or another tenant's target, and one more where something answered.
    fn severity(&self, kind: &Kind) -> u8 {
        if self.claimed.is_some() {
            return kind.severity;
        }
        let many = self.failed().count() >= MANY_PORTS;
        let sensitive = self.failed().any(|(_, _, port)| SENSITIVE.contains(port));
        let namespace = namespace(&self.source);
        let foreign = namespace.is_some() && self.targets.iter().any(|t| self::namespace(t).is_some_and(|n| Some(n) != namespace));
        let answered = self.with(Outcome::Answered).next().is_some();
        kind.severity + u8::from(many || sensitive || foreign) + u8::from(answered && many)
    }

    /// The kind's confidence, a little more for each failure above the threshold; a denied one counts twice, nobody legitimate repeats it.
    fn confidence(&self, kind: &Kind) -> u32 {
        let weight = self.failed().count() + self.with(Outcome::Denied).count();
        let more = u32::try_from(weight).unwrap_or(u32::MAX).saturating_sub(self.threshold);
        (kind.confidence + more.min(30)).min(99)
    }
}

fn namespace(party: &Party) -> Option<&str> {
    match &party.identity.as_deref()?.owner {
        Owner::Pod { namespace, .. } | Owner::Service { namespace, .. } => Some(namespace),
        Owner::Node { .. } => None,
    }
}

/// A party as a person would name it.
fn display(party: &Party) -> String {
    match party.identity.as_deref().map(|i| &i.owner) {
        Some(Owner::Pod { namespace, name, .. } | Owner::Service { namespace, name, .. }) => format!("{namespace}/{name}"),
        Some(Owner::Node { name }) => format!("node {name}"),
        None => party.ip.to_string(),
    }
}

fn peer(party: &Party) -> proto::AlertPeer {
    let mut peer = proto::AlertPeer { ip: Some(party.ip.to_string()), zone: proto::Zone::World.into(), ..proto::AlertPeer::default() };
    if let Some(Identity { owner, .. }) = party.identity.as_deref() {
        match owner {
            Owner::Pod { namespace, name, uid, workload, node, .. } => {
                peer.namespace = Some(namespace.to_string());
                peer.pod = Some(name.to_string());
                peer.uid = Some(uid.to_string());
                peer.workload = Some(proto::Workload { kind: workload.kind.to_string(), name: workload.name.to_string() });
                peer.node = node.as_ref().map(ToString::to_string);
                peer.zone = proto::Zone::Pod.into();
            }
            Owner::Service { namespace, name, .. } => {
                peer.namespace = Some(namespace.to_string());
                peer.workload = Some(proto::Workload { kind: "Service".to_owned(), name: name.to_string() });
                peer.zone = proto::Zone::Service.into();
            }
            Owner::Node { name } => {
                peer.node = Some(name.to_string());
                peer.zone = proto::Zone::Node.into();
            }
        }
    }
    peer
}
