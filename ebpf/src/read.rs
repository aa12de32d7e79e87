//! Reads the headers of packets that are not of the common shapes, in steps that the verifier walks one by one.
//!
//! Every step reads from the copy of the packet's first bytes and writes into [`Scratch::reading`].

use aya_ebpf::bindings::__sk_buff;
use sekisho_core::parse::{self, Kind, Packet};

use crate::kernel::Skb;
use crate::scratch::{self, Copied, LOOK, Scratch};

/// Added to a [`Kind`] where an offset was asked for.
const TROUBLE: u32 = 1 << 16;

/// Reads the packet's headers into [`Scratch::packet`]; a [`Kind`].
#[inline(never)]
#[unsafe(export_name = "read_packet")]
pub(crate) extern "C" fn packet(ctx: *mut __sk_buff, slot: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return Kind::Malformed as u32 };
    clear(&mut scratch.reading);
    let kind = if copy(ctx, scratch) { steps(slot) } else { Kind::Malformed as u32 };
    take(scratch);
    kind
}

/// Reads the header that an ICMP error quotes, as far as it names a flow; a [`Kind`].
#[inline(never)]
#[unsafe(export_name = "read_quoted")]
pub(crate) extern "C" fn quoted(slot: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return Kind::Malformed as u32 };
    clear(&mut scratch.reading);
    let end = walk(slot, scratch.packet.payload.into(), 1);
    if end >= TROUBLE { end - TROUBLE } else { identify(slot, end) }
}

/// Copies the packet's first bytes, which linear data may not hold.
#[inline(always)]
fn copy(ctx: *mut __sk_buff, scratch: &mut Scratch) -> bool {
    let mut held = scratch.length;
    if held > LOOK as u32 {
        held = LOOK as u32;
    }
    if held == 0 {
        return false;
    }
    scratch.held = held;
    // The same number, proven anew: older verifiers lose the link between a value and its copies.
    // SAFETY: the scratch's own field.
    let count = ((unsafe { (&raw const scratch.held).read_volatile() }.wrapping_sub(1)) & 0xff) + 1;
    Skb(ctx).copy(scratch.buffer.as_mut_ptr(), count)
}

#[inline(always)]
fn steps(slot: u32) -> u32 {
    let at = link(slot);
    if at >= TROUBLE {
        return at - TROUBLE;
    }
    let end = walk(slot, at, 0);
    if end >= TROUBLE { end - TROUBLE } else { transport(slot, at, end) }
}

/// Where the IP header begins.
#[inline(never)]
#[unsafe(export_name = "read_link")]
extern "C" fn link(slot: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return TROUBLE };
    if scratch.link == 0 { 0 } else { offset(parse::link(&window(scratch))) }
}

/// The IP header and its extensions; where the transport header begins.
#[inline(never)]
#[unsafe(export_name = "read_network")]
extern "C" fn walk(slot: u32, at: u32, truncated: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return TROUBLE };
    let window = window(scratch);
    offset(parse::walk(&window, at as usize, &mut scratch.reading, truncated != 0))
}

/// The transport header.
#[inline(never)]
#[unsafe(export_name = "read_transport")]
extern "C" fn transport(slot: u32, network: u32, at: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return Kind::Malformed as u32 };
    let window = window(scratch);
    parse::transport(&window, network as usize, at as usize, &mut scratch.reading) as u32
}

/// What is left of a quoted transport header.
#[inline(never)]
#[unsafe(export_name = "read_quoted_transport")]
extern "C" fn identify(slot: u32, at: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return Kind::Malformed as u32 };
    let window = window(scratch);
    parse::identify(&window, at as usize, &mut scratch.reading) as u32
}

/// What was copied.
#[inline(always)]
pub(crate) fn window(scratch: &Scratch) -> Copied<'static> {
    Copied {
        // SAFETY: the scratch is map memory, which outlives the program; nothing writes the buffer while it is read.
        buffer: unsafe { &*(&raw const scratch.buffer) },
        cursor: (&raw const scratch.cursor).cast_mut(),
        held: scratch.held as usize,
        length: scratch.length as usize,
        large: scratch.large != 0,
    }
}

#[inline(always)]
fn offset(read: Result<usize, Kind>) -> u32 {
    match read {
        Ok(at) => (at & 0xffff) as u32,
        Err(kind) => TROUBLE + kind as u32,
    }
}

const WORDS: usize = size_of::<Packet>() / 4;
const _: () = assert!(size_of::<Packet>() % 4 == 0 && align_of::<Packet>() == 4);

/// Makes `packet` one of which nothing is known.
#[inline(always)]
fn clear(packet: &mut Packet) {
    let words = core::ptr::from_mut(packet).cast::<u32>();
    for word in 0..WORDS {
        // SAFETY: within the packet, which is plain numbers; all zero is `Packet::EMPTY`. Volatile, or the compiler
        // would call a function that goes byte by byte.
        unsafe { words.add(word).write_volatile(0) };
    }
}

/// What was read is the packet.
#[inline(always)]
fn take(scratch: &mut Scratch) {
    let from = (&raw const scratch.reading).cast::<[u32; WORDS]>();
    // SAFETY: two packets, both aligned to words.
    unsafe { core::ptr::copy_nonoverlapping(from, (&raw mut scratch.packet).cast(), 1) };
}
