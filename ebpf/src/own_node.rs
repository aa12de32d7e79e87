//! Whether the node itself speaks, where the packet does not show it any more.
//!
//! On the host side of a veth a packet of the node's own process carries its socket. In the pod, where control group
//! programs run, it carries none; but then that socket can be found in the node's namespace, connected to the pod.

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release};
use sekisho_core::layout::{AddressEntry, address_flags};
use sekisho_core::parse::protocol;

use crate::maps::ADDRESSES;
use crate::scratch::{self, Scratch};

/// `bpf_sock_tuple` of IPv4 and of IPv6: addresses, then ports.
const TUPLE4: u32 = 12;
const TUPLE6: u32 = 36;

/// Whether a socket in the node's namespace `netns`, as the pod's calls it, is connected to what the packet in the
/// scratch came for; 1 = yes. Listening and unconnected sockets do not count: a masqueraded stranger may choose its port.
#[inline(never)]
#[unsafe(export_name = "own_node_connected")]
pub(crate) extern "C" fn connected(ctx: *mut __sk_buff, slot: u32, netns: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    // SAFETY: read at once; user space replaces entries whole.
    let known: Option<&AddressEntry> = unsafe { ADDRESSES.get(&scratch.ends.remote) };
    if known.is_none_or(|entry| entry.flags & address_flags::NODE == 0) {
        return 0;
    }
    let is_tcp = scratch.ends.protocol == protocol::TCP;
    if !is_tcp && scratch.ends.protocol != protocol::UDP {
        return 0;
    }
    let size = tuple(scratch);
    let at = (&raw mut scratch.tuple).cast();
    let netns = u64::from(netns);
    // SAFETY: the tuple is map memory of 36 bytes; a socket that is found is given back below.
    let socket: *mut bpf_sock = unsafe {
        if is_tcp { bpf_sk_lookup_tcp(ctx.cast(), at, size, netns, 0) } else { bpf_sk_lookup_udp(ctx.cast(), at, size, netns, 0) }
    };
    if socket.is_null() {
        return 0;
    }
    // SAFETY: the kernel's, until it is given back.
    let port = unsafe {
        let port = (*socket).dst_port;
        bpf_sk_release(socket.cast());
        port
    };
    u32::from(u16::from_be(port) == scratch.ends.local_port)
}

/// Writes the ends as the node would see the pod's answer: from the pod, to the node.
#[inline(always)]
fn tuple(scratch: &mut Scratch) -> u32 {
    let ends = &scratch.ends;
    let word = |address: &[u8; 16], at: usize| u32::from_ne_bytes([address[at], address[at + 1], address[at + 2], address[at + 3]]);
    let ports = u32::from(ends.local_port.to_be()) | u32::from(ends.remote_port.to_be()) << 16;
    if scratch.packet.family == 4 {
        scratch.tuple[0] = word(&ends.local, 12);
        scratch.tuple[1] = word(&ends.remote, 12);
        scratch.tuple[2] = ports;
        return TUPLE4;
    }
    for (slot, at) in [0, 4, 8, 12].into_iter().enumerate() {
        scratch.tuple[slot] = word(&ends.local, at);
        scratch.tuple[slot + 4] = word(&ends.remote, at);
    }
    scratch.tuple[8] = ports;
    TUPLE6
}
