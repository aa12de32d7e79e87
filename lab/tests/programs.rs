//! The kernel programs on the real kernel, packet by packet. Needs root.

use sekisho_lab::programs::{Programs, Skb, object};

#[test]
fn every_program_loads() {
    let programs = Programs::load(&object().expect("builds"), 1 << 16, &[]).expect("loads");
    for name in programs.names() {
        println!("{name}: {} instructions verified", programs.verified(&name).expect("has info"));
    }
    assert_eq!(programs.names().len(), 12);
    let outcome = programs.run("clock", &[0; 64], Skb::default(), 1).expect("runs");
    assert_eq!(outcome.code, 0);
    let clock: sekisho_core::layout::Clock = programs.get("CLOCK", &0u32).expect("reads").expect("is there");
    assert!(clock.boot_ns > 0 && clock.jiffies > 0);
}

mod frames {
    //! Frames built by hand.

    pub(super) const POD: [u8; 4] = [10, 1, 0, 2];
    pub(super) const PEER: [u8; 4] = [10, 1, 0, 3];

    fn ip4(source: [u8; 4], destination: [u8; 4], protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        let total = u16::try_from(20 + payload.len()).expect("short");
        frame.extend([0x45, 0]);
        frame.extend(total.to_be_bytes());
        frame.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
        frame.extend(source);
        frame.extend(destination);
        frame.extend(payload);
        frame
    }

    /// A TCP segment; egress = from the pod.
    pub(super) fn tcp(egress: bool, pod_port: u16, peer_port: u16, flags: u8) -> Vec<u8> {
        let (source, destination, from, to) = if egress { (POD, PEER, pod_port, peer_port) } else { (PEER, POD, peer_port, pod_port) };
        let mut segment = Vec::new();
        segment.extend(from.to_be_bytes());
        segment.extend(to.to_be_bytes());
        segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
        ip4(source, destination, 6, &segment)
    }

    /// A UDP datagram; egress = from the pod.
    pub(super) fn udp(egress: bool, pod_port: u16, peer_port: u16) -> Vec<u8> {
        let (source, destination, from, to) = if egress { (POD, PEER, pod_port, peer_port) } else { (PEER, POD, peer_port, pod_port) };
        let mut datagram = Vec::new();
        datagram.extend(from.to_be_bytes());
        datagram.extend(to.to_be_bytes());
        datagram.extend([0, 12, 0, 0, 1, 2, 3, 4]);
        ip4(source, destination, 17, &datagram)
    }
}

mod node {
    //! A pod on loopback with a policy set, and what may be asked of it.

    use sekisho_core::counters as c;
    use sekisho_core::layout::*;
    use sekisho_core::parse::mapped;
    use sekisho_lab::programs::{Programs, Skb, object};

    use super::frames::{PEER, POD};

    pub(super) const PASS: i32 = -1;
    pub(super) const DROP: i32 = 2;

    pub(super) fn config(epoch: u32) -> Config {
        Config { epoch, mode: mode::ENFORCE, hz: 250, linger: 250, ..Config::ZERO }
    }

    /// The pod is isolated in `isolated` (bits of `endpoint_flags`); set 7 allows the peer (class 5) to TCP 80 and from port 81.
    pub(super) fn start(isolated: u32) -> Programs {
        let programs = Programs::load(&object().expect("builds"), 1 << 20, &[]).expect("loads");
        let mut endpoint =
            Endpoint { set: 7, instance: 1, flags: isolated, established_cap: 10, answered_cap: 10, address_count: 1, ..Endpoint::ZERO };
        endpoint.addresses[0] = mapped(POD);
        programs.put("CONFIG", &0u32, &config(1)).expect("writes");
        programs.put("ENDPOINTS", &1u32, &endpoint).expect("writes");
        programs.put("ADDRESSES", &mapped(PEER), &AddressEntry { class: 5, instance: 9, flags: address_flags::POD }).expect("writes");
        for direction in [EGRESS, INGRESS] {
            programs.put("RULES", &RuleKey { set: 7, class: 5, direction: direction.into() }, &Rules { any: 0, ports: 3 }).expect("writes");
        }
        let mut key = [0u8; 11];
        key[..4].copy_from_slice(&56u32.to_ne_bytes());
        key[4..8].copy_from_slice(&3u32.to_be_bytes());
        key[8] = 6;
        key[9..].copy_from_slice(&80u16.to_be_bytes());
        programs.put("PORTS", &key, &42u32).expect("writes");
        programs
    }

    pub(super) fn egress(programs: &Programs, frame: &[u8]) -> i32 {
        programs.run("pod_egress", frame, Skb::default(), 1).expect("runs").code
    }

    pub(super) fn ingress(programs: &Programs, frame: &[u8]) -> i32 {
        programs.run("pod_ingress", frame, Skb::default(), 1).expect("runs").code
    }

    pub(super) fn flow(programs: &Programs, table: &str, pod_port: u16, peer_port: u16, protocol: u8) -> Option<Flow> {
        let key = FlowKey4 { endpoint: 1, remote: PEER, local_port: pod_port, remote_port: peer_port, protocol, pad: [0; 3] };
        programs.get(table, &key).expect("reads")
    }

    /// The ledger's equation holds at every moment.
    pub(super) fn balanced(programs: &Programs) -> Vec<u64> {
        let n = programs.counters().expect("reads");
        let of = |slot: u32| n[slot as usize];
        let told = of(c::START_SENT) + of(c::SUMMARISED) + of(c::LOST_RING_FULL) + of(c::LOST_INSERT_FAILED) + of(c::LOST_INSERT_LIMITED);
        assert_eq!(of(c::CREATED), told, "created = start_sent + summarised + lost: {n:?}");
        n
    }
}

use sekisho_core::counters as c;
use sekisho_core::layout::{end_reason, endpoint_flags, event, reason, verdict};
use sekisho_core::tcp::{ACK, FIN, RST, SYN, state};

#[test]
fn a_connection_lives_and_ends() {
    let mut node = node::start(endpoint_flags::ISOLATED_EGRESS);
    let (pod, peer) = (4000, 80);
    for (egress, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK), (true, ACK), (false, ACK)] {
        let frame = frames::tcp(egress, pod, peer, flags);
        let code = if egress { node::egress(&node, &frame) } else { node::ingress(&node, &frame) };
        assert_eq!(code, node::PASS, "egress {egress}, flags {flags}");
    }
    assert!(node::flow(&node, "EMBRYONIC4", pod, peer, 6).is_none(), "promoted");
    let flow = node::flow(&node, "ESTABLISHED4", pod, peer, 6).expect("established");
    assert_eq!((flow.packets, flow.bytes, flow.state, flow.rule), ([3, 2], [120, 80], state::ESTABLISHED, 42));
    assert_eq!((flow.local_instance, flow.remote_instance, flow.class, flow.set), (1, 9, 5, 7));
    for (egress, flags) in [(true, FIN | ACK), (false, FIN | ACK), (true, ACK)] {
        let frame = frames::tcp(egress, pod, peer, flags);
        let code = if egress { node::egress(&node, &frame) } else { node::ingress(&node, &frame) };
        assert_eq!(code, node::PASS);
    }
    assert_eq!(node::flow(&node, "ESTABLISHED4", pod, peer, 6).expect("lingers").state, state::CLOSED);
    // A SYN on the closed flow: its end, then a new flow.
    assert_eq!(node::egress(&node, &frames::tcp(true, pod, peer, SYN)), node::PASS);
    let events = node.events();
    let kinds: Vec<_> = events.iter().map(|e| (e.kind, e.end_reason)).collect();
    assert_eq!(kinds, [(event::START, 0), (event::END, end_reason::FIN), (event::START, 0)]);
    assert_eq!(events[1].flow.packets, [5, 3]);
    assert_eq!(node::balanced(&node)[c::CREATED as usize], 2);
}

#[test]
fn what_no_rule_allows_is_dropped_and_told_once() {
    let mut node = node::start(endpoint_flags::ISOLATED_EGRESS | endpoint_flags::ISOLATED_INGRESS);
    for _ in 0..3 {
        assert_eq!(node::egress(&node, &frames::tcp(true, 4000, 81, SYN)), node::DROP);
        assert_eq!(node::egress(&node, &frames::udp(true, 4000, 53)), node::DROP);
    }
    assert_eq!(node::ingress(&node, &frames::tcp(false, 22, 5000, SYN)), node::DROP);
    assert_eq!(node::ingress(&node, &frames::tcp(false, 80, 5000, SYN)), node::PASS);
    assert_eq!(node::ingress(&node, &frames::tcp(false, 33, 5000, ACK)), node::DROP);
    let denied = node::flow(&node, "EMBRYONIC4", 4000, 81, 6).expect("kept");
    assert_eq!((denied.verdict, denied.reason, denied.packets), (verdict::DENIED, reason::DEFAULT_DENY, [3, 0]));
    assert_eq!(node::flow(&node, "EMBRYONIC4", 4000, 53, 17).expect("kept").packets, [3, 0]);
    assert_eq!(node::flow(&node, "EMBRYONIC4", 33, 5000, 6).expect("kept").reason, reason::NO_CONNECTION);
    assert_eq!(node.events().len(), 5);
    let n = node::balanced(&node);
    assert_eq!((n[c::CREATED as usize], n[c::DROPPED as usize]), (5, 8));
}

#[test]
fn a_new_epoch_judges_again_and_cuts() {
    let mut node = node::start(endpoint_flags::ISOLATED_EGRESS);
    for (egress, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)] {
        let frame = frames::tcp(egress, 4000, 80, flags);
        let code = if egress { node::egress(&node, &frame) } else { node::ingress(&node, &frame) };
        assert_eq!(code, node::PASS);
    }
    node.put("CONFIG", &0u32, &node::config(2)).expect("writes");
    assert_eq!(node::ingress(&node, &frames::tcp(false, 4000, 80, ACK)), node::PASS);
    assert_eq!(node::flow(&node, "ESTABLISHED4", 4000, 80, 6).expect("stays").epoch, 2);
    let rule = sekisho_core::layout::RuleKey { set: 7, class: 5, direction: 0 };
    node.remove("RULES", &rule).expect("removes");
    node.put("CONFIG", &0u32, &node::config(3)).expect("writes");
    assert_eq!(node::egress(&node, &frames::tcp(true, 4000, 80, ACK)), node::DROP);
    assert_eq!(node::ingress(&node, &frames::tcp(false, 4000, 80, ACK)), node::DROP);
    assert!(node::flow(&node, "ESTABLISHED4", 4000, 80, 6).is_none());
    let kinds: Vec<_> = node.events().iter().map(|e| (e.kind, e.end_reason)).collect();
    assert_eq!(kinds, [(event::START, 0), (event::END, end_reason::VERDICT_CHANGED), (event::START, 0)]);
    node::balanced(&node);
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
    let events = node.events();
    assert!(events.iter().any(|e| e.kind == event::REFUSED), "{events:?}");
    node::balanced(&node);
}
