//! The detector: gives contacts to the kinds, keeps incidents, says alerts.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use sekisho_proto as proto;

use super::contact::{Contact, Outcome, Party};
use super::history::History;
use super::incident::Incident;
use super::kinds::{Crossing, HORIZONTAL, KINDS, Kind, Memory, Scope, Source, WALKED};
use super::ulid::Ulids;
use crate::flow::{Directory, Now, NumberMap, Owner};
use crate::inventory::Snapshot;

const SECOND: u64 = 1_000_000_000;

/// How long a new alert waits for what follows within the same breath, so that its first record tells of the whole scan.
pub(super) const BREATH_NS: u64 = SECOND / 5;
/// An incident ends after that long without a contact.
const QUIET_NS: u64 = 900 * SECOND;
/// Incidents of one kind and source that are told apart; more become one.
const APART: usize = 4;
/// Incidents that are open at once; beyond, new ones are counted as suppressed.
const OPEN: usize = 1024;
/// Parties that are numbered before the numbers start anew.
const PARTIES: usize = 65_536;
/// How much an alert must have grown for its first, second and third update.
const GROWTH: [u64; 3] = [2, 10, 100];

/// Who a contact's side is for the windows: a workload, or an address without one.
#[derive(Clone, PartialEq, Eq, Hash)]
enum PartyKey {
    Workload(Arc<str>, Arc<str>, Arc<str>),
    Node(Arc<str>),
    Address(IpAddr),
}

impl PartyKey {
    fn of(party: &Party) -> Self {
        match party.identity.as_deref().map(|i| &i.owner) {
            Some(Owner::Pod { namespace, workload, .. }) => Self::Workload(namespace.clone(), workload.kind.clone(), workload.name.clone()),
            Some(Owner::Service { namespace, name, .. }) => Self::Workload(namespace.clone(), "Service".into(), name.clone()),
            Some(Owner::Node { name }) => Self::Node(name.clone()),
            None => Self::Address(party.ip),
        }
    }
}

/// Numbers for parties.
#[derive(Default)]
pub(super) struct Parties {
    by_instance: NumberMap<u32, u32>,
    by_key: HashMap<PartyKey, u32>,
    next: u32,
}

impl Parties {
    pub(super) fn number(&mut self, party: &Party) -> u32 {
        let instance = party.identity.as_ref().map(|i| i.instance);
        if let Some(number) = instance.and_then(|i| self.by_instance.get(&i)) {
            return *number;
        }
        if self.by_key.len() >= PARTIES || self.by_instance.len() >= PARTIES {
            // Numbers go on: an old one never means someone else.
            self.by_key.clear();
            self.by_instance.clear();
        }
        let next = &mut self.next;
        let number = *self.by_key.entry(PartyKey::of(party)).or_insert_with(|| {
            *next += 1;
            *next
        });
        if let Some(instance) = instance {
            self.by_instance.insert(instance, number);
        }
        number
    }
}

/// Kind (by place in [`KINDS`]), source and scope.
pub(super) type IncidentKey = (usize, Source, Scope);

/// An incident and what was said of it.
pub(super) struct Told {
    pub(super) incident: Incident,
    /// Not said yet: to be said from then on.
    pub(super) due: Option<u64>,
    /// When it was said last.
    pub(super) said: u64,
    /// Its count when it was opened.
    pub(super) opened_at: u64,
    /// Updates said for growth.
    pub(super) updates: usize,
    /// One of a storm: counted there, never told.
    pub(super) muted: bool,
    /// The end of the run before this one closed it, and nothing of it was met since.
    pub(super) ended: bool,
    /// It goes on after that: to be said at once.
    pub(super) resumed: bool,
}

impl Told {
    fn add(&mut self, contact: &Contact) {
        self.incident.add(contact);
        if std::mem::take(&mut self.ended) {
            self.resumed = true;
        }
    }

    /// The alert as it stands, unless it is one of a storm.
    pub(super) fn tell(&self, kind: &Kind, history: &mut History, status: &str) -> Option<proto::Alert> {
        let session = self.incident.session.clone();
        let (_, kinds) = history.session(self.incident.source(), kind.name, self.incident.last_ns, || session);
        (!self.muted).then(|| self.incident.alert(kind, status, kinds))
    }
}

/// See the module.
pub struct Detector {
    /// This node's name: pods of others are their nodes' business.
    pub(super) node: Arc<str>,
    pub(super) directory: Arc<Directory>,
    pub(super) parties: Parties,
    pub(super) memory: Memory,
    pub(super) incidents: HashMap<IncidentKey, Told>,
    /// How many incidents a source has: most have none, and cost nothing more.
    pub(super) busy: NumberMap<Source, usize>,
    ulids: Ulids,
    pub(super) history: History,
    /// See [`Detector::version`].
    pub(super) version: u64,
    /// Contacts of the run before this one, until it is known which ports are declared.
    pub(super) to_weigh: Vec<Contact>,
    pub(super) suppressed: BTreeMap<(&'static str, &'static str), u64>,
}

impl Detector {
    /// A detector for one node. `seed` makes its ids differ from others'.
    pub fn new(node: &str, seed: u64) -> Self {
        Self {
            node: node.into(),
            directory: Arc::default(),
            parties: Parties::default(),
            memory: Memory::new(),
            incidents: HashMap::new(),
            busy: NumberMap::default(),
            ulids: Ulids::new(seed),
            history: History::new(),
            version: 0,
            to_weigh: Vec::new(),
            suppressed: BTreeMap::new(),
        }
    }

    /// Who is who from now on: to name the owner of a spoofed address.
    pub fn set_directory(&mut self, directory: Arc<Directory>) {
        self.directory = directory;
    }

    /// What the cluster says from now on: to know which ports targets declare.
    pub fn set_snapshot(&mut self, snapshot: Arc<Snapshot>) {
        self.memory.declared.set(snapshot);
        self.weigh_again();
    }

    /// What was seen and did not count, by kind and reason.
    pub fn suppressed(&self) -> BTreeMap<(&'static str, &'static str), u64> {
        let mut all = self.suppressed.clone();
        all.insert(("scan", "state_full"), self.memory.dropped());
        all
    }

    /// Takes in one contact.
    pub fn contact(&mut self, contact: &Contact) {
        // A pod that lies about itself is one pod, not its workload.
        let source = self.source_number(&contact.source, matches!(contact.outcome, Outcome::Spoofed | Outcome::Rogue));
        self.version += u64::from(contact.outcome != Outcome::Tried);
        if contact.outcome == Outcome::Answered {
            self.answered(source, contact);
            return;
        }
        for (place, kind) in KINDS.iter().enumerate() {
            if !(kind.wants)(contact) {
                continue;
            }
            let crossing = (kind.weigh)(&mut self.memory, source, contact);
            if crossing.is_none() && !self.busy.contains_key(&source) {
                continue;
            }
            let target = self.parties.number(&contact.target);
            let own = (place, source, (kind.scope)(contact, target));
            let many = (place, source, Scope::Many);
            let key = if self.incidents.contains_key(&own) { own.clone() } else { many };
            if let Some(told) = self.incidents.get_mut(&key) {
                let belongs = key == own || crossing.is_some();
                if belongs && (kind.adds)(contact) || crossing.is_some() {
                    told.add(contact);
                }
                continue;
            }
            if let Some(crossing) = crossing {
                let contacts = (kind.gather)(&self.memory, source, contact, crossing);
                self.open(place, source, own, crossing, contact, &contacts);
            }
        }
    }

    pub(super) fn source_number(&mut self, source: &Party, spoofed: bool) -> Source {
        // A pod that lies about its address is one pod, not its workload.
        if spoofed { source.identity.as_ref().map_or(0, |i| i.instance) } else { self.parties.number(source) }
    }

    /// Opens an incident for `contacts`, of which `contact` is the last.
    fn open(&mut self, place: usize, source: Source, own: IncidentKey, crossing: Crossing, contact: &Contact, contacts: &[Arc<Contact>]) {
        if self.incidents.len() >= OPEN {
            *self.suppressed.entry((KINDS[place].name, "too_many_open")).or_default() += 1;
            return;
        }
        let apart = self.incidents.keys().filter(|(p, s, _)| (*p, *s) == (place, source)).count();
        let key = if apart >= APART { (place, source, Scope::Many) } else { own };
        let (ulids, now) = (&mut self.ulids, contact.time_ns);
        let (id, reopened) = self.history.id(&key, now, || ulids.next(contact.wall_ns));
        if let Some(mut incident) = Incident::open(id, crossing, contacts) {
            let muted = !self.history.admits(now, contact.wall_ns, ulids);
            let kind = KINDS[place].name;
            (incident.session, _) = self.history.session(incident.source(), kind, now, || ulids.next(contact.wall_ns));
            incident.reopened = reopened;
            *self.busy.entry(source).or_default() += 1;
            let due = Some(now + BREATH_NS);
            let told = Told { incident, due, said: 0, opened_at: 0, updates: 0, muted, ended: false, resumed: false };
            self.incidents.insert(key, told);
        }
    }

    /// Hosts that a source walked past, whose ports they declare.
    fn walked(&mut self, now: &Now) {
        let declared = &self.memory.declared;
        for ((source, protocol, ..), contacts) in self.memory.walks.due(now.boot_ns, |contact| declared.is_gone(contact)) {
            let Some(last) = contacts.last() else { continue };
            let own = (HORIZONTAL, source, Scope::Protocol(protocol));
            match self.incidents.get_mut(&own) {
                Some(told) => contacts.iter().for_each(|contact| told.add(contact)),
                None => self.open(HORIZONTAL, source, own, WALKED, last, &contacts),
            }
        }
    }

    /// A port answered: worth knowing where its neighbours failed.
    fn answered(&mut self, source: Source, contact: &Contact) {
        if !self.busy.contains_key(&source) {
            return;
        }
        let target = self.parties.number(&contact.target);
        for (place, kind) in KINDS.iter().enumerate() {
            if let Some(told) = self.incidents.get_mut(&(place, source, (kind.scope)(contact, target))) {
                told.incident.answered(contact);
            }
        }
    }

    /// Says what is to be said by now: new alerts, updates, ends.
    pub fn tick(&mut self, now: &Now) -> Vec<proto::Alert> {
        self.walked(now);
        let mut alerts: Vec<proto::Alert> = self.history.tick(now).into_iter().collect();
        let (busy, history) = (&mut self.busy, &mut self.history);
        self.incidents.retain(|key, told| {
            let (place, source, _) = key;
            let kind = &KINDS[*place];
            let count = told.incident.count;
            let mut tell = |told: &Told, history: &mut History, status| alerts.extend(told.tell(kind, history, status));
            if let Some(due) = told.due {
                if now.boot_ns >= due {
                    (told.due, told.said, told.opened_at) = (None, now.boot_ns, count);
                    tell(told, history, "open");
                }
                return true;
            }
            if now.boot_ns.saturating_sub(told.incident.last_ns) >= QUIET_NS {
                if !told.ended {
                    tell(told, history, "closed");
                }
                history.close(key, &told.incident, now.boot_ns);
                if let Some(open) = busy.get_mut(source) {
                    *open -= 1;
                    if *open == 0 {
                        busy.remove(source);
                    }
                }
                return false;
            }
            if std::mem::take(&mut told.resumed) {
                told.said = now.boot_ns;
                tell(told, history, "update");
                return true;
            }
            let factor = GROWTH.get(told.updates).copied();
            let grown = factor.is_some_and(|factor| count >= told.opened_at.saturating_mul(factor));
            if grown && now.boot_ns >= told.said + kind.gap_ns {
                // A jump over several steps is one update.
                told.updates = GROWTH.iter().filter(|factor| count >= told.opened_at.saturating_mul(**factor)).count();
                told.said = now.boot_ns;
                tell(told, history, "update");
            }
            true
        });
        self.version += alerts.len() as u64;
        alerts
    }

    /// How many incidents are open.
    pub fn open_incidents(&self) -> usize {
        self.incidents.len()
    }
}
