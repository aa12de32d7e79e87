//! Whether the node itself speaks, where the packet does not show it any more.
//!
//! On the host side of a veth a packet of the node's own process carries its socket. In the pod, where control group
//! programs run, it carries none; but then that socket can be found in the node's namespace, connected to the pod. So it can where
//! the pod answers what is not known any more.

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_lookup_udp, bpf_sk_release};
use sekisho_core::layout::{AddressEntry, address_flags};
use sekisho_core::parse::protocol;

use crate::maps::ADDRESSES;
use crate::scratch;
use crate::sockets::{self, CURRENT, LISTEN};
use crate::tables;

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
    let size = sockets::tuple(&mut scratch.tuple, &scratch.ends, scratch.packet.family, false, false);
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

/// Whether the pod's packet in the scratch belongs to what the node itself opened; 1 = yes. The node's kernel says so, which no
/// pod can forge: a socket of it is connected to the pod, and nobody on the node listens where the packet goes.
#[inline(never)]
#[unsafe(export_name = "own_node_opened")]
pub(crate) extern "C" fn opened(ctx: *mut __sk_buff, slot: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    let netns = if scratch.link != 0 {
        CURRENT
    } else {
        match tables::endpoint(scratch.endpoint).map_or(0, |endpoint| endpoint.node_netns) {
            0 => return 0,
            number => u32::from(number - 1),
        }
    };
    if connected(ctx, slot, netns) == 0 {
        return 0;
    }
    // Sockets of UDP servers are not connected.
    let asked = scratch.ends.protocol == protocol::TCP && sockets::tcp_state(ctx, slot, netns, 0, 1) == LISTEN;
    u32::from(!asked)
}
