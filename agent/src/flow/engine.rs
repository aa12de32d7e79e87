//! From the kernel's events and tables to records: one `start` and at most one `end` per flow, updates between.
//!
//! Nouns. A flow is *open* here once it had an update: only then is anything kept about it. A *sweep* is one walk over the kernel's flow tables. A
//! *life* is a flow under one verdict: a change of verdict ends one life and starts the next under the same id.
//!
//! The engine is single-threaded, asks nobody for the time and does no I/O: events, table entries and clocks are passed in, records wait in a
//! batch until [`Engine::flush`]. The order for the caller: drain the rings, then per sweep [`begin_sweep`](Engine::begin_sweep),
//! [`on_swept`](Engine::on_swept) for each entry, [`on_removed`](Engine::on_removed) for what was taken out, drain the rings once more,
//! [`end_sweep`](Engine::end_sweep), or [`break_off_sweep`](Engine::break_off_sweep) where not every entry could be shown.

use std::sync::Arc;

use sekisho_core::flows::Table;
use sekisho_core::layout::{Flow, FlowEvent, FlowKey6, end_reason, event, flow_flags};

use super::attribution::{Attribution, Explainer, Kernel};
use super::book::Book;
use super::clock::Now;
use super::directory::Directory;
use super::idle::Idle;
use super::ledger::FlowTally;
use super::number::{BootSeed, NumberMap};
use super::recent::Recent;
use super::record::{Body, FlowRecord, Identity, Moment};
use super::sweep::Work;
use super::waiting::{Dialled, Translated, Waiting};
use crate::inventory::ObjectName;

const SECOND: u64 = 1_000_000_000;
/// Events whose sockets are asked for together: fewer than sockets are remembered.
const TOGETHER: usize = 2048;
/// Flags of a flow that follow from the policy.
const BY_POLICY: u8 = flow_flags::ISOLATED | flow_flags::UNJUDGED;
/// How many numbers are remembered as borne.
const BORNE: usize = 8_192;
/// For how many flows to Services it is remembered what stands behind: those that had no update yet.
const TRANSLATIONS: usize = 16_384;

/// How often flows are told about, and how long they may be silent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Age of a flow at its first update.
    pub first_update_ns: u64,
    /// Time between updates.
    pub update_ns: u64,
    /// When idle flows end.
    pub idle: Idle,
    /// How long an opener may stay without an answer before that is evidence.
    pub silent_ns: u64,
}

impl Default for Settings {
    fn default() -> Self {
        Self { first_update_ns: 5 * SECOND, update_ns: 30 * SECOND, idle: Idle::default(), silent_ns: 3 * SECOND }
    }
}

/// An endpoint as records need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointView {
    /// Slot in the kernel's arrays.
    pub index: u32,
    /// Instance of the pod.
    pub instance: u32,
    /// Namespace and name of the pod.
    pub pod: ObjectName,
    /// Host-side interface; absent for cgroup endpoints.
    pub interface: Option<Arc<str>>,
    /// Replies may pass unseen: silence and refusals prove nothing.
    pub one_way: bool,
}

/// What someone who watches the flows is told, beside the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sighting {
    /// A flow began.
    Started,
    /// It ended.
    Ended,
    /// It was refused: RST or ICMP unreachable.
    Refused,
    /// It was not answered for [`Settings::silent_ns`]. May be said more than once of a flow.
    Silent,
}

/// Watches flows as they are recorded; detections do.
pub trait Witness {
    /// Something happened to a flow. `one_way` as in [`EndpointView`].
    fn saw(&mut self, sighting: Sighting, record: &FlowRecord, one_way: bool, now: &Now);
}

/// Nobody watches.
impl Witness for () {
    fn saw(&mut self, _: Sighting, _: &FlowRecord, _: bool, _: &Now) {}
}

/// What the engine works with while it handles events.
pub struct Context<'a> {
    /// The clocks.
    pub now: Now,
    /// The node.
    pub kernel: &'a mut dyn Kernel,
    /// Who watches.
    pub witness: &'a mut dyn Witness,
}

/// What is kept of a flow after its first update: its last record, which holds totals and everything frozen.
pub(super) struct Open {
    pub(super) record: Arc<FlowRecord>,
    pub(super) table: Table,
    /// The last sweep that met it.
    pub(super) seen: u64,
    pub(super) next_update: u64,
}

/// See the module.
pub struct Engine {
    pub(super) settings: Settings,
    pub(super) seed: BootSeed,
    pub(super) began_ns: u64,
    pub(super) attribution: Attribution,
    pub(super) endpoints: NumberMap<u32, EndpointView>,
    /// Endpoints that left; their flows end at the next sweep.
    pub(super) gone: Recent<u32, ()>,
    pub(super) open: NumberMap<u64, Open>,
    /// Lives that ended while their entry may still be met by a sweep, by flow id and start.
    pub(super) settled: Recent<(u64, u64), ()>,
    pub(super) out: Vec<Body>,
    pub(super) tally: FlowTally,
    pub(super) sweeps: u64,
    pub(super) work: Vec<Work>,
    /// When the last sweep that came to its end was.
    pub(super) swept_ns: u64,
    pub(super) shutting_down: bool,
    /// Another agent may come after this one.
    pub(super) succeeded: bool,
    /// Totals of [`Engine::on_summarised`] at the last summary, by endpoint index.
    pub(super) summarised: NumberMap<u32, u64>,
    /// Numbers that records bore lately, and those of them that nobody has asked for yet.
    pub(super) borne: Recent<u32, ()>,
    pub(super) newly_borne: Vec<u32>,
    /// Starts that wait for a name or a translation.
    pub(super) waiting: Waiting,
    /// Names have changed since waiting starts were looked at.
    pub(super) renamed: bool,
    /// Flows to Services that are to be looked up, how many there may be, and how many found no room.
    pub(super) dialled: Vec<Dialled>,
    pub(super) look_ups: usize,
    pub(super) not_looked_up: u64,
    /// What look-ups found, by flow id and start.
    pub(super) translations: Recent<(u64, u64), Arc<Translated>>,
}

impl Engine {
    /// An engine that begins now. `directory` may be what the journal alone knows.
    pub fn new(seed: BootSeed, now: &Now, directory: Arc<Directory>, settings: Settings) -> Self {
        Self {
            settings,
            seed,
            began_ns: now.boot_ns,
            attribution: Attribution::new(directory),
            endpoints: NumberMap::default(),
            gone: Recent::new(4096),
            open: NumberMap::default(),
            settled: Recent::new(65_536),
            out: Vec::new(),
            tally: FlowTally::new(now.boot_ns),
            sweeps: 0,
            work: Vec::new(),
            swept_ns: now.boot_ns,
            shutting_down: false,
            succeeded: false,
            summarised: NumberMap::default(),
            borne: Recent::new(BORNE),
            newly_borne: Vec::new(),
            waiting: Waiting::default(),
            renamed: false,
            dialled: Vec::new(),
            look_ups: 0,
            not_looked_up: 0,
            translations: Recent::new(TRANSLATIONS),
        }
    }

    /// How long UDP flows may be idle from now on, without answers and with them, in nanoseconds.
    pub fn set_udp_idle(&mut self, unanswered_ns: u64, answered_ns: u64) {
        (self.settings.idle.udp_ns, self.settings.idle.udp_stream_ns) = (unanswered_ns, answered_ns);
    }

    /// Who is who from now on. To be called before the kernel learns of new numbers.
    pub fn set_directory(&mut self, directory: Arc<Directory>) {
        self.attribution.set_directory(directory);
        self.renamed = true;
    }

    /// The policy from `epoch` on, which is in force since `since_ns` (boottime). In mode observe it does not judge.
    pub fn set_policy(&mut self, epoch: u32, policy: Arc<dyn Explainer>, judges: bool, since_ns: u64) {
        self.attribution.set_policy(epoch, policy, judges, since_ns);
    }

    /// An endpoint is there, or has changed.
    pub fn set_endpoint(&mut self, number: u32, view: EndpointView) {
        self.gone.remove(&number);
        if let Some(old) = self.endpoints.insert(number, view)
            && old.instance != self.endpoints[&number].instance
        {
            self.attribution.forget_listeners();
        }
    }

    /// An endpoint has left: its flows end with `endpoint_gone` at the next sweep.
    pub fn on_endpoint_gone(&mut self, number: u32) {
        if let Some(view) = self.endpoints.remove(&number) {
            self.summarised.remove(&view.index);
        }
        self.gone.insert(number, ());
        self.attribution.forget_listeners();
    }

    /// Handles what the rings held. Each CPU has one, and a flow may begin on one CPU and end on another: what comes after a
    /// start in time comes after it in the book.
    pub fn on_events(&mut self, events: &mut Vec<FlowEvent>, context: &mut Context<'_>) {
        // Starts alone are in no order that matters, and most are alone.
        if events.iter().any(|event| event.kind != event::START) && !events.is_sorted_by_key(|event| event.time_ns) {
            events.sort_by_key(|event| event.time_ns);
        }
        for some in events.chunks(TOGETHER) {
            self.attribution.meet_sockets(some, context.now.boot_ns, context.kernel);
            for event in some {
                self.on_event(event, context);
            }
        }
        events.clear();
    }

    /// Handles one event of the rings.
    pub fn on_event(&mut self, event: &FlowEvent, context: &mut Context<'_>) {
        match event.kind {
            event::START => self.start(event, context),
            event::END => self.end(event.end_reason, &event.key, event.family, &event.flow, context),
            event::REFUSED => {
                self.release(self.seed.flow_id(&event.key, event.flow.born_ns), context);
                let record = self.compose(Moment::Start, &event.key, event.family, &event.flow, None, context);
                context.witness.saw(Sighting::Refused, &record, self.one_way(event.key.endpoint), &context.now);
            }
            // A program of another version: nothing it can mean is known here.
            _ => {}
        }
    }

    fn start(&mut self, event: &FlowEvent, context: &mut Context<'_>) {
        let record = Arc::new(self.compose(Moment::Start, &event.key, event.family, &event.flow, None, context));
        self.begin(record, context);
    }

    /// Writes the end of a life.
    pub(super) fn end(&mut self, reason: u8, key: &FlowKey6, family: u8, flow: &Flow, context: &mut Context<'_>) {
        let id = self.seed.flow_id(key, flow.born_ns);
        if self.settled.remove(&(id, flow.start_ns)) {
            return;
        }
        self.release(id, context);
        let open = match self.open.get(&id) {
            Some(open) if open.record.flow.start_ns == flow.start_ns => self.open.remove(&id),
            _ => None,
        };
        self.tally.ended(id, flow.start_ns);
        // The entry lives on, or a sweep that met it has not told of it yet.
        if reason == end_reason::VERDICT_CHANGED || !self.work.is_empty() {
            self.settled.insert((id, flow.start_ns), ());
        }
        let moment = Moment::End(shown_reason(reason, flow));
        let record = match open {
            Some(open) => Arc::new(self.follow(moment, &open.record, flow, &context.now)),
            None => Arc::new(self.compose(moment, key, family, flow, self.first_delta(flow), context)),
        };
        context.witness.saw(Sighting::Ended, &record, self.one_way(key.endpoint), &context.now);
        self.out.push(Body::Flow(record));
    }

    /// The delta of a flow's first record after its start: everything, unless an earlier run may have told some of it.
    pub(super) fn first_delta(&self, flow: &Flow) -> Option<[[u64; 2]; 2]> {
        (flow.start_ns > self.began_ns).then_some([flow.packets, flow.bytes])
    }

    pub(super) fn one_way(&self, endpoint: u32) -> bool {
        self.endpoints.get(&endpoint).is_some_and(|e| e.one_way)
    }

    /// A record of a flow about which nothing is kept.
    pub(super) fn compose(
        &mut self,
        moment: Moment,
        key: &FlowKey6,
        family: u8,
        flow: &Flow,
        delta: Option<[[u64; 2]; 2]>,
        context: &mut Context<'_>,
    ) -> FlowRecord {
        let now = &context.now;
        let mut flow = *flow;
        let flow_id = self.seed.flow_id(key, flow.born_ns);
        let endpoint = self.endpoints.get(&key.endpoint);
        let instance = if flow.local_instance == 0 { endpoint.map_or(0, |e| e.instance) } else { flow.local_instance };
        let interface = endpoint.and_then(|e| e.interface.clone());
        self.bears(instance);
        self.bears(flow.remote_instance);
        let local: Option<Arc<Identity>> = self.attribution.directory.identity(instance, flow.start_ns).cloned();
        let (remote, late_identity) = self.attribution.remote(key, &flow);
        let decision = self.attribution.decision(key, &mut flow, local.as_deref());
        FlowRecord {
            moment,
            flow_id,
            key: *key,
            family,
            flow,
            start_ns: now.wall(flow.start_ns),
            last_ns: last_wall(moment, &flow, now),
            delta,
            decision,
            process: self.attribution.process(&flow, now.boot_ns, context.kernel),
            listener: self.attribution.listener(key, &flow, now.boot_ns, context.kernel),
            local,
            remote,
            late_identity,
            translated: self.translated(flow_id, &flow),
            interface,
        }
    }

    fn bears(&mut self, instance: u32) {
        if instance != 0 && self.borne.get(&instance).is_none() {
            self.borne.insert(instance, ());
            self.newly_borne.push(instance);
        }
    }

    /// Numbers that records have borne since the last call and did not bear lately: the journal must know them.
    pub fn newly_borne(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.newly_borne)
    }

    /// The next record of an open flow: new totals, everything else as it was. Where another policy judges it by now, that one is
    /// named.
    pub(super) fn follow(&mut self, moment: Moment, before: &FlowRecord, flow: &Flow, now: &Now) -> FlowRecord {
        let mut flow = *flow;
        let decision = if flow.epoch == before.flow.epoch {
            flow.flags = flow.flags & !BY_POLICY | before.flow.flags & BY_POLICY;
            before.decision.clone()
        } else {
            self.attribution.decision(&before.key, &mut flow, before.local.as_deref())
        };
        let since = |new: [u64; 2], old: [u64; 2]| [new[0].saturating_sub(old[0]), new[1].saturating_sub(old[1])];
        let delta = Some([since(flow.packets, before.flow.packets), since(flow.bytes, before.flow.bytes)]);
        FlowRecord { moment, flow, start_ns: before.start_ns, last_ns: last_wall(moment, &flow, now), delta, decision, ..before.clone() }
    }

    /// What endpoints produced beyond their event budgets, totals by index. Makes a summary of what is new.
    pub fn on_summarised(&mut self, totals: &[(u32, u64)]) {
        for (index, total) in totals {
            let before = self.summarised.insert(*index, *total).unwrap_or(0);
            let Some(flows) = total.checked_sub(before).filter(|new| *new > 0) else { continue };
            let endpoint = self.endpoints.values().find(|e| e.index == *index);
            let identity = endpoint.and_then(|e| self.attribution.directory.identities.get(&e.instance));
            let pod = identity.and_then(|i| super::project::pod(i));
            self.out.push(Body::Summary(Arc::new(sekisho_proto::Summary { pod, flows })));
        }
    }

    /// Takes [`Engine::on_summarised`]'s totals as told already: an adopted kernel's, once, at the start.
    pub fn adopt_summarised(&mut self, totals: &[(u32, u64)]) {
        self.summarised.extend(totals.iter().copied());
    }

    /// Adds a record that another room has made.
    pub fn push(&mut self, body: Body) {
        self.out.push(body);
    }

    /// Writes the waiting records into the book.
    pub fn flush(&mut self, book: &Book, now: &Now) {
        if !self.out.is_empty() {
            book.append(now.wall_ns, &mut self.out);
        }
    }

    /// How many flows are open here: the engine's memory.
    pub fn open_flows(&self) -> usize {
        self.open.len()
    }

    /// The ledger's part on flows.
    pub fn tally(&self) -> &FlowTally {
        &self.tally
    }

    /// The same, to be told what the kernel counted.
    pub fn tally_mut(&mut self) -> &mut FlowTally {
        &mut self.tally
    }
}

/// The last packet's time: of a start the first one, never before it.
fn last_wall(moment: Moment, flow: &Flow, now: &Now) -> u64 {
    if moment == Moment::Start {
        return now.wall(flow.start_ns);
    }
    now.wall(now.boot_of_jiffies(flow.last).max(flow.start_ns))
}

/// The reason as records name it: a closed flow whose addresses were re-used ended for what had closed it.
fn shown_reason(reason: u8, flow: &Flow) -> u8 {
    match reason {
        end_reason::REPLACED => super::sweep::closed(flow).unwrap_or(end_reason::FIN),
        _ => reason,
    }
}
