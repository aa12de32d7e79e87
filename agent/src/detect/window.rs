//! What one key has done lately: an exact set of at most 64 members, each with the time it was last met and last failed.

use std::sync::Arc;

use super::contact::Contact;
use crate::flow::Owner;

/// Members that a window tells apart. Every threshold lies below; an alert that is open counts on by itself.
const MEMBERS: usize = 64;

/// What a window tells apart: a port for vertical scans, a host for horizontal ones.
pub(super) struct Member<T> {
    pub(super) id: T,
    /// Last met.
    pub(super) met_ns: u64,
    /// Last failed; 0 = never.
    pub(super) failed_ns: u64,
    /// The last contact that failed, else the last one.
    pub(super) contact: Arc<Contact>,
}

/// See the module.
pub(super) struct Window<T> {
    members: Vec<Member<T>>,
}

impl<T: Eq> Window<T> {
    pub(super) fn new() -> Self {
        Self { members: Vec::new() }
    }

    /// Notes a contact with a member. Telling the same contact twice changes nothing.
    pub(super) fn note(&mut self, id: T, contact: &Contact) {
        let failed = contact.outcome.failed();
        if let Some(member) = self.members.iter_mut().find(|m| m.id == id) {
            member.met_ns = member.met_ns.max(contact.time_ns);
            if failed && contact.time_ns > member.failed_ns {
                member.failed_ns = contact.time_ns;
                renew(&mut member.contact, contact);
            } else if failed && contact.process.is_some() && member.contact.process.is_none() {
                renew(&mut member.contact, contact);
            }
            return;
        }
        let failed_ns = if failed { contact.time_ns } else { 0 };
        if self.members.len() >= MEMBERS
            && let Some(oldest) = self.members.iter_mut().min_by_key(|m| m.met_ns)
        {
            (oldest.id, oldest.met_ns, oldest.failed_ns) = (id, contact.time_ns, failed_ns);
            replace(&mut oldest.contact, contact);
            return;
        }
        self.members.push(Member { id, met_ns: contact.time_ns, failed_ns, contact: Arc::new(contact.clone()) });
    }

    /// Members that failed within `span` before `now`.
    pub(super) fn failed(&self, now_ns: u64, span: u64) -> impl Iterator<Item = &Member<T>> {
        let from = now_ns.saturating_sub(span);
        self.members.iter().filter(move |m| m.failed_ns != 0 && m.failed_ns > from)
    }

    /// Members that were met within `span` before `now`.
    pub(super) fn met(&self, now_ns: u64, span: u64) -> impl Iterator<Item = &Member<T>> {
        let from = now_ns.saturating_sub(span);
        self.members.iter().filter(move |m| m.met_ns > from)
    }

    /// Contacts of members that were met since.
    pub(super) fn met_since(&self, since_ns: u64) -> impl Iterator<Item = &Arc<Contact>> {
        self.members.iter().filter(move |m| m.met_ns >= since_ns).map(|m| &m.contact)
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }
}

/// Puts a contact in another's place, without new memory unless an alert was gathered from the other: a flood does it all the time.
fn replace(place: &mut Arc<Contact>, contact: &Contact) {
    match Arc::get_mut(place) {
        Some(room) => room.clone_from(contact),
        None => *place = Arc::new(contact.clone()),
    }
}

/// The same where both are contacts with one member. The kernel's array knows neither process nor flow: what the record said stays.
fn renew(place: &mut Arc<Contact>, contact: &Contact) {
    let before = (contact.process.is_none() || contact.flow.is_none()).then(|| (place.process.clone(), place.flow));
    replace(place, contact);
    if let Some((process, flow)) = before
        && let Some(place) = Arc::get_mut(place)
    {
        place.process = place.process.take().or(process);
        place.flow = place.flow.or(flow);
    }
}

/// The workload that a contact's target belongs to, as namespace, kind and name; `None` where nobody is known to have had the address.
pub(super) fn target_workload(contact: &Contact) -> Option<(&str, &str, &str)> {
    match &contact.target.identity.as_deref()?.owner {
        Owner::Pod { namespace, workload, .. } => Some((namespace, &workload.kind, &workload.name)),
        Owner::Service { namespace, name, .. } => Some((namespace, "Service", name)),
        Owner::Node { name } => Some(("", "Node", name)),
    }
}
