//! ICMP errors follow the flow of the packet that they quote.

use sekisho_core::layout::{Contacts, contact, endpoint_flags, event, flow_flags, reason, verdict};
use sekisho_core::tcp::{ACK, SYN};

use super::frames::{self, Who};
use super::node::{self, DROP, PASS};

/// An error to the pod (or from it) about `quoted`, an IP packet.
fn error(v6: bool, egress: bool, from: Who, kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let (source, destination) = if egress { (Who::Pod, from) } else { (from, Who::Pod) };
    let protocol = if v6 { 58 } else { 1 };
    frames::frame(egress, &frames::ip(source.address(v6), destination.address(v6), protocol, &frames::icmp(kind, code, quoted)))
}

/// `(type, code, whether it says that nobody is there)`: port unreachable, too big, time exceeded.
fn kinds(v6: bool) -> [(u8, u8, bool); 3] {
    if v6 { [(1, 4, true), (2, 0, false), (3, 0, false)] } else { [(3, 3, true), (3, 4, false), (11, 0, false)] }
}

fn ask(v6: bool, port: u16) -> Vec<u8> {
    frames::ip(Who::Pod.address(v6), Who::Peer.address(v6), 17, &frames::datagram(port, 53, 4))
}

#[test]
fn errors_about_an_allowed_flow_pass_and_mark_it() {
    for v6 in [false, true] {
        for (port, (kind, code, unreachable)) in (4000..).zip(kinds(v6)) {
            let mut node = node::start(node::BOTH);
            assert_eq!(node::egress(&node, &frames::frame(true, &ask(v6, port))), PASS);
            // A router on the way sends it, whom no rule knows; the quote is cut behind 8 bytes.
            let quoted = &ask(v6, port)[..if v6 { 48 } else { 28 }];
            assert_eq!(node::ingress(&node, &error(v6, false, Who::Stranger, kind, code, quoted)), PASS, "v6 {v6}, type {kind}");
            let flow = node::flow_with(&node, "EMBRYONIC", Who::Peer, v6, (port, 53, 17)).expect("kept");
            assert_eq!(flow.flags & flow_flags::UNREACHABLE != 0, unreachable, "v6 {v6}, type {kind}");
            assert_eq!(flow.packets, [1, 0], "an error is no packet of the flow");
            let refused = node.told().iter().any(|e| e.kind == event::REFUSED && e.key.local_port == port);
            assert_eq!(refused, unreachable, "unanswered and unreachable is a refusal");
            let contacts: Contacts = node.get("CONTACTS", &0u32).expect("reads").expect("is there");
            assert_eq!(contacts.slots[0].result == contact::REFUSED && contacts.slots[0].remote_port == 53, unreachable);
            assert_eq!(node.count(sekisho_core::counters::CREATED), 1);
        }
    }
}

#[test]
fn errors_about_nothing_are_dropped_where_the_pod_is_isolated() {
    for v6 in [false, true] {
        let protocol = if v6 { 58 } else { 1 };
        for (isolated, fate) in [(node::BOTH, DROP), (endpoint_flags::ISOLATED_EGRESS, PASS), (0, PASS)] {
            let mut node = node::start(isolated);
            for (kind, code, _) in kinds(v6) {
                assert_eq!(
                    node::ingress(&node, &error(v6, false, Who::Stranger, kind, code, &ask(v6, 4000))),
                    fate,
                    "v6 {v6}, type {kind}"
                );
            }
            let flow = node::flow_with(&node, "EMBRYONIC", Who::Stranger, v6, (0, 0, protocol));
            let seen = flow.map(|flow| (flow.verdict, flow.reason, flow.packets));
            let expected = (fate == DROP).then_some((verdict::DENIED, reason::NO_CONNECTION, [3, 0]));
            assert_eq!(seen, expected);
            assert_eq!(node.told().len(), usize::from(fate == DROP), "told once");
        }
    }
}

#[test]
fn errors_about_a_denied_flow_are_dropped() {
    for v6 in [false, true] {
        let node = node::start(node::BOTH);
        let asked = frames::ip(Who::Pod.address(v6), Who::Peer.address(v6), 17, &frames::datagram(4000, 99, 4));
        assert_eq!(node::egress(&node, &frames::frame(true, &asked)), DROP);
        let (kind, code, _) = kinds(v6)[0];
        assert_eq!(node::ingress(&node, &error(v6, false, Who::Peer, kind, code, &asked)), DROP);
        let flow = node::flow_with(&node, "EMBRYONIC", Who::Peer, v6, (4000, 99, 17)).expect("kept");
        assert_eq!(flow.flags & flow_flags::UNREACHABLE, 0);
    }
}

/// What the pod says about a flow that came in leaves it, although it may open nothing itself.
#[test]
fn a_pod_may_answer_with_an_error() {
    for v6 in [false, true] {
        let node = node::start(node::BOTH);
        let came = frames::ip(Who::Peer.address(v6), Who::Pod.address(v6), 17, &frames::datagram(4000, 53, 4));
        assert_eq!(node::ingress(&node, &frames::frame(false, &came)), PASS);
        let (kind, code, _) = kinds(v6)[0];
        assert_eq!(node::egress(&node, &error(v6, true, Who::Peer, kind, code, &came)), PASS);
        let flow = node::flow_with(&node, "EMBRYONIC", Who::Peer, v6, (53, 4000, 17)).expect("kept");
        assert_ne!(flow.flags & flow_flags::UNREACHABLE, 0);
        // About what never came.
        let other = frames::ip(Who::Peer.address(v6), Who::Pod.address(v6), 17, &frames::datagram(4001, 53, 4));
        assert_eq!(node::egress(&node, &error(v6, true, Who::Peer, kind, code, &other)), DROP);
    }
}

/// Connections: forbidden by a firewall on the way is a refusal; in a running one an error is no end.
#[test]
fn errors_about_connections() {
    for v6 in [false, true] {
        let mut node = node::start(node::BOTH);
        let (kind, code) = if v6 { (1, 1) } else { (3, 13) };
        let syn = frames::ip(Who::Pod.address(v6), Who::Peer.address(v6), 6, &frames::segment(4000, 80, SYN, 0));
        assert_eq!(node::egress(&node, &frames::frame(true, &syn)), PASS);
        assert_eq!(node::ingress(&node, &error(v6, false, Who::Stranger, kind, code, &syn)), PASS);
        let refused = node.told().iter().filter(|e| e.kind == event::REFUSED).count();
        assert_eq!(refused, 1, "nobody answers the SYN");
        for (egress, flags) in [(false, SYN | ACK), (true, ACK)] {
            assert_eq!(node::send(&node, egress, &frames::tcp_of(v6, egress, 4000, 80, flags)), PASS);
        }
        assert_eq!(node::ingress(&node, &error(v6, false, Who::Stranger, kind, code, &syn)), PASS);
        assert_eq!(node::ingress(&node, &frames::tcp_of(v6, false, 4000, 80, ACK)), PASS, "it goes on");
        assert!(node.told().iter().all(|e| e.kind != event::REFUSED), "no refusal of what runs");
        // A quote of another's packet, of an error, of half a header, of the other family.
        let alien = frames::ip(Who::Stranger.address(v6), Who::Peer.address(v6), 6, &frames::segment(4000, 80, SYN, 0));
        let nested = frames::ip(Who::Pod.address(v6), Who::Peer.address(v6), if v6 { 58 } else { 1 }, &frames::icmp(kind, code, &syn));
        let foreign = frames::ip(Who::Pod.address(!v6), Who::Peer.address(!v6), 6, &frames::segment(4000, 80, SYN, 0));
        for quoted in [&alien[..], &nested, &syn[..16], &foreign, &[]] {
            assert_eq!(node::ingress(&node, &error(v6, false, Who::Stranger, kind, code, quoted)), DROP);
        }
    }
}

/// An error goes to whom it is about, and is no larger than errors are: otherwise it is a way out to anybody.
#[test]
fn errors_carry_no_data_away() {
    for v6 in [false, true] {
        let mut node = node::start(node::BOTH);
        let came = frames::ip(Who::Peer.address(v6), Who::Pod.address(v6), 17, &frames::datagram(4000, 53, 4));
        assert_eq!(node::ingress(&node, &frames::frame(false, &came)), PASS);
        node.told();
        let (kind, code, _) = kinds(v6)[0];
        // Behind the quote comes what is to be carried; `most` is the largest that the standards allow.
        let (most, header) = if v6 { (1280, 40) } else { (576, 20) };
        let filled = |total: usize| {
            let mut quoted = came.clone();
            quoted.resize(total - header - 8, b'x');
            quoted
        };
        assert_eq!(node::egress(&node, &error(v6, true, Who::Peer, kind, code, &filled(most))), PASS, "v6 {v6}");
        let foreign = error(v6, false, Who::Node, kind, code, &came);
        assert_eq!(node::ingress(&node, &foreign), DROP, "about what the pod did not send, v6 {v6}");
        node.told();
        for (what, to, quoted) in [("too large", Who::Peer, filled(most + 1)), ("to somebody else", Who::Stranger, came.clone())] {
            assert_eq!(node::egress(&node, &error(v6, true, to, kind, code, &quoted)), DROP, "{what}, v6 {v6}");
            let told: Vec<_> = node.told().iter().map(|e| (e.flow.verdict, e.flow.reason, e.key.remote)).collect();
            let expected = [(verdict::DENIED, reason::NO_CONNECTION, node::address(to, v6))];
            assert_eq!(told, expected, "{what}, v6 {v6}: recorded with whom it was for");
        }
        // Nor in pieces.
        if !v6 {
            let mut piece = error(v6, true, Who::Peer, kind, code, &came);
            piece[20] = 0x20;
            assert_eq!(node::egress(&node, &piece), DROP);
        }
    }
}
