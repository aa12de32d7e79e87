//! What one endpoint may hold and say.

use sekisho_core::counters as c;
use sekisho_core::layout::{Config, EGRESS, Endpoint, EndpointState, EndpointSwept, Flow, FlowKey4, endpoint_flags};
use sekisho_core::tcp::{ACK, RST, SYN};
use sekisho_lab::netlink;
use sekisho_lab::programs::{Programs, Skb, object};

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
    node.put("ENDPOINT_SWEPT", &0u32, &EndpointSwept { established: 3, ..EndpointSwept::ZERO }).expect("writes");
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
    let config = Config { insert_rate: 1, insert_burst: 5, denied_rate: 1, denied_burst: 5, ..node::config(1) };
    node.put("CONFIG", &0u32, &config).expect("writes");
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
    // Five of its own, five denied, and five answers of others whose SYN was not kept.
    assert!((15..=21).contains(&kept), "{kept} kept");
    assert_eq!((n[c::START_SENT as usize], n[c::STATELESS as usize]), (kept as u64, limited));
    assert!(limited >= 33, "{n:?}");
}

/// What others send, allowed or denied, uses up neither the budget nor the place of what the pod itself asks.
#[test]
fn a_flood_leaves_the_pods_own_questions_their_state() {
    for v6 in [false, true] {
        // To port 53 the flood is allowed, to port 54 it is denied.
        for (port, fate) in [(53, PASS), (54, DROP)] {
            let mut node = node::start(node::BOTH);
            let config = Config { insert_rate: 1, insert_burst: 50, denied_rate: 1, denied_burst: 50, ..node::config(1) };
            node.put("CONFIG", &0u32, &config).expect("writes");
            for stranger in 1000..1200 {
                assert_eq!(node::ingress(&node, &frames::udp_of(v6, false, port, stranger)), fate);
            }
            for question in 4000..4040 {
                assert_eq!(node::egress(&node, &frames::udp_of(v6, true, question, 53)), PASS);
            }
            for question in 4000..4040 {
                assert_eq!(node::ingress(&node, &frames::udp_of(v6, false, question, 53)), PASS, "v6 {v6}: the answer to {question}");
            }
            let lost = node.count(c::LOST_INSERT_LIMITED);
            assert!((140..=150).contains(&lost), "{lost}");
            assert!(node.told().len() >= 90);
        }
    }
}

/// The pod's own denied flows are told although others' flood it: the budgets of what is denied are two as well, and the
/// events' too.
#[test]
fn a_flood_leaves_the_pods_own_denials_their_records() {
    let mut node = node::start(node::BOTH);
    let config = Config { denied_rate: 1, denied_burst: 20, event_rate: 1, event_burst: 20, ..node::config(1) };
    node.put("CONFIG", &0u32, &config).expect("writes");
    // No kernel has these sockets; what seems to answer them is believed for a while.
    node.put("ENDPOINTS", &1u32, &Endpoint { adopts_until: u32::MAX, ..node::endpoint(node::BOTH) }).expect("writes");
    for stranger in 1000..1200 {
        assert_eq!(node::ingress(&node, &frames::udp(false, 99, stranger)), DROP);
        assert_eq!(node::ingress(&node, &frames::tcp(false, stranger, 80, SYN | ACK)), PASS, "as if it answered");
    }
    for port in 4000..4010 {
        assert_eq!(node::egress(&node, &frames::udp(true, port, 99)), DROP);
    }
    let own = node.told().iter().filter(|event| event.flow.opened == EGRESS && event.key.protocol == 17).count();
    assert_eq!(own, 10);
}

/// In a full table, flows that nobody looked up twice make room before a question that waits for its answer: without limits, and
/// with limits that the flood has reached into when the pod asks.
#[test]
fn a_question_outlives_a_flood_in_a_full_table() {
    for (v6, burst) in [(false, 0), (true, 0), (false, 6000), (true, 6000)] {
        let node = small(&[("EMBRYONIC4", 1024), ("EMBRYONIC6", 1024)]);
        node.put("ENDPOINTS", &1u32, &node::endpoint(node::BOTH)).expect("writes");
        let rate = u32::from(burst != 0);
        let config = Config { insert_rate: rate, insert_burst: burst, denied_rate: rate, denied_burst: burst, ..node::config(1) };
        node.put("CONFIG", &0u32, &config).expect("writes");
        for stranger in 20_000..20_500 {
            assert_eq!(node::ingress(&node, &frames::udp_of(v6, false, 54, stranger)), DROP);
        }
        for question in 4000..4010 {
            assert_eq!(node::egress(&node, &frames::udp_of(v6, true, question, 53)), PASS);
        }
        for (port, fate) in [(53, PASS), (54, DROP)] {
            for stranger in 10_000..15_000 {
                assert_eq!(node::ingress(&node, &frames::udp_of(v6, false, port, stranger)), fate);
            }
        }
        let answered = (4000..4010).filter(|&question| node::ingress(&node, &frames::udp_of(v6, false, question, 53)) == PASS).count();
        assert_eq!(answered, 10, "v6 {v6}, burst {burst}");
    }
}

/// An interface beside loopback, for programs run as if at a second pod's. Goes with this value.
struct Second(&'static str);

impl Second {
    fn new() -> Self {
        let second = Self("sekisho-second");
        netlink::add_bridge(second.0).expect("makes a bridge");
        second
    }

    fn index(&self) -> u32 {
        let path = format!("/sys/class/net/{}/ifindex", self.0);
        std::fs::read_to_string(path).expect("is there").trim().parse().expect("a number")
    }
}

impl Drop for Second {
    fn drop(&mut self) {
        netlink::remove(self.0).expect("removes the bridge");
    }
}

/// One pod's closed connections wait in its own share of the queue; beyond that they go at once. Another's have their linger.
#[test]
fn an_endpoint_has_its_share_of_the_closing_queue() {
    let mut node = small(&[("CLOSING", 64)]);
    let second = Second::new();
    let other = second.index();
    node.put("ENDPOINTS", &1u32, &Endpoint { established_cap: 1000, ..node::endpoint(0) }).expect("writes");
    node.put("ENDPOINTS", &other, &Endpoint { index: 1, established_cap: 1000, ..node::endpoint(0) }).expect("writes");
    // It does not end within this test.
    node.put("CONFIG", &0u32, &Config { linger: 1 << 20, closing_share: 16, ..node::config(1) }).expect("writes");
    let at = |interface: u32, egress: bool, port: u16, flags: u8| {
        let name = if egress { "pod_egress" } else { "pod_ingress" };
        let skb = Skb { ifindex: interface, ..Skb::default() };
        assert_eq!(node.run(name, &frames::tcp(egress, port, 80, flags), skb, 1).expect("runs").code, PASS);
    };
    let life = |interface: u32, port: u16| {
        for (egress, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK), (false, RST | ACK)] {
            at(interface, egress, port, flags);
        }
    };
    (4000..4200).for_each(|port| life(1, port));
    assert_eq!(established(&node, 4000..4200), 16, "the others have gone at once");
    (5000..5010).for_each(|port| life(other, port));
    let held = |port: u16| {
        let key =
            FlowKey4 { endpoint: other, remote: Who::Peer.v4(), local_port: port, remote_port: 80, protocol: 6, cause: 0, pad: [0; 2] };
        node.get::<_, Flow>("ESTABLISHED4", &key).expect("reads").is_some()
    };
    assert!((5000..5010).all(held), "the other's linger");
    let n = node.counters().expect("reads");
    assert_eq!((n[c::CLOSING_FULL as usize], n[c::REAPED as usize]), (184, 184));
    // User space takes ten of the first one's out: there is room again.
    node.put("ENDPOINT_SWEPT", &0u32, &EndpointSwept { closing: 10, ..EndpointSwept::ZERO }).expect("writes");
    (6000..6020).for_each(|port| life(1, port));
    assert_eq!(established(&node, 6000..6020), 10);
    // The linger is over: each close buries two, and what is buried makes room.
    node.put("CONFIG", &0u32, &Config { linger: 0, closing_share: 16, ..node::config(1) }).expect("writes");
    let state: EndpointState = node.get("ENDPOINT_STATES", &0u32).expect("reads").expect("is there");
    assert_eq!(state.closing, 26);
    node.events();
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
