//! Closed connections leave their table by themselves, after a linger, so that a dead agent fills nothing.
//!
//! Who closes also buries: each close removes up to two others whose linger is over, so that the queue cannot
//! grow. User space takes from the same queue when nothing closes. An endpoint has a share of the queue: what it closes
//! beyond that is removed without a linger, and other endpoints' flows have theirs.

use core::ptr::NonNull;

use sekisho_core::counters;
use sekisho_core::layout::{Closing, end_reason};
use sekisho_core::tcp::{self, state};

use crate::budget::config;
use crate::emit::{self, count};
use crate::kernel::add;
use crate::maps::{CLOSING, ENDPOINT_SWEPT};
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
    let mut item = Closing {
        key: scratch.key6,
        deadline: scratch.jiffies.wrapping_add(config.linger),
        start_ns,
        family: scratch.packet.family,
        end_reason: reason(after as u8),
        established: u8::from(scratch.table == table::ESTABLISHED),
        pad: [0; 5],
    };
    if !queue(config.closing_share, &item) {
        // It goes at once: where no agent runs, nothing else would ever remove it.
        count(counters::CLOSING_FULL);
        remove(slot, &raw mut item);
    }
    for _ in 0..BURIALS {
        if bury(slot) == 0 {
            break;
        }
    }
    0
}

/// Queues a closed flow for its removal, unless its endpoint has `share` flows there already (0 = no limit).
#[inline(always)]
fn queue(share: u32, item: &Closing) -> bool {
    let Some(endpoint) = tables::endpoint(item.key.endpoint) else { return false };
    let (Some(state), Some(swept)) = (tables::state(endpoint.index), ENDPOINT_SWEPT.get(endpoint.index)) else { return false };
    // Below zero where another endpoint had the number before.
    let queued = state.closing.wrapping_sub(swept.closing).cast_signed();
    if (share != 0 && queued >= i64::from(share)) || CLOSING.push(item, 0).is_err() {
        return false;
    }
    add(&mut state.closing, 1);
    true
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
    let Ok(Some(mut item)) = CLOSING.pop() else { return 0 };
    // Another CPU took the one that was due. Where this one finds no room any more, it goes at once.
    if !due(&item, scratch.jiffies) && CLOSING.push(&item, 0).is_ok() {
        return 0;
    }
    if let Some(endpoint) = tables::endpoint(item.key.endpoint)
        && let Some(state) = tables::state(endpoint.index)
    {
        add(&mut state.closing, 1u64.wrapping_neg());
    }
    remove(slot, &raw mut item);
    1
}

#[inline(always)]
fn due(item: &Closing, jiffies: u32) -> bool {
    jiffies.wrapping_sub(item.deadline).cast_signed() >= 0
}

/// Ends and removes what `item` names, if it is still that flow; 1 = done.
#[inline(never)]
#[unsafe(export_name = "remove_closed")]
extern "C" fn remove(slot: u32, item: *mut Closing) -> u32 {
    let (Some(scratch), Some(item)) = (scratch::at(slot), NonNull::new(item)) else { return 0 };
    // SAFETY: the caller's, for as long as the call takes.
    let item = unsafe { item.as_ref() };
    let key = &item.key;
    scratch.key6 = *key;
    scratch.key4.endpoint = key.endpoint;
    scratch.key4.remote = [key.remote[12], key.remote[13], key.remote[14], key.remote[15]];
    scratch.key4.local_port = key.local_port;
    scratch.key4.remote_port = key.remote_port;
    scratch.key4.protocol = key.protocol;
    scratch.packet.family = item.family;
    let place = if item.established != 0 { table::ESTABLISHED } else { table::EMBRYONIC };
    let Some(entry) = tables::find(scratch, place) else { return 0 };
    if entry.start_ns != item.start_ns || !tcp::closed(entry.state) || !entry.claims(OVER) {
        return 0;
    }
    if emit::take_out(scratch.slot, tables::pointer(Some(entry)), place.into(), item.end_reason.into()) == 0 {
        return 0;
    }
    count(counters::REAPED);
    if let Some(endpoint) = tables::endpoint(item.key.endpoint) {
        left(endpoint.index, place);
    }
    1
}
