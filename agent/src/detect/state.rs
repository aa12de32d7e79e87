//! What a detector hands to the next run: incidents that are open, ids that may come back, sessions, and the contacts that the windows
//! hold. Bounded whatever happened. Windows are filled again by weighing their contacts once more.
//!
//! Times are boottimes and identities bear the journal's numbers: a state means something only to a run of the same boot with the same
//! journal. The caller sees to that.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::contact::{Contact, Outcome, Party};
use super::history::{Closed, Owner, Session};
use super::incident::Incident;
use super::kinds::{KINDS, Scope};
use super::processes::Processes;
use crate::flow::{Identity, ProcessInfo, StoredIdentity};

/// Contacts of windows that are kept, the newest.
pub(super) const CONTACTS: usize = 2048;
/// Pairs of all incidents together; the counts of what is left out stay.
pub(super) const PAIRS: usize = 65_536;
/// Closed incidents and sessions that are kept, each, the newest.
pub(super) const REMEMBERED: usize = 2048;

/// See the module.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    identities: Vec<(u32, StoredIdentity)>,
    processes: Vec<StoredProcess>,
    pub(super) incidents: Vec<StoredIncident>,
    pub(super) closed: Vec<StoredClosed>,
    pub(super) sessions: Vec<StoredSession>,
    pub(super) contacts: Vec<StoredContact>,
}

/// `(pid, comm, uid, container id, executable)`.
type StoredProcess = (u32, Arc<str>, Option<u32>, Option<Arc<str>>, Option<Arc<str>>);
/// Address, and the place of its owner in the list of identities.
pub(super) type StoredParty = (IpAddr, Option<usize>);
type StoredClaim = (StoredParty, [u8; 6]);

#[derive(Serialize, Deserialize)]
pub(super) enum StoredScope {
    Target(StoredParty),
    Many,
    Protocol(u8),
    Itself,
}

#[derive(Serialize, Deserialize)]
pub(super) struct StoredIncident {
    pub(super) kind: String,
    pub(super) scope: StoredScope,
    pub(super) due: Option<u64>,
    pub(super) said: u64,
    pub(super) opened_at: u64,
    pub(super) updates: usize,
    pub(super) muted: bool,
    pub(super) ended: bool,
    id: String,
    pub(super) source: StoredParty,
    first: u64,
    last: u64,
    last_ns: u64,
    count: u64,
    pairs: Vec<(IpAddr, u8, u16, u8)>,
    unlisted: u64,
    targets: Vec<StoredParty>,
    target_count: u32,
    first_flags: BTreeSet<u8>,
    flows: Vec<u64>,
    processes: Vec<(usize, u64)>,
    claimed: Option<StoredClaim>,
    threshold: u32,
    span: u64,
    session: String,
    reopened: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct StoredClosed {
    pub(super) kind: String,
    pub(super) source: StoredParty,
    pub(super) scope: StoredScope,
    pub(super) id: String,
    pub(super) at_ns: u64,
    pub(super) times: u32,
}

#[derive(Serialize, Deserialize)]
pub(super) struct StoredSession {
    pub(super) owner: Owner,
    id: String,
    last_ns: u64,
    kinds: Vec<String>,
}

#[derive(Serialize, Deserialize)]
pub(super) struct StoredContact {
    source: StoredParty,
    target: StoredParty,
    port: u16,
    protocol: u8,
    outcome: u8,
    time_ns: u64,
    wall_ns: u64,
    first_flags: Option<u8>,
    flow: Option<u64>,
    process: Option<usize>,
}

/// Gathers a state, each identity and process once.
#[derive(Default)]
pub(super) struct Writer {
    pub(super) state: State,
    identities: HashMap<*const Identity, usize>,
    processes: HashMap<*const ProcessInfo, usize>,
    /// What is referred to by address stays until the end.
    held: Vec<(Option<Arc<Identity>>, Option<Arc<ProcessInfo>>)>,
    pairs: usize,
}

impl Writer {
    pub(super) fn party(&mut self, party: &Party) -> StoredParty {
        let place = party.identity.as_ref().map(|identity| {
            *self.identities.entry(Arc::as_ptr(identity)).or_insert_with(|| {
                self.held.push((Some(identity.clone()), None));
                self.state.identities.push((identity.instance, StoredIdentity::of(identity)));
                self.state.identities.len() - 1
            })
        });
        (party.ip, place)
    }

    fn process(&mut self, process: &Arc<ProcessInfo>) -> usize {
        *self.processes.entry(Arc::as_ptr(process)).or_insert_with(|| {
            self.held.push((None, Some(process.clone())));
            let ProcessInfo { pid, comm, uid, container_id, exe } = &**process;
            self.state.processes.push((*pid, comm.clone(), *uid, container_id.clone(), exe.clone()));
            self.state.processes.len() - 1
        })
    }

    /// A scope; that of a target is the first one of the incident.
    pub(super) fn scope(&mut self, scope: &Scope, target: Option<&Party>) -> Option<StoredScope> {
        Some(match scope {
            Scope::Target(_) => StoredScope::Target(self.party(target?)),
            Scope::Many => StoredScope::Many,
            Scope::Protocol(protocol) => StoredScope::Protocol(*protocol),
            Scope::Itself => StoredScope::Itself,
        })
    }

    pub(super) fn contact(&mut self, contact: &Contact) {
        let stored = StoredContact {
            source: self.party(&contact.source),
            target: self.party(&contact.target),
            port: contact.port,
            protocol: contact.protocol,
            outcome: contact.outcome as u8,
            time_ns: contact.time_ns,
            wall_ns: contact.wall_ns,
            first_flags: contact.first_flags,
            flow: contact.flow,
            process: contact.process.as_ref().map(|process| self.process(process)),
        };
        self.state.contacts.push(stored);
    }

    /// An incident; what is around it is filled in by the caller.
    pub(super) fn incident(&mut self, kind: &str, scope: StoredScope, incident: &Incident) -> StoredIncident {
        let room = PAIRS - self.pairs;
        let pairs: Vec<_> = incident.pairs.iter().take(room).map(|((ip, protocol, port), bits)| (*ip, *protocol, *port, *bits)).collect();
        self.pairs += pairs.len();
        StoredIncident {
            kind: kind.to_owned(),
            scope,
            due: None,
            said: 0,
            opened_at: 0,
            updates: 0,
            muted: false,
            ended: false,
            id: incident.id.clone(),
            source: self.party(&incident.source),
            first: incident.first,
            last: incident.last,
            last_ns: incident.last_ns,
            count: incident.count,
            unlisted: incident.unlisted + (incident.pairs.len() - pairs.len()) as u64,
            pairs,
            targets: incident.targets.iter().map(|target| self.party(target)).collect(),
            target_count: incident.target_count,
            first_flags: incident.first_flags.clone(),
            flows: incident.flows.clone(),
            processes: incident.processes.all().iter().map(|(process, count)| (self.process(process), *count)).collect(),
            claimed: incident.claimed.as_ref().map(|(party, mac)| (self.party(party), *mac)),
            threshold: incident.threshold,
            span: incident.span,
            session: incident.session.clone(),
            reopened: incident.reopened,
        }
    }
}

impl StoredSession {
    pub(super) fn of(owner: &Owner, session: &Session) -> Self {
        let kinds = session.kinds.iter().map(|kind| (*kind).to_owned()).collect();
        Self { owner: owner.clone(), id: session.id.clone(), last_ns: session.last_ns, kinds }
    }

    pub(super) fn into_session(self) -> (Owner, Session) {
        let kinds = self.kinds.iter().filter_map(|name| Some(KINDS[place(name)?].name)).collect();
        (self.owner, Session { id: self.id, last_ns: self.last_ns, kinds })
    }
}

/// The place of a kind in [`KINDS`]; none of one that this version does not know.
pub(super) fn place(name: &str) -> Option<usize> {
    KINDS.iter().position(|kind| kind.name == name)
}

/// Reads a state back.
pub(super) struct Reader {
    identities: Vec<Option<Arc<Identity>>>,
    processes: Vec<Arc<ProcessInfo>>,
}

impl Reader {
    pub(super) fn new(state: &mut State) -> Self {
        let identities = std::mem::take(&mut state.identities);
        let processes = std::mem::take(&mut state.processes).into_iter();
        Self {
            identities: identities.into_iter().map(|(instance, stored)| stored.into_identity(instance).map(Arc::new)).collect(),
            processes: processes
                .map(|(pid, comm, uid, container_id, exe)| Arc::new(ProcessInfo { pid, comm, uid, container_id, exe }))
                .collect(),
        }
    }

    pub(super) fn party(&self, stored: &StoredParty) -> Party {
        Party { ip: stored.0, identity: stored.1.and_then(|place| self.identities.get(place)?.clone()) }
    }

    pub(super) fn contact(&self, stored: &StoredContact) -> Option<Contact> {
        Some(Contact {
            source: self.party(&stored.source),
            target: self.party(&stored.target),
            port: stored.port,
            protocol: stored.protocol,
            outcome: Outcome::ALL.into_iter().find(|outcome| *outcome as u8 == stored.outcome)?,
            time_ns: stored.time_ns,
            wall_ns: stored.wall_ns,
            first_flags: stored.first_flags,
            flow: stored.flow,
            process: stored.process.and_then(|place| self.processes.get(place).cloned()),
            claimed: None,
        })
    }

    pub(super) fn incident(&self, stored: &StoredIncident) -> Incident {
        let mut processes = Processes::default();
        for (place, count) in &stored.processes {
            if let Some(process) = self.processes.get(*place) {
                processes.add(process, *count);
            }
        }
        Incident {
            id: stored.id.clone(),
            source: self.party(&stored.source),
            first: stored.first,
            last: stored.last,
            last_ns: stored.last_ns,
            count: stored.count,
            pairs: stored.pairs.iter().map(|(ip, protocol, port, bits)| ((*ip, *protocol, *port), *bits)).collect::<BTreeMap<_, _>>(),
            unlisted: stored.unlisted,
            targets: stored.targets.iter().map(|target| self.party(target)).collect(),
            target_count: stored.target_count,
            first_flags: stored.first_flags.clone(),
            flows: stored.flows.clone(),
            processes,
            claimed: stored.claimed.as_ref().map(|(party, mac)| (self.party(party), *mac)),
            threshold: stored.threshold,
            span: stored.span,
            session: stored.session.clone(),
            reopened: stored.reopened,
        }
    }

    pub(super) fn closed(&self, stored: StoredClosed) -> Closed {
        let target = match &stored.scope {
            StoredScope::Target(target) => Some(self.party(target)),
            _ => None,
        };
        Closed { id: stored.id, at_ns: stored.at_ns, times: stored.times, about: Some((self.party(&stored.source), target)) }
    }
}
