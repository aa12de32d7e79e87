//! Whether a pod may speak before its policy is in force.
//!
//! Runs at the control group that holds all pods, which groups made later inherit, so that a pod is held from its first
//! packet on, and also when no agent runs. Where pods are not to be held, what passes is counted. A socket on the node's own
//! addresses is no pod's: the node's agents, its API server perhaps, are never held.
//!
//! TCP tries again only after a second (RFC 6298, 2.1) what is held for milliseconds. So a connection that begins while its pod
//! is held asks again sooner, and as much more often as keeps the time after which it gives up.

use core::ffi::c_void;

use aya_ebpf::bindings::{BPF_SOCK_OPS_TIMEOUT_INIT, bpf_sock_addr, bpf_sock_ops};
use aya_ebpf::helpers::generated::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_socket_cookie, bpf_getsockopt, bpf_setsockopt, bpf_skb_ancestor_cgroup_id,
};
use sekisho_core::counters;
use sekisho_core::layout::hold::{HELD, OFF};
use sekisho_core::layout::{AddressEntry, EGRESS, address_flags, mode};
use sekisho_core::parse::{Window, discovers, discovers_on_link, link_local, mapped, protocol};

use crate::budget::config;
use crate::emit::count;
use crate::hot::Fate;
use crate::kernel::{Direct, Skb};
use crate::maps::{ADDRESSES, HELD_SOCKETS, HOLD, LIVE};
use crate::tables::ANY;

/// Levels below the root that are looked at.
const DEEPEST: u32 = 16;

/// Judges a packet of a socket somewhere below the pods' group.
#[inline(always)]
pub(crate) fn packet(skb: Skb, direction: u8) -> Fate {
    let Some(hold) = HOLD.get(0) else { return Fate::Pass };
    // SAFETY: the context is valid.
    if hold.on == OFF || is_live(hold.levels, |level| unsafe { bpf_skb_ancestor_cgroup_id(skb.0, level) }) {
        return Fate::Pass;
    }
    let window = Direct::new(skb);
    let free = match window.get::<1>(0).map_or(0, |[first]| first >> 4) {
        4 => free4(&window, direction),
        6 => free6(&window, direction),
        _ => false,
    };
    if free {
        return Fate::Pass;
    }
    if hold.on != HELD || config().is_none_or(|config| config.mode != mode::ENFORCE) {
        count(counters::UNJUDGED);
        return Fate::Pass;
    }
    count(counters::HELD);
    Fate::Drop
}

/// Whether the packet is TCP's.
#[inline(always)]
pub(crate) fn is_tcp(skb: Skb) -> bool {
    let window = Direct::new(skb);
    let at = if window.get::<1>(0).is_some_and(|[first]| first >> 4 == 6) { 6 } else { 9 };
    window.get::<1>(at) == Some([protocol::TCP])
}

/// A process somewhere below the pods' group connects a socket: remembered if what it sends will be held.
#[inline(always)]
pub(crate) fn connects(ctx: *mut bpf_sock_addr) {
    let (Some(hold), Some(config)) = (HOLD.get(0), config()) else { return };
    // SAFETY: the context is valid; the verifier rewrites the access.
    if hold.on != HELD || config.mode != mode::ENFORCE || unsafe { (*ctx).protocol } != u32::from(protocol::TCP) {
        return;
    }
    // SAFETY: a helper that takes any level.
    if !is_live(hold.levels, |level| unsafe { bpf_get_current_ancestor_cgroup_id(level) }) {
        // SAFETY: the context is valid.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
        let _ = HELD_SOCKETS.insert(&cookie, &1, ANY);
    }
}

/// The kernel asks how long a SYN waits for its answer: the answer for a connection that is held, in jiffies.
#[inline(always)]
pub(crate) fn first_timeout(ctx: *mut bpf_sock_ops) -> Option<u32> {
    /// `TCP_SYNCNT`, and what is in force where kernels before 6.0 do not tell (`net.ipv4.tcp_syn_retries`).
    const SYNCNT: i32 = 7;
    const USUAL: i32 = 6;
    const MOST: i32 = 127;
    // SAFETY: the context is valid; the verifier rewrites the accesses.
    let (op, full) = unsafe { ((*ctx).op, (*ctx).is_fullsock) };
    if op != BPF_SOCK_OPS_TIMEOUT_INIT || full == 0 {
        return None;
    }
    // SAFETY: the context is valid.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
    HELD_SOCKETS.remove(&cookie).ok()?;
    let (family, local4, local6) = local(ctx);
    if is_node(&if family == 2 { mapped(local4.to_ne_bytes()) } else { bytes(local6) }) {
        return None;
    }
    let hz = config()?.hz.max(1);
    let timeout = (hz / 256).max(1);
    let mut retries = USUAL;
    let room = (&raw mut retries).cast::<c_void>();
    // SAFETY: `room` is four bytes for both helpers.
    unsafe {
        if bpf_getsockopt(ctx.cast(), i32::from(protocol::TCP), SYNCNT, room, 4) != 0 {
            retries = USUAL;
        }
        // Each one doubles the wait for the next.
        retries = (retries + (hz / timeout).ilog2() as i32).min(MOST);
        (bpf_setsockopt(ctx.cast(), i32::from(protocol::TCP), SYNCNT, room, 4) == 0).then_some(timeout)
    }
}

/// Family and addresses of the socket's own end.
#[inline(always)]
fn local(ctx: *mut bpf_sock_ops) -> (u32, u32, [u32; 4]) {
    // Word by word, and all of them: the verifier takes neither wider reads nor a choice between two places.
    // SAFETY: the context is valid; the verifier rewrites the accesses.
    unsafe {
        let word = |at: usize| (&raw const (*ctx).local_ip6[at]).read_volatile();
        ((*ctx).family, (&raw const (*ctx).local_ip4).read_volatile(), [word(0), word(1), word(2), word(3)])
    }
}

#[inline(always)]
fn bytes(words: [u32; 4]) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (four, word) in bytes.chunks_exact_mut(4).zip(words) {
        four.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

#[inline(always)]
fn is_live(levels: u32, ancestor: impl Fn(i32) -> u64) -> bool {
    // Most pods lie in the group of their class, one deeper than guaranteed ones.
    for level in (1..DEEPEST).rev() {
        if levels & (1 << level) == 0 {
            continue;
        }
        let id = ancestor(level as i32);
        // SAFETY: only whether it is there counts. No group has the id 0, which stands for a level that is too deep.
        if id != 0 && unsafe { LIVE.get(&id) }.is_some() {
            return true;
        }
    }
    false
}

/// Whether the packet is the node's or none that policy judges.
#[inline(always)]
fn free4(window: &Direct, direction: u8) -> bool {
    let Some(header) = window.get::<20>(0) else { return false };
    let at = if direction == EGRESS { 12 } else { 16 };
    let local = [header[at], header[at + 1], header[at + 2], header[at + 3]];
    if local[0] == 127 || is_node(&mapped(local)) {
        return true;
    }
    if header[9] != protocol::UDP || header[0] != 0x45 {
        return false;
    }
    match ports(window, 20) {
        Some((68, 67)) => direction == EGRESS && [header[16], header[17], header[18], header[19]] == [255; 4],
        Some((67, 68)) => direction != EGRESS,
        _ => false,
    }
}

#[inline(always)]
fn free6(window: &Direct, direction: u8) -> bool {
    const LOOPBACK: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let Some([next, hops]) = window.get::<2>(6) else { return false };
    let Some(local) = window.get::<16>(if direction == EGRESS { 8 } else { 24 }) else { return false };
    if local == LOOPBACK || is_node(&local) {
        return true;
    }
    let Some(to) = window.get::<16>(24) else { return false };
    let discovers = |kind| if direction == EGRESS { discovers_on_link(kind, hops, &to) } else { discovers(kind, hops, &to) };
    match next {
        protocol::ICMP6 => window.get::<1>(40).is_some_and(|[kind]| discovers(kind)),
        // Listener reports carry a router alert before them.
        0 => {
            window.get::<8>(40).is_some_and(|options| options[0] == protocol::ICMP6)
                && window.get::<1>(48).is_some_and(|[kind]| discovers(kind))
        }
        protocol::UDP => match ports(window, 40) {
            // To the group of servers, and from a neighbour.
            Some((546, 547)) => direction == EGRESS && window.get::<2>(24) == Some([0xff, 2]),
            Some((547, 546)) => direction != EGRESS && window.get::<16>(8).is_some_and(|source| link_local(&source)),
            _ => false,
        },
        _ => false,
    }
}

#[inline(always)]
fn ports(window: &Direct, at: usize) -> Option<(u16, u16)> {
    let [a, b, c, d] = window.get::<4>(at)?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

#[inline(always)]
fn is_node(address: &[u8; 16]) -> bool {
    // SAFETY: read at once; user space replaces entries whole.
    let known: Option<&AddressEntry> = unsafe { ADDRESSES.get(address) };
    known.is_some_and(|entry| entry.flags & address_flags::NODE != 0)
}
