//! What outlasts one incident: ids that may come back, sessions that put a pod's alerts together, and the cap on new alerts.
//!
//! A *session* is an hour of one pod: all its alerts within it carry the same `incident`, so that a scan and the spoofing that goes
//! with it read as one story. A *storm* stands for the alerts of a minute beyond what a person could read: they are counted, not told.

use std::collections::BTreeSet;
use std::net::IpAddr;

use sekisho_proto as proto;
use serde::{Deserialize, Serialize};

use super::contact::Party;
use super::engine::IncidentKey;
use super::incident::{ATTACK_VERSION, Incident};
use super::keyed::Keyed;
use super::state::StoredSession;
use super::ulid::Ulids;
use crate::flow::{Now, timestamp};

const MINUTE: u64 = 60_000_000_000;
/// How long a closed incident may open again under its id.
const REOPENS: u64 = 24 * 60 * MINUTE;
/// How long a pod must be quiet for its session to end.
const SESSION: u64 = 60 * MINUTE;
/// Closed incidents and sessions that are remembered, each.
const REMEMBERED: usize = 8192;
/// New alerts in a minute that are told one by one.
const TOLD: u64 = 60;

/// Whose session it is: a pod's, or an address's.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) enum Owner {
    Instance(u32),
    Address(IpAddr),
}

impl Owner {
    fn of(party: &Party) -> Self {
        party.identity.as_ref().map_or(Self::Address(party.ip), |identity| Self::Instance(identity.instance))
    }
}

#[derive(Clone, Default)]
pub(super) struct Session {
    pub(super) id: String,
    pub(super) last_ns: u64,
    pub(super) kinds: BTreeSet<&'static str>,
}

#[derive(Clone, Default)]
pub(super) struct Closed {
    pub(super) id: String,
    pub(super) at_ns: u64,
    pub(super) times: u32,
    /// Source and first target.
    pub(super) about: Option<(Party, Option<Party>)>,
}

/// The storm of this time, if there is one.
struct Storm {
    id: String,
    first: u64,
    last: u64,
    last_ns: u64,
    muted: u64,
    /// What was told last, and when.
    told: Option<(u64, u64)>,
}

/// See the module.
pub(super) struct History {
    sessions: Keyed<Owner, Session>,
    closed: Keyed<IncidentKey, Closed>,
    minute_ns: u64,
    opened: u64,
    storm: Option<Storm>,
}

impl History {
    pub(super) fn new() -> Self {
        Self { sessions: Keyed::new(REMEMBERED), closed: Keyed::new(REMEMBERED), minute_ns: 0, opened: 0, storm: None }
    }

    /// The id for an incident that opens now, and how often it has been open before.
    pub(super) fn id(&mut self, key: &IncidentKey, now_ns: u64, fresh: impl FnOnce() -> String) -> (String, u32) {
        let closed = self.closed.entry(key, Closed::default);
        if !closed.id.is_empty() && now_ns.saturating_sub(closed.at_ns) <= REOPENS {
            return (closed.id.clone(), closed.times);
        }
        (fresh(), 0)
    }

    /// An incident was closed; it may come back.
    pub(super) fn close(&mut self, key: &IncidentKey, incident: &Incident, now_ns: u64) {
        let about = Some((incident.source().clone(), incident.targets.first().cloned()));
        let closed = Closed { id: incident.id.clone(), at_ns: now_ns, times: incident.reopened + 1, about };
        *self.closed.entry(key, Closed::default) = closed;
    }

    /// An incident that an earlier run closed.
    pub(super) fn remember(&mut self, key: &IncidentKey, closed: Closed) {
        *self.closed.entry(key, Closed::default) = closed;
    }

    /// A session that an earlier run began.
    pub(super) fn resume(&mut self, owner: &Owner, session: Session) {
        *self.sessions.entry(owner, Session::default) = session;
    }

    /// Incidents that were closed last.
    pub(super) fn newest_closed(&self, limit: usize) -> Vec<(&IncidentKey, &Closed)> {
        let mut all: Vec<_> = self.closed.iter().filter(|(_, closed)| !closed.id.is_empty()).collect();
        all.sort_unstable_by_key(|(_, closed)| std::cmp::Reverse(closed.at_ns));
        all.truncate(limit);
        all
    }

    /// Sessions that went on last.
    pub(super) fn newest_sessions(&self, limit: usize) -> Vec<StoredSession> {
        let mut all: Vec<_> = self.sessions.iter().filter(|(_, session)| !session.id.is_empty()).collect();
        all.sort_unstable_by_key(|(_, session)| std::cmp::Reverse(session.last_ns));
        all.into_iter().take(limit).map(|(owner, session)| StoredSession::of(owner, session)).collect()
    }

    /// The run ends, and with it the storm.
    pub(super) fn close_storm(&mut self) -> Option<proto::Alert> {
        self.storm.take().map(|storm| storm.alert("closed"))
    }

    /// The session of an alert's source, which goes on with it; and how many kinds of alert it has.
    pub(super) fn session(&mut self, source: &Party, kind: &'static str, now_ns: u64, fresh: impl FnOnce() -> String) -> (String, usize) {
        let session = self.sessions.entry(&Owner::of(source), Session::default);
        if session.id.is_empty() || now_ns.saturating_sub(session.last_ns) > SESSION {
            *session = Session { id: fresh(), ..Session::default() };
        }
        session.last_ns = session.last_ns.max(now_ns);
        session.kinds.insert(kind);
        (session.id.clone(), session.kinds.len())
    }

    /// Whether a new alert is told, or only counted.
    pub(super) fn admits(&mut self, now_ns: u64, wall_ns: u64, ulids: &mut Ulids) -> bool {
        if now_ns.saturating_sub(self.minute_ns) >= MINUTE {
            (self.minute_ns, self.opened) = (now_ns, 0);
        }
        self.opened += 1;
        if self.opened <= TOLD {
            return true;
        }
        let begin = || Storm { id: ulids.next(wall_ns), first: wall_ns, last: wall_ns, last_ns: now_ns, muted: 0, told: None };
        let storm = self.storm.get_or_insert_with(begin);
        storm.muted += 1;
        (storm.last, storm.last_ns) = (wall_ns, now_ns);
        false
    }

    /// What is to be said of a storm by now.
    pub(super) fn tick(&mut self, now: &Now) -> Option<proto::Alert> {
        let storm = self.storm.as_mut()?;
        if now.boot_ns.saturating_sub(storm.last_ns) >= 2 * MINUTE {
            let alert = storm.alert("closed");
            self.storm = None;
            return Some(alert);
        }
        let (status, due) = match storm.told {
            None => ("open", true),
            Some((muted, at)) => ("update", storm.muted > muted && now.boot_ns.saturating_sub(at) >= MINUTE),
        };
        due.then(|| {
            storm.told = Some((storm.muted, now.boot_ns));
            storm.alert(status)
        })
    }
}

impl Storm {
    fn alert(&self, status: &str) -> proto::Alert {
        proto::Alert {
            id: self.id.clone(),
            rule: "alert.storm".to_owned(),
            version: 1,
            title: format!("more than {TOLD} new alerts in a minute: {} are counted here and not told one by one", self.muted),
            severity: "high".to_owned(),
            confidence: 100,
            status: status.to_owned(),
            attack_version: ATTACK_VERSION.to_owned(),
            first: Some(timestamp(self.first)),
            last: Some(timestamp(self.last)),
            count: self.muted,
            ..proto::Alert::default()
        }
    }
}
