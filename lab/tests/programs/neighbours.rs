//! What a pod says to its neighbours is true: ARP, neighbour discovery. What routers and DHCP servers say, it does not say.

use std::net::Ipv6Addr;

use sekisho_core::counters as c;
use sekisho_core::layout::{Config, Endpoint, endpoint_flags, event, mode, reason, verdict};

use super::frames::{self, POD_MAC, Who};
use super::node::{self, DROP, Node, PASS};

const OTHER_MAC: [u8; 6] = [2, 9, 9, 9, 9, 9];
const OWN: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 2];
const GATEWAY: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const NOBODY: [u8; 16] = [0; 16];
const ALL: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const ROUTERS: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

/// A pod whose link-local address is known, in mode enforce.
fn start(isolated: u32) -> Node {
    let node = node::start(isolated);
    node.put("CONFIG", &0u32, &Config { spoof_enforce: 1, ..node::config(1) }).expect("writes");
    let link_local = OWN[8..].try_into().expect("eight bytes");
    node.put("ENDPOINTS", &1u32, &Endpoint { link_local, ..node::endpoint(isolated) }).expect("writes");
    node
}

/// The group that solicitations for an address go to.
fn group(of: [u8; 16]) -> [u8; 16] {
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&of[13..]);
    group
}

fn arp(kind: u8, mac: [u8; 6], from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
    let head = frames::ethernet(true, 0x0806);
    [&head[..], &[0, 1, 8, 0, 6, 4, 0, kind], &mac, &from, &[0; 6], &to].concat()
}

/// An ICMPv6 message of the pod's with a number of hops.
fn message(from: [u8; 16], to: [u8; 16], hops: u8, message: &[u8]) -> Vec<u8> {
    let mut frame = frames::frame(true, &frames::ip(Ipv6Addr::from(from).into(), Ipv6Addr::from(to).into(), 58, message));
    frame[14 + 7] = hops;
    frame
}

/// Neighbour discovery about `target`, with the sender's hardware address where it names one.
fn discovery(kind: u8, from: [u8; 16], to: [u8; 16], target: [u8; 16], mac: Option<[u8; 6]>) -> Vec<u8> {
    let mut body = vec![kind, 0, 0, 0, if kind == 136 { 0x60 } else { 0 }, 0, 0, 0];
    if kind != 133 {
        body.extend(target);
    }
    if let Some(mac) = mac {
        body.extend([if kind == 136 { 2 } else { 1 }, 1]);
        body.extend(mac);
    }
    message(from, to, 255, &body)
}

fn masked(mut frame: Vec<u8>) -> Vec<u8> {
    frame[6..12].copy_from_slice(&OTHER_MAC);
    frame
}

/// Everything that an honest pod says, however isolated.
#[test]
fn honest_neighbours_are_heard() {
    let (pod, peer) = (Who::Pod.v6(), Who::Peer.v6());
    let away = "2001:db8::9".parse::<Ipv6Addr>().expect("an address").octets();
    let frames = [
        ("an ARP request", arp(1, POD_MAC, Who::Pod.v4(), Who::Peer.v4())),
        ("an ARP answer", arp(2, POD_MAC, Who::Pod.v4(), Who::Peer.v4())),
        ("an ARP announcement", arp(1, POD_MAC, Who::Pod.v4(), Who::Pod.v4())),
        ("an ARP probe", arp(1, POD_MAC, [0; 4], Who::Pod.v4())),
        ("a router solicitation", discovery(133, OWN, ROUTERS, NOBODY, Some(POD_MAC))),
        ("a router solicitation from nobody", discovery(133, NOBODY, ROUTERS, NOBODY, None)),
        ("a solicitation to the group", discovery(135, pod, group(peer), peer, Some(POD_MAC))),
        ("a solicitation of the gateway", discovery(135, OWN, group(GATEWAY), GATEWAY, Some(POD_MAC))),
        ("a probe of a neighbour", discovery(135, pod, peer, peer, None)),
        ("a probe of the gateway", discovery(135, OWN, GATEWAY, GATEWAY, Some(POD_MAC))),
        ("detection of duplicates", discovery(135, NOBODY, group(pod), pod, None)),
        ("detection of duplicates, of a new address", discovery(135, NOBODY, group(away), away, None)),
        ("an answer", discovery(136, pod, peer, pod, Some(POD_MAC))),
        ("an answer without hardware address", discovery(136, pod, peer, pod, None)),
        ("an answer to everybody", discovery(136, pod, ALL, pod, Some(POD_MAC))),
        ("an answer for its link-local address", discovery(136, OWN, GATEWAY, OWN, Some(POD_MAC))),
        ("a report of groups", message(OWN, [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x16], 1, &[143, 0, 0, 0, 0, 0, 0, 0])),
    ];
    for isolated in [0, node::BOTH] {
        let mut node = start(isolated);
        for (what, frame) in &frames {
            assert_eq!(node::egress(&node, frame), PASS, "{what}, isolated {isolated}");
        }
        assert_eq!(node.count(c::EXEMPT), frames.len() as u64);
        assert_eq!(node.told().len(), 0, "no policy judges them, so nothing is recorded");
    }
}

/// Each is dropped from any pod, recorded with the address that it claims and the frame's MAC.
#[test]
fn lies_to_neighbours_are_dropped_and_told() {
    let (pod, peer, router) = (Who::Pod.v6(), Who::Peer.v6(), Who::Node.v6());
    let frames = [
        ("an ARP request for another", arp(1, POD_MAC, Who::Peer.v4(), Who::Node.v4())),
        ("an ARP answer for another", arp(2, POD_MAC, Who::Node.v4(), Who::Peer.v4())),
        ("an announcement of another's", arp(1, POD_MAC, Who::Peer.v4(), Who::Peer.v4())),
        ("another's MAC in ARP", arp(2, OTHER_MAC, Who::Pod.v4(), Who::Peer.v4())),
        ("ARP from another MAC", masked(arp(1, OTHER_MAC, Who::Pod.v4(), Who::Peer.v4()))),
        ("no ARP that a host sends", arp(3, POD_MAC, Who::Pod.v4(), Who::Peer.v4())),
        ("an answer for another", discovery(136, pod, peer, router, Some(POD_MAC))),
        ("an answer for the gateway", discovery(136, pod, ALL, GATEWAY, Some(POD_MAC))),
        ("an answer as the gateway", discovery(136, GATEWAY, ALL, GATEWAY, Some(POD_MAC))),
        ("an answer with another MAC", discovery(136, pod, peer, pod, Some(OTHER_MAC))),
        ("a solicitation as the gateway", discovery(135, GATEWAY, group(peer), peer, Some(POD_MAC))),
        ("a solicitation with another MAC", discovery(135, pod, group(peer), peer, Some(OTHER_MAC))),
        ("a solicitation as another", discovery(135, router, group(peer), peer, Some(POD_MAC))),
        ("taking another's address", discovery(135, NOBODY, group(peer), peer, None)),
        ("discovery from another MAC", masked(discovery(135, pod, group(peer), peer, None))),
    ];
    for isolated in [0, node::BOTH] {
        let mut node = start(isolated);
        for (what, frame) in &frames {
            node.clear().expect("clears");
            drop_all(&mut node, isolated);
            assert_eq!(node::egress(&node, frame), DROP, "{what}, isolated {isolated}");
            let told = node.told();
            let seen: Vec<_> = told.iter().map(|told| (told.kind, told.flow.verdict, told.flow.reason, told.flow.mac)).collect();
            let mac = frame[6..12].try_into().expect("six bytes");
            assert_eq!(seen, [(event::START, verdict::DENIED, reason::SPOOFED_SOURCE, mac)], "{what}, isolated {isolated}");
        }
        assert_eq!(node.count(c::SPOOFED), frames.len() as u64);
    }
}

fn drop_all(node: &mut Node, isolated: u32) {
    node::fill(node, isolated);
    node.put("CONFIG", &0u32, &Config { spoof_enforce: 1, ..node::config(1) }).expect("writes");
    let link_local = OWN[8..].try_into().expect("eight bytes");
    node.put("ENDPOINTS", &1u32, &Endpoint { link_local, ..node::endpoint(isolated) }).expect("writes");
    node.events();
}

/// Discovery that a router would forward, or that carries more than discovery does, is ordinary ICMPv6.
#[test]
fn discovery_carries_nothing_out() {
    let pod = Who::Pod.v6();
    let away = "2001:db8::9".parse::<Ipv6Addr>().expect("an address").octets();
    let mut long = discovery(135, pod, group(Who::Peer.v6()), Who::Peer.v6(), None);
    long.extend([0; 800]);
    long[18..20].copy_from_slice(&(24u16 + 800).to_be_bytes());
    let mut frames = vec![("a long one", long), ("about somebody else", discovery(135, pod, Who::Peer.v6(), away, None))];
    for kind in [133, 135, 136] {
        let target = if kind == 136 { pod } else { away };
        frames.push(("away", discovery(kind, pod, away, target, None)));
        frames.push(("to a site", discovery(kind, pod, [0xff, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], target, None)));
    }
    for kind in [130, 131, 143] {
        frames.push(("membership told to one", message(pod, away, 1, &[kind, 0, 0, 0, 0, 0, 0, 0])));
    }
    for (what, frame) in frames {
        let mut node = start(node::BOTH);
        assert_eq!(node::egress(&node, &frame), DROP, "{what}, type {}", frame[54]);
        let told: Vec<_> = node.told().iter().map(|told| told.flow.reason).collect();
        assert_eq!(told, [reason::DEFAULT_DENY], "{what}, type {}", frame[54]);
        drop(node);
        assert_eq!(node::egress(&start(0), &frame), PASS, "a pod that nothing isolates may");
    }
}

/// Whatever policy says.
#[test]
fn pods_are_no_routers_and_no_servers_of_addresses() {
    let pod = Who::Pod.v6();
    let to_pod = frames::ip(Who::Peer.address(false), Who::Pod.address(false), 17, &frames::datagram(53, 53, 4));
    let frames = [
        ("an advertisement", message(OWN, ALL, 255, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("an advertisement from afar", message(pod, Who::Peer.v6(), 64, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0])),
        ("a redirect", message(OWN, Who::Peer.v6(), 255, &[&[137, 0, 0, 0, 0, 0, 0, 0][..], &OWN, &pod].concat())),
        ("an IPv4 redirect", frames::between(false, true, 1, &frames::icmp(5, 1, &to_pod))),
        ("an IPv4 advertisement", frames::between(false, true, 1, &frames::icmp(9, 0, &[0; 8]))),
        ("an address", frames::udp_of(false, true, 67, 68)),
        ("an IPv6 address", frames::udp_of(true, true, 547, 546)),
    ];
    for (mode, fate, expected) in
        [(mode::ENFORCE, DROP, verdict::DENIED), (mode::AUDIT, PASS, verdict::AUDIT), (mode::OBSERVE, PASS, verdict::ALLOWED)]
    {
        for isolated in [0, node::BOTH] {
            let mut node = start(isolated);
            for (what, frame) in &frames {
                node.clear().expect("clears");
                drop_all(&mut node, isolated);
                node.put("CONFIG", &0u32, &Config { mode, spoof_enforce: 1, ..node::config(1) }).expect("writes");
                assert_eq!(node::egress(&node, frame), fate, "{what}, mode {mode}, isolated {isolated}");
                let told: Vec<_> = node.told().iter().map(|told| (told.flow.verdict, told.flow.reason)).collect();
                let why = if mode == mode::OBSERVE { 0 } else { reason::ROGUE_MESSAGE };
                assert_eq!(told, [(expected, why)], "{what}, mode {mode}, isolated {isolated}");
            }
        }
    }
}

/// To a pod, addresses are given by its node, to everybody on the link, and to one that asked.
#[test]
fn addresses_are_given_to_pods_that_ask() {
    let answer =
        |from: Who| frames::frame(false, &frames::ip(from.address(false), Who::Pod.address(false), 17, &frames::datagram(67, 68, 4)));
    let ask = || {
        let nobody = std::net::Ipv4Addr::UNSPECIFIED.into();
        frames::frame(true, &frames::ip(nobody, std::net::Ipv4Addr::BROADCAST.into(), 17, &frames::datagram(68, 67, 4)))
    };
    let node = start(node::BOTH);
    assert_eq!(node::ingress(&node, &answer(Who::Stranger)), DROP, "nobody asked");
    assert_eq!(node::ingress(&node, &answer(Who::Node)), PASS);
    let mut all = answer(Who::Stranger);
    all[..6].fill(0xff);
    all[30..34].fill(0xff);
    assert_eq!(node::ingress(&node, &all), PASS, "no router forwards that");
    assert_eq!(node::egress(&node, &ask()), PASS);
    assert_eq!(node::ingress(&node, &answer(Who::Peer)), PASS, "the answer");
    assert_eq!(node.count(c::EXEMPT), 4);
    let mut pod = node::endpoint(endpoint_flags::ISOLATED_INGRESS);
    pod.mac = [0; 6];
    node.put("ENDPOINTS", &1u32, &pod).expect("writes");
    assert_eq!(node::egress(&node, &masked(ask())), PASS, "a hardware address that is not known is not checked");
}
