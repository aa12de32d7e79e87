//! What kernels know of a connection: the pod's, whose sockets live in its network namespace.
//!
//! A segment that does not open, or an answer, says of itself that it belongs to something. Anyone may write that. The kernel
//! of the pod has a socket for every connection of it, so the programs ask there.

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp};
use sekisho_core::ends::Ends;
use sekisho_core::layout::endpoint_flags;

use crate::emit;
use crate::scratch::{self, Scratch};
use crate::tables;

/// `bpf_sock_tuple` of IPv4 and of IPv6: addresses, then ports.
const TUPLE4: u32 = 12;
const TUPLE6: u32 = 36;

/// The namespace of the packet's interface (`BPF_F_CURRENT_NETNS`): the node's for tc programs, the pod's for its control group's.
pub(crate) const CURRENT: u32 = u32::MAX;

/// States of sockets (`include/net/tcp_states.h`).
const SYN_SENT: u32 = 2;
const CLOSE: u32 = 7;
pub(crate) const LISTEN: u32 = 10;
const NEW_SYN_RECV: u32 = 12;

/// What the pod's kernel knows of a TCP connection.
pub(crate) mod known {
    /// Nothing.
    pub(crate) const NOTHING: u32 = 0;
    /// Nothing, but somebody listens on the local port.
    pub(crate) const LISTENER: u32 = 1;
    /// The pod's own SYN waits for its answer.
    pub(crate) const ASKED: u32 = 2;
    /// The remote's SYN waits for the last acknowledgement.
    pub(crate) const REQUEST: u32 = 3;
    /// It is there, and nobody listens on the local port.
    pub(crate) const BY_POD: u32 = 4;
    /// It is there, and somebody listens on the local port.
    pub(crate) const BY_REMOTE: u32 = 5;
}

/// What the pod's kernel knows of the receiver of a datagram from the remote.
pub(crate) mod bound {
    /// An unconnected socket gets it.
    pub(crate) const UNCONNECTED: u32 = 1;
    /// A socket that is connected to exactly this remote gets it.
    pub(crate) const CONNECTED: u32 = 2;
}

/// Where the pod's sockets are, and whether it may have some that are older than what is known of it.
pub(crate) struct Pod {
    /// Its network namespace, as look-ups want it.
    pub(crate) netns: Option<u32>,
    /// It has been attached only lately.
    pub(crate) young: bool,
    /// The kernel may not know its sockets.
    pub(crate) own_stack: bool,
}

/// The scratch's endpoint.
#[inline(always)]
pub(crate) fn pod(scratch: &mut Scratch) -> Pod {
    let Some(endpoint) = tables::endpoint(scratch.endpoint) else { return Pod { netns: None, young: false, own_stack: false } };
    let until = endpoint.adopts_until;
    let netns = if scratch.link == 0 { Some(CURRENT) } else { endpoint.netns.checked_sub(1) };
    let own_stack = netns.is_none() || endpoint.flags & endpoint_flags::OWN_STACK != 0;
    let young = until != 0 && emit::clock(scratch) < u64::from(until) * 1_000_000_000;
    Pod { netns, young, own_stack }
}

/// Writes a packet's ends for a look-up; its size. Where `wild`, from a port that no connection has: only listeners are found.
#[inline(always)]
pub(crate) fn tuple(tuple: &mut [u32; 9], ends: &Ends, family: u8, to_pod: bool, wild: bool) -> u32 {
    let word = |address: &[u8; 16], at: usize| u32::from_ne_bytes([address[at], address[at + 1], address[at + 2], address[at + 3]]);
    let (from, to, from_port, to_port) = if to_pod {
        (&ends.remote, &ends.local, ends.remote_port, ends.local_port)
    } else {
        (&ends.local, &ends.remote, ends.local_port, ends.remote_port)
    };
    let from_port = if wild { 0 } else { from_port };
    let ports = u32::from(from_port.to_be()) | u32::from(to_port.to_be()) << 16;
    if family == 4 {
        tuple[0] = word(from, 12);
        tuple[1] = word(to, 12);
        tuple[2] = ports;
        return TUPLE4;
    }
    for (slot, at) in [0, 4, 8, 12].into_iter().enumerate() {
        tuple[slot] = word(from, at);
        tuple[slot + 4] = word(to, at);
    }
    tuple[8] = ports;
    TUPLE6
}

/// State of the TCP socket in `netns` that would get the scratch's packet at the remote's end (`to_pod` = 0) or at the pod's; 0 = none.
#[inline(never)]
#[unsafe(export_name = "tcp_socket_state")]
pub(crate) extern "C" fn tcp_state(ctx: *mut __sk_buff, slot: u32, netns: u32, to_pod: u32, wild: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    let size = tuple(&mut scratch.tuple, &scratch.ends, scratch.packet.family, to_pod != 0, wild != 0);
    let at = (&raw mut scratch.tuple).cast();
    // SAFETY: the tuple is map memory of 36 bytes; a socket that is found is given back below.
    let socket: *mut bpf_sock = unsafe { bpf_skc_lookup_tcp(ctx.cast(), at, size, u64::from(netns), 0) };
    if socket.is_null() {
        return 0;
    }
    // SAFETY: the kernel's, until it is given back.
    unsafe {
        let state = (&raw const (*socket).state).read_volatile();
        bpf_sk_release(socket.cast());
        state
    }
}

/// What the pod's kernel knows of the connection that the scratch's packet says it belongs to, one of [`known`].
#[inline(never)]
#[unsafe(export_name = "pod_connection")]
pub(crate) extern "C" fn connection(ctx: *mut __sk_buff, slot: u32, netns: u32) -> u32 {
    match tcp_state(ctx, slot, netns, 1, 0) {
        0 | CLOSE => known::NOTHING,
        LISTEN => known::LISTENER,
        SYN_SENT => known::ASKED,
        NEW_SYN_RECV => known::REQUEST,
        _ if tcp_state(ctx, slot, netns, 1, 1) == LISTEN => known::BY_REMOTE,
        _ => known::BY_POD,
    }
}

/// The pod's UDP socket that a datagram from the remote would reach, one of [`bound`]; 0 = none.
#[inline(never)]
#[unsafe(export_name = "pod_udp_socket")]
pub(crate) extern "C" fn udp(ctx: *mut __sk_buff, slot: u32, netns: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    let size = tuple(&mut scratch.tuple, &scratch.ends, scratch.packet.family, true, false);
    let at = (&raw mut scratch.tuple).cast();
    // SAFETY: as in `tcp_state`.
    let socket: *mut bpf_sock = unsafe { bpf_sk_lookup_udp(ctx.cast(), at, size, u64::from(netns), 0) };
    if socket.is_null() {
        return 0;
    }
    // SAFETY: the kernel's, until it is given back.
    let port = unsafe {
        let port = (&raw const (*socket).dst_port).read_volatile();
        bpf_sk_release(socket.cast());
        port
    };
    // One that is connected elsewhere gets nothing from here, so it is never found.
    if port == 0 { bound::UNCONNECTED } else { bound::CONNECTED }
}
