//! Built packets come back as they were built; arbitrary bytes never panic; the fast and the careful reader agree.

use etherparse::PacketBuilder;
use proptest::prelude::*;

use super::{Kind, Packet, echo, fast4, fast6, fragment, frame, inner, mapped, network, protocol};

const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);

fn read(bytes: &[u8]) -> (Kind, Packet) {
    let mut packet = Packet::EMPTY;
    (frame(&bytes, &mut packet), packet)
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0usize..64) {
        let slice = &bytes[..];
        let mut packet = Packet::EMPTY;
        frame(&slice, &mut packet);
        network(&slice, at, &mut packet);
        inner(&slice, at, &mut packet);
        let _ = (fast4(&slice, at), fast6(&slice, at));
    }

    #[test]
    fn mutated_packets_never_panic_and_readers_agree(
        source: [u8; 4], destination: [u8; 4], ports: (u16, u16), flip in 12usize..54, value: u8, cut in 0usize..60,
    ) {
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(MACS.0, MACS.1).ipv4(source, destination, 64).tcp(ports.0, ports.1, 1, 100).syn().write(&mut bytes, b"payload").expect("writes");
        bytes[flip] = value;
        bytes.truncate(bytes.len().saturating_sub(cut));
        let (kind, packet) = read(&bytes);
        if bytes.len() > 14 && bytes[12..14] == [8, 0] && let Some(fast) = fast4(&&bytes[..], 14) {
            prop_assert_eq!(kind, Kind::Flow);
            prop_assert_eq!((packet.source, packet.destination), (mapped(fast.source), mapped(fast.destination)));
            prop_assert_eq!((packet.source_port, packet.destination_port), (fast.source_port, fast.destination_port));
            prop_assert_eq!((packet.protocol, packet.tcp_flags, packet.total), (fast.protocol, fast.tcp_flags, fast.total));
            prop_assert_eq!(u32::from(packet.headers), fast.headers);
        }
    }

    #[test]
    fn ipv6_comes_back(source: [u8; 16], destination: [u8; 16], ports in (1000u16.., 1000u16..)) {
        prop_assume!(!super::is_mapped(&source) && !super::is_mapped(&destination));
        let mut bytes = Vec::new();
        PacketBuilder::ethernet2(MACS.0, MACS.1).ipv6(source, destination, 64).udp(ports.0, ports.1).write(&mut bytes, b"data").expect("writes");
        let (kind, packet) = read(&bytes);
        prop_assert_eq!(kind, Kind::Flow);
        prop_assert_eq!((packet.source, packet.destination, packet.family), (source, destination, 6));
        prop_assert_eq!((packet.source_port, packet.destination_port, packet.protocol), (ports.0, ports.1, protocol::UDP));
        prop_assert_eq!(packet.total, 52);
        let fast = fast6(&&bytes[..], 14).expect("simple");
        prop_assert_eq!((fast.source, fast.total), (source, 52));
    }
}

/// An IPv4 packet of raw parts.
fn ip4(options: &[u8], fragment_field: u16, number: u8, payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let mut bytes = vec![0x40 | u8::try_from(header / 4).expect("short"), 0];
    bytes.extend(u16::try_from(header + payload.len()).expect("short").to_be_bytes());
    bytes.extend([0, 7]);
    bytes.extend(fragment_field.to_be_bytes());
    bytes.extend([64, number, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    bytes.extend(options);
    bytes.extend(payload);
    bytes
}

fn read_ip(bytes: &[u8]) -> (Kind, Packet) {
    let mut packet = Packet::EMPTY;
    (network(&bytes, 0, &mut packet), packet)
}

const UDP: [u8; 8] = [0x10, 0, 0x20, 0, 0, 8, 0, 0];

#[test]
fn options_are_passed_over_but_source_routes_are_not() {
    let (kind, packet) = read_ip(&ip4(&[1, 148, 4, 0, 0, 0, 0, 0], 0, 17, &UDP));
    assert_eq!((kind, packet.source_port, packet.headers), (Kind::Flow, 0x1000, 36));
    assert_eq!(read_ip(&ip4(&[1, 131, 3, 4], 0, 17, &UDP)).0, Kind::Unsupported);
    assert_eq!(read_ip(&ip4(&[148, 9, 0, 0], 0, 17, &UDP)).0, Kind::Malformed);
}

#[test]
fn fragments_are_told_apart() {
    assert_eq!(read_ip(&ip4(&[], 0x2000, 17, &UDP)).1.fragment, fragment::FIRST);
    let (kind, later) = read_ip(&ip4(&[], 0x0002, 17, &UDP));
    assert_eq!((kind, later.fragment, later.source_port, later.fragment_id), (Kind::Flow, fragment::LATER, 0, 7));
    assert_eq!(read_ip(&ip4(&[], 0x2000, 6, &UDP)).0, Kind::Malformed, "a first fragment must show the flags");
}

#[test]
fn icmp_queries_and_errors() {
    let (kind, ping) = read_ip(&ip4(&[], 0, 1, &[8, 0, 0, 0, 0x12, 0x34, 0, 1]));
    assert_eq!((kind, ping.echo, ping.source_port), (Kind::Flow, echo::REQUEST, 0x1234));
    let mut error = vec![3, 3, 0, 0, 0, 0, 0, 0];
    error.extend(ip4(&[], 0, 17, &UDP));
    let bytes = ip4(&[], 0, 1, &error);
    let (kind, packet) = read_ip(&bytes);
    assert_eq!(kind, Kind::IcmpError);
    let mut quoted = Packet::EMPTY;
    assert_eq!(inner(&&bytes[..], packet.payload.into(), &mut quoted), Kind::Flow);
    assert_eq!((quoted.source_port, quoted.destination_port), (0x1000, 0x2000));
}

/// An IPv6 packet with the given chain behind its header.
fn ip6(first: u8, hops: u8, chain: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(u16::try_from(chain.len()).expect("short").to_be_bytes());
    bytes.extend([first, hops]);
    bytes.extend([0xfd; 16]);
    bytes.extend([0xfc; 16]);
    bytes.extend(chain);
    bytes
}

#[test]
fn extension_chains_are_walked_and_bounded() {
    let header = |next: u8| [next, 0, 1, 4, 0, 0, 0, 0];
    let chain = |count: usize| {
        let mut bytes: Vec<u8> = (0..count).flat_map(|i| header(if i + 1 == count { 17 } else { 60 })).collect();
        bytes.extend(UDP);
        bytes
    };
    for count in 1..=6 {
        let (kind, packet) = read_ip(&ip6(60, 64, &chain(count)));
        assert_eq!((kind, packet.protocol, packet.destination_port), (Kind::Flow, 17, 0x2000), "{count} headers");
    }
    assert_eq!(read_ip(&ip6(60, 64, &chain(7))).0, Kind::Unsupported);
    let routed = [&[17, 0, 0, 1, 0, 0, 0, 0][..], &UDP].concat();
    assert_eq!(read_ip(&ip6(43, 64, &routed)).0, Kind::Unsupported, "segments left");
    let solicitation = [135, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(read_ip(&ip6(58, 255, &solicitation)).0, Kind::Exempt);
    assert_eq!(read_ip(&ip6(58, 64, &solicitation)).0, Kind::Flow, "a forwarded solicitation is no solicitation");
}

#[test]
fn tags_are_passed_over_twice() {
    let tagged = |count: usize| {
        let mut bytes = vec![0; 12];
        for _ in 0..count {
            bytes.extend([0x81, 0, 0, 5]);
        }
        bytes.extend([8, 0]);
        bytes.extend(ip4(&[], 0, 17, &UDP));
        bytes
    };
    for count in 0..=2 {
        assert_eq!(read(&tagged(count)).0, Kind::Flow, "{count} tags");
    }
    assert_eq!(read(&tagged(3)).0, Kind::Unsupported);
}

#[test]
fn only_what_dhcp_needs_is_exempt() {
    let datagram = |from: u8, to: u8| read_ip(&ip4(&[], 0, 17, &[0, from, 0, to, 0, 8, 0, 0]));
    assert_eq!(datagram(68, 67).0, Kind::Flow, "a client asks everybody");
    let (kind, answer) = datagram(67, 68);
    assert!(kind == Kind::Exempt && super::gives_addresses(&answer) && super::impersonates(&answer));
    let mut question = ip4(&[], 0, 17, &[0, 68, 0, 67, 0, 8, 0, 0]);
    question[16..20].fill(255);
    let (kind, asked) = read_ip(&question);
    assert!(kind == Kind::Exempt && super::asks_for_address(&asked) && !super::gives_addresses(&asked) && !super::impersonates(&asked));
    // In pieces, none of it.
    question[6] = 0x20;
    assert_eq!(read_ip(&question).0, Kind::Flow);
}

#[test]
fn membership_is_told_to_groups() {
    let mut report = ip6(58, 1, &[143, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(read_ip(&report).0, Kind::Flow, "to one host");
    report[24..40].copy_from_slice(&[0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16]);
    assert_eq!(read_ip(&report).0, Kind::Exempt);
}

/// What leaves the link is no discovery, and what routers say is not a pod's.
#[test]
fn discovery_of_a_pod_stays_on_the_link() {
    let global = [0xfd; 16];
    let local = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    let site = [0xff, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    for kind in 133..=137 {
        assert!(super::discovers(kind, 255, &global) && !super::discovers(kind, 254, &local));
        assert!(!super::discovers_on_link(kind, 255, &global) && !super::discovers_on_link(kind, 255, &site));
        let routers = matches!(kind, 134 | 137);
        assert_eq!(super::discovers_on_link(kind, 255, &local), !routers, "{kind}");
        assert_eq!(super::discovers_on_link(kind, 255, &group), !routers, "{kind}");
        let (_, packet) = read_ip(&ip6(58, 64, &[kind, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(super::impersonates(&packet), routers, "{kind}");
    }
    for kind in [3, 5, 9, 11] {
        let (_, packet) = read_ip(&ip4(&[], 0, 1, &[kind, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(super::impersonates(&packet), matches!(kind, 5 | 9), "{kind}");
    }
}
