//! Ordinary connections and datagrams.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use sekisho_core::counters as c;
use sekisho_core::layout::{Endpoint, end_reason, endpoint_flags, event, reason, verdict};
use sekisho_core::tcp::{ACK, FIN, RST, SYN, state};

use sekisho_lab::programs::Skb;

use super::frames::Who;
use super::{frames, node};

#[test]
fn a_connection_lives_and_ends() {
    let mut node = node::start(endpoint_flags::ISOLATED_EGRESS);
    let (pod, peer) = (4000, 80);
    for (egress, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK), (true, ACK), (false, ACK)] {
        assert_eq!(node::send(&node, egress, &frames::tcp(egress, pod, peer, flags)), node::PASS, "egress {egress}, flags {flags}");
    }
    assert!(node::flow(&node, "EMBRYONIC4", pod, peer, 6).is_none(), "promoted");
    let flow = node::flow(&node, "ESTABLISHED4", pod, peer, 6).expect("established");
    assert_eq!((flow.packets, flow.bytes, flow.state, flow.rule), ([3, 2], [120, 80], state::ESTABLISHED, 42));
    assert_eq!((flow.local_instance, flow.remote_instance, flow.class, flow.set), (1, 9, 5, 7));
    for (egress, flags) in [(true, FIN | ACK), (false, FIN | ACK), (true, ACK)] {
        assert_eq!(node::send(&node, egress, &frames::tcp(egress, pod, peer, flags)), node::PASS);
    }
    assert_eq!(node::flow(&node, "ESTABLISHED4", pod, peer, 6).expect("lingers").state, state::CLOSED);
    // A SYN on the closed flow: its end, then a new flow.
    assert_eq!(node::egress(&node, &frames::tcp(true, pod, peer, SYN)), node::PASS);
    let events = node.told();
    let kinds: Vec<_> = events.iter().map(|e| (e.kind, e.end_reason)).collect();
    assert_eq!(kinds, [(event::START, 0), (event::END, end_reason::FIN), (event::START, 0)]);
    assert_eq!(events[1].flow.packets, [5, 3]);
    assert_eq!(node.count(c::CREATED), 2);
}

#[test]
fn what_no_rule_allows_is_dropped_and_told_once() {
    let mut node = node::start(node::BOTH);
    for _ in 0..3 {
        assert_eq!(node::egress(&node, &frames::tcp(true, 4000, 81, SYN)), node::DROP);
        assert_eq!(node::egress(&node, &frames::udp(true, 4000, 54)), node::DROP);
    }
    assert_eq!(node::ingress(&node, &frames::tcp(false, 22, 5000, SYN)), node::DROP);
    assert_eq!(node::ingress(&node, &frames::tcp(false, 80, 5000, SYN)), node::PASS);
    assert_eq!(node::ingress(&node, &frames::tcp(false, 33, 5000, ACK)), node::DROP);
    let denied = node::flow(&node, "EMBRYONIC4", 4000, 81, 6).expect("kept");
    assert_eq!((denied.verdict, denied.reason, denied.packets), (verdict::DENIED, reason::DEFAULT_DENY, [3, 0]));
    assert_eq!(node::flow(&node, "EMBRYONIC4", 4000, 54, 17).expect("kept").packets, [3, 0]);
    assert_eq!(node::flow(&node, "EMBRYONIC4", 33, 5000, 6).expect("kept").reason, reason::NO_CONNECTION);
    assert_eq!(node.told().len(), 5);
    assert_eq!((node.count(c::CREATED), node.count(c::DROPPED)), (5, 8));
}

#[test]
fn datagrams_are_promoted_by_their_first_reply_and_resets_are_evidence() {
    let mut node = node::start(0);
    assert_eq!(node::egress(&node, &frames::udp(true, 4000, 53)), node::PASS);
    assert!(node::flow(&node, "ANSWERED4", 4000, 53, 17).is_none());
    assert_eq!(node::ingress(&node, &frames::udp(false, 4000, 53)), node::PASS);
    assert_eq!(node::flow(&node, "ANSWERED4", 4000, 53, 17).expect("promoted").packets, [1, 1]);
    assert_eq!(node::egress(&node, &frames::tcp(true, 4000, 23, SYN)), node::PASS);
    assert_eq!(node::ingress(&node, &frames::tcp(false, 4000, 23, RST | ACK)), node::PASS);
    let events = node.told();
    assert!(events.iter().any(|e| e.kind == event::REFUSED), "{events:?}");
    node.counted();
}

/// Evidence of failed contacts goes round in the endpoint's own ring.
#[test]
fn failed_contacts_are_kept_one_by_one() {
    use sekisho_core::layout::{Contacts, contact};
    let node = node::start(node::BOTH);
    for port in 100..140 {
        let (to, flags) = if port % 2 == 0 { (port, SYN) } else { (80, SYN) };
        node::egress(&node, &frames::tcp(true, 4000 + port, to, flags));
        node::ingress(&node, &frames::tcp(false, 4000 + port, to, RST | ACK));
    }
    let contacts: Contacts = node.get("CONTACTS", &0u32).expect("reads").expect("is there");
    let kept: Vec<_> = contacts.slots.iter().map(|c| (c.result, c.remote_port, c.remote, c.remote_instance)).collect();
    let expected: Vec<_> = (100..140u16)
        .map(|port| if port % 2 == 0 { (contact::DENIED, port) } else { (contact::REFUSED, 80) })
        .map(|(result, port)| (result, port, node::address(Who::Peer, false), 9))
        .collect();
    // 40 contacts in 32 slots: the first eight are overwritten.
    assert_eq!(kept[..8], expected[32..]);
    assert_eq!(kept[8..], expected[8..32]);
}

/// Ends a connection with the peer's TCP 80 by both FINs, from either side.
fn close(node: &node::Node, v6: bool, pod_port: u16, pod_first: bool) {
    let steps = [(pod_first, FIN | ACK), (!pod_first, FIN | ACK), (pod_first, ACK)];
    for (egress, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)].into_iter().chain(steps) {
        assert_eq!(node::send(node, egress, &frames::tcp_of(v6, egress, pod_port, 80, flags)), node::PASS);
    }
}

/// A closed connection ends once, with everything that passed in it, and frees its place.
#[test]
fn closed_connections_are_buried_once_with_exact_totals() {
    for v6 in [false, true] {
        let mut node = node::start(endpoint_flags::ISOLATED_EGRESS);
        let config = sekisho_core::layout::Config { linger: 0, ..node::config(1) };
        node.put("CONFIG", &0u32, &config).expect("writes");
        for (index, port) in (4000..4020).enumerate() {
            close(&node, v6, port, index % 2 == 0);
            // Refused or broken off counts as closed too.
            for (egress, flags) in [(true, SYN), (false, RST | ACK)] {
                assert_eq!(node::send(&node, egress, &frames::tcp_of(v6, egress, port + 1000, 80, flags)), node::PASS);
            }
        }
        let events = node.told();
        let starts = events.iter().filter(|e| e.kind == event::START).count();
        assert_eq!(starts, 40);
        let mut ended: Vec<_> = events.iter().filter(|e| e.kind == event::END).map(|e| e.key.local_port).collect();
        for end in events.iter().filter(|e| e.kind == event::END) {
            let (packets, why) = if end.key.local_port < 5000 { ([4, 2], end_reason::FIN) } else { ([1, 1], end_reason::RST) };
            let packets = if end.key.local_port < 5000 && (end.key.local_port - 4000) % 2 == 1 { [3, 3] } else { packets };
            let header = if v6 { 60 } else { 40 };
            assert_eq!((end.flow.packets, end.flow.bytes, end.end_reason), (packets, packets.map(|n| n * header), why), "{end:?}");
        }
        let count = ended.len();
        ended.sort_unstable();
        ended.dedup();
        assert_eq!(count, ended.len(), "never twice");
        // Each close buries two others, so at most its own is left.
        assert!(count >= 39, "{count} of 40 buried");
        assert_eq!(node.count(c::REAPED), count as u64);
        assert_eq!(node.count(c::PROMOTE_CAPPED), 0, "their places are free again");
    }
}

/// What comes late on a closed connection is counted in it, and a new connection in its place is not buried with it.
#[test]
fn a_successor_is_not_buried_with_its_predecessor() {
    let mut node = node::start(0);
    let config = sekisho_core::layout::Config { linger: 25, ..node::config(1) };
    node.put("CONFIG", &0u32, &config).expect("writes");
    close(&node, false, 4000, true);
    // Retransmissions of the end.
    assert_eq!(node::ingress(&node, &frames::tcp(false, 4000, 80, FIN | ACK)), node::PASS);
    assert_eq!(node::egress(&node, &frames::tcp(true, 4000, 80, ACK)), node::PASS);
    // The same ports at once again: the first connection's burial is still due.
    for (egress, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)] {
        assert_eq!(node::send(&node, egress, &frames::tcp(egress, 4000, 80, flags)), node::PASS);
    }
    // Its time comes, and two more closes look for whom to bury.
    std::thread::sleep(std::time::Duration::from_millis(300));
    close(&node, false, 4001, true);
    close(&node, false, 4002, true);
    let ends: Vec<_> = node.told().into_iter().filter(|e| e.kind == event::END && e.key.local_port == 4000).collect();
    assert_eq!(ends.len(), 1, "{ends:?}");
    assert_eq!((ends[0].flow.packets, ends[0].end_reason), ([5, 3], end_reason::FIN));
    assert_eq!(node::flow(&node, "ESTABLISHED4", 4000, 80, 6).expect("lives").state, state::ESTABLISHED);
}

/// The node's own process reaches a pod that admits nobody; who hides behind the node's address does not.
#[test]
fn the_own_node_is_known_by_its_socket() {
    use sekisho_lab::programs::Skb;
    for v6 in [false, true] {
        let node = node::start(node::BOTH);
        let syn =
            |port| frames::frame(false, &frames::ip(Who::Node.address(v6), Who::Pod.address(v6), 6, &frames::segment(port, 22, SYN, 0)));
        let forwarded = node.run("pod_ingress", &syn(5000), Skb::default(), 1).expect("runs").code;
        assert_eq!(forwarded, node::DROP, "it came in elsewhere");
        let denied = node::flow_with(&node, "EMBRYONIC", Who::Node, v6, (22, 5000, 6)).expect("kept");
        assert_ne!(denied.flags & sekisho_core::layout::flow_flags::HIDDEN_BY_SNAT, 0, "{denied:?}");
        let own = node.run("pod_ingress", &syn(5001), Skb { ingress_ifindex: 0, ..Skb::default() }, 1).expect("runs").code;
        assert_eq!(own, node::PASS, "made here, by a socket");
        let reply =
            frames::frame(true, &frames::ip(Who::Pod.address(v6), Who::Node.address(v6), 6, &frames::segment(22, 5001, SYN | ACK, 0)));
        assert_eq!(node::egress(&node, &reply), node::PASS, "the answer");
        let dial = frames::frame(true, &frames::ip(Who::Pod.address(v6), Who::Node.address(v6), 6, &frames::segment(4000, 22, SYN, 0)));
        assert_eq!(node::egress(&node, &dial), node::DROP, "what the pod dials is judged");
    }
}

/// What came in at the pod's own interface is the pod's own, under the node's address or its own; from elsewhere it is not.
#[test]
fn the_pods_own_comes_back_from_its_interface() {
    for v6 in [false, true] {
        for from in [Who::Node, Who::Pod] {
            let node = node::start(node::BOTH);
            let syn =
                |port| frames::frame(false, &frames::ip(from.address(v6), Who::Pod.address(v6), 6, &frames::segment(port, 22, SYN, 0)));
            let at = |port, ingress_ifindex| {
                node.run("pod_ingress", &syn(port), Skb { ingress_ifindex, ..Skb::default() }, 1).expect("runs").code
            };
            assert_eq!(at(5000, 2), node::DROP, "v6 {v6}, from {from:?}: it came in elsewhere");
            assert_eq!(at(5001, 1), node::PASS, "v6 {v6}, from {from:?}: it came from the pod");
        }
    }
}

/// Packets and bytes are those of the wire, also where one packet stands for many.
#[test]
fn large_packets_count_as_their_segments() {
    use sekisho_lab::programs::Skb;
    for v6 in [false, true] {
        let node = node::start(0);
        let ip = if v6 { 40 } else { 20 };
        for (egress, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)] {
            node::send(&node, egress, &frames::tcp_of(v6, egress, 4000, 80, flags));
        }
        let before = node::flow_with(&node, "ESTABLISHED", Who::Peer, v6, (4000, 80, 6)).expect("established");
        let bulk = frames::between(v6, true, 6, &frames::segment(4000, 80, ACK, 3000));
        // Three whole segments and one of what is left; some drivers leave the number out.
        for (gso_segs, gso_size) in [(3, 1000), (0, 1000), (0, 900), (0, 0)] {
            let code = node.run("pod_egress", &bulk, Skb { gso_segs, gso_size, ..Skb::default() }, 1).expect("runs").code;
            assert_eq!(code, node::PASS);
        }
        let after = node::flow_with(&node, "ESTABLISHED", Who::Peer, v6, (4000, 80, 6)).expect("established");
        assert_eq!(after.packets[0] - before.packets[0], 3 + 3 + 4 + 1);
        assert_eq!(after.bytes[0] - before.bytes[0], 4 * 3000 + 11 * (ip + 20), "every segment has its headers");
        // The first packet of a flow as well, and datagrams.
        let burst = frames::between(v6, true, 17, &frames::datagram(4000, 53, 2500));
        node.run("pod_egress", &burst, Skb { gso_segs: 0, gso_size: 1000, ..Skb::default() }, 1).expect("runs");
        node.run("pod_egress", &burst, Skb { gso_segs: 3, gso_size: 1000, ..Skb::default() }, 1).expect("runs");
        let flow = node::flow_with(&node, "EMBRYONIC", Who::Peer, v6, (4000, 53, 17)).expect("kept");
        assert_eq!((flow.packets[0], flow.bytes[0]), (6, 2 * 2500 + 6 * (ip + 8)));
    }
}

/// While one processor moves a flow from table to table, the other looks for it: it is no new flow.
#[test]
fn a_flow_that_is_being_promoted_is_found() {
    const FLOWS: u16 = 2_000;
    let mut node = node::start(0);
    node.put("ENDPOINTS", &1u32, &Endpoint { answered_cap: 10_000, established_cap: 10_000, ..node::endpoint(0) }).expect("writes");
    let programs: &sekisho_lab::programs::Programs = &node;
    let ready = Barrier::new(2);
    std::thread::scope(|scope| {
        let replies = || {
            for port in 1..=FLOWS {
                assert_eq!(node::egress(programs, &frames::udp(true, port, 53)), node::PASS);
                ready.wait();
                assert_eq!(node::ingress(programs, &frames::udp(false, port, 53)), node::PASS);
                ready.wait();
            }
        };
        scope.spawn(replies);
        for port in 1..=FLOWS {
            let frame = frames::udp(true, port, 53);
            ready.wait();
            // For as long as the reply takes on its way.
            programs.run("pod_egress", &frame, Skb::default(), 100).expect("runs");
            ready.wait();
        }
    });
    let starts = node.told().iter().filter(|event| event.kind == event::START).count();
    assert_eq!((starts, node.count(c::CREATED)), (FLOWS.into(), FLOWS.into()));
}

/// Waits for the other processor's `turn`th time. A barrier would let them go too far apart.
fn meet(come: &AtomicUsize, turn: u16) {
    come.fetch_add(1, Ordering::SeqCst);
    let mut looks = 0_u32;
    while come.load(Ordering::SeqCst) < 2 * usize::from(turn) {
        std::hint::spin_loop();
        looks += 1;
        // The other may have no processor at all.
        if looks.is_multiple_of(10_000) {
            std::thread::yield_now();
        }
    }
}

/// Both sides say at once that they are done: neither's word is lost, so the connection closes.
#[test]
fn a_connection_closes_whichever_processor_meets_which_end() {
    const FLOWS: u16 = 1_000;
    let node = node::start(0);
    node.put("CONFIG", &0u32, &sekisho_core::layout::Config { linger: 1 << 20, ..node::config(1) }).expect("writes");
    node.put("ENDPOINTS", &1u32, &Endpoint { established_cap: 10_000, ..node::endpoint(0) }).expect("writes");
    let send = |port: u16, egress: bool, flags: u8| {
        assert_eq!(node::send(&node, egress, &frames::tcp(egress, port, 80, flags)), node::PASS);
    };
    for port in 1..=FLOWS {
        for (egress, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)] {
            send(port, egress, flags);
        }
    }
    let programs: &sekisho_lab::programs::Programs = &node;
    let come = AtomicUsize::new(0);
    let finish = |egress: bool| {
        for port in 1..=FLOWS {
            let frame = frames::tcp(egress, port, 80, FIN | ACK);
            meet(&come, port);
            assert_eq!(node::send(programs, egress, &frame), node::PASS);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| finish(true));
        finish(false);
    });
    for port in 1..=FLOWS {
        send(port, true, ACK);
        send(port, false, ACK);
    }
    let open = (1..=FLOWS).filter(|port| node::flow(&node, "ESTABLISHED4", *port, 80, 6).expect("lingers").state != state::CLOSED).count();
    assert_eq!(open, 0, "of {FLOWS}");
}

/// Two processors meet the same SYN on a closed connection: its end is told once, and one new connection begins.
#[test]
fn a_connection_is_replaced_once_by_whoever_comes_first() {
    const FLOWS: u16 = 1_000;
    let mut node = node::start(endpoint_flags::ISOLATED_EGRESS);
    node.put("CONFIG", &0u32, &sekisho_core::layout::Config { linger: 1 << 20, ..node::config(1) }).expect("writes");
    node.put("ENDPOINTS", &1u32, &Endpoint { established_cap: 10_000, ..node::endpoint(endpoint_flags::ISOLATED_EGRESS) }).expect("writes");
    for port in 1..=FLOWS {
        close(&node, false, port, true);
    }
    node.told();
    let created = node.count(c::CREATED);
    let programs: &sekisho_lab::programs::Programs = &node;
    let come = AtomicUsize::new(0);
    let again = || {
        for port in 1..=FLOWS {
            let frame = frames::tcp(true, port, 80, SYN);
            meet(&come, port);
            assert_eq!(node::egress(programs, &frame), node::PASS);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(again);
        again();
    });
    let told = |kind| move |event: &&sekisho_core::layout::FlowEvent| event.kind == kind;
    let events = node.told();
    let (ends, starts) = (events.iter().filter(told(event::END)).count(), events.iter().filter(told(event::START)).count());
    assert_eq!((ends, starts, node.count(c::CREATED) - created), (FLOWS.into(), FLOWS.into(), FLOWS.into()));
    let packets: u64 = (1..=FLOWS).map(|port| node::flow(&node, "EMBRYONIC4", port, 80, 6).expect("is there").packets[0]).sum();
    assert_eq!(packets, 2 * u64::from(FLOWS), "both SYNs are of the new connection");
}
