//! What a start may wait for: things that are known only a moment after the first packet.
//!
//! Two of them. The *name* of an address that no pod had when the kernel judged, while some pod of the cluster runs without an
//! address yet: the name may come within two seconds and is then marked as late. And the *translation* of a Service's
//! address: which backend the node's connection tracking chose; its answer takes a few milliseconds. Everything else of the
//! record is frozen before it waits. Nobody waits where nothing can come, and nobody waits for room: what does not fit is
//! told at once. The flow's next record ends the wait, so that a start always comes first.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use sekisho_core::layout::{self, flow_flags, verdict};

use super::attribution::{address, has_ports};
use super::community::Side;
use super::engine::{Context, Engine, Sighting};
use super::number::NumberMap;
use super::record::{Body, FlowRecord, Identity};

/// How long a start waits for a name.
pub const NAME_NS: u64 = 2_000_000_000;
/// How long a start waits for a translation.
const TRANSLATION_NS: u64 = 100_000_000;
/// How many starts may wait at once.
const ROOM: usize = 2048;

/// Behind a Service's address: what the connection really is, as its server sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translated {
    /// The client: itself, or the node that masquerades for it.
    pub source: Side,
    /// The backend.
    pub destination: Side,
    /// Who had the backend's address when the flow began.
    pub owner: Option<Arc<Identity>>,
}

/// A flow to a Service, as its first packet was; to be looked up in the node's connection tracking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dialled {
    /// The flow.
    pub flow_id: u64,
    /// Of which life.
    pub start_ns: u64,
    /// IP protocol number.
    pub protocol: u8,
    /// The pod.
    pub source: Side,
    /// The Service's address and port.
    pub destination: Side,
}

/// Starts that wait, by the end of their patience.
#[derive(Default)]
pub(super) struct Waiting {
    by_deadline: BTreeMap<(u64, u64), Arc<FlowRecord>>,
    by_flow: NumberMap<u64, (u64, u64)>,
    tickets: u64,
}

impl Waiting {
    pub(super) fn is_empty(&self) -> bool {
        self.by_deadline.is_empty()
    }

    fn full(&self) -> bool {
        self.by_deadline.len() >= ROOM
    }

    /// Holds a start back; gives back one of the same flow that still waits.
    fn hold(&mut self, until: u64, record: Arc<FlowRecord>) -> Option<Arc<FlowRecord>> {
        let before = self.take(record.flow_id);
        self.tickets += 1;
        self.by_flow.insert(record.flow_id, (until, self.tickets));
        self.by_deadline.insert((until, self.tickets), record);
        before
    }

    fn take(&mut self, flow_id: u64) -> Option<Arc<FlowRecord>> {
        let place = self.by_flow.remove(&flow_id)?;
        self.by_deadline.remove(&place)
    }

    /// The next that has waited long enough at `boot_ns`.
    fn overdue(&mut self, boot_ns: u64) -> Option<Arc<FlowRecord>> {
        let entry = self.by_deadline.first_entry().filter(|entry| entry.key().0 <= boot_ns)?;
        let record = entry.remove();
        self.by_flow.remove(&record.flow_id);
        Some(record)
    }

    fn flows(&self) -> Vec<u64> {
        self.by_deadline.values().map(|record| record.flow_id).collect()
    }
}

impl Engine {
    /// Tells of a start, now or when what it lacks is there.
    pub(super) fn begin(&mut self, record: Arc<FlowRecord>, context: &mut Context<'_>) {
        match self.patience(&record, context.now.boot_ns) {
            Some(until) if !self.waiting.full() => {
                if let Some(before) = self.waiting.hold(until, record) {
                    self.tell_start(before, context);
                }
            }
            _ => self.tell_start(record, context),
        }
    }

    /// Until when a start waits, if it does.
    fn patience(&mut self, record: &FlowRecord, boot_ns: u64) -> Option<u64> {
        if record.flow.flags & flow_flags::SERVICE != 0 {
            return self.look_up(record).then_some(boot_ns + TRANSLATION_NS);
        }
        let unnamed = record.remote.is_none() && record.flow.remote_instance == 0;
        let until = record.flow.start_ns + NAME_NS;
        (unnamed && boot_ns < until && self.attribution.directory.may_be_named(address(&record.key.remote))).then_some(until)
    }

    /// Has a flow to a Service looked up; `false` where there is nothing to find, or no room to ask.
    pub(super) fn look_up(&mut self, record: &FlowRecord) -> bool {
        let flow = &record.flow;
        let passes = flow.flags & flow_flags::SERVICE != 0 && flow.verdict != verdict::DENIED && flow.opened == layout::EGRESS;
        if !passes || record.translated.is_some() || !has_ports(record.key.protocol) {
            return false;
        }
        if self.dialled.len() >= self.look_ups {
            self.not_looked_up += 1;
            return false;
        }
        self.dialled.push(Dialled {
            flow_id: record.flow_id,
            start_ns: flow.start_ns,
            protocol: record.key.protocol,
            source: (address(&flow.local), record.key.local_port),
            destination: (address(&record.key.remote), record.key.remote_port),
        });
        true
    }

    /// What is to be looked up.
    pub fn dialled(&mut self) -> Vec<Dialled> {
        std::mem::take(&mut self.dialled)
    }

    /// How many flows may be looked up until the next call.
    pub fn allow_look_ups(&mut self, room: usize) {
        self.look_ups = room;
    }

    /// Flows to Services that were not looked up for want of room.
    pub fn not_looked_up(&self) -> u64 {
        self.not_looked_up
    }

    /// What a look-up has found: `(client, backend)` as the server sees them.
    pub fn on_translated(&mut self, dialled: &Dialled, found: Option<(Side, Side)>, context: &mut Context<'_>) {
        if let Some((source, destination)) = found {
            let owner = self.attribution.directory.late(destination.0, dialled.start_ns).cloned();
            let translated = Arc::new(Translated { source, destination, owner });
            if let Some(open) = self.open.get_mut(&dialled.flow_id).filter(|open| open.record.flow.start_ns == dialled.start_ns) {
                Arc::make_mut(&mut open.record).translated = Some(translated.clone());
            }
            self.translations.insert((dialled.flow_id, dialled.start_ns), translated);
        }
        self.release(dialled.flow_id, context);
    }

    /// Tells of the starts that have waited long enough, or whose names have come.
    pub fn release_waiting(&mut self, context: &mut Context<'_>) {
        if self.waiting.is_empty() {
            self.renamed = false;
            return;
        }
        if std::mem::take(&mut self.renamed) {
            for flow in self.waiting.flows() {
                let Some(place) = self.waiting.by_flow.get(&flow) else { continue };
                let record = &self.waiting.by_deadline[place];
                if record.remote.is_none() && self.attribution.remote(&record.key, &record.flow).0.is_some() {
                    self.release(flow, context);
                }
            }
        }
        while let Some(record) = self.waiting.overdue(context.now.boot_ns) {
            self.complete(record, context);
        }
    }

    /// Ends every wait.
    pub(super) fn release_all(&mut self, context: &mut Context<'_>) {
        while let Some(record) = self.waiting.overdue(u64::MAX) {
            self.complete(record, context);
        }
    }

    /// Ends the wait of a flow's start, if it waits.
    pub(super) fn release(&mut self, flow_id: u64, context: &mut Context<'_>) {
        if let Some(record) = self.waiting.take(flow_id) {
            self.complete(record, context);
        }
    }

    /// Adds what has come meanwhile, and tells.
    fn complete(&mut self, mut record: Arc<FlowRecord>, context: &mut Context<'_>) {
        if record.remote.is_none() {
            let (remote, late) = self.attribution.remote(&record.key, &record.flow);
            if remote.is_some() {
                let record = Arc::make_mut(&mut record);
                (record.remote, record.late_identity) = (remote, late);
            }
        }
        if record.translated.is_none()
            && let Some(translated) = self.translated(record.flow_id, &record.flow)
        {
            Arc::make_mut(&mut record).translated = Some(translated);
        }
        self.tell_start(record, context);
    }

    /// Open flows to Services, each with the backend behind it where that is known.
    pub fn to_services(&self) -> impl Iterator<Item = (&layout::FlowKey6, &layout::Flow, Option<Side>)> {
        let records = self.open.values().map(|open| &*open.record);
        let to_services = records.filter(|record| record.flow.flags & flow_flags::SERVICE != 0);
        to_services.map(|record| (&record.key, &record.flow, record.translated.as_ref().map(|behind| behind.destination)))
    }

    /// What is known to stand behind a flow to a Service.
    pub(super) fn translated(&mut self, flow_id: u64, flow: &layout::Flow) -> Option<Arc<Translated>> {
        if flow.flags & flow_flags::SERVICE == 0 { None } else { self.translations.get(&(flow_id, flow.start_ns)) }
    }

    fn tell_start(&mut self, record: Arc<FlowRecord>, context: &mut Context<'_>) {
        context.witness.saw(Sighting::Started, &record, self.one_way(record.key.endpoint), &context.now);
        self.out.push(Body::Flow(record));
    }
}

/// The part of an address that pods of one cluster tend to share: what a late name is looked for in.
pub(super) fn range(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() & 0xffff_0000).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !(u128::MAX >> 48)).into()),
    }
}
