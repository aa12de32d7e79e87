//! What no policy may stop, as narrow as the protocols allow: an exemption is a way around policy.

use super::{Packet, protocol};
use crate::layout::Address;

/// Neighbour discovery, group membership and address configuration.
#[inline(always)]
pub(super) fn exempt(packet: &Packet) -> bool {
    match (packet.family, packet.protocol) {
        (6, protocol::ICMP6) => discovers(packet.icmp[0], packet.hops),
        (4, protocol::IGMP) => packet.hops == 1 && packet.destination[12] >> 4 == 14,
        (4, protocol::UDP) => dhcp4(packet),
        (6, protocol::UDP) => dhcp6(packet),
        _ => false,
    }
}

/// Whether an ICMPv6 message of a type is neighbour discovery or about membership, which is never forwarded: RFC 4861 wants 255
/// hops left, RFC 2710 and 3810 want 1.
#[inline(always)]
pub const fn discovers(kind: u8, hops: u8) -> bool {
    match kind {
        133..=137 => hops == 255,
        130..=132 | 143 => hops == 1,
        _ => false,
    }
}

/// Whether an exempt packet is what a DHCP server says. To a pod that is let pass; from one it is judged, or whoever may bind
/// port 67 could reach port 68 anywhere.
#[inline(always)]
pub const fn gives_addresses(packet: &Packet) -> bool {
    packet.family == 4 && packet.protocol == protocol::UDP && packet.source_port == 67
}

/// A client that has no address or asks everybody, and the server's answer.
#[inline(always)]
fn dhcp4(packet: &Packet) -> bool {
    match (packet.source_port, packet.destination_port) {
        (68, 67) => v4(&packet.destination) == [255; 4],
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

#[inline(always)]
fn v4(address: &Address) -> [u8; 4] {
    [address[12], address[13], address[14], address[15]]
}

/// fe80::/10.
#[inline(always)]
pub const fn link_local(address: &Address) -> bool {
    address[0] == 0xfe && address[1] & 0xc0 == 0x80
}
