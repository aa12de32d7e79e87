//! What a neighbour says of itself: ARP over IPv4, neighbour discovery over IPv6.
//!
//! Both move traffic from one station to another, so a pod may say nothing there that is not true. It does not judge: it reads
//! claims out of bytes and refuses shapes that the protocols do not have.

use super::{Packet, Window, mapped};
use crate::layout::Address;

/// ICMPv6 types that are read here.
pub mod kind {
    /// Router solicitation.
    pub const ROUTER_SOLICITATION: u8 = 133;
    /// Neighbour solicitation.
    pub const SOLICITATION: u8 = 135;
    /// Neighbour advertisement.
    pub const ADVERTISEMENT: u8 = 136;
}

/// Bytes of options in a message: two link-layer addresses and a nonce take 24.
const OPTIONS: usize = 32;

/// Claims of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Claims {
    /// Address that it is about; zero in a router solicitation.
    pub target: Address,
    /// Hardware address that it names for its sender; zero = none.
    pub mac: [u8; 6],
    /// Zero.
    pub pad: [u8; 2],
}

impl Claims {
    /// Nothing claimed.
    pub const NONE: Self = Self { target: [0; 16], mac: [0; 6], pad: [0; 2] };
}

/// Where a frame's ARP message begins: behind as many tags as [`link`](super::link) passes over.
#[inline(always)]
pub fn arp_at<W: Window>(window: &W) -> usize {
    // A number in any case: the BPF verifier follows no value that is only there where the other half says so.
    let is_arp = |at| window.get::<2>(at).map_or(0, u16::from_be_bytes) == 0x0806;
    if is_arp(12) {
        14
    } else if is_arp(16) {
        18
    } else {
        22
    }
}

/// Reads the ARP message over Ethernet and IPv4 at `at` into the packet's addresses and `claims`; false where it is none that a host
/// sends.
#[inline(always)]
pub fn arp<W: Window>(window: &W, at: usize, packet: &mut Packet, claims: &mut Claims) -> bool {
    let Some(head) = window.get::<8>(at) else { return false };
    let Some(mac) = window.get::<6>(at + 8) else { return false };
    let Some(from) = window.get::<4>(at + 14) else { return false };
    let Some(to) = window.get::<4>(at + 24) else { return false };
    packet.family = 4;
    packet.source = mapped(from);
    packet.destination = mapped(to);
    packet.total = 28;
    packet.headers = 28;
    claims.target = packet.source;
    claims.mac = mac;
    // Ethernet, IPv4, their lengths, request or reply.
    let kind = u64::from_be_bytes(head);
    kind == 0x0001_0800_0604_0001 || kind == 0x0001_0800_0604_0002
}

/// Reads a solicitation or a neighbour advertisement into `claims`; false where it is longer or fuller than one is, so that
/// it may carry something else.
#[inline(always)]
pub fn discovery<W: Window>(window: &W, packet: &Packet, claims: &mut Claims) -> bool {
    // Directly behind the IPv6 header.
    if packet.headers != 48 || packet.payload < 8 {
        return false;
    }
    let at = usize::from(packet.payload) - 8;
    let is_router = packet.icmp[0] == kind::ROUTER_SOLICITATION;
    let body = if is_router { 8 } else { 24 };
    let length = (packet.total as usize).wrapping_sub(40);
    if packet.icmp[1] != 0 || length < body || length > body + OPTIONS {
        return false;
    }
    let Some(flags) = window.get::<4>(at + 4) else { return false };
    let said = if packet.icmp[0] == kind::ADVERTISEMENT { flags[0] & 0x1f } else { flags[0] };
    if said | flags[1] | flags[2] | flags[3] != 0 {
        return false;
    }
    if !is_router {
        let Some(target) = window.get::<16>(at + 8) else { return false };
        claims.target = target;
        if target[0] == 0xff {
            return false;
        }
    }
    options(window, at + body, at + length, claims)
}

/// Link-layer addresses and nonces (RFC 7527), up to the very end.
#[inline(always)]
fn options<W: Window>(window: &W, from: usize, end: usize, claims: &mut Claims) -> bool {
    let mut at = from;
    let end = window.forget(end);
    for _ in 0..OPTIONS / 8 {
        at = window.forget(at);
        if at >= end {
            break;
        }
        let Some(option) = window.get::<8>(at) else { return false };
        if option[1] != 1 {
            return false;
        }
        match option[0] {
            1 | 2 => {
                let mac = [option[2], option[3], option[4], option[5], option[6], option[7]];
                if claims.mac != [0; 6] && claims.mac != mac {
                    return false;
                }
                claims.mac = mac;
            }
            14 => {}
            _ => return false,
        }
        at += 8;
    }
    at == end
}

/// Whether a solicitation goes where one about `target` goes: to the target itself, or to the group that its last bytes name.
#[inline(always)]
pub fn asks_for(destination: &Address, target: &Address) -> bool {
    // As numbers: comparing bytes the kernel programs would call a loop.
    u128::from_ne_bytes(*destination) == u128::from_ne_bytes(*target) || is_group_of(destination, target)
}

/// Whether an address is the solicited-node group of another (RFC 4291, 2.7.1).
#[inline(always)]
pub fn is_group_of(group: &Address, address: &Address) -> bool {
    let differs = u128::from_be_bytes(*group) ^ u128::from_be_bytes(*address);
    let head = u128::from_be_bytes(*group) >> 24;
    head == 0x00ff_0200_0000_0000_0000_0000_01ff && differs << 104 == 0
}

/// A short fingerprint of a hardware address, which a known flow keeps; 0 = none known. Only whoever chooses its own
/// address when its pod is made could choose two that look alike, and it could then have taken the other one at once.
#[inline(always)]
pub const fn mac_tag(mac: [u8; 6]) -> u32 {
    let high = u16::from_le_bytes([mac[0], mac[1]]);
    let low = u32::from_le_bytes([mac[2], mac[3], mac[4], mac[5]]);
    if high as u32 | low == 0 { 0 } else { tag_of(high, low) }
}

/// [`mac_tag`] of an address in a packet, which is its first two and its last four bytes: 24 bits, never 0.
#[inline(always)]
pub const fn tag_of(high: u16, low: u32) -> u32 {
    let mixed = ((high as u64) << 32 | low as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 40) as u32 | 1
}

#[cfg(test)]
mod tests;
