//! What leaves the programs beside verdicts: counters, events, evidence.

use core::ptr::NonNull;

use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::helpers::generated::bpf_get_smp_processor_id;
use aya_ebpf::maps::ring_buf::RingBufEntry;
use sekisho_core::counters;
use sekisho_core::layout::{Contact, EGRESS, Flow, FlowEvent, contact, endpoint_flags, event};

use crate::budget;
use crate::kernel::{add, copy16, fetch_add, now};
use crate::maps::{CONTACTS, COUNTERS, EVENTS};
use crate::scratch::{self, Scratch};
use crate::tables::{self, Entry};

/// Adds one to a counter.
#[inline(always)]
pub(crate) fn count(slot: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(slot) {
        // Atomic although per CPU: a softirq may cut into a control group program.
        // SAFETY: map memory of this CPU.
        add(unsafe { &mut *counter }, 1);
    }
}

/// Reads the clock once per packet.
#[inline(always)]
pub(crate) fn clock(scratch: &mut Scratch) -> u64 {
    if scratch.now == 0 {
        scratch.now = now();
    }
    scratch.now
}

/// Room for an event in this CPU's ring.
#[inline(always)]
fn room() -> Option<RingBufEntry<FlowEvent>> {
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    EVENTS.get(cpu)?.reserve(0)
}

/// Writes an event about `flow` into its room.
#[inline(always)]
fn fill(room: &mut RingBufEntry<FlowEvent>, scratch: &mut Scratch, flow: *const Flow, kind: u8, end_reason: u8) {
    let time_ns = clock(scratch);
    let record: *mut FlowEvent = room.as_mut_ptr();
    // SAFETY: the ring reserved room for one record, aligned to 8; `flow` is map memory.
    unsafe {
        core::ptr::copy_nonoverlapping(core::ptr::from_ref(&scratch.key6).cast::<[u32; 7]>(), (&raw mut (*record).key).cast(), 1);
        (*record).kind = kind;
        (*record).family = scratch.packet.family;
        (*record).end_reason = end_reason;
        (*record).pad = 0;
        (*record).time_ns = time_ns;
        core::ptr::copy_nonoverlapping(flow.cast::<tables::FlowWords>(), (&raw mut (*record).flow).cast(), 1);
    }
}

/// Writes an event about `flow`; 1 = it is in the ring.
#[inline(always)]
fn send(scratch: &mut Scratch, flow: *const Flow, kind: u8, end_reason: u8) -> u32 {
    let Some(mut room) = room() else { return 0 };
    fill(&mut room, scratch, flow, kind, end_reason);
    room.submit(u64::from(BPF_RB_NO_WAKEUP));
    1
}

/// As [`send`], where it need not be quick.
#[inline(never)]
#[unsafe(export_name = "tell_event")]
extern "C" fn tell(slot: u32, flow: *mut Flow, kind: u32, end_reason: u32) -> u32 {
    let (Some(scratch), Some(flow)) = (scratch::at(slot), NonNull::new(flow)) else { return 0 };
    send(scratch, flow.as_ptr(), kind as u8, end_reason as u8)
}

/// Tells of the flow that was just judged, `scratch.flow`: exactly one of the ledger's outcomes is counted.
#[inline(never)]
#[unsafe(export_name = "tell_start")]
pub(crate) extern "C" fn start(slot: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    count(counters::CREATED);
    if !budget::event(scratch.index, budget::own(scratch)) {
        if let Some(state) = tables::state(scratch.index) {
            add(&mut state.summarised, 1);
        }
        count(counters::SUMMARISED);
        return 0;
    }
    let flow = &raw const scratch.flow;
    let sent = send(scratch, flow, event::START, 0);
    count(if sent != 0 { counters::START_SENT } else { counters::LOST_RING_FULL });
    sent
}

/// A judged packet that has no flow, for `cause`, one of the `LOST_*` counters.
#[inline(always)]
pub(crate) fn stateless(cause: u32) {
    count(counters::CREATED);
    count(counters::STATELESS);
    count(cause);
}

/// Tells that the flow in `entry` is over.
#[inline(always)]
pub(crate) fn end(scratch: &mut Scratch, entry: Entry, reason: u8) {
    let sent = tell(scratch.slot, entry.0.as_ptr(), event::END.into(), reason.into());
    count(if sent != 0 { counters::END_SENT } else { counters::END_LOST });
}

/// Takes the scratch's flow, which `entry` is, out of `table`, and tells that it is over; 1 = it was there. User space
/// may be at it at the same time: only who took it out tells of it.
#[inline(never)]
#[unsafe(export_name = "take_flow_out")]
pub(crate) extern "C" fn take_out(slot: u32, entry: *mut Flow, table: u32, end_reason: u32) -> u32 {
    let (Some(scratch), Some(entry)) = (scratch::at(slot), NonNull::new(entry)) else { return 0 };
    let Some(mut room) = room() else {
        let removed = tables::remove(scratch, table as u8);
        if removed != 0 {
            count(counters::END_LOST);
        }
        return removed;
    };
    // Written before: afterwards the memory may be another flow's.
    fill(&mut room, scratch, entry.as_ptr(), event::END, end_reason as u8);
    let removed = tables::remove(scratch, table as u8);
    if removed != 0 {
        room.submit(u64::from(BPF_RB_NO_WAKEUP));
        count(counters::END_SENT);
    } else {
        room.discard(u64::from(BPF_RB_NO_WAKEUP));
    }
    removed
}

/// The flow in `entry` was refused by its other side: evidence.
#[inline(never)]
#[unsafe(export_name = "flow_refused")]
pub(crate) extern "C" fn refused(slot: u32, entry: *mut Flow) -> u32 {
    let (Some(scratch), Some(entry)) = (scratch::at(slot), NonNull::new(entry).map(Entry)) else { return 0 };
    let Some(endpoint) = tables::endpoint(scratch.endpoint) else { return 0 };
    scratch.index = endpoint.index;
    if entry.opened == EGRESS && endpoint.flags & endpoint_flags::ONE_WAY == 0 {
        failed(slot, contact::REFUSED.into(), entry.remote_instance);
    }
    if !budget::event(scratch.index, entry.opened == EGRESS) || tell(slot, entry.0.as_ptr(), event::REFUSED.into(), 0) == 0 {
        count(counters::REFUSED_LOST);
    }
    1
}

/// Notes a failed contact of the endpoint in slot `scratch.index`.
#[inline(never)]
#[unsafe(export_name = "contact_failed")]
pub(crate) extern "C" fn failed(slot: u32, result: u32, remote_instance: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    let time_ns = clock(scratch);
    let Some(state) = tables::state(scratch.index) else { return 0 };
    let slot = (fetch_add(&mut state.contact_head, 1) & 31) as usize;
    let Some(contacts) = CONTACTS.get_ptr_mut(scratch.index) else { return 0 };
    // SAFETY: `slot` is below 32; array memory lives as long as the map.
    unsafe {
        let place: *mut Contact = (&raw mut (*contacts).slots).cast::<Contact>().add(slot);
        copy16(&mut (*place).remote, &scratch.ends.remote);
        (*place).remote_port = scratch.ends.remote_port;
        (*place).protocol = scratch.ends.protocol;
        (*place).result = result as u8;
        (*place).remote_instance = remote_instance;
        (*place).time_ns = time_ns;
    }
    1
}
