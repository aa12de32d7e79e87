//! What no policy may stop, as narrow as the protocols allow: an exemption is a way around policy.

use super::{Packet, fragment, mapped, protocol};
use crate::layout::Address;

/// ICMPv6: a router tells of itself (RFC 4861, 4.2).
const ROUTER_ADVERTISEMENT: u8 = 134;
/// ICMPv6: a router names a better one (RFC 4861, 4.5).
const REDIRECT: u8 = 137;
/// Bytes of an IGMP packet: the link's hosts hear it, so it must not carry more than it needs.
const LARGEST_IGMP: u32 = 576;

/// Neighbour discovery, group membership and address configuration.
#[inline(always)]
pub(super) fn exempt(packet: &Packet) -> bool {
    // None of them comes in fragments (RFC 6980), and what follows a first piece would not be seen.
    if packet.fragment != fragment::WHOLE {
        return false;
    }
    match (packet.family, packet.protocol) {
        (6, protocol::ICMP6) => discovers(packet.icmp[0], packet.hops, &packet.destination),
        (4, protocol::IGMP) => packet.hops == 1 && packet.destination[12] >> 4 == 14 && packet.total <= LARGEST_IGMP,
        (4, protocol::UDP) => dhcp4(packet),
        (6, protocol::UDP) => dhcp6(packet),
        _ => false,
    }
}

/// Whether an ICMPv6 message of a type is neighbour discovery or about membership, which is never forwarded: RFC 4861 wants 255
/// hops left, RFC 2710 and 3810 want 1 and a group to send to.
#[inline(always)]
pub const fn discovers(kind: u8, hops: u8, to: &Address) -> bool {
    match kind {
        133..=137 => hops == 255,
        130..=132 | 143 => hops == 1 && to[0] == 0xff,
        _ => false,
    }
}

/// As [`discovers`], of what a pod sends: a node forwards a message to any other destination, with its 255 hops, wherever the
/// sender wants it; and what only routers say is not a pod's to say.
#[inline(always)]
pub const fn discovers_on_link(kind: u8, hops: u8, to: &Address) -> bool {
    discovers(kind, hops, to) && on_link(to) && !routes(kind)
}

/// Whether no router forwards what is sent there: link-local addresses, and groups of the link.
#[inline(always)]
pub const fn on_link(to: &Address) -> bool {
    link_local(to) || (to[0] == 0xff && to[1] & 15 <= 2)
}

#[inline(always)]
const fn routes(kind: u8) -> bool {
    matches!(kind, ROUTER_ADVERTISEMENT | REDIRECT)
}

/// Whether a packet is what only a router or a DHCP server says, and no pod: it would turn the traffic of others to itself.
#[inline(always)]
pub const fn impersonates(packet: &Packet) -> bool {
    if packet.fragment == fragment::LATER {
        return false;
    }
    match (packet.family, packet.protocol) {
        (6, protocol::ICMP6) => routes(packet.icmp[0]),
        // Redirect, and router advertisement (RFC 1256).
        (4, protocol::ICMP4) => matches!(packet.icmp[0], 5 | 9),
        (4, protocol::UDP) => packet.source_port == 67 && packet.destination_port == 68,
        (6, protocol::UDP) => packet.source_port == 547 && packet.destination_port == 546,
        _ => false,
    }
}

/// Whether an exempt packet is a DHCP server's answer over IPv4. Unlike all the others it may come from afar, so it must be known
/// to be wanted.
#[inline(always)]
pub const fn gives_addresses(packet: &Packet) -> bool {
    packet.family == 4 && packet.protocol == protocol::UDP && packet.source_port == 67
}

/// Whether an exempt packet asks a DHCP server over IPv4.
#[inline(always)]
pub const fn asks_for_address(packet: &Packet) -> bool {
    packet.family == 4 && packet.protocol == protocol::UDP && packet.source_port == 68
}

/// A client that has no address or asks everybody, and the server's answer.
#[inline(always)]
fn dhcp4(packet: &Packet) -> bool {
    match (packet.source_port, packet.destination_port) {
        (68, 67) => is_broadcast(&packet.destination),
        (67, 68) => true,
        _ => false,
    }
}

/// Between link-local addresses, or from one to the group of servers (ff02::1:2).
#[inline(always)]
fn dhcp6(packet: &Packet) -> bool {
    match (packet.source_port, packet.destination_port) {
        (546, 547) => packet.destination[0] == 0xff && packet.destination[1] == 2,
        (547, 546) => link_local(&packet.source) && link_local(&packet.destination),
        _ => false,
    }
}

/// 255.255.255.255, which no router forwards.
#[inline(always)]
pub fn is_broadcast(address: &Address) -> bool {
    u128::from_ne_bytes(*address) == u128::from_ne_bytes(mapped([255; 4]))
}

/// fe80::/10.
#[inline(always)]
pub const fn link_local(address: &Address) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}

/// Whether the largest ICMP error holds `total` bytes: 576 over IPv4 (RFC 1812, 4.3.2.3), 1280 over IPv6 (RFC 4443, 2.4). Without
/// a bound an error about some allowed flow would carry any data.
#[inline(always)]
pub const fn fits_error(family: u8, total: u32) -> bool {
    total <= if family == 4 { 576 } else { 1280 }
}
