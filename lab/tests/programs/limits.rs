//! What one endpoint may hold and say.

use sekisho_core::counters as c;
use sekisho_core::layout::{Config, Endpoint, EndpointState, EndpointSwept, endpoint_flags};
use sekisho_core::tcp::{ACK, RST, SYN};
use sekisho_lab::programs::{Programs, object};

use super::frames::{self, Who};
use super::node::{self, DROP, PASS};

fn connect(programs: &Programs, port: u16) {
    for (egress, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK), (false, ACK)] {
        assert_eq!(node::send(programs, egress, &frames::tcp(egress, port, 80, flags)), PASS, "port {port}");
    }
}

fn established(programs: &Programs, ports: std::ops::Range<u16>) -> usize {
    ports.filter(|&port| node::flow(programs, "ESTABLISHED4", port, 80, 6).is_some()).count()
}

/// Beyond its cap a connection works, but may be evicted; what ends makes room.
#[test]
fn an_endpoint_holds_as_many_connections_as_its_cap() {
    let node = node::start(node::BOTH);
    node.put("CONFIG", &0u32, &Config { linger: 0, ..node::config(1) }).expect("writes");
    for port in 4000..4015 {
        connect(&node, port);
    }
    assert_eq!(established(&node, 4000..4015), 10);
    assert!(node::flow(&node, "EMBRYONIC4", 4012, 80, 6).is_some(), "evictable");
    let capped = node.count(c::PROMOTE_CAPPED);
    assert!(capped >= 5, "{capped}");
    assert_eq!(node::egress(&node, &frames::tcp(true, 4012, 80, ACK)), PASS, "and it works");
    // User space took three out, the programs one (each close buries two others).
    node.put("ENDPOINT_SWEPT", &0u32, &EndpointSwept { established: 3, answered: 0 }).expect("writes");
    for port in 5000..5005 {
        connect(&node, port);
    }
    assert_eq!(established(&node, 5000..5005), 3);
    for port in 4000..4003 {
        assert_eq!(node::ingress(&node, &frames::tcp(false, port, 80, RST | ACK)), PASS);
    }
    for port in 6000..6005 {
        connect(&node, port);
    }
    let freed = established(&node, 6000..6005);
    assert!((2..=3).contains(&freed), "{freed}");
    let state: EndpointState = node.get("ENDPOINT_STATES", &0u32).expect("reads").expect("is there");
    assert_eq!(state.established_in - state.established_out - 3, 10);
    node.counted();
}

#[test]
fn an_endpoint_holds_as_many_answered_flows_as_its_cap() {
    for v6 in [false, true] {
        let node = node::start(node::BOTH);
        for port in 4000..4015 {
            for egress in [true, false, true] {
                assert_eq!(node::send(&node, egress, &frames::udp_of(v6, egress, port, 53)), PASS);
            }
        }
        let held = (4000..4015).filter(|&port| node::flow_with(&node, "ANSWERED", Who::Peer, v6, (port, 53, 17)).is_some()).count();
        assert_eq!(held, 10);
        assert!(node.count(c::PROMOTE_CAPPED) >= 5);
    }
}

/// Faster than its rate it is judged all the same, and every packet is in the ledger.
#[test]
fn inserts_are_limited_and_accounted() {
    let mut node = node::start(node::BOTH);
    node.put("CONFIG", &0u32, &Config { insert_rate: 1, insert_burst: 5, ..node::config(1) }).expect("writes");
    // No kernel has these sockets; what they answer is believed all the same.
    node.put("ENDPOINTS", &1u32, &Endpoint { adopts_until: u32::MAX, ..node::endpoint(node::BOTH) }).expect("writes");
    for port in 4000..4020 {
        assert_eq!(node::egress(&node, &frames::tcp(true, port, 80, SYN)), PASS);
        assert_eq!(node::egress(&node, &frames::tcp(true, port, 81, SYN)), DROP);
        assert_eq!(node::ingress(&node, &frames::tcp(false, port, 80, SYN | ACK)), PASS, "the answer, with or without state");
    }
    let kept = node.told().len();
    let n = node.counted();
    let limited = n[c::LOST_INSERT_LIMITED as usize];
    assert!((5..=7).contains(&kept), "{kept} kept");
    assert_eq!((n[c::START_SENT as usize], n[c::STATELESS as usize]), (kept as u64, limited));
    assert!(limited >= 33, "{n:?}");
}

/// What exceeds the event budget is summarised, to the one.
#[test]
fn events_are_limited_and_accounted() {
    let mut node = node::start(0);
    node.put("CONFIG", &0u32, &Config { event_rate: 1, event_burst: 3, ..node::config(1) }).expect("writes");
    for port in 4000..4050 {
        assert_eq!(node::egress(&node, &frames::udp(true, port, 99)), PASS);
    }
    let sent = node.told().len() as u64;
    let state: EndpointState = node.get("ENDPOINT_STATES", &0u32).expect("reads").expect("is there");
    let n = node.counted();
    assert!((3..=4).contains(&sent), "{sent}");
    assert_eq!(
        (n[c::CREATED as usize], n[c::START_SENT as usize], n[c::SUMMARISED as usize], state.summarised),
        (50, sent, 50 - sent, 50 - sent)
    );
    assert!(node::flow(&node, "EMBRYONIC4", 4049, 99, 17).is_some(), "the flow is there, only not told");
}

/// Programs of their own, with small maps and rings.
fn small(sizes: &[(&'static str, u32)]) -> Programs {
    let programs = Programs::load_some(&object().expect("builds"), &["pod_egress", "pod_ingress"], 4096, sizes).expect("loads");
    node::fill(&programs, endpoint_flags::ISOLATED_EGRESS);
    programs
}

#[test]
fn full_rings_and_tables_are_accounted() {
    let mut node = small(&[("ESTABLISHED4", 4)]);
    for port in 4000..4008 {
        connect(&node, port);
    }
    let n = node.counters().expect("reads");
    node::balances(&n);
    assert!(n[c::PROMOTE_FAILED as usize] >= 4, "{n:?}");
    for port in 5000..5200 {
        assert_eq!(node::egress(&node, &frames::tcp(true, port, 80, SYN)), PASS, "a full ring stops nothing");
        assert_eq!(node::egress(&node, &frames::tcp(true, port, 81, SYN)), DROP);
    }
    let n = node.counters().expect("reads");
    node::balances(&n);
    let (sent, lost) = (n[c::START_SENT as usize], n[c::LOST_RING_FULL as usize]);
    assert_eq!((sent + lost, n[c::CREATED as usize]), (408, 408), "{n:?}");
    assert!(lost > 300, "{n:?}");
    assert_eq!(node.events().len() as u64, sent, "what was sent is there");
    assert_eq!(node::egress(&node, &frames::tcp(true, 6000, 80, SYN)), PASS);
    assert_eq!(node.events().len(), 1, "an emptied ring takes on");
}
