//! Whether a pod may speak before its policy is in force.
//!
//! Runs at the control group that holds all pods, which groups made later inherit, so that a pod is held from its first
//! packet on, and also when no agent runs. Where pods are not to be held, what passes is counted. A socket on the node's own addresses is no pod's: the node's agents, its
//! API server perhaps, are never held.

use aya_ebpf::helpers::generated::bpf_skb_ancestor_cgroup_id;
use sekisho_core::counters;
use sekisho_core::layout::{AddressEntry, EGRESS, address_flags, mode};
use sekisho_core::parse::{Window, mapped, protocol};

use crate::budget::config;
use crate::emit::count;
use crate::hot::Fate;
use crate::kernel::{Direct, Skb};
use crate::maps::{ADDRESSES, HOLD, LIVE};

/// Levels below the root that are looked at.
const DEEPEST: u32 = 16;
/// Multicast listener and neighbour discovery.
const FIRST_ND: u8 = 130;
const LAST_ND: u8 = 137;

/// Judges a packet of a socket somewhere below the pods' group.
#[inline(always)]
pub(crate) fn packet(skb: Skb, direction: u8) -> Fate {
    let Some(hold) = HOLD.get(0) else { return Fate::Pass };
    if hold.on == 0 || is_live(skb, hold.levels) {
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
    if hold.on != 1 || config().is_none_or(|config| config.mode != mode::ENFORCE) {
        count(counters::UNJUDGED);
        return Fate::Pass;
    }
    count(counters::HELD);
    Fate::Drop
}

#[inline(always)]
fn is_live(skb: Skb, levels: u32) -> bool {
    // Most pods lie in the group of their class, one deeper than guaranteed ones.
    for level in (1..DEEPEST).rev() {
        if levels & (1 << level) == 0 {
            continue;
        }
        // SAFETY: the context is valid.
        let id = unsafe { bpf_skb_ancestor_cgroup_id(skb.0, level as i32) };
        // SAFETY: only whether it is there counts.
        if unsafe { LIVE.get(&id) }.is_some() {
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
    header[9] == protocol::UDP && header[0] == 0x45 && matches!(ports(window, 20), Some((67 | 68, 67 | 68)))
}

#[inline(always)]
fn free6(window: &Direct, direction: u8) -> bool {
    const LOOPBACK: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let Some(next) = window.get::<1>(6) else { return false };
    let Some(local) = window.get::<16>(if direction == EGRESS { 8 } else { 24 }) else { return false };
    if local == LOOPBACK || is_node(&local) {
        return true;
    }
    match next[0] {
        protocol::ICMP6 => window.get::<1>(40).is_some_and(|[kind]| (FIRST_ND..=LAST_ND).contains(&kind)),
        // Listener reports carry a router alert before them.
        0 => {
            window.get::<8>(40).is_some_and(|options| options[0] == protocol::ICMP6)
                && window.get::<1>(48).is_some_and(|[kind]| kind == 143 || (FIRST_ND..=LAST_ND).contains(&kind))
        }
        protocol::UDP => matches!(ports(window, 40), Some((546 | 547, 546 | 547))),
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
