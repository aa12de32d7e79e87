//! A pod speaks from its own addresses.

use sekisho_core::counters as c;
use sekisho_core::layout::{Config, endpoint_flags, event, mode, reason, verdict};
use sekisho_core::tcp::{ACK, SYN};

use super::frames::{self, POD_MAC, Who};
use super::node::{self, DROP, PASS};

/// A datagram from the pod's interface, claiming to be from somebody.
fn from(who: Who, v6: bool, port: u16) -> Vec<u8> {
    frames::frame(true, &frames::ip(who.address(v6), Who::Peer.address(v6), 17, &frames::datagram(4000, port, 4)))
}

/// The pod's own datagram from another hardware address.
fn masked(v6: bool, port: u16) -> Vec<u8> {
    let mut frame = from(Who::Pod, v6, port);
    frame[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    frame
}

#[test]
fn forged_sources_are_treated_as_the_mode_says() {
    // (mode, enforced, policy allows) -> (fate, verdict)
    let cases = [
        (mode::OBSERVE, 1, false, (PASS, verdict::ALLOWED)),
        (mode::AUDIT, 1, true, (PASS, verdict::AUDIT)),
        (mode::AUDIT, 1, false, (PASS, verdict::AUDIT)),
        (mode::ENFORCE, 0, true, (PASS, verdict::AUDIT)),
        (mode::ENFORCE, 0, false, (DROP, verdict::DENIED)),
        (mode::ENFORCE, 1, true, (DROP, verdict::DENIED)),
        (mode::ENFORCE, 1, false, (DROP, verdict::DENIED)),
    ];
    for v6 in [false, true] {
        for (mode, spoof_enforce, allows, expected) in cases {
            let mut node = node::start(node::BOTH);
            node.put("CONFIG", &0u32, &Config { mode, spoof_enforce, ..node::config(1) }).expect("writes");
            let port = if allows { 53 } else { 99 };
            for (what, frame) in [("address", from(Who::Stranger, v6, port)), ("hardware address", masked(v6, port))] {
                node.clear().expect("clears");
                node::fill(&node, node::BOTH);
                node.put("CONFIG", &0u32, &Config { mode, spoof_enforce, ..node::config(1) }).expect("writes");
                for _ in 0..2 {
                    assert_eq!(
                        node::egress(&node, &frame),
                        expected.0,
                        "{what}, mode {mode}, enforced {spoof_enforce}, allows {allows}, v6 {v6}"
                    );
                }
                let told = node.told();
                assert_eq!(told.len(), 1, "{what}: told once: {told:?}");
                let why = if mode == mode::OBSERVE { 0 } else { reason::SPOOFED_SOURCE };
                assert_eq!((told[0].kind, told[0].flow.verdict, told[0].flow.reason), (event::START, expected.1, why));
                let mac: [u8; 6] = frame[6..12].try_into().expect("six bytes");
                assert_eq!(told[0].flow.mac, if why == 0 { [0; 6] } else { mac });
            }
            assert_eq!(node.count(c::SPOOFED), if mode == mode::OBSERVE { 0 } else { 2 });
        }
    }
}

#[test]
fn own_and_link_local_sources_are_no_forgery() {
    let node = node::start(endpoint_flags::ISOLATED_INGRESS);
    node.put("CONFIG", &0u32, &Config { spoof_enforce: 1, ..node::config(1) }).expect("writes");
    for v6 in [false, true] {
        assert_eq!(node::egress(&node, &from(Who::Pod, v6, 99)), PASS);
    }
    let link_local = "fe80::858:aff:fe01:2".parse().expect("an address");
    let frame = frames::frame(true, &frames::ip(link_local, Who::Peer.address(true), 17, &frames::datagram(4000, 99, 4)));
    assert_eq!(node::egress(&node, &frame), PASS);
    assert_eq!(node.count(c::SPOOFED), 0);
    // Without a known hardware address it is not checked.
    node.put("ENDPOINTS", &1u32, &sekisho_core::layout::Endpoint { mac: [0; 6], ..node::endpoint(0) }).expect("writes");
    assert_eq!(node::egress(&node, &masked(false, 98)), PASS);
    assert_eq!((node.count(c::SPOOFED), POD_MAC[0]), (0, 2));
}

/// A pod may be lent networks to speak for: routers, virtual machines. It is judged as itself all the same.
#[test]
fn lent_sources_are_no_forgery() {
    let node = node::start(endpoint_flags::ISOLATED_EGRESS);
    node.put("CONFIG", &0u32, &Config { spoof_enforce: 1, ..node::config(1) }).expect("writes");
    let mut endpoint = node::endpoint(endpoint_flags::ISOLATED_EGRESS);
    // 10.1.0.8/29 and fd00::8/125 hold the stranger and not the peer.
    endpoint.sources[0] = sekisho_core::parse::mapped([10, 1, 0, 8]);
    endpoint.masks[0] = (!7u128).to_be_bytes();
    endpoint.sources[1] = (0xfd00_u128 << 112 | 8).to_be_bytes();
    endpoint.masks[1] = (!7u128).to_be_bytes();
    node.put("ENDPOINTS", &1u32, &endpoint).expect("writes");
    for v6 in [false, true] {
        assert_eq!(node::egress(&node, &from(Who::Stranger, v6, 53)), PASS);
        assert_eq!(node::egress(&node, &from(Who::Stranger, v6, 99)), DROP, "no rule allows that port");
        assert_eq!(node.count(c::SPOOFED), 0);
    }
    for v6 in [false, true] {
        assert_eq!(node::egress(&node, &from(Who::Node, v6, 53)), DROP, "outside of it");
    }
    assert_eq!(node.count(c::SPOOFED), 2);
}

/// Under the key of a live connection: it goes on, the forger is dropped.
#[test]
fn a_forger_does_not_reach_a_live_connection() {
    for v6 in [false, true] {
        let node = node::start(0);
        node.put("CONFIG", &0u32, &Config { spoof_enforce: 1, ..node::config(1) }).expect("writes");
        for (egress, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)] {
            assert_eq!(node::send(&node, egress, &frames::tcp_of(v6, egress, 4000, 80, flags)), PASS);
        }
        let forged =
            frames::frame(true, &frames::ip(Who::Stranger.address(v6), Who::Peer.address(v6), 6, &frames::segment(4000, 80, ACK, 0)));
        assert_eq!(node::egress(&node, &forged), DROP);
        assert_eq!(node.count(c::COLLISION), 1);
        assert_eq!(node::egress(&node, &frames::tcp_of(v6, true, 4000, 80, ACK)), PASS);
        let flow = node::flow_with(&node, "ESTABLISHED", Who::Peer, v6, (4000, 80, 6)).expect("lives");
        assert_eq!(flow.packets, [3, 1]);
        // A forged SYN ends no record either.
        let forged =
            frames::frame(true, &frames::ip(Who::Stranger.address(v6), Who::Peer.address(v6), 6, &frames::segment(4000, 80, SYN, 0)));
        assert_eq!(node::egress(&node, &forged), DROP);
        assert!(node::flow_with(&node, "ESTABLISHED", Who::Peer, v6, (4000, 80, 6)).is_some());
    }
}
