//! Claims are read as they were written; what carries more than a claim is refused.

use super::super::{Kind, Packet, network};
use super::{Claims, arp, arp_at, asks_for, discovery, is_group_of, mac_tag, tag_of};

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// An ICMPv6 message from fd00::2 to fd00::3 with 255 hops.
fn message(kind: u8, flags: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0];
    bytes.extend(u16::try_from(8 + rest.len()).expect("short").to_be_bytes());
    bytes.extend([58, 255]);
    for last in [2, 3] {
        bytes.extend(target(last));
    }
    bytes.extend([kind, 0, 0, 0, flags, 0, 0, 0]);
    bytes.extend(rest);
    bytes
}

fn target(last: u8) -> [u8; 16] {
    let mut address = [0; 16];
    (address[0], address[15]) = (0xfd, last);
    address
}

fn claims_of(bytes: &[u8]) -> Option<Claims> {
    let mut packet = Packet::EMPTY;
    assert_eq!(network(&bytes, 0, &mut packet), Kind::Exempt);
    let mut claims = Claims::NONE;
    discovery(&bytes, &packet, &mut claims).then_some(claims)
}

fn with(options: &[u8]) -> Vec<u8> {
    [&target(3)[..], options].concat()
}

#[test]
fn targets_and_hardware_addresses_are_read() {
    let linked = [&[1, 1][..], &MAC].concat();
    let nonce = [14, 1, 1, 2, 3, 4, 5, 6];
    for (kind, flags) in [(135, 0), (136, 0xe0)] {
        let claims = |options: &[u8]| claims_of(&message(kind, flags, &with(options))).map(|claims| (claims.target, claims.mac));
        assert_eq!(claims(&[]), Some((target(3), [0; 6])));
        assert_eq!(claims(&linked), Some((target(3), MAC)));
        assert_eq!(claims(&[&nonce[..], &linked].concat()), Some((target(3), MAC)));
    }
    assert_eq!(claims_of(&message(133, 0, &linked)).map(|claims| claims.mac), Some(MAC));
}

#[test]
fn messages_that_carry_something_else_are_refused() {
    let linked = [&[1, 1][..], &MAC].concat();
    let other = [1, 1, 2, 0, 0, 0, 0, 9];
    let cases: [(&str, Vec<u8>); 9] = [
        ("data behind", message(135, 0, &with(&[0; 64]))),
        ("an option of another kind", message(135, 0, &with(&[5, 1, 0, 0, 0, 0, 5, 0]))),
        ("a long option", message(135, 0, &with(&[14, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]))),
        ("half an option", message(135, 0, &with(&linked[..4]))),
        ("an option of no length", message(135, 0, &with(&[1, 0, 0, 0, 0, 0, 0, 0]))),
        ("two hardware addresses", message(135, 0, &with(&[&linked[..], &other].concat()))),
        ("data in the reserved bytes", message(135, 1, &with(&[]))),
        ("data in an answer's reserved bytes", message(136, 0xe1, &with(&[]))),
        ("no target", message(135, 0, &[])),
    ];
    for (what, bytes) in cases {
        assert_eq!(claims_of(&bytes), None, "{what}");
    }
    let mut group = message(136, 0, &with(&[]));
    group[48] = 0xff;
    assert_eq!(claims_of(&group), None, "a group is nobody's");
    let mut packet = Packet::EMPTY;
    let behind = message(135, 0, &with(&[]));
    network(&&behind[..], 0, &mut packet);
    packet.headers += 8;
    assert!(!discovery(&&behind[..], &packet, &mut Claims { ..Claims::NONE }), "behind an extension");
}

#[test]
fn arp_is_read_behind_tags() {
    let body = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &MAC, &[10, 0, 0, 2], &[2, 0, 0, 0, 0, 3], &[10, 0, 0, 3]].concat();
    for tags in 0..=2 {
        let frame = [&[0; 12][..], &[0x81, 0, 0, 5].repeat(tags), &[8, 6], &body].concat();
        let (mut packet, mut claims) = (Packet::EMPTY, Claims::NONE);
        assert!(arp(&&frame[..], arp_at(&&frame[..]), &mut packet, &mut claims), "{tags} tags");
        assert_eq!((packet.source, packet.destination), (super::mapped([10, 0, 0, 2]), super::mapped([10, 0, 0, 3])));
        assert_eq!(claims.mac, MAC);
        let at = 14 + 4 * tags;
        for (offset, value) in [(1, 6), (2, 9), (4, 8), (5, 16), (6, 1), (7, 0), (7, 3)] {
            let mut odd = frame.clone();
            odd[at + offset] = value;
            assert!(!arp(&&odd[..], arp_at(&&odd[..]), &mut packet, &mut claims), "{offset} is {value}");
        }
        assert!(!arp(&&frame[..frame.len() - 1], arp_at(&&frame[..frame.len() - 1]), &mut packet, &mut claims), "cut off");
    }
}

#[test]
fn solicitations_go_to_their_target_or_its_group() {
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 3];
    assert!(is_group_of(&group, &target(3)) && asks_for(&group, &target(3)) && asks_for(&target(3), &target(3)));
    assert!(!is_group_of(&group, &target(2)) && !asks_for(&target(2), &target(3)));
    group[11] = 2;
    assert!(!is_group_of(&group, &target(3)));
}

#[test]
fn tags_tell_addresses_apart() {
    assert_eq!(mac_tag([0; 6]), 0, "not known");
    let mut seen = std::collections::HashSet::new();
    // As bridges give them: two fixed bytes, then the IPv4 address.
    for last in 0..=u16::MAX {
        let [c, d] = last.to_be_bytes();
        let mac = [0x0a, 0x58, 10, 244, c, d];
        let tag = mac_tag(mac);
        assert!(tag != 0 && tag < 1 << 24);
        assert_eq!(tag, tag_of(u16::from_ne_bytes([mac[0], mac[1]]), u32::from_ne_bytes([mac[2], mac[3], mac[4], mac[5]])));
        seen.insert(tag);
    }
    assert!(seen.len() > 65_000, "{}", seen.len());
}
