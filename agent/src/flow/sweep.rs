//! The engine's walk over the kernel's tables: updates, time-outs, flows that vanished, and the records of a shutdown.

use std::sync::Arc;

use sekisho_core::flows::{Sweep, Table};
use sekisho_core::layout::{self, Flow, FlowKey6, end_reason, flow_flags, verdict};

use super::clock::Now;
use super::conn_state::flag;
use super::engine::{Context, Engine, Open, Sighting};
use super::record::{Body, Moment};

const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// For how many sweeps a flow may be missed before it counts as gone: one, for entries that moved during the walk.
const MISSED: u64 = 2;

/// What a sweep found to do. Done after it, when the kernel can be asked again.
pub(super) struct Work {
    kind: WorkKind,
    key: FlowKey6,
    family: u8,
    flow: Flow,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum WorkKind {
    Update(Table),
    End(u8),
    Silent,
}

impl Engine {
    /// Begins a walk over the tables. `counters` as the kernel has them before it.
    pub fn begin_sweep(&mut self, counters: &[u64]) {
        self.sweeps += 1;
        self.tally.begin_sweep(counters);
    }

    /// Meets one entry of a table.
    pub fn on_swept(&mut self, table: Table, family: u8, key: &FlowKey6, flow: &Flow, now: &Now) -> Sweep {
        let id = self.seed.flow_id(key, flow.born_ns);
        self.tally.met(id, flow.start_ns);
        let work = |kind| Work { kind, key: *key, family, flow: *flow };
        if self.shutting_down && !(self.succeeded && closed(flow).is_some()) {
            let reason = closed(flow).unwrap_or(end_reason::SHUTDOWN);
            self.work.push(work(WorkKind::End(reason)));
            return Sweep::Keep;
        }
        let idle = now.boot_ns.saturating_sub(now.boot_of_jiffies(flow.last));
        if self.left(key.endpoint, flow) || idle >= self.settings.idle.of(table, key, flow) {
            return Sweep::Remove;
        }
        if closed(flow).is_some() || self.settled.get(&(id, flow.start_ns)).is_some() {
            // Its end is on the way: the kernel tells it, the next agent if not this one.
            if let Some(open) = self.open.get_mut(&id) {
                open.seen = self.sweeps;
            }
            return Sweep::Keep;
        }
        let age = now.boot_ns.saturating_sub(flow.start_ns);
        if self.is_silent(table, key, flow, age) {
            self.work.push(work(WorkKind::Silent));
        }
        match self.open.get_mut(&id) {
            Some(open) if open.record.flow.start_ns == flow.start_ns => {
                open.seen = self.sweeps;
                open.table = table;
                let moved = open.record.flow.packets != flow.packets;
                if now.boot_ns >= open.next_update && (moved || table == Table::Established) {
                    self.work.push(work(WorkKind::Update(table)));
                }
            }
            None if age >= self.settings.first_update_ns && worth_telling(table, flow, now) => {
                self.work.push(work(WorkKind::Update(table)));
            }
            // Too young; or the earlier life's end is not told yet.
            _ => {}
        }
        Sweep::Keep
    }

    /// An entry was taken out of a table; these are its final totals.
    pub fn on_removed(&mut self, table: Table, family: u8, key: &FlowKey6, flow: &Flow) {
        let reason = if self.left(key.endpoint, flow) { end_reason::ENDPOINT_GONE } else { idle_reason(table, flow) };
        self.work.push(Work { kind: WorkKind::End(reason), key: *key, family, flow: *flow });
    }

    /// A closed flow whose linger is over was taken out of its table.
    pub fn on_reaped(&mut self, family: u8, key: &FlowKey6, reason: u8, flow: &Flow) {
        self.work.push(Work { kind: WorkKind::End(reason), key: *key, family, flow: *flow });
    }

    /// Writes the records of what the sweep, removals and reaping found. May be called between sweeps as well.
    pub fn settle(&mut self, context: &mut Context<'_>) {
        let mut work = std::mem::take(&mut self.work);
        for item in work.drain(..) {
            match item.kind {
                WorkKind::End(reason) => self.end(reason, &item.key, item.family, &item.flow, context),
                WorkKind::Update(table) => self.update(table, &item, context),
                WorkKind::Silent => {
                    self.release(self.seed.flow_id(&item.key, item.flow.born_ns), context);
                    let record = self.compose(Moment::Update, &item.key, item.family, &item.flow, None, context);
                    let one_way = self.one_way(item.key.endpoint);
                    context.witness.saw(Sighting::Silent, &record, one_way, &context.now);
                }
            }
        }
        // The memory of a great sweep is not kept.
        work.shrink_to(4096);
        self.work = work;
    }

    /// Ends a sweep: writes its records and ends what has vanished. The rings are to be drained before, so that an end on its way is known.
    pub fn end_sweep(&mut self, context: &mut Context<'_>) {
        self.settle(context);
        self.settled.age();
        self.swept_ns = context.now.boot_ns;
        let sweeps = self.sweeps;
        let vanished: Vec<u64> = self.open.iter().filter(|(_, open)| open.seen + MISSED <= sweeps).map(|(id, _)| *id).collect();
        for id in vanished {
            let Some(open) = self.open.remove(&id) else { continue };
            let reason = match closed(&open.record.flow) {
                _ if self.left(open.record.key.endpoint, &open.record.flow) => end_reason::ENDPOINT_GONE,
                Some(reason) => reason,
                None => end_reason::EVICTED,
            };
            self.vanish(reason, &open, context);
        }
        let missed = self.open.values().filter(|open| open.seen < sweeps).count();
        self.tally.end_sweep(sweeps, missed as u64);
    }

    /// Ends a sweep that did not come to its end: what it did not meet may still be there, so nobody counts as missed.
    pub fn break_off_sweep(&mut self, context: &mut Context<'_>) {
        self.settle(context);
        if self.shutting_down {
            return;
        }
        for open in self.open.values_mut() {
            open.seen = self.sweeps;
        }
    }

    /// Ends what is open. After this, a sweep ends what was never open here: see [`on_swept`](Self::on_swept). Where another
    /// agent may come after this one, connections that have closed and linger are left to it: one end each.
    pub fn begin_shutdown(&mut self, succeeded: bool) {
        self.shutting_down = true;
        self.succeeded = succeeded;
    }

    /// Ends what no sweep met any more.
    pub fn shutdown(&mut self, context: &mut Context<'_>) {
        self.settle(context);
        self.release_all(context);
        let open: Vec<Open> = self.open.drain().map(|(_, open)| open).collect();
        for open in open {
            if self.succeeded && open.seen == self.sweeps {
                continue;
            }
            let reason = closed(&open.record.flow).unwrap_or(end_reason::SHUTDOWN);
            self.vanish(reason, &open, context);
        }
    }

    /// The end of an open flow whose final totals nobody told: the last known ones.
    fn vanish(&mut self, reason: u8, open: &Open, context: &mut Context<'_>) {
        let flow = &open.record.flow;
        self.settled.insert((open.record.flow_id, flow.start_ns), ());
        self.tally.ended(open.record.flow_id, flow.start_ns);
        let record = Arc::new(self.follow(Moment::End(reason), &open.record, flow, &context.now));
        context.witness.saw(Sighting::Ended, &record, self.one_way(record.key.endpoint), &context.now);
        self.out.push(Body::Flow(record));
    }

    fn update(&mut self, table: Table, item: &Work, context: &mut Context<'_>) {
        let id = self.seed.flow_id(&item.key, item.flow.born_ns);
        if self.settled.get(&(id, item.flow.start_ns)).is_some() {
            // It ended between the sweep and now.
            return;
        }
        self.release(id, context);
        let before = self.open.get(&id).map(|open| open.record.clone());
        let record = match before {
            Some(before) if before.flow.start_ns != item.flow.start_ns => return,
            Some(before) => self.follow(Moment::Update, &before, &item.flow, &context.now),
            None => {
                let delta = self.first_delta(&item.flow);
                let record = self.compose(Moment::Update, &item.key, item.family, &item.flow, delta, context);
                // Begun before this run: nobody has asked yet. The answer goes into its next record.
                if item.flow.start_ns <= self.began_ns {
                    self.look_up(&record);
                }
                record
            }
        };
        let record = Arc::new(record);
        let next_update = context.now.boot_ns + self.settings.update_ns;
        self.open.insert(id, Open { record: record.clone(), table, seen: self.sweeps, next_update });
        self.out.push(Body::Flow(record));
    }

    /// Whether the endpoint of a flow has left, or its number is another pod's by now.
    fn left(&mut self, endpoint: u32, flow: &Flow) -> bool {
        match self.endpoints.get(&endpoint) {
            Some(view) => flow.local_instance != 0 && view.instance != flow.local_instance,
            None => self.gone.get(&endpoint).is_some(),
        }
    }

    /// Whether an opener waits in vain, and did not yet at the last sweep: it is told once.
    fn is_silent(&self, table: Table, key: &FlowKey6, flow: &Flow, age: u64) -> bool {
        table == Table::Embryonic
            && flow.verdict != verdict::DENIED
            && flow.opened != layout::UNKNOWN
            && flow.flags & flow_flags::ADOPTED == 0
            && flow.packets[1] == 0
            && !matches!(key.protocol, ICMP | ICMPV6)
            && age >= self.settings.silent_ns
            && flow.start_ns + self.settings.silent_ns > self.swept_ns
    }
}

/// Whether a flow without state here deserves an update: connections always; others only if there is more to say than their start said.
fn worth_telling(table: Table, flow: &Flow, now: &Now) -> bool {
    let packets = flow.packets[0] + flow.packets[1];
    let enough = if flow.verdict == verdict::DENIED { 1 } else { 2 };
    let active = now.boot_of_jiffies(flow.last).saturating_sub(flow.start_ns) > 1_000_000_000;
    table == Table::Established || packets > enough || packets > 1 && active
}

/// For what a TCP flow has closed, if it has.
pub(super) fn closed(flow: &Flow) -> Option<u8> {
    let [forward, reply] = flow.tcp_flags;
    if (forward | reply) & flag::RST != 0 {
        Some(end_reason::RST)
    } else if forward & reply & flag::FIN != 0 {
        Some(end_reason::FIN)
    } else {
        None
    }
}

/// Whether one side has said FIN.
pub(super) fn closing(flow: &Flow) -> bool {
    (flow.tcp_flags[0] | flow.tcp_flags[1]) & flag::FIN != 0
}

/// Why a flow that fell silent ended.
fn idle_reason(table: Table, flow: &Flow) -> u8 {
    match table {
        _ if flow.verdict == verdict::DENIED => end_reason::DENIED,
        Table::Embryonic => closed(flow).unwrap_or(end_reason::TIMEOUT),
        Table::Established => closed(flow).unwrap_or(end_reason::IDLE),
        Table::Answered => end_reason::IDLE,
    }
}
