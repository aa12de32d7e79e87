//! The policy changed since the flow was judged: judge again, at its next packet.
//!
//! Same verdict and reason: one store, and the flow keeps the rule that its first packet met. Another outcome: one CPU claims the change, ends the flow's record and starts it again
//! with the same birth; the others obey what they found out themselves.

use core::ptr::NonNull;

use sekisho_core::counters;
use sekisho_core::layout::{EGRESS, Flow, basis, end_reason, flow_flags, mode, reason, verdict};
use sekisho_core::parse::protocol;
use sekisho_core::tcp;

use crate::emit::{self, count, stateless};
use crate::kernel::{copy16, zero};
use crate::maps::BACKENDS;
use crate::open::{KEPT, flags, owns};
use crate::promote::{entered, left};
use crate::scratch::{self, Scratch};
use crate::slow::{DROP, PASS};
use crate::tables::{self, ANY, Entry, table};

/// What only the first packet could show: who opened, that the node itself did. A flow to a Service is judged by its backend where
/// that is known.
#[inline(always)]
pub(crate) fn recall(scratch: &mut Scratch, entry: Entry) {
    scratch.opened = entry.opened;
    scratch.state = 0;
    // What the opener itself sends needs no other right than its own.
    let shown = entry.basis;
    scratch.basis = if shown == basis::BOTH as u8 && entry.opened == scratch.direction { basis::PROVEN as u8 } else { shown };
    if entry.flags & flow_flags::OWN_NODE != 0 {
        scratch.own_node = 1;
    }
    if entry.flags & flow_flags::SERVICE != 0 && entry.opened == EGRESS {
        take_backend(scratch, entry);
    }
}

/// Puts the flow's backend in the place of its Service, where user space has said which it is.
#[inline(always)]
fn take_backend(scratch: &mut Scratch, entry: Entry) {
    // SAFETY: read at once; user space replaces entries whole.
    let Some(backend) = (unsafe { BACKENDS.get(&scratch.key6) }) else { return };
    if backend.born_ns != entry.born_ns {
        return;
    }
    let own = tables::endpoint(scratch.endpoint).is_some_and(|endpoint| owns(endpoint, &backend.address));
    scratch.behind = if own { 2 } else { 1 };
    copy16(&mut scratch.ends.remote, &backend.address);
    scratch.ends.remote_port = backend.port;
}

/// Puts the Service back in its place, after the flow's backend was judged; whether it may pass.
#[inline(always)]
pub(crate) fn restore(scratch: &mut Scratch, found: Option<Entry>, allowed: bool) -> bool {
    copy16(&mut scratch.ends.remote, &scratch.key6.remote);
    scratch.ends.remote_port = scratch.key6.remote_port;
    scratch.judgement.flags |= flow_flags::SERVICE;
    if let Some(entry) = found {
        scratch.judgement.remote_instance = entry.remote_instance;
    }
    allowed || scratch.behind == 2
}

/// Whether a flow stays that what stands behind its Service now would not allow: its own backend is not known, and nothing that the
/// endpoint's rules say has changed. Flows that no rule was asked about do not.
#[inline(always)]
fn stays(scratch: &Scratch, entry: Entry) -> bool {
    scratch.behind == 0
        && scratch.cause == 0
        && entry.verdict == verdict::ALLOWED
        && entry.opened == EGRESS
        && entry.flags & (flow_flags::SERVICE | flow_flags::ISOLATED | flow_flags::UNJUDGED) == flow_flags::SERVICE | flow_flags::ISOLATED
        && entry.set == scratch.set
}

/// Applies the scratch's verdict to the stale flow in `entry`.
#[inline(never)]
#[unsafe(export_name = "verdict_changed")]
pub(crate) extern "C" fn packet(slot: u32, entry: *mut Flow) -> u32 {
    let (Some(scratch), Some(entry)) = (scratch::at(slot), NonNull::new(entry).map(Entry)) else { return PASS };
    let rule = if scratch.mode == mode::OBSERVE { 0 } else { scratch.judgement.rule };
    if scratch.verdict != verdict::ALLOWED && stays(scratch, entry) {
        scratch.verdict = verdict::ALLOWED;
        scratch.why = 0;
    }
    if scratch.verdict == entry.verdict && scratch.why == entry.reason {
        entry.mark(scratch.mac_tag);
        let flow = entry.raw();
        flow.epoch = scratch.epoch;
        flow.basis = scratch.basis;
        return KEPT;
    }
    let flags = flags(scratch) | (entry.flags & (flow_flags::UNREACHABLE | flow_flags::ADOPTED));
    if !entry.claims(scratch.epoch) {
        entry.count(entry.side(scratch.direction), scratch.segments, scratch.bytes, scratch.packet.tcp_flags, scratch.jiffies);
        return fate(scratch);
    }
    emit::end(scratch, entry, end_reason::VERDICT_CHANGED);
    entry.copy_to(&mut scratch.flow);
    scratch.flow.rule = rule;
    scratch.flow.flags = flags;
    let [first, second, third, _] = scratch.mac_tag.to_le_bytes();
    scratch.flow.mac_tag = [first, second, third];
    restart(scratch);
    let target = place(scratch);
    if !shift(scratch, target) {
        stateless(counters::LOST_INSERT_FAILED);
        return fate(scratch);
    }
    count(counters::VERDICT_CHANGED);
    emit::start(scratch.slot);
    scratch.counted = 1;
    KEPT
}

/// The copied flow begins a new life.
#[inline(always)]
fn restart(scratch: &mut Scratch) {
    let now = emit::clock(scratch);
    let flow = &mut scratch.flow;
    flow.verdict = scratch.verdict;
    flow.reason = scratch.why;
    if scratch.packet.protocol != protocol::TCP {
        // An answer that its sender may not give has become that one's own.
        flow.opened = scratch.opened;
    }
    flow.packets.iter_mut().chain(&mut flow.bytes).for_each(zero);
    if (flow.opened ^ scratch.direction) & 1 == 0 {
        flow.packets[0] = scratch.segments;
        flow.bytes[0] = scratch.bytes;
        flow.tcp_flags[0] |= scratch.packet.tcp_flags;
    } else {
        flow.packets[1] = scratch.segments;
        flow.bytes[1] = scratch.bytes;
        flow.tcp_flags[1] |= scratch.packet.tcp_flags;
    }
    flow.epoch = scratch.epoch;
    flow.basis = scratch.basis;
    flow.last = scratch.jiffies;
    flow.start_ns = now;
    flow.set = scratch.set;
    flow.remote_instance = scratch.judgement.remote_instance;
    flow.class = scratch.judgement.class;
    flow.claim = 0;
}

/// Where a flow with that verdict belongs.
#[inline(always)]
fn place(scratch: &Scratch) -> u8 {
    let state = scratch.flow.state;
    if scratch.verdict == verdict::DENIED {
        table::EMBRYONIC
    } else if scratch.packet.protocol == protocol::TCP {
        if tcp::established(state) || (tcp::closed(state) && scratch.table == table::ESTABLISHED) {
            table::ESTABLISHED
        } else {
            table::EMBRYONIC
        }
    } else if state == 1 {
        table::ANSWERED
    } else {
        table::EMBRYONIC
    }
}

/// Writes the scratch's flow into `target` and takes it out of where it was.
#[inline(always)]
fn shift(scratch: &mut Scratch, target: u8) -> bool {
    let from = scratch.table;
    if tables::write(scratch, target, ANY) != 0 {
        return false;
    }
    if from != target {
        entered(scratch.index, target);
        if tables::remove(scratch, from) != 0 {
            left(scratch.index, from);
        }
        scratch.table = target;
    }
    true
}

#[inline(always)]
fn fate(scratch: &Scratch) -> u32 {
    if scratch.verdict == verdict::DENIED {
        count(counters::DROPPED);
        return DROP;
    }
    PASS
}
