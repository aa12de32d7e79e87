//! Closed connections leave their table by themselves, after a linger, so that a dead agent fills nothing.
//!
//! Who closes also buries: each close removes up to two others whose linger is over, so that the queue cannot
//! grow. User space takes from the same queue when nothing closes.

use sekisho_core::counters;
use sekisho_core::layout::{Closing, end_reason};
use sekisho_core::tcp::{self, state};

use crate::budget::config;
use crate::emit::{self, count};
use crate::maps::CLOSING;
use crate::promote::left;
use crate::scratch::{self, Scratch};
use crate::tables::{self, OVER, table};

/// Burials per close.
const BURIALS: u32 = 2;

/// The scratch's flow has just closed. The scratch's keys are another flow's afterwards.
#[inline(never)]
#[unsafe(export_name = "flow_closed")]
pub(crate) extern "C" fn closed(slot: u32, start_ns: u64, after: u32) -> u32 {
    let (Some(config), Some(scratch)) = (config(), scratch::at(slot)) else { return 0 };
    let reason = reason(after as u8);
    let deadline = scratch.jiffies.wrapping_add(config.linger);
    let place = scratch.table;
    emit::closing(scratch, start_ns, deadline, reason, place);
    for _ in 0..BURIALS {
        if bury(slot) == 0 {
            break;
        }
    }
    0
}

/// Why a connection in a closed state ended.
#[inline(always)]
pub(crate) fn reason(after: u8) -> u8 {
    if after == state::RESET { end_reason::RST } else { end_reason::FIN }
}

/// Takes the first of the queue if its time has come; 0 = none.
#[inline(never)]
#[unsafe(export_name = "bury_flow")]
extern "C" fn bury(slot: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    match CLOSING.peek() {
        Ok(Some(first)) if due(&first, scratch.jiffies) => {}
        _ => return 0,
    }
    let Ok(Some(item)) = CLOSING.pop() else { return 0 };
    if !due(&item, scratch.jiffies) {
        // Another CPU took the one that was due.
        if CLOSING.push(&item, 0).is_err() {
            count(counters::CLOSING_FULL);
        }
        return 0;
    }
    remove(scratch, &item);
    1
}

#[inline(always)]
fn due(item: &Closing, jiffies: u32) -> bool {
    jiffies.wrapping_sub(item.deadline).cast_signed() >= 0
}

/// Ends and removes what `item` names, if it is still that flow.
#[inline(always)]
fn remove(scratch: &mut Scratch, item: &Closing) {
    let key = &item.key;
    scratch.key6 = *key;
    scratch.key4.endpoint = key.endpoint;
    scratch.key4.remote = [key.remote[12], key.remote[13], key.remote[14], key.remote[15]];
    scratch.key4.local_port = key.local_port;
    scratch.key4.remote_port = key.remote_port;
    scratch.key4.protocol = key.protocol;
    scratch.packet.family = item.family;
    let place = if item.established != 0 { table::ESTABLISHED } else { table::EMBRYONIC };
    let Some(entry) = tables::find(scratch, place) else { return };
    if entry.start_ns != item.start_ns || !tcp::closed(entry.state) {
        return;
    }
    if !entry.claims(OVER) || emit::take_out(scratch.slot, tables::pointer(Some(entry)), place.into(), item.end_reason.into()) == 0 {
        return;
    }
    count(counters::REAPED);
    if let Some(endpoint) = tables::endpoint(item.key.endpoint) {
        left(endpoint.index, place);
    }
}
