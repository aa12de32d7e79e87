//! Fragments follow the first of their datagram.

use std::net::IpAddr;

use sekisho_core::counters as c;
use sekisho_core::layout::{INGRESS, Rules, endpoint_flags, reason, verdict};

use super::frames::{self, Who};
use super::node::{self, DROP, PASS};

/// A piece of a datagram from the peer to the pod (or back): its number and offset (in bytes), and what it holds.
fn piece(v6: bool, egress: bool, id: u16, (offset, more): (u16, bool), protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to) = if egress { (Who::Pod, Who::Peer) } else { (Who::Peer, Who::Pod) };
    let packet = match (from.address(v6), to.address(v6)) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let field = (offset / 8) | if more { 0x2000 } else { 0 };
            let mut packet = frames::ip4(from, to, protocol, &[], field.to_be_bytes(), payload);
            packet[4..6].copy_from_slice(&id.to_be_bytes());
            packet
        }
        (from, to) => {
            let mut header = vec![protocol, 0];
            header.extend((offset | u16::from(more)).to_be_bytes());
            header.extend([0, 0]);
            header.extend(id.to_be_bytes());
            header.extend(payload);
            frames::ip(from, to, 44, &header)
        }
    };
    frames::frame(egress, &packet)
}

const FIRST: (u16, bool) = (0, true);
const MIDDLE: (u16, bool) = (104, true);
const LAST: (u16, bool) = (200, false);

/// The three pieces of a datagram that comes in for a port.
fn pieces(v6: bool, id: u16, port: u16) -> [Vec<u8>; 3] {
    let first = frames::datagram(5000, port, 96);
    [piece(v6, false, id, FIRST, 17, &first), piece(v6, false, id, MIDDLE, 17, &[b'm'; 96]), piece(v6, false, id, LAST, 17, &[b'l'; 40])]
}

#[test]
fn pieces_of_an_allowed_datagram_pass_behind_the_first() {
    for v6 in [false, true] {
        let mut node = node::start(node::BOTH);
        // In order, and the later ones in disorder.
        for (id, order) in [(1, [0, 1, 2]), (2, [0, 2, 1])] {
            let pieces = pieces(v6, id, 53);
            for index in order {
                assert_eq!(node::ingress(&node, &pieces[index]), PASS, "v6 {v6}, datagram {id}, piece {index}");
            }
        }
        let flow = node::flow_with(&node, "EMBRYONIC", Who::Peer, v6, (53, 5000, 17)).expect("kept");
        let header = if v6 { 48 } else { 20 };
        assert_eq!((flow.packets, flow.bytes), ([6, 0], [2 * (104 + 96 + 40 + 3 * header), 0]));
        assert_eq!((node.told().len(), node.count(c::FRAGMENT_ORPHAN)), (1, 0));
        // The answer in pieces as well: it is the first reply.
        assert_eq!(node::egress(&node, &piece(v6, true, 9, FIRST, 17, &frames::datagram(53, 5000, 96))), PASS);
        assert_eq!(node::egress(&node, &piece(v6, true, 9, LAST, 17, &[b'l'; 40])), PASS);
        assert_eq!(node::flow_with(&node, "ANSWERED", Who::Peer, v6, (53, 5000, 17)).expect("promoted").packets, [6, 2]);
    }
}

#[test]
fn a_piece_before_the_first_is_dropped_where_the_pod_is_isolated() {
    for v6 in [false, true] {
        let mut node = node::start(node::BOTH);
        let [first, middle, last] = pieces(v6, 7, 53);
        assert_eq!(node::ingress(&node, &last), DROP);
        assert_eq!(node::ingress(&node, &last), DROP);
        let orphan = node::flow_with(&node, "EMBRYONIC", Who::Peer, v6, (0, 0, 17)).expect("kept");
        assert_eq!((orphan.verdict, orphan.reason, orphan.packets), (verdict::DENIED, reason::FRAGMENT, [2, 0]));
        assert_eq!((node.told().len(), node.count(c::FRAGMENT_ORPHAN)), (1, 2));
        for later in [&first, &middle, &last] {
            assert_eq!(node::ingress(&node, later), PASS);
        }
        // The name of a datagram is all of it: another number, protocol or direction is another.
        assert_eq!(node::ingress(&node, &pieces(v6, 8, 53)[1]), DROP);
        assert_eq!(node::ingress(&node, &piece(v6, false, 7, MIDDLE, 6, &[0; 96])), DROP);
        assert_eq!(node::egress(&node, &piece(v6, true, 7, MIDDLE, 17, &[0; 96])), DROP);
    }
}

#[test]
fn pieces_of_a_denied_datagram_are_dropped_with_its_reason() {
    for v6 in [false, true] {
        let mut node = node::start(node::BOTH);
        for piece in pieces(v6, 7, 99) {
            assert_eq!(node::ingress(&node, &piece), DROP);
        }
        let flow = node::flow_with(&node, "EMBRYONIC", Who::Peer, v6, (99, 5000, 17)).expect("kept");
        assert_eq!((flow.reason, flow.packets), (reason::DEFAULT_DENY, [3, 0]));
        assert_eq!((node.told().len(), node.count(c::FRAGMENT_ORPHAN)), (1, 0));
    }
}

#[test]
fn pieces_pass_where_nothing_isolates() {
    for v6 in [false, true] {
        let node = node::start(endpoint_flags::ISOLATED_EGRESS);
        let [first, middle, last] = pieces(v6, 7, 99);
        for piece in [&last, &middle, &first, &middle] {
            assert_eq!(node::ingress(&node, piece), PASS);
        }
        assert_eq!(node.count(c::FRAGMENT_ORPHAN), 2);
        assert!(node::flow_with(&node, "EMBRYONIC", Who::Peer, v6, (0, 0, 17)).is_none(), "nothing to remember of an orphan that may pass");
        // What is dropped on the way out does not close the way in.
        assert_eq!(node::egress(&node, &piece(v6, true, 8, MIDDLE, 17, &[0; 96])), DROP);
        assert_eq!(node::ingress(&node, &pieces(v6, 9, 99)[1]), PASS);
        assert_eq!(node::egress(&node, &piece(v6, true, 8, MIDDLE, 17, &[0; 96])), DROP);
    }
}

/// A first piece too small for its header hides what the rest will say.
#[test]
fn a_header_in_pieces_is_malformed() {
    for v6 in [false, true] {
        let node = node::start(node::BOTH);
        let syn = frames::segment(5000, 80, sekisho_core::tcp::SYN, 0);
        assert_eq!(node::ingress(&node, &piece(v6, false, 7, FIRST, 6, &syn[..8])), DROP);
        let flow = node::flow_with(&node, "EMBRYONIC", Who::Peer, v6, (0, 0, 6)).expect("kept");
        assert_eq!(flow.reason, reason::MALFORMED);
        assert_eq!(node::ingress(&node, &piece(v6, false, 7, (8, false), 6, &syn[8..])), DROP, "its rest");
        assert_eq!(node::ingress(&node, &piece(v6, false, 8, FIRST, 6, &syn)), PASS, "a whole one may be a first");
    }
}

/// A protocol without ports needs no first piece: each one shows all that is judged.
#[test]
fn pieces_without_ports_are_judged_like_the_whole() {
    for v6 in [false, true] {
        for protocol in [4, 47, 50] {
            let mut node = node::start(node::BOTH);
            assert_eq!(node::ingress(&node, &piece(v6, false, 7, LAST, protocol, &[b'l'; 40])), DROP);
            let flow = node::flow_with(&node, "EMBRYONIC", Who::Peer, v6, (0, 0, protocol)).expect("kept");
            assert_eq!(flow.reason, reason::DEFAULT_DENY, "the policy says so");
            node.put("RULES", &node::key_of(INGRESS), &Rules::new(44, 0)).expect("writes");
            node.put("CONFIG", &0u32, &node::config(2)).expect("writes");
            for frame in [LAST, FIRST, MIDDLE].map(|at| piece(v6, false, 8, at, protocol, &[b'p'; 40])) {
                assert_eq!(node::ingress(&node, &frame), PASS, "v6 {v6}, protocol {protocol}");
            }
            assert_eq!(node::ingress(&node, &frames::between(v6, false, protocol, &[b'w'; 40])), PASS);
            assert_eq!((node.count(c::FRAGMENT_ORPHAN), node.told().len()), (0, 3), "one flow, denied and then allowed");
        }
    }
}

/// What is denied for what it is says nothing about packets of the same ends that can be judged.
#[test]
fn a_cause_is_no_verdict_for_others() {
    for v6 in [false, true] {
        let mut node = node::start(node::BOTH);
        node.put("RULES", &node::key_of(INGRESS), &Rules::new(44, 0)).expect("writes");
        let (icmp, ask) = if v6 { (58, 128) } else { (1, 8) };
        for _ in 0..2 {
            // Half a message, and one whose identifier is 0; half a header, and a datagram between ports 0.
            assert_eq!(node::ingress(&node, &frames::between(v6, false, icmp, &[0, 0])), DROP);
            assert_eq!(node::ingress(&node, &frames::between(v6, false, icmp, &[ask, 0, 0, 0, 0, 0, 0, 1])), PASS);
            assert_eq!(node::ingress(&node, &frames::between(v6, false, 17, &[0, 0])), DROP);
            assert_eq!(node::ingress(&node, &frames::udp_of(v6, false, 0, 0)), PASS);
        }
        let causes: Vec<u8> = node.told().iter().map(|event| event.flow.reason).collect();
        assert_eq!(causes, [reason::MALFORMED, 0, reason::MALFORMED, 0], "one record each");
        for protocol in [icmp, 17] {
            assert_eq!(node::flow_with(&node, "EMBRYONIC", Who::Peer, v6, (0, 0, protocol)).expect("kept").packets, [2, 0]);
        }
    }
}

/// Where the sender may reach every port, a piece need not wait for the first. Nothing is remembered of it.
#[test]
fn a_piece_before_the_first_passes_where_every_port_is_open() {
    for v6 in [false, true] {
        let mut node = node::start(node::BOTH);
        node.put("RULES", &node::key_of(INGRESS), &Rules::new(44, 0)).expect("writes");
        let [first, middle, last] = pieces(v6, 7, 99);
        for frame in [&last, &middle, &first, &middle] {
            assert_eq!(node::ingress(&node, frame), PASS);
        }
        assert_eq!((node.count(c::FRAGMENT_ORPHAN), node.told().len()), (2, 1));
        assert_eq!(node::egress(&node, &piece(v6, true, 7, MIDDLE, 17, &[0; 96])), DROP, "the other direction has its own rules");
    }
}
