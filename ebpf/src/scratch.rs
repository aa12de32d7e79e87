//! Working memory of one packet's slow path, per CPU: the BPF stack is too small for it.
//!
//! A tc program is never interrupted by another on its CPU, so slot 0 is theirs. Control group programs run in
//! process context too, where a softirq or another task may cut in: they claim one of the other slots.

use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use sekisho_core::ends::Ends;
use sekisho_core::layout::{Flow, FlowKey4, FlowKey6, FragmentKey};
use sekisho_core::parse::neighbour::Claims;
use sekisho_core::parse::{Packet, Window};
use sekisho_core::verdict::Judgement;

use crate::kernel::swap;
use crate::tables::KeyRoom;

/// Bytes of a packet that the careful reader looks at.
pub(crate) const LOOK: usize = 192;
/// Room for any read that begins at an offset of one byte.
const ROOM: usize = 256 + 48;
const SLOTS: u32 = 5;

/// What is to be done about a packet that its entry, or the lack of one, does not settle.
pub(crate) mod task {
    /// The entry settles it.
    pub(crate) const NONE: u8 = 0;
    /// No entry: judge and keep.
    pub(crate) const OPEN: u8 = 1;
    /// The key belongs to another flow: judge and keep nothing.
    pub(crate) const UNKEPT: u8 = 2;
    /// Something new under the same key: judge and put it in the entry's place.
    pub(crate) const INSTEAD: u8 = 3;
    /// The policy changed: judge again.
    pub(crate) const AGAIN: u8 = 4;
}

/// See the module.
#[repr(C)]
pub(crate) struct Scratch {
    /// 1 = claimed.
    pub(crate) busy: u32,
    /// Which slot this is.
    pub(crate) slot: u32,
    /// Endpoint number, as in keys.
    pub(crate) endpoint: u32,
    /// Policy epoch, read once.
    pub(crate) epoch: u32,
    /// Mode, read once.
    pub(crate) mode: u32,
    /// Ticks.
    pub(crate) jiffies: u32,
    /// Bytes in `buffer`.
    pub(crate) held: u32,
    /// Bytes of the packet.
    pub(crate) length: u32,
    /// `EGRESS` or `INGRESS` of the endpoint.
    pub(crate) direction: u8,
    /// Offset of the IP header: 14, or 0 in control group programs.
    pub(crate) link: u8,
    /// Reason that the packet would be denied for without asking the tables; 0 = none.
    pub(crate) cause: u8,
    /// 1 = an ingress packet with a socket of this node.
    pub(crate) own_node: u8,
    /// `table` where the last look-up found its entry.
    pub(crate) table: u8,
    /// 1 = several segments.
    pub(crate) large: u8,
    /// One of [`task`].
    pub(crate) task: u8,
    /// 1 = the packet is counted in its flow.
    pub(crate) counted: u8,
    /// The new verdict.
    pub(crate) verdict: u8,
    /// Its reason.
    pub(crate) why: u8,
    /// Who opened.
    pub(crate) opened: u8,
    /// The state a new flow starts in.
    pub(crate) state: u8,
    /// 1 = the packet has been counted at the endpoint's interface.
    pub(crate) met: u8,
    /// One of `basis`.
    pub(crate) basis: u8,
    /// 1 = the connection began before the packet.
    pub(crate) adopted: u8,
    /// 1 = the endpoint is known, and what it may send as is checked.
    pub(crate) admitted: u8,
    /// 1 = sent in another's name.
    pub(crate) forged: u8,
    /// 1 = of a kind that a pod without an address may send.
    pub(crate) exempt: u8,
    /// 1 = the packet shows no addresses.
    pub(crate) hidden: u8,
    /// `mac_tag` of the frame's sender, where the endpoint sent it; 0 = no frame.
    pub(crate) sender: u32,
    /// `mac_tag` of the endpoint; 0 = not to be checked.
    pub(crate) mac_tag: u32,
    /// What the packet tells its sender's neighbours.
    pub(crate) claims: Claims,
    /// 1 = judged by the flow's backend, whose place in `ends` it has; 2 = that is the endpoint itself.
    pub(crate) behind: u8,
    /// Wire segments.
    pub(crate) segments: u64,
    /// IP bytes.
    pub(crate) bytes: u64,
    /// Boottime; 0 = not read yet.
    pub(crate) now: u64,
    /// Endpoint's slot.
    pub(crate) index: u32,
    /// The endpoint's set.
    pub(crate) set: u32,
    /// Bits of `endpoint_flags`.
    pub(crate) endpoint_flags: u32,
    /// The endpoint's instance.
    pub(crate) instance: u32,
    /// What the tables say.
    pub(crate) judgement: Judgement,
    /// The packet, from the endpoint.
    pub(crate) ends: Ends,
    /// Room for a socket's tuple.
    pub(crate) tuple: [u32; 9],
    /// Room for keys.
    pub(crate) keys: KeyRoom,
    /// Room for a fragment's name.
    pub(crate) fragment: FragmentKey,
    /// Key, IPv4.
    pub(crate) key4: FlowKey4,
    /// Key, IPv6 or neutral.
    pub(crate) key6: FlowKey6,
    /// Headers.
    pub(crate) packet: Packet,
    /// Headers that are being read; those inside an ICMP error.
    pub(crate) reading: Packet,
    /// A flow about to be inserted.
    pub(crate) flow: Flow,
    /// Where the careful reader reads.
    pub(crate) cursor: usize,
    /// Copied packet bytes.
    pub(crate) buffer: [u8; ROOM],
}

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(SLOTS, 0);

/// The slot of tc programs.
#[inline(always)]
pub(crate) fn of_tc() -> Option<&'static mut Scratch> {
    at(0)
}

/// The scratch in `slot`, which the caller's packet owns. Functions that the verifier walks by themselves are given
/// the slot's number: it knows nothing of pointers that come from outside.
#[inline(always)]
pub(crate) fn at(slot: u32) -> Option<&'static mut Scratch> {
    // SAFETY: nothing else on this CPU uses the slot until it is given back; slot 0 until the program ends.
    SCRATCH.get_ptr_mut(slot).map(|p| unsafe { &mut *p })
}

/// A free slot for a control group program; to be given back by [`release`].
#[inline(always)]
pub(crate) fn claim() -> Option<&'static mut Scratch> {
    for slot in 1..SLOTS {
        // SAFETY: used only after the claim below succeeded, by whoever claimed.
        let scratch = SCRATCH.get_ptr_mut(slot).map(|p| unsafe { &mut *p })?;
        if swap(&mut scratch.busy, 1) == 0 {
            scratch.slot = slot;
            return Some(scratch);
        }
    }
    None
}

/// Gives a claimed slot back.
#[inline(always)]
pub(crate) fn release(slot: u32) {
    if let Some(scratch) = at(slot) {
        swap(&mut scratch.busy, 0);
    }
}

/// The bytes in [`Scratch::buffer`].
pub(crate) struct Copied<'a> {
    pub(crate) buffer: &'a [u8; ROOM],
    pub(crate) cursor: *mut usize,
    pub(crate) held: usize,
    pub(crate) length: usize,
    pub(crate) large: bool,
}

impl Window for Copied<'_> {
    #[inline(always)]
    fn get<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        const { assert!(N <= ROOM - 256) };
        if offset + N > self.held {
            return None;
        }
        // The mask changes nothing, but proves the bounds of a value whose origin is forgotten.
        let at = self.forget(offset) & 255;
        // SAFETY: `at + N` is at most `ROOM`.
        Some(unsafe { self.buffer.as_ptr().add(at).cast::<[u8; N]>().read_unaligned() })
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn large(&self) -> bool {
        self.large
    }

    #[inline(always)]
    fn forget(&self, value: usize) -> usize {
        // SAFETY: `cursor` is map memory of this program's own; the verifier does not follow values through it.
        unsafe {
            self.cursor.write_volatile(value);
            self.cursor.read_volatile()
        }
    }
}
