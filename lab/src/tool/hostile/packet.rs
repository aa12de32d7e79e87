//! Frames by hand, with checksums that every receiver accepts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::super::spray::{checksum, pseudo};
use super::MARKER;

/// IP protocol numbers (IANA).
pub(super) mod number {
    pub(in super::super) const HOP_BY_HOP: u8 = 0;
    pub(in super::super) const ICMP: u8 = 1;
    pub(in super::super) const IPIP: u8 = 4;
    pub(in super::super) const TCP: u8 = 6;
    pub(in super::super) const UDP: u8 = 17;
    pub(in super::super) const FRAGMENT: u8 = 44;
    pub(in super::super) const GRE: u8 = 47;
    pub(in super::super) const ESP: u8 = 50;
    pub(in super::super) const ICMP6: u8 = 58;
    pub(in super::super) const OPTIONS: u8 = 60;
    pub(in super::super) const SCTP: u8 = 132;
}

/// Payload of `length` bytes made of markers.
pub(super) fn payload(length: usize) -> Vec<u8> {
    MARKER.iter().copied().cycle().take(length).collect()
}

/// A frame: destination, source, type, and what follows.
pub(super) fn frame(to: [u8; 6], from: [u8; 6], ether_type: u16, rest: &[u8]) -> Vec<u8> {
    [&to[..], &from, &ether_type.to_be_bytes(), rest].concat()
}

/// The frame of an IP packet.
pub(super) fn ip_frame(to: [u8; 6], from: [u8; 6], packet: &[u8]) -> Vec<u8> {
    frame(to, from, if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 }, packet)
}

/// An IP packet with the hop limit `hops`.
pub(super) fn ip(from: IpAddr, to: IpAddr, protocol: u8, hops: u8, body: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ip4(from, to, protocol, (hops, [0x40, 0]), &[], body),
        (IpAddr::V6(from), IpAddr::V6(to)) => ip6(from, to, protocol, hops, body),
        _ => unreachable!("both ends are of one family"),
    }
}

/// An IPv4 packet with options (a multiple of four bytes); `(hops, flags and fragment offset)`.
pub(super) fn ip4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, (hops, fragment): (u8, [u8; 2]), options: &[u8], body: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let mut packet = vec![0x40 | u8::try_from(header / 4).expect("at most 60 bytes"), 0];
    packet.extend(u16::try_from(header + body.len()).expect("packets are short").to_be_bytes());
    packet.extend([0x51, 0x17, fragment[0], fragment[1], hops, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(options);
    let sum = checksum(0, &packet).to_be_bytes();
    packet[10..12].copy_from_slice(&sum);
    packet.extend(body);
    packet
}

fn ip6(from: Ipv6Addr, to: Ipv6Addr, next: u8, hops: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(body.len()).expect("packets are short").to_be_bytes());
    packet.extend([next, hops]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(body);
    packet
}

/// A TCP segment with payload.
pub(super) fn tcp(from: IpAddr, to: IpAddr, ports: (u16, u16), flags: u8, body: &[u8]) -> Vec<u8> {
    let mut segment = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    segment.extend([0x12, 0x34, 0x56, 0x78, 0x9a, 0xbc, 0xde, 0xf0, 0x50, flags, 4, 0, 0, 0, 0, 0]);
    segment.extend(body);
    summed(from, to, number::TCP, 16, segment)
}

/// A UDP datagram.
pub(super) fn udp(from: IpAddr, to: IpAddr, ports: (u16, u16), body: &[u8]) -> Vec<u8> {
    let mut datagram = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    datagram.extend(u16::try_from(8 + body.len()).expect("packets are short").to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(body);
    summed(from, to, number::UDP, 6, datagram)
}

/// An ICMP message of the family of its ends: `[type, code]`, four bytes that depend on them, and the rest.
pub(super) fn icmp(from: IpAddr, to: IpAddr, kind: [u8; 2], word: [u8; 4], body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind[0], kind[1], 0, 0];
    message.extend(word);
    message.extend(body);
    if from.is_ipv6() {
        return summed(from, to, number::ICMP6, 2, message);
    }
    let sum = checksum(0, &message).to_be_bytes();
    message[2..4].copy_from_slice(&sum);
    message
}

fn summed(from: IpAddr, to: IpAddr, protocol: u8, at: usize, mut body: Vec<u8>) -> Vec<u8> {
    let sum = checksum(pseudo(from, to, protocol, body.len()), &body).to_be_bytes();
    body[at..at + 2].copy_from_slice(&sum);
    body
}
