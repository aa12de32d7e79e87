//! From one run of the agent to the next: the detector's [`State`], and the last words of a run.

use sekisho_proto as proto;

use super::contact::Outcome;
use super::engine::{BREATH_NS, Detector, IncidentKey, Told};
use super::kinds::{KINDS, Scope};
use super::state::{self, Reader, State, StoredClosed, StoredContact, StoredScope, Writer};
use crate::flow::Now;

/// How old a contact may be to still count in some window.
const WINDOW_NS: u64 = 60_000_000_000;

impl Detector {
    /// What is to be said at the end of a run: what the next breath would have said, and for every incident that it is closed, so that
    /// nothing stays open for those who read the records. If the next run meets more of an incident, it goes on under its id.
    pub fn last_words(&mut self, now: &Now) -> Vec<proto::Alert> {
        let mut alerts = self.tick(&Now { boot_ns: now.boot_ns + BREATH_NS, ..*now });
        let history = &mut self.history;
        for (key, told) in &mut self.incidents {
            if !told.ended {
                alerts.extend(told.tell(&KINDS[key.0], history, "closed"));
                told.ended = true;
            }
        }
        alerts.extend(self.history.close_storm());
        alerts
    }

    /// Changes with everything that a [`State`] would say differently.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// For the next run.
    pub fn state(&self, now: &Now) -> State {
        let mut writer = Writer::default();
        for (key, told) in &self.incidents {
            let Some(scope) = writer.scope(&key.2, told.incident.targets.first()) else { continue };
            let mut stored = writer.incident(KINDS[key.0].name, scope, &told.incident);
            (stored.due, stored.said, stored.opened_at) = (told.due, told.said, told.opened_at);
            (stored.updates, stored.muted, stored.ended) = (told.updates, told.muted, told.ended);
            writer.state.incidents.push(stored);
        }
        for (key, closed) in self.history.newest_closed(state::REMEMBERED) {
            let Some((source, target)) = &closed.about else { continue };
            let Some(scope) = writer.scope(&key.2, target.as_ref()) else { continue };
            let source = writer.party(source);
            let (id, at_ns, times) = (closed.id.clone(), closed.at_ns, closed.times);
            writer.state.closed.push(StoredClosed { kind: KINDS[key.0].name.to_owned(), source, scope, id, at_ns, times });
        }
        writer.state.sessions = self.history.newest_sessions(state::REMEMBERED);
        for contact in self.memory.recent(now.boot_ns.saturating_sub(WINDOW_NS), state::CONTACTS) {
            writer.contact(&contact);
        }
        writer.state
    }

    /// Goes on from an earlier run's state. The windows follow with the first snapshot: it says which ports are declared.
    pub fn restore(&mut self, mut state: State) {
        let reader = Reader::new(&mut state);
        for stored in &state.incidents {
            let Some(place) = state::place(&stored.kind) else { continue };
            let incident = reader.incident(stored);
            let key = self.key(place, &reader, &stored.source, &stored.scope);
            *self.busy.entry(key.1).or_default() += 1;
            let told = Told {
                incident,
                due: stored.due,
                said: stored.said,
                opened_at: stored.opened_at,
                updates: stored.updates,
                muted: stored.muted,
                ended: stored.ended,
                resumed: false,
            };
            self.incidents.insert(key, told);
        }
        for stored in std::mem::take(&mut state.closed) {
            let Some(place) = state::place(&stored.kind) else { continue };
            let key = self.key(place, &reader, &stored.source, &stored.scope);
            self.history.remember(&key, reader.closed(stored));
        }
        for stored in std::mem::take(&mut state.sessions) {
            let (owner, session) = stored.into_session();
            self.history.resume(&owner, session);
        }
        self.to_weigh = state.contacts.iter().filter_map(|stored: &StoredContact| reader.contact(stored)).collect();
    }

    fn key(&mut self, place: usize, reader: &Reader, source: &state::StoredParty, scope: &StoredScope) -> IncidentKey {
        let source = reader.party(source);
        let spoofed = (KINDS[place].wants)(&super::contact::Contact::bare(&source, Outcome::Spoofed));
        let number = self.source_number(&source, spoofed);
        let scope = match scope {
            StoredScope::Target(target) => Scope::Target(self.parties.number(&reader.party(target))),
            StoredScope::Many => Scope::Many,
            StoredScope::Protocol(protocol) => Scope::Protocol(*protocol),
            StoredScope::Itself => Scope::Itself,
        };
        (place, number, scope)
    }

    /// Fills the windows with an earlier run's contacts. What they crossed then was said then.
    pub(super) fn weigh_again(&mut self) {
        for contact in std::mem::take(&mut self.to_weigh) {
            let source = self.source_number(&contact.source, contact.outcome == Outcome::Spoofed);
            for kind in KINDS.iter().filter(|kind| (kind.wants)(&contact)) {
                let _said_then = (kind.weigh)(&mut self.memory, source, &contact);
            }
        }
    }
}
