//! Ports, flags, ICMP types and identifiers.

use super::exempt::exempt;
use super::{Kind, Packet, Window, echo, fragment, protocol, short};

/// Reads the transport header at `at` of the packet whose IP header is at `network`.
#[inline(always)]
pub fn read<W: Window>(window: &W, network: usize, at: usize, packet: &mut Packet) -> Kind {
    let before = at.wrapping_sub(network);
    if before > packet.total as usize {
        return Kind::Malformed;
    }
    if packet.fragment == fragment::LATER {
        packet.headers = narrow(before);
        return Kind::Flow;
    }
    let length = match packet.protocol {
        protocol::TCP => {
            let Some(tcp) = window.get::<20>(at) else { return short(window, at, 20) };
            ports(packet, [tcp[0], tcp[1], tcp[2], tcp[3]]);
            packet.tcp_flags = tcp[13];
            let length = usize::from(tcp[12] >> 4) * 4;
            if length < 20 {
                return Kind::Malformed;
            }
            length
        }
        protocol::UDP => {
            let Some(udp) = window.get::<8>(at) else { return short(window, at, 8) };
            ports(packet, [udp[0], udp[1], udp[2], udp[3]]);
            8
        }
        protocol::SCTP => {
            let Some(sctp) = window.get::<12>(at) else { return short(window, at, 12) };
            ports(packet, [sctp[0], sctp[1], sctp[2], sctp[3]]);
            12
        }
        protocol::ICMP4 if packet.family == 4 => icmp_length(window, at, packet),
        protocol::ICMP6 if packet.family == 6 => icmp_length(window, at, packet),
        _ => 0,
    };
    // A transport header that the packet (or its first fragment) does not hold whole: the rest would come unseen.
    if length == usize::MAX || before + length > packet.total as usize {
        return Kind::Malformed;
    }
    packet.headers = narrow(before + length);
    packet.payload = narrow(at + length);
    if exempt(packet) {
        return Kind::Exempt;
    }
    if is_error(packet) { Kind::IcmpError } else { Kind::Flow }
}

/// Reads what names the flow of a quoted packet.
#[inline(always)]
pub fn identify<W: Window>(window: &W, at: usize, packet: &mut Packet) -> Kind {
    if packet.fragment == fragment::LATER {
        return Kind::Unsupported;
    }
    match packet.protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            let Some(four) = window.get::<4>(at) else { return short(window, at, 4) };
            ports(packet, four);
        }
        protocol::ICMP4 if packet.family == 4 => {
            icmp_length(window, at, packet);
        }
        protocol::ICMP6 if packet.family == 6 => {
            icmp_length(window, at, packet);
        }
        _ => {}
    }
    // An error never answers an error.
    if is_error(packet) { Kind::Unsupported } else { Kind::Flow }
}

#[inline(always)]
fn ports(packet: &mut Packet, bytes: [u8; 4]) {
    packet.source_port = u16::from_be_bytes([bytes[0], bytes[1]]);
    packet.destination_port = u16::from_be_bytes([bytes[2], bytes[3]]);
}

/// Type, code and identifier; the header's length, or `usize::MAX` where it is cut off.
#[inline(always)]
fn icmp_length<W: Window>(window: &W, at: usize, packet: &mut Packet) -> usize {
    let Some(icmp) = window.get::<8>(at) else { return usize::MAX };
    packet.icmp = [icmp[0], icmp[1]];
    packet.echo = match (packet.protocol, icmp[0]) {
        // Echo, timestamp, information and address mask.
        (protocol::ICMP4, 8 | 13 | 15 | 17) | (protocol::ICMP6, 128) => echo::REQUEST,
        (protocol::ICMP4, 0 | 14 | 16 | 18) | (protocol::ICMP6, 129) => echo::REPLY,
        _ => echo::NONE,
    };
    if packet.echo != echo::NONE {
        packet.source_port = u16::from_be_bytes([icmp[4], icmp[5]]);
    }
    8
}

/// Whether the packet is an ICMP message about another packet.
#[inline(always)]
fn is_error(packet: &Packet) -> bool {
    match (packet.family, packet.protocol) {
        // Unreachable, source quench, redirect, time exceeded, parameter problem.
        (4, protocol::ICMP4) => matches!(packet.icmp[0], 3..=5 | 11 | 12),
        (6, protocol::ICMP6) => packet.icmp[0] < 128,
        _ => false,
    }
}

/// Offsets and lengths of headers fit: windows are short.
#[inline(always)]
fn narrow(value: usize) -> u16 {
    u16::try_from(value).unwrap_or(u16::MAX)
}
