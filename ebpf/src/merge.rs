//! Counts of a former layout's programs added to flows that this layout's programs count already: an update from user
//! space would undo what other CPUs count in between.

use sekisho_core::layout::{FlowKey4, Merge};

use crate::kernel::add;
use crate::maps::MERGE;
use crate::tables::{self, Entry, Family, V4, V6};

/// Adds what `MERGE` holds; whether there was something to add it to.
#[inline(always)]
pub(crate) fn merge() -> bool {
    let Some(merge) = MERGE.get(0) else { return false };
    let entry = match merge.family {
        0 => return add_state(merge),
        4 => V4::find(&key4(merge), merge.table),
        _ => V6::find(&merge.key, merge.table),
    };
    match entry {
        Some(entry) if entry.start_ns == merge.start_ns => add_flow(entry, merge),
        _ => return false,
    }
    true
}

#[inline(always)]
fn key4(merge: &Merge) -> FlowKey4 {
    let key = &merge.key;
    let [.., a, b, c, d] = key.remote;
    FlowKey4 {
        endpoint: key.endpoint,
        remote: [a, b, c, d],
        local_port: key.local_port,
        remote_port: key.remote_port,
        protocol: key.protocol,
        cause: key.cause,
        pad: [0; 2],
    }
}

#[inline(always)]
fn add_flow(entry: Entry, merge: &Merge) {
    let flow = entry.raw();
    for side in 0..2 {
        add(&mut flow.packets[side], merge.packets[side]);
        add(&mut flow.bytes[side], merge.bytes[side]);
        flow.tcp_flags[side] |= merge.tcp_flags[side];
    }
    flow.flags |= merge.flags;
    if merge.state_to != merge.state_from && flow.state == merge.state_from {
        flow.state = merge.state_to;
    }
}

#[inline(always)]
fn add_state(merge: &Merge) -> bool {
    let Some(state) = tables::state(merge.index) else { return false };
    let more = &merge.state;
    add(&mut state.established_in, more.established_in);
    add(&mut state.established_out, more.established_out);
    add(&mut state.answered_in, more.answered_in);
    add(&mut state.answered_out, more.answered_out);
    add(&mut state.one_way, more.one_way);
    add(&mut state.one_way_answers, more.one_way_answers);
    add(&mut state.summarised, more.summarised);
    add(&mut state.packets[0], more.packets[0]);
    add(&mut state.packets[1], more.packets[1]);
    add(&mut state.closing, more.closing);
    true
}
