//! Both sides talk: the flow moves from `embryonic` to the table that no flood can evict it from.

use core::ptr::NonNull;

use sekisho_core::counters;
use sekisho_core::layout::Flow;

use crate::diagnose::diagnose;
use crate::emit::count;
use crate::kernel::add;
use crate::maps::ENDPOINT_SWEPT;
use crate::scratch::{self, Scratch};
use crate::tables::{self, EEXIST, Entry, NOEXIST, table};

/// Moves the scratch's flow to `target`. Where that fails it stays evictable, and is counted.
#[inline(never)]
#[unsafe(export_name = "promote_flow")]
pub(crate) extern "C" fn promote(slot: u32, entry: *mut Flow, target: u32) -> u32 {
    let (Some(scratch), Some(entry)) = (scratch::at(slot), NonNull::new(entry).map(Entry)) else { return 0 };
    let target = target as u8;
    let Some(endpoint) = tables::endpoint(scratch.endpoint) else { return 0 };
    scratch.index = endpoint.index;
    let cap = if target == table::ESTABLISHED { endpoint.established_cap } else { endpoint.answered_cap };
    if held(endpoint.index, target) >= u64::from(cap) {
        count(counters::PROMOTE_CAPPED);
        return 0;
    }
    entry.copy_to(&mut scratch.flow);
    scratch.flow.claim = 0;
    let failure = tables::write(scratch, target, NOEXIST);
    // Another CPU, with a packet of the same flow, was faster.
    if failure == EEXIST {
        return 0;
    }
    if failure != 0 {
        diagnose!("endpoint {}: a flow cannot be promoted to table {}: error {}", scratch.endpoint, target, failure);
        count(counters::PROMOTE_FAILED);
        return 0;
    }
    entered(scratch.index, target);
    tables::remove(scratch, table::EMBRYONIC);
    late(scratch, entry, target);
    scratch.table = target;
    1
}

/// What other CPUs counted between copy and removal, unless the memory is another flow's by now.
#[inline(always)]
fn late(scratch: &mut Scratch, entry: Entry, target: u8) {
    let moved = entry.packets[0] != scratch.flow.packets[0] || entry.packets[1] != scratch.flow.packets[1];
    if entry.start_ns != scratch.flow.start_ns || !moved {
        return;
    }
    let Some(new) = tables::find(scratch, target) else { return };
    let flow = new.raw();
    add(&mut flow.packets[0], entry.packets[0].wrapping_sub(scratch.flow.packets[0]));
    add(&mut flow.packets[1], entry.packets[1].wrapping_sub(scratch.flow.packets[1]));
    add(&mut flow.bytes[0], entry.bytes[0].wrapping_sub(scratch.flow.bytes[0]));
    add(&mut flow.bytes[1], entry.bytes[1].wrapping_sub(scratch.flow.bytes[1]));
}

/// Entries that the endpoint in slot `index` holds in `target`.
#[inline(always)]
fn held(index: u32, target: u8) -> u64 {
    let (Some(state), Some(swept)) = (tables::state(index), ENDPOINT_SWEPT.get(index)) else { return u64::MAX };
    let held = if target == table::ESTABLISHED {
        state.established_in.wrapping_sub(state.established_out).wrapping_sub(swept.established)
    } else {
        state.answered_in.wrapping_sub(state.answered_out).wrapping_sub(swept.answered)
    };
    // Below zero for a moment, while user space sweeps what was not counted yet.
    if held.cast_signed() < 0 { 0 } else { held }
}

/// Counts an entry into `target`.
#[inline(always)]
pub(crate) fn entered(index: u32, target: u8) {
    if let Some(state) = tables::state(index) {
        match target {
            table::ESTABLISHED => add(&mut state.established_in, 1),
            table::ANSWERED => add(&mut state.answered_in, 1),
            _ => {}
        }
    }
}

/// Counts an entry out of `target`.
#[inline(always)]
pub(crate) fn left(index: u32, target: u8) {
    if let Some(state) = tables::state(index) {
        match target {
            table::ESTABLISHED => add(&mut state.established_out, 1),
            table::ANSWERED => add(&mut state.answered_out, 1),
            _ => {}
        }
    }
}
