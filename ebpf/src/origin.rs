//! Who opened what a packet is the first of, and what shows it.
//!
//! A packet that opens (a SYN, a datagram to a server) is its sender's, and policy says whether that one may. Every other first
//! packet says that the other side opened something earlier: before the programs were attached, or before a flow was evicted or
//! expired. Nobody can be believed who says that of itself:
//!
//! - The pod's kernel knows the pod's connections. What arrives for one is the peer's who opened it, or an answer to the pod.
//! - What the *pod* sends as an answer needs more. A process with a raw socket can make its own kernel accept a connection from
//!   anyone: it plays the peer's part of a handshake on its loopback interface, or with `TCP_REPAIR` needs no handshake. So a
//!   socket beside a listener shows that the remote opened only for a while after the first attachment, when there may be older
//!   connections. After that the pod itself must be allowed to open as well. When the remote speaks first, that is no question: what
//!   policy lets it open, it may also continue.
//! - A segment to a listener opens nothing that a SYN would not: it is judged as one. So the last ACK of a handshake with a SYN
//!   cookie, of which no kernel knows anything, passes. A SYN-ACK that the pod sends with a cookie has its SYN's flow; where that
//!   is not there, it is the pod's word alone.
//! - What nobody knows is judged as opened by its sender. Denied, its reason is `no_connection`.
//!
//! Datagrams have no handshake, and whoever sends the first that is seen would count as the opener. Were that the server, whose
//! client policy denies, the client's datagrams would pass as replies for ever. So an answer needs both sides' right to open.

use core::ptr::NonNull;

use aya_ebpf::bindings::__sk_buff;
use sekisho_core::layout::{EGRESS, Flow, INGRESS, UNKNOWN, basis, reason, verdict};
use sekisho_core::parse::{echo, fragment, protocol};
use sekisho_core::tcp::{self, First, state};
use sekisho_core::verdict::isolated;

use crate::emit;
use crate::own_node;
use crate::scratch::{self, Scratch, task};
use crate::sockets::{self, bound, known};
use crate::tables::Entry;

/// Ports from which on the kernel gives them to clients (`net.ipv4.ip_local_port_range`).
const EPHEMERAL: u16 = 32768;
/// For how long after a conversation was cut the other side's datagrams are answers that were on their way.
const ON_ITS_WAY: u64 = 10_000_000_000;

/// Finds out who opened, on what basis, and the state that the flow begins in. `found` is the entry under its key.
#[inline(never)]
#[unsafe(export_name = "flow_origin")]
pub(crate) extern "C" fn find(ctx: *mut __sk_buff, slot: u32, found: *mut Flow) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    scratch.opened = scratch.direction;
    scratch.basis = basis::PROVEN as u8;
    scratch.state = 0;
    scratch.adopted = 0;
    // With another cause than a forged source the headers say nothing.
    if scratch.packet.fragment == fragment::LATER || !matches!(scratch.cause, 0 | reason::SPOOFED_SOURCE) {
        return 0;
    }
    match scratch.packet.protocol {
        protocol::TCP => segment(ctx, scratch),
        _ => {
            let found = NonNull::new(found).map(Entry).filter(|_| scratch.task == task::INSTEAD);
            message(ctx, scratch, found);
        }
    }
    0
}

/// A TCP segment.
#[inline(always)]
fn segment(ctx: *mut __sk_buff, scratch: &mut Scratch) {
    let flags = scratch.packet.tcp_flags;
    let first = tcp::first(flags);
    match first {
        First::Open => scratch.state = state::SYN_SENT,
        First::Probe => scratch.state = state::PROBE,
        First::Reset | First::Accept | First::Middle => {
            belongs(ctx, scratch.slot, u32::from(first == First::Accept));
            if first == First::Reset {
                scratch.state = state::RESET;
            }
        }
    }
}

/// A segment of a connection that somebody opened earlier. `accepts` = it is a SYN-ACK.
#[inline(never)]
#[unsafe(export_name = "segment_belongs")]
extern "C" fn belongs(ctx: *mut __sk_buff, slot: u32, accepts: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    let accepts = accepts != 0;
    let direction = scratch.direction;
    if by_node(ctx, scratch) {
        adopt(scratch, INGRESS, basis::PROVEN);
        return 0;
    }
    let pod = sockets::pod(scratch);
    let known = match pod.netns {
        Some(netns) => sockets::connection(ctx, scratch.slot, netns),
        None => known::NOTHING,
    };
    if accepts && (known == known::ASKED && direction == INGRESS || known == known::REQUEST && direction == EGRESS) {
        // The handshake goes on; only the SYN was not seen, or is forgotten.
        scratch.state = state::SYN_RECEIVED;
        scratch.opened = 1 - (direction & 1);
        scratch.basis = if direction == INGRESS || pod.young { basis::PROVEN } else { basis::BOTH } as u8;
        return 0;
    }
    let (opened, shown) = match known {
        known::ASKED | known::BY_POD => (EGRESS, basis::PROVEN),
        known::REQUEST | known::BY_REMOTE if direction == INGRESS || pod.young => (INGRESS, basis::PROVEN),
        known::REQUEST | known::BY_REMOTE => (INGRESS, basis::BOTH),
        known::LISTENER if direction == INGRESS && !accepts => (INGRESS, basis::PROVEN),
        known::NOTHING if pod.own_stack && pod.young => (UNKNOWN, basis::PROVEN),
        _ if direction == INGRESS => (UNKNOWN, basis::RECEIVED),
        _ => (UNKNOWN, basis::SENT),
    };
    adopt(scratch, opened, shown);
    0
}

/// The connection began earlier.
#[inline(always)]
fn adopt(scratch: &mut Scratch, opened: u8, shown: u32) {
    scratch.opened = opened;
    scratch.basis = shown as u8;
    scratch.adopted = 1;
    let reply = (opened ^ scratch.direction) & 1 != 0;
    let seen = if reply { state::ADOPTED_REPLY } else { state::ADOPTED_FORWARD };
    scratch.state = tcp::next(seen, reply, scratch.packet.tcp_flags);
}

/// Whether the pod answers its own node, which alone opens without being asked.
#[inline(always)]
fn by_node(ctx: *mut __sk_buff, scratch: &mut Scratch) -> bool {
    let flags = scratch.endpoint_flags;
    let judged = isolated(flags, EGRESS) || isolated(flags, INGRESS);
    if scratch.direction != EGRESS || !judged || own_node::opened(ctx, scratch.slot) == 0 {
        return false;
    }
    scratch.own_node = 1;
    true
}

/// A datagram, or a message of another protocol; `found` is another flow under its key, whose place it might take.
#[inline(always)]
fn message(ctx: *mut __sk_buff, scratch: &mut Scratch, found: Option<Entry>) {
    let other = 1 - (scratch.direction & 1);
    if scratch.packet.echo == echo::REPLY || found.is_some_and(|entry| was_cut(scratch, entry, other)) {
        scratch.opened = other;
        scratch.basis = basis::BOTH as u8;
        return;
    }
    if scratch.packet.protocol != protocol::UDP {
        return;
    }
    let (local, remote) = (scratch.ends.local_port, scratch.ends.remote_port);
    if scratch.direction == EGRESS {
        if local >= EPHEMERAL {
            return;
        }
        if by_node(ctx, scratch) {
            scratch.opened = INGRESS;
            return;
        }
    } else if serves(scratch) {
        return;
    }
    let pod = sockets::pod(scratch);
    // A server's answer shows in the ports. Where these say nothing, that the pod's socket has a server's port must do, while
    // there may be conversations older than the attachment.
    let told = scratch.direction == EGRESS && remote >= EPHEMERAL;
    let Some(netns) = pod.netns.filter(|_| told || pod.young) else { return };
    let socket = sockets::udp(ctx, scratch.slot, netns);
    if scratch.direction == EGRESS {
        if socket == bound::UNCONNECTED {
            scratch.opened = INGRESS;
            scratch.basis = basis::BOTH as u8;
        }
    } else if socket == bound::CONNECTED {
        scratch.opened = EGRESS;
    } else if socket == bound::UNCONNECTED && local >= EPHEMERAL && remote < EPHEMERAL {
        scratch.opened = EGRESS;
        scratch.basis = basis::BOTH as u8;
    }
}

/// Whether the ports say that the pod is the server. There are servers that connect a socket to each of their clients.
#[inline(always)]
pub(crate) fn serves(scratch: &Scratch) -> bool {
    scratch.ends.local_port < EPHEMERAL && scratch.ends.remote_port >= EPHEMERAL
}

/// Whether the other side's conversation in `entry` was cut by a change of policy just now: then this is the answer to what came
/// before, and does not begin another one.
#[inline(always)]
fn was_cut(scratch: &mut Scratch, entry: Entry, other: u8) -> bool {
    let (opened, denied, start, born) = (entry.opened, entry.verdict == verdict::DENIED, entry.start_ns, entry.born_ns);
    denied && opened == other && start != born && emit::clock(scratch).wrapping_sub(start) < ON_ITS_WAY
}
