//! Headers that are not the usual ones: tags, options, extensions, lies.

use std::net::IpAddr;

use sekisho_core::counters as c;
use sekisho_core::layout::{event, reason, verdict};
use sekisho_core::tcp::SYN;

use super::frames::{self, Who};
use super::node::{self, DROP, PASS};

const NOP: u8 = 1;

fn syn(port: u16) -> Vec<u8> {
    frames::segment(5000, port, SYN, 0)
}

/// A SYN to the pod behind VLAN tags.
fn tagged(v6: bool, tags: usize, port: u16) -> Vec<u8> {
    let plain = frames::between(v6, false, 6, &syn(port));
    let tags = [0x81, 0x00, 0x00, 0x07].repeat(tags);
    [&plain[..12], &tags, &plain[12..]].concat()
}

/// A SYN to the pod with IPv4 options.
fn optional(options: &[u8], port: u16) -> Vec<u8> {
    let (IpAddr::V4(from), IpAddr::V4(to)) = (Who::Peer.address(false), Who::Pod.address(false)) else { unreachable!("IPv4") };
    frames::frame(false, &frames::ip4(from, to, 6, options, [0x40, 0], &syn(port)))
}

/// A SYN to the pod behind extension headers, given by their numbers.
fn extended(chain: &[u8], port: u16) -> Vec<u8> {
    let mut payload = Vec::new();
    for index in 0..chain.len() {
        let next = chain.get(index + 1).copied().unwrap_or(6);
        // Eight bytes: an option that pads, no segments left; an authentication header counts otherwise.
        match chain[index] {
            51 => payload.extend([next, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            43 => payload.extend([next, 0, 0, 0, 0, 0, 0, 0]),
            _ => payload.extend([next, 0, 1, 4, 0, 0, 0, 0]),
        }
    }
    payload.extend(syn(port));
    frames::frame(false, &frames::ip(Who::Peer.address(true), Who::Pod.address(true), chain.first().copied().unwrap_or(6), &payload))
}

/// Read through, and judged by the port behind.
#[test]
fn ports_are_found_behind_tags_options_and_extensions() {
    let mut node = node::start(node::BOTH);
    let shapes: [(&str, bool, Box<dyn Fn(u16) -> Vec<u8>>); 9] = [
        ("one tag", false, Box::new(|port| tagged(false, 1, port))),
        ("two tags", false, Box::new(|port| tagged(false, 2, port))),
        ("one tag", true, Box::new(|port| tagged(true, 1, port))),
        ("a NOP and a time stamp", false, Box::new(|port| optional(&[NOP, NOP, NOP, NOP, 68, 8, 5, 0, 0, 0, 0, 0], port))),
        ("forty bytes of options", false, Box::new(|port| optional(&[NOP; 40], port))),
        ("a router alert", false, Box::new(|port| optional(&[148, 4, 0, 0], port))),
        ("hop-by-hop", true, Box::new(|port| extended(&[0], port))),
        ("hop-by-hop, destination, routing, destination", true, Box::new(|port| extended(&[0, 60, 43, 60], port))),
        ("destination, authentication", true, Box::new(|port| extended(&[60, 51], port))),
    ];
    for (what, v6, frame) in &shapes {
        node.clear().expect("clears");
        node::fill(&node, node::BOTH);
        assert_eq!(node::ingress(&node, &frame(80)), PASS, "{what}");
        let flow = node::flow_with(&node, "EMBRYONIC", Who::Peer, *v6, (80, 5000, 6)).expect("kept");
        let total = frame(80).len() - 14 - if what.contains("tag") { 4 * (1 + usize::from(what.contains("two"))) } else { 0 };
        assert_eq!((flow.verdict, flow.packets, flow.bytes), (verdict::ALLOWED, [1, 0], [total as u64, 0]), "{what}");
        assert_eq!(node::ingress(&node, &frame(81)), DROP, "{what}");
        let flow = node::flow_with(&node, "EMBRYONIC", Who::Peer, *v6, (81, 5000, 6)).expect("kept");
        assert_eq!(flow.reason, reason::DEFAULT_DENY, "{what}");
    }
}

/// Each with its name, its family, the reason, and the frame.
fn hostile() -> Vec<(&'static str, bool, u8, Vec<u8>)> {
    let v4 = frames::between(false, false, 6, &syn(80));
    let v6 = frames::between(true, false, 6, &syn(80));
    let with = |frame: &[u8], at: usize, bytes: &[u8]| {
        let mut frame = frame.to_vec();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let routed = {
        let mut frame = extended(&[43], 80);
        frame[14 + 40 + 3] = 1;
        frame
    };
    let mapped = {
        let mut frame = v6.clone();
        frame[22..38].copy_from_slice(&sekisho_core::parse::mapped(Who::Peer.v4()));
        frame
    };
    vec![
        ("three tags", false, reason::UNSUPPORTED, tagged(false, 3, 80)),
        ("a loose source route", false, reason::UNSUPPORTED, optional(&[131, 7, 4, 10, 1, 0, 9, 0], 80)),
        ("a strict source route", false, reason::UNSUPPORTED, optional(&[137, 7, 4, 10, 1, 0, 9, 0], 80)),
        ("an option that ends behind the header", false, reason::MALFORMED, optional(&[68, 40, 5, 0], 80)),
        ("an option of length 0", false, reason::MALFORMED, optional(&[68, 0, 5, 0], 80)),
        ("a header of 16 bytes", false, reason::MALFORMED, with(&v4, 14, &[0x44])),
        ("a length beyond the frame", false, reason::MALFORMED, with(&v4, 16, &[0x05, 0xdc])),
        ("a length below the header", false, reason::MALFORMED, with(&v4, 16, &[0, 19])),
        ("half a TCP header", false, reason::MALFORMED, {
            let mut frame = v4[..14 + 20 + 10].to_vec();
            frame[16..18].copy_from_slice(&30u16.to_be_bytes());
            frame
        }),
        ("a TCP header of 16 bytes", false, reason::MALFORMED, with(&v4, 14 + 20 + 12, &[0x40])),
        ("a TCP header longer than the packet", false, reason::MALFORMED, with(&v4, 14 + 20 + 12, &[0xf0])),
        ("version 5", false, reason::MALFORMED, with(&v4, 14, &[0x55])),
        ("hop-by-hop not first", true, reason::MALFORMED, extended(&[60, 0], 80)),
        ("segments left", true, reason::UNSUPPORTED, routed),
        ("seven extensions", true, reason::UNSUPPORTED, extended(&[0, 60, 60, 60, 60, 60, 60], 80)),
        ("nothing behind the header", true, reason::UNSUPPORTED, extended(&[60, 59], 80)),
        ("a payload beyond the frame", true, reason::MALFORMED, with(&v6, 18, &[0x05, 0xdc])),
        ("an extension that ends beyond the packet", true, reason::MALFORMED, {
            let mut frame = extended(&[60], 80);
            frame[14 + 40 + 1] = 9;
            frame
        }),
        ("IPv4 in disguise", true, reason::MALFORMED, mapped),
    ]
}

#[test]
fn what_cannot_be_judged_is_dropped_and_told_where_the_pod_is_isolated() {
    let mut node = node::start(node::BOTH);
    for (what, _, why, frame) in hostile() {
        node.clear().expect("clears");
        node::fill(&node, node::BOTH);
        let counter = if why == reason::MALFORMED { c::MALFORMED } else { c::UNSUPPORTED };
        let before = node.count(counter);
        assert_eq!(node::ingress(&node, &frame), DROP, "{what}");
        assert_eq!(node::ingress(&node, &frame), DROP, "{what}, again");
        let told: Vec<_> = node.told().iter().map(|e| (e.kind, e.flow.reason, e.flow.verdict, e.key.local_port)).collect();
        assert_eq!(told, [(event::START, why, verdict::DENIED, 0)], "{what}");
        assert_eq!(node.count(counter) - before, 2, "{what}");
    }
}

#[test]
fn what_cannot_be_judged_passes_where_nothing_isolates() {
    let mut node = node::start(sekisho_core::layout::endpoint_flags::ISOLATED_EGRESS);
    for (what, _, _, frame) in hostile() {
        assert_eq!(node::ingress(&node, &frame), PASS, "{what}");
    }
    assert_eq!(node.told().len(), 0, "nothing to tell");
    assert_eq!(node.count(c::MALFORMED) + node.count(c::UNSUPPORTED), hostile().len() as u64, "counted all the same");
}

/// In the other modes the same packets pass, and audit says what enforce would do.
#[test]
fn modes_hold_for_what_cannot_be_judged() {
    use sekisho_core::layout::{Config, mode};
    for (mode, expected) in [(mode::AUDIT, verdict::AUDIT), (mode::OBSERVE, verdict::ALLOWED)] {
        let mut node = node::start(node::BOTH);
        node.put("CONFIG", &0u32, &Config { mode, ..node::config(1) }).expect("writes");
        assert_eq!(node::ingress(&node, &optional(&[131, 7, 4, 10, 1, 0, 9, 0], 80)), PASS);
        let told = node.told();
        assert_eq!(told.iter().map(|e| e.flow.verdict).collect::<Vec<_>>(), [expected]);
    }
}
