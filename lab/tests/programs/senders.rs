//! Every frame is checked for who sent it: in known flows, of unusual shapes, and before anything else lets it pass.

use sekisho_core::counters as c;
use sekisho_core::layout::{Config, Endpoint, Flow, endpoint_flags, reason, verdict};
use sekisho_core::tcp::{ACK, SYN};

use super::frames::{self, POD_MAC, Who};
use super::node::{self, DROP, Node, PASS};

const OTHER_MAC: [u8; 6] = [2, 9, 9, 9, 9, 9];

fn start(isolated: u32) -> Node {
    let node = node::start(isolated);
    node.put("CONFIG", &0u32, &Config { spoof_enforce: 1, ..node::config(1) }).expect("writes");
    node
}

fn masked(mut frame: Vec<u8>) -> Vec<u8> {
    frame[6..12].copy_from_slice(&OTHER_MAC);
    frame
}

/// Opens the flow (pod's port, peer's port) so that both sides have spoken.
fn open(node: &Node, v6: bool, tcp: bool, by_pod: bool) -> (u16, u16, &'static str) {
    let (pod_port, peer_port) = if by_pod { (4000, if tcp { 80 } else { 53 }) } else { (if tcp { 80 } else { 53 }, 4000) };
    if tcp {
        for (egress, flags) in [(by_pod, SYN), (!by_pod, SYN | ACK), (by_pod, ACK)] {
            assert_eq!(node::send(node, egress, &frames::tcp_of(v6, egress, pod_port, peer_port, flags)), PASS);
        }
    } else {
        for egress in [by_pod, !by_pod] {
            assert_eq!(node::send(node, egress, &frames::udp_of(v6, egress, pod_port, peer_port)), PASS);
        }
    }
    (pod_port, peer_port, if tcp { "ESTABLISHED" } else { "ANSWERED" })
}

fn sent(v6: bool, tcp: bool, pod_port: u16, peer_port: u16) -> Vec<u8> {
    if tcp { frames::tcp_of(v6, true, pod_port, peer_port, ACK) } else { frames::udp_of(v6, true, pod_port, peer_port) }
}

/// A frame with another's MAC moves a bridge's table, so none gets through, and the flow that it hides in goes on.
#[test]
fn another_mac_in_a_known_flow_is_dropped() {
    for v6 in [false, true] {
        for (tcp, by_pod) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut node = start(node::BOTH);
            let (pod_port, peer_port, table) = open(&node, v6, tcp, by_pod);
            let frame = sent(v6, tcp, pod_port, peer_port);
            let what = format!("v6 {v6}, tcp {tcp}, opened by the pod {by_pod}");
            let number = if tcp { 6 } else { 17 };
            let flow = || node::flow_with(&node, table, Who::Peer, v6, (pod_port, peer_port, number)).expect("lives");
            let before = flow();
            for _ in 0..3 {
                assert_eq!(node::egress(&node, &masked(frame.clone())), DROP, "{what}");
            }
            assert_eq!((flow().packets, flow().bytes), (before.packets, before.bytes), "{what}");
            assert_eq!(node::egress(&node, &frame), PASS, "{what}");
            assert_ne!(flow().packets, before.packets, "{what}");
            let told: Vec<_> = node.told().iter().filter(|e| e.key.cause != 0).map(|e| (e.flow.reason, e.flow.mac)).collect();
            assert_eq!(told, [(reason::SPOOFED_SOURCE, OTHER_MAC)], "{what}");
        }
    }
}

/// The endpoint's present MAC decides, whatever was known when the flow began.
#[test]
fn flows_live_on_under_a_new_mac() {
    for v6 in [false, true] {
        for tcp in [false, true] {
            let node = start(node::BOTH);
            let (pod_port, peer_port, table) = open(&node, v6, tcp, true);
            let frame = sent(v6, tcp, pod_port, peer_port);
            let put = |mac| node.put("ENDPOINTS", &1u32, &Endpoint { mac, ..node::endpoint(node::BOTH) }).expect("writes");
            put(OTHER_MAC);
            let tag = || -> [u8; 3] {
                let flow: Flow =
                    node::flow_with(&node, table, Who::Peer, v6, (pod_port, peer_port, if tcp { 6 } else { 17 })).expect("lives");
                flow.mac_tag
            };
            let old = tag();
            assert_eq!(node::egress(&node, &masked(frame.clone())), PASS);
            assert_ne!(tag(), old, "noted");
            assert_eq!(node::egress(&node, &frame), DROP, "the one before is another's now");
            put([0; 6]);
            assert_eq!(node::egress(&node, &frame), PASS, "not known, not checked");
            assert_eq!(tag(), [0; 3]);
            // Judged again under another policy, it is checked again.
            put(POD_MAC);
            node.put("CONFIG", &0u32, &Config { spoof_enforce: 1, ..node::config(2) }).expect("writes");
            assert_eq!(node::egress(&node, &frame), PASS);
            assert_eq!((tag(), node::egress(&node, &masked(frame.clone()))), (old, DROP));
        }
    }
}

/// Behind headers that cannot be judged, to the pod's own address, as an error: who sends comes first. A pod that nothing
/// isolates is no exception.
#[test]
fn forged_sources_are_found_in_every_shape() {
    let peer = |v6| frames::ip(Who::Peer.address(v6), Who::Stranger.address(v6), 17, &frames::datagram(53, 4000, 4));
    let from = |v6: bool, to: Who, protocol: u8, payload: &[u8]| {
        frames::frame(true, &frames::ip(Who::Stranger.address(v6), to.address(v6), protocol, payload))
    };
    let mut chain = Vec::new();
    for index in 0..7 {
        chain.extend([if index == 6 { 17 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
    }
    chain.extend(frames::datagram(4000, 99, 4));
    let routed = {
        let (std::net::IpAddr::V4(a), std::net::IpAddr::V4(b)) = (Who::Stranger.address(false), Who::Peer.address(false)) else {
            unreachable!("IPv4")
        };
        frames::frame(true, &frames::ip4(a, b, 17, &[131, 7, 4, 10, 1, 0, 9, 0], [0x40, 0], &frames::datagram(4000, 99, 4)))
    };
    let mut cut = from(false, Who::Peer, 6, &frames::segment(4000, 80, ACK, 0));
    cut[16..18].copy_from_slice(&0x05dc_u16.to_be_bytes());
    let mut piece = from(false, Who::Peer, 17, &frames::datagram(4000, 53, 16));
    piece[20] = 0x20;
    let mut later = from(false, Who::Peer, 17, &frames::datagram(4000, 53, 16));
    later[21] = 3;
    let tagged = |frame: Vec<u8>| [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat();
    let cases = [
        ("seven destination options", from(true, Who::Peer, 60, &chain)),
        ("a source route", routed),
        ("a length beyond the frame", cut),
        ("to the pod's own address", from(false, Who::Pod, 17, &frames::datagram(4000, 99, 4))),
        ("to the pod's own address", from(true, Who::Pod, 17, &frames::datagram(4000, 99, 4))),
        ("an error", from(false, Who::Peer, 1, &frames::icmp(3, 3, &peer(false)))),
        ("an error", from(true, Who::Peer, 58, &frames::icmp(1, 4, &peer(true)))),
        ("a redirect", from(false, Who::Peer, 1, &frames::icmp(5, 1, &peer(false)))),
        ("an echo", from(false, Who::Peer, 1, &frames::icmp(8, 0, &[]))),
        ("a reset", from(false, Who::Peer, 6, &frames::segment(4000, 80, 4, 0))),
        ("an answer to a SYN", from(true, Who::Peer, 6, &frames::segment(4000, 80, SYN | ACK, 0))),
        ("a first piece", piece),
        ("a later piece", later),
        ("a tag", tagged(from(false, Who::Peer, 17, &frames::datagram(4000, 53, 4)))),
        ("a tunnel", from(true, Who::Peer, 4, &peer(false))),
        ("membership", {
            let mut frame = from(false, Who::Peer, 2, &[0x16, 0, 0, 0, 224, 1, 1, 1]);
            frame[22] = 1;
            frame[30..34].copy_from_slice(&[224, 0, 0, 22]);
            frame
        }),
        (
            "nobody's address",
            frames::frame(
                true,
                &frames::ip(std::net::Ipv4Addr::UNSPECIFIED.into(), Who::Peer.address(false), 17, &frames::datagram(4000, 53, 4)),
            ),
        ),
    ];
    for isolated in [0, node::BOTH] {
        for (what, frame) in &cases {
            let mut node = start(isolated);
            for _ in 0..2 {
                assert_eq!(node::egress(&node, frame), DROP, "{what}, isolated {isolated}");
            }
            let told: Vec<_> = node.told().iter().map(|e| (e.flow.verdict, e.flow.reason, e.flow.packets)).collect();
            assert_eq!(told, [(verdict::DENIED, reason::SPOOFED_SOURCE, [1, 0])], "{what}, isolated {isolated}");
        }
    }
}

/// Several names for one conversation are several records.
#[test]
fn every_forged_name_is_told() {
    let mut node = start(0);
    for who in [Who::Stranger, Who::Node, Who::Stranger] {
        for v6 in [false, true] {
            let frame = frames::frame(true, &frames::ip(who.address(v6), Who::Peer.address(v6), 17, &frames::datagram(4000, 53, 4)));
            assert_eq!(node::egress(&node, &frame), DROP);
        }
    }
    let started = node.told().iter().filter(|e| e.kind == sekisho_core::layout::event::START).count();
    assert_eq!(started, 6);
}

/// What an annotation lends never covers somebody that the agent knows.
#[test]
fn nobody_lends_what_is_anothers() {
    let node = start(0);
    let mut endpoint = node::endpoint(0);
    endpoint.sources[0] = sekisho_core::parse::mapped([0; 4]);
    endpoint.masks[0] = (!u128::from(u32::MAX)).to_be_bytes();
    (endpoint.sources[1], endpoint.masks[1]) = ([0; 16], [0; 16]);
    node.put("ENDPOINTS", &1u32, &endpoint).expect("writes");
    for v6 in [false, true] {
        for (who, fate) in [(Who::Stranger, PASS), (Who::Node, DROP), (Who::Peer, DROP)] {
            let frame = frames::frame(true, &frames::ip(who.address(v6), Who::Stranger.address(v6), 17, &frames::datagram(4000, 99, 4)));
            assert_eq!(node::egress(&node, &frame), fate, "{who:?} v6 {v6}");
        }
    }
}

/// A bridge that has not learnt an address floods its frames to every pod: no business of theirs.
#[test]
fn frames_for_another_are_no_denial() {
    for v6 in [false, true] {
        for (isolated, fate) in [(0, PASS), (endpoint_flags::ISOLATED_EGRESS, PASS), (node::BOTH, DROP)] {
            let mut node = start(isolated);
            let packet = frames::ip(Who::Peer.address(v6), Who::Stranger.address(v6), 17, &frames::datagram(4000, 53, 4));
            let mut frame = frames::frame(false, &packet);
            frame[..6].copy_from_slice(&OTHER_MAC);
            assert_eq!(node::ingress(&node, &frame), fate, "v6 {v6}, isolated {isolated}");
            assert_eq!((node.told().len(), node.count(c::FLOODED), node.count(c::CREATED)), (0, 1, 0));
            // At the pod's own MAC it is the pod's, perhaps to route on.
            let at_pod = frames::frame(false, &packet);
            assert_eq!(node::ingress(&node, &at_pod), PASS, "its policy allows the peer's question");
            // So is what is sent to everybody.
            let mut all = frames::frame(false, &packet);
            all[..6].fill(0xff);
            assert_eq!(node::ingress(&node, &all), PASS);
            assert_eq!(node.count(c::FLOODED), 1);
        }
    }
}

/// Nothing can be said of protocols that are not IP, so isolated pods exchange none, and nobody's MAC is forged.
#[test]
fn frames_that_are_not_ip() {
    let frame = |egress: bool, number: u16| [&frames::ethernet(egress, number)[..], &[7; 60]].concat();
    for number in [0x88cc, 0x88b5, 0x8847, 0x0026] {
        let node = start(0);
        assert_eq!((node::egress(&node, &frame(true, number)), node::ingress(&node, &frame(false, number))), (PASS, PASS));
        assert_eq!(node::egress(&node, &masked(frame(true, number))), DROP);
        assert_eq!(node.count(c::SPOOFED), 1);
        let mut node = {
            drop(node);
            start(node::BOTH)
        };
        assert_eq!((node::egress(&node, &frame(true, number)), node::ingress(&node, &frame(false, number))), (DROP, DROP));
        let told: Vec<_> = node.told().iter().map(|e| e.flow.reason).collect();
        assert!(!told.is_empty() && told.iter().all(|why| *why == reason::UNSUPPORTED), "{told:?}");
        // What bridges tell each other is dropped without a word.
        let mut bridge = frame(false, number);
        bridge[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, 0]);
        assert_eq!((node::ingress(&node, &bridge), node.told().len()), (DROP, 0));
    }
}
