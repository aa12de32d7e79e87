//! Flow tables by family and kind, and the policy tables that a judgement asks.

use core::mem::offset_of;
use core::ptr::NonNull;

use aya_ebpf::maps::lpm_trie::Key;
use sekisho_core::layout::{
    Address, AddressEntry, CidrKey, Endpoint, EndpointState, Flow, FlowKey4, FlowKey6, PortKey, RuleKey, Rules, Vip, VipKey,
};
use sekisho_core::verdict::Tables;

use crate::kernel::{add, copy16, swap_if};
use crate::maps::{
    ADDRESSES, ANSWERED4, ANSWERED6, CIDRS, EMBRYONIC4, EMBRYONIC6, ENDPOINT_STATES, ENDPOINTS, ESTABLISHED4, ESTABLISHED6, PORTS, RULES,
    VIPS,
};
use crate::scratch::Scratch;

/// Which of a family's tables.
pub(crate) mod table {
    /// Not answered yet, or denied.
    pub(crate) const EMBRYONIC: u8 = 0;
    /// TCP connections.
    pub(crate) const ESTABLISHED: u8 = 1;
    /// Answered datagram flows.
    pub(crate) const ANSWERED: u8 = 2;
}

/// Update flag: only if the key is not there.
pub(crate) const NOEXIST: u64 = 1;
/// What such an update answers where it is.
pub(crate) const EEXIST: i32 = -17;
/// Update flag: whether or not it is there.
pub(crate) const ANY: u64 = 0;

/// An address family's keys and tables.
pub(crate) trait Family {
    /// Its flow key.
    type Key;
    /// Looks a flow up.
    fn find(key: &Self::Key, table: u8) -> Option<Entry>;
    /// Writes a flow; the kernel's error number, 0 = done.
    fn write(key: &Self::Key, table: u8, flow: &Flow, flags: u64) -> i32;
    /// Removes a flow; whether it was there.
    fn remove(key: &Self::Key, table: u8) -> bool;
}

/// IPv4.
pub(crate) struct V4;
/// IPv6.
pub(crate) struct V6;

macro_rules! family {
    ($family:ident, $key:ident, $embryonic:ident, $established:ident, $answered:ident) => {
        impl Family for $family {
            type Key = $key;

            #[inline(always)]
            fn find(key: &$key, table: u8) -> Option<Entry> {
                match table {
                    table::ESTABLISHED => $established.get_ptr_mut(key),
                    table::ANSWERED => $answered.get_ptr_mut(key),
                    _ => $embryonic.get_ptr_mut(key),
                }
                .and_then(NonNull::new)
                .map(Entry)
            }

            #[inline(always)]
            fn write(key: &$key, table: u8, flow: &Flow, flags: u64) -> i32 {
                let done = match table {
                    table::ESTABLISHED => $established.insert(key, flow, flags),
                    table::ANSWERED => $answered.insert(key, flow, flags),
                    _ => $embryonic.insert(key, flow, flags),
                };
                match done {
                    Ok(()) => 0,
                    Err(number) => number,
                }
            }

            #[inline(always)]
            fn remove(key: &$key, table: u8) -> bool {
                match table {
                    table::ESTABLISHED => $established.remove(key),
                    table::ANSWERED => $answered.remove(key),
                    _ => $embryonic.remove(key),
                }
                .is_ok()
            }
        }
    };
}
family!(V4, FlowKey4, EMBRYONIC4, ESTABLISHED4, ANSWERED4);
family!(V6, FlowKey6, EMBRYONIC6, ESTABLISHED6, ANSWERED6);

/// In [`Flow::claim`]: some CPU is taking the flow out. No epoch gets that far.
pub(crate) const OVER: u32 = u32::MAX;

/// A flow as words, for copying.
pub(crate) type FlowWords = [u64; size_of::<Flow>() / 8];

/// A flow in its table. Other CPUs change it at the same time, and the kernel may give its memory to another
/// flow at once: what is written here is only counters, times, flags and states.
#[derive(Clone, Copy)]
pub(crate) struct Entry(pub(crate) NonNull<Flow>);

impl core::ops::Deref for Entry {
    type Target = Flow;

    #[inline(always)]
    fn deref(&self) -> &Flow {
        // SAFETY: map memory stays readable until the program ends; every field is a plain number.
        unsafe { self.0.as_ref() }
    }
}

impl Entry {
    /// For writing numbers in place.
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "map memory, shared with other CPUs")]
    pub(crate) fn raw(&self) -> &mut Flow {
        // SAFETY: as for `deref`.
        unsafe { &mut *self.0.as_ptr() }
    }

    /// Whether this CPU is the one that may end the flow, because of a new epoch or for good ([`OVER`]). What another CPU does
    /// already is left to it.
    #[inline(always)]
    pub(crate) fn claims(&self, why: u32) -> bool {
        let before = self.claim;
        before != why && before != OVER && swap_if(&mut self.raw().claim, before, why)
    }

    /// Changes the state to what `next` says follows it: before and after, the same where nothing follows. Of packets that
    /// two CPUs meet at once, each takes its own step: none where another CPU came in between.
    #[inline(always)]
    pub(crate) fn step(&self, next: impl FnOnce(u8) -> u8) -> Option<(u8, u8)> {
        const STATE: usize = (offset_of!(Flow, state) - offset_of!(Flow, tcp_flags)) * 8;
        const { assert!(offset_of!(Flow, tcp_flags).is_multiple_of(4) && STATE < 32) };
        // Of four bytes there is a comparing swap. The other three are written by themselves, and lose nothing by it.
        // SAFETY: four aligned bytes within the flow, which is map memory.
        let word = unsafe { &mut *(&raw mut self.raw().tcp_flags).cast::<u32>() };
        let old = *word;
        let before = (old >> STATE) as u8;
        let after = next(before);
        (after == before || swap_if(word, old, old & !(0xff << STATE) | u32::from(after) << STATE)).then_some((before, after))
    }

    /// What the flow keeps of the endpoint's MAC; 0 = nothing.
    #[inline(always)]
    fn tag(&self) -> u32 {
        const { assert!(offset_of!(Flow, opened).is_multiple_of(4) && offset_of!(Flow, mac_tag) == offset_of!(Flow, opened) + 1) };
        // SAFETY: four aligned bytes within the flow, the tag behind who opened.
        (unsafe { (&raw const self.0.as_ref().opened).cast::<u32>().read() }) >> 8
    }

    /// Whether a frame from `sender` may be the endpoint's; 0 = there is no frame, or not of its sending.
    #[inline(always)]
    pub(crate) fn bears(&self, sender: u32) -> bool {
        let tag = self.tag();
        tag == sender || tag == 0 || sender == 0
    }

    /// Writes what the flow keeps of the endpoint's MAC.
    #[inline(always)]
    pub(crate) fn mark(&self, tag: u32) {
        let [first, second, third, _] = tag.to_le_bytes();
        self.raw().mac_tag = [first, second, third];
    }

    /// 0 if a packet in `direction` is a forward one, 1 if it is a reply.
    #[inline(always)]
    pub(crate) fn side(&self, direction: u8) -> usize {
        usize::from((self.opened ^ direction) & 1)
    }

    /// Counts a packet.
    #[inline(always)]
    pub(crate) fn count(&self, side: usize, segments: u64, bytes: u64, flags: u8, jiffies: u32) {
        let flow = self.raw();
        let side = side & 1;
        // SAFETY: `side` is 0 or 1.
        unsafe {
            add(flow.packets.get_unchecked_mut(side), segments);
            add(flow.bytes.get_unchecked_mut(side), bytes);
            let seen = flow.tcp_flags.get_unchecked_mut(side);
            if *seen | flags != *seen {
                *seen |= flags;
            }
        }
        if flow.last != jiffies {
            flow.last = jiffies;
        }
    }

    /// Copies the flow out, word by word.
    #[inline(always)]
    pub(crate) fn copy_to(&self, flow: &mut Flow) {
        // SAFETY: both are flows, aligned to 8.
        unsafe { core::ptr::copy_nonoverlapping(self.0.as_ptr().cast::<FlowWords>(), core::ptr::from_mut(flow).cast(), 1) };
    }
}

/// The flow's address, for functions that the verifier walks by themselves; null = none.
#[inline(always)]
pub(crate) fn pointer(entry: Option<Entry>) -> *mut Flow {
    entry.map_or(core::ptr::null_mut(), |entry| entry.0.as_ptr())
}

/// Looks the scratch's key up in `table`.
#[inline(always)]
pub(crate) fn find(scratch: &mut Scratch, table: u8) -> Option<Entry> {
    if scratch.packet.family == 6 { V6::find(&scratch.key6, table) } else { V4::find(&scratch.key4, table) }
}

/// Writes the scratch's flow under its key; the kernel's error number, 0 = done.
#[inline(always)]
pub(crate) fn write(scratch: &mut Scratch, table: u8, flags: u64) -> i32 {
    if scratch.packet.family == 6 {
        V6::write(&scratch.key6, table, &scratch.flow, flags)
    } else {
        V4::write(&scratch.key4, table, &scratch.flow, flags)
    }
}

/// Removes the scratch's key from `table`; 1 = it was there.
#[inline(always)]
pub(crate) fn remove(scratch: &mut Scratch, table: u8) -> u32 {
    let done = if scratch.packet.family == 6 { V6::remove(&scratch.key6, table) } else { V4::remove(&scratch.key4, table) };
    u32::from(done)
}

/// The endpoint that the scratch is about.
#[inline(always)]
pub(crate) fn endpoint(number: u32) -> Option<&'static Endpoint> {
    // SAFETY: user space replaces endpoints whole, and the memory lives until the program ends.
    unsafe { ENDPOINTS.get(&number) }
}

/// What the kernel keeps of the endpoint in slot `index`.
#[inline(always)]
pub(crate) fn state(index: u32) -> Option<&'static mut EndpointState> {
    // SAFETY: array memory lives as long as the map; every field is a plain number.
    ENDPOINT_STATES.get_ptr_mut(index).map(|p| unsafe { &mut *p })
}

/// The policy maps. Keys are built in the scratch: on the stack their stores would have to be aligned.
pub(crate) struct Maps<'a> {
    /// Room for one key.
    pub(crate) room: &'a mut KeyRoom,
}

/// Room for the keys of the policy maps.
#[repr(C)]
pub(crate) struct KeyRoom {
    cidr: Key<CidrKey>,
    vip: VipKey,
    rule: RuleKey,
    port: Key<PortKey>,
    pad: [u8; 9],
}

impl Maps<'_> {
    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the trait asks by reference; nobody else holds the room")]
    fn room(&self) -> &mut KeyRoom {
        // SAFETY: the scratch's owner lent the room for as long as this lives.
        unsafe { &mut *core::ptr::from_ref::<KeyRoom>(self.room).cast_mut() }
    }
}

impl Tables for Maps<'_> {
    #[inline(always)]
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        // SAFETY: read at once; user space replaces entries whole.
        unsafe { ADDRESSES.get(address) }.copied()
    }

    #[inline(always)]
    fn cidr(&self, address: &Address) -> Option<u32> {
        let key = &mut self.room().cidr;
        key.prefix_len = 128;
        copy16(&mut key.data.address, address);
        CIDRS.get(key).copied()
    }

    #[inline(always)]
    fn vip(&self, address: &Address, port: u16, protocol: u8) -> Option<Vip> {
        let key = &mut self.room().vip;
        copy16(&mut key.address, address);
        key.port = port;
        key.protocol = protocol;
        // SAFETY: as in `address`.
        unsafe { VIPS.get(key) }.copied()
    }

    #[inline(always)]
    fn rules(&self, set: u32, class: u32, direction: u8) -> Option<Rules> {
        let key = &mut self.room().rule;
        key.set = set;
        key.class = class;
        key.direction = u32::from(direction);
        // SAFETY: as in `address`.
        unsafe { RULES.get(key) }.copied()
    }

    #[inline(always)]
    fn port(&self, table: u32, protocol: u8, port: u16) -> Option<u32> {
        let key = &mut self.room().port;
        key.prefix_len = 56;
        key.data.table = table.to_be_bytes();
        key.data.protocol = protocol;
        key.data.port = port.to_be_bytes();
        PORTS.get(key).copied()
    }
}
