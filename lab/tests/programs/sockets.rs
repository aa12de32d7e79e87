//! Packets of connections whose beginning was not seen: the pod's kernel says what they belong to.
//!
//! The pod and its peer are real here, with the addresses of the frames, and no agent runs. The frames are not theirs: only the
//! sockets count.

use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use sekisho_core::layout::{EGRESS, Endpoint, Flow, INGRESS, UNKNOWN, basis, endpoint_flags, flow_flags, reason, verdict};
use sekisho_core::tcp::{ACK, FIN, RST, SYN, state};
use sekisho_lab::{Lab, Pod, PodSpec, netlink};

use super::frames::Who;
use super::node::{BOTH, DROP, Node, PASS};
use super::{frames, node};

/// Numbers of namespaces that this process has given: the kernel forgets one some time after its namespace.
static GIVEN: AtomicU32 = AtomicU32::new(0);

struct World {
    /// Held, so that it lives.
    _lab: Lab,
    pod: Pod,
    peer: Pod,
    /// What the pod's namespace is called here.
    netns: u32,
}

impl World {
    fn new(name: &str) -> Self {
        let lab = Lab::new(name).expect("a lab");
        let at =
            |who: Who, name: &str| lab.pod(PodSpec::new("shop", name).addresses(&[who.address(false), who.address(true)])).expect("a pod");
        let (pod, peer) = (at(Who::Pod, "pod"), at(Who::Peer, "peer"));
        let file = pod.netns().open().expect("is there");
        let netns = std::process::id() % 1_000_000 * 100 + GIVEN.fetch_add(1, Ordering::Relaxed);
        netlink::set_netns_number(file.as_fd(), netns.cast_signed()).expect("takes a number");
        Self { _lab: lab, pod, peer, netns }
    }

    fn listen(at: &Pod, port: u16) -> TcpListener {
        at.netns().within(|| Ok(TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?)).expect("listens")
    }

    /// A connection and the port of who opened it.
    fn connect(from: &Pod, to: &Pod, v6: bool, port: u16) -> (TcpStream, u16) {
        let target = SocketAddr::new(to.address(v6), port);
        let stream = from.netns().within(|| Ok(TcpStream::connect_timeout(&target, Duration::from_secs(3))?)).expect("connects");
        let own = stream.local_addr().expect("has one").port();
        (stream, own)
    }

    /// A datagram socket of the pod's.
    fn datagrams(&self, v6: bool, port: u16) -> UdpSocket {
        self.pod.netns().within(|| Ok(UdpSocket::bind((self.pod.address(v6), port))?)).expect("binds")
    }
}

/// Begins anew: the pod's tables, its namespace known; older connections are believed until so many seconds after boot.
fn start(node: &mut Node, world: &World, isolated: u32, adopts_until: u32) {
    node.clear().expect("clears");
    node.told();
    node::fill(node, isolated);
    let endpoint = Endpoint { netns: world.netns + 1, adopts_until, ..node::endpoint(isolated) };
    node.put("ENDPOINTS", &1u32, &endpoint).expect("writes");
}

/// A flow that is not promoted yet.
fn young(node: &Node, v6: bool, pod: u16, peer: u16, protocol: u8) -> Flow {
    node::flow_with(node, "EMBRYONIC", Who::Peer, v6, (pod, peer, protocol)).expect("is there")
}

fn tcp(node: &Node, v6: bool, egress: bool, pod: u16, peer: u16, flags: u8) -> i32 {
    node::send(node, egress, &frames::tcp_of(v6, egress, pod, peer, flags))
}

#[test]
fn who_opened_shows_in_the_sockets() {
    let world = World::new("programs-opened");
    let mut node = node::empty();
    // A policy allows TCP 80 in both directions and nothing else.
    let _listening = [80, 81].map(|port| (World::listen(&world.pod, port), World::listen(&world.peer, port)));
    for v6 in [false, true] {
        for port in [80, 81] {
            let (_out, by_pod) = World::connect(&world.pod, &world.peer, v6, port);
            let (_in, by_peer) = World::connect(&world.peer, &world.pod, v6, port);
            let expected = if port == 80 { PASS } else { DROP };
            let why = if port == 80 { 0 } else { reason::DEFAULT_DENY };
            for first in [true, false] {
                start(&mut node, &world, BOTH, 0);
                assert_eq!(tcp(&node, v6, first, by_pod, port, ACK), expected, "the pod's, v6 {v6}, egress {first}");
                let flow = young(&node, v6, by_pod, port, 6);
                assert_eq!((flow.opened, flow.reason, flow.flags & flow_flags::ADOPTED), (EGRESS, why, flow_flags::ADOPTED));
                // And it goes on.
                for egress in [first, !first] {
                    assert_eq!(tcp(&node, v6, egress, by_pod, port, ACK), expected);
                }
                assert_eq!(node::flow_with(&node, "ESTABLISHED", Who::Peer, v6, (by_pod, port, 6)).is_some(), port == 80, "promoted");
            }
            start(&mut node, &world, BOTH, 0);
            assert_eq!(tcp(&node, v6, false, port, by_peer, ACK), expected, "the peer's, v6 {v6}");
            let flow = young(&node, v6, port, by_peer, 6);
            assert_eq!((flow.opened, flow.reason, flow.flags & flow_flags::ADOPTED), (INGRESS, why, flow_flags::ADOPTED));
            assert_eq!(tcp(&node, v6, true, port, by_peer, ACK), expected);
            // Policy lets the pod open everything, but the connection is the peer's.
            for until in [0, u32::MAX] {
                start(&mut node, &world, endpoint_flags::ISOLATED_INGRESS, until);
                assert_eq!(tcp(&node, v6, true, port, by_peer, ACK), expected, "the pod speaks first, v6 {v6}, until {until}");
                assert_eq!(young(&node, v6, port, by_peer, 6).opened, INGRESS);
            }
        }
    }
}

/// A listener of the pod's own is its own word: it opens nothing once the pod can have no older connections.
#[test]
fn the_pods_word_counts_for_a_while() {
    let world = World::new("programs-word");
    let mut node = node::empty();
    let _listening = World::listen(&world.pod, 80);
    for v6 in [false, true] {
        let (_in, by_peer) = World::connect(&world.peer, &world.pod, v6, 80);
        start(&mut node, &world, BOTH, 0);
        for _ in 0..2 {
            assert_eq!(tcp(&node, v6, true, 80, by_peer, ACK), DROP, "the pod may not open to there");
        }
        let denied = young(&node, v6, 80, by_peer, 6);
        assert_eq!((denied.verdict, denied.reason, denied.opened), (verdict::DENIED, reason::NO_CONNECTION, UNKNOWN));
        assert_eq!(tcp(&node, v6, false, 80, by_peer, ACK), PASS, "the peer itself shows that it is its own");
        assert_eq!(tcp(&node, v6, true, 80, by_peer, ACK), PASS);
        assert_eq!(node.told().len(), 3, "two starts, and the end of the denied one");
        start(&mut node, &world, BOTH, u32::MAX);
        assert_eq!(tcp(&node, v6, true, 80, by_peer, ACK), PASS, "older connections go on");
        let flow = young(&node, v6, 80, by_peer, 6);
        assert_eq!((flow.opened, u32::from(flow.basis)), (INGRESS, basis::PROVEN));
    }
}

#[test]
fn what_no_kernel_knows_is_its_senders() {
    let world = World::new("programs-unknown");
    let mut node = node::empty();
    let _listening = World::listen(&world.pod, 81);
    for v6 in [false, true] {
        for flags in [ACK, ACK | FIN, ACK | 8, SYN | ACK, RST, RST | ACK] {
            for egress in [true, false] {
                start(&mut node, &world, BOTH, u32::MAX);
                // Nobody listens on 33; on 81 somebody does, and no policy admits the peer.
                for pod in [33, 81] {
                    for _ in 0..2 {
                        assert_eq!(tcp(&node, v6, egress, pod, 5000, flags), DROP, "v6 {v6}, egress {egress}, flags {flags}, port {pod}");
                    }
                }
                // Where its sender may open, a segment opens nothing more.
                let (pod, peer) = if egress { (4000, 80) } else { (80, 4000) };
                assert_eq!(tcp(&node, v6, egress, pod, peer, flags), PASS);
                assert_eq!(tcp(&node, v6, !egress, pod, peer, ACK), if flags & RST == 0 { PASS } else { DROP });
            }
        }
        // A sandbox with its own stack is believed for a while.
        for (netns, flag, until, expected) in
            [(0, 0, u32::MAX, PASS), (world.netns + 1, endpoint_flags::OWN_STACK, u32::MAX, PASS), (0, 0, 0, DROP), (0, 0, 1, DROP)]
        {
            start(&mut node, &world, BOTH, 0);
            node.put("ENDPOINTS", &1u32, &Endpoint { netns, adopts_until: until, ..node::endpoint(BOTH | flag) }).expect("writes");
            assert_eq!(tcp(&node, v6, false, 4000, 80, ACK), expected, "an answer, v6 {v6}, until {until}");
        }
    }
}

/// A SYN-ACK is the answer to a SYN that waits for it.
#[test]
fn an_accepting_segment_needs_its_question() {
    let world = World::new("programs-accept");
    let mut node = node::empty();
    let _listening = World::listen(&world.pod, 80);
    start(&mut node, &world, endpoint_flags::ISOLATED_EGRESS | endpoint_flags::ISOLATED_INGRESS, 0);
    assert_eq!(tcp(&node, false, false, 4000, 80, SYN | ACK), DROP, "nobody asked");
    assert_eq!(tcp(&node, false, true, 80, 4000, SYN | ACK), DROP, "nobody asks");
    // The peer's kernel is silent: its interface is off.
    world.peer.netns().within(|| Ok(netlink::set_down("eth0")?)).expect("goes down");
    for v6 in [false, true] {
        let target = SocketAddr::new(world.peer.address(v6), 80);
        let port = if v6 { 42_001 } else { 42_000 };
        let asking = world.pod.netns().within(|| sekisho_lab::asking(port, target)).expect("asks");
        start(&mut node, &world, BOTH, 0);
        assert_eq!(tcp(&node, v6, false, port, 80, SYN | ACK), PASS, "the answer");
        let flow = young(&node, v6, port, 80, 6);
        assert_eq!((flow.opened, flow.state, flow.flags & flow_flags::ADOPTED), (EGRESS, state::SYN_RECEIVED, 0));
        start(&mut node, &world, BOTH, 0);
        assert_eq!(tcp(&node, v6, false, port, 80, RST | ACK), PASS, "the refusal");
        assert_eq!(tcp(&node, v6, false, port, 81, SYN | ACK), DROP, "somebody else");
        drop(asking);
    }
}

#[test]
fn answers_of_servers_open_nothing() {
    let world = World::new("programs-answers");
    let mut node = node::empty();
    let udp = |node: &Node, v6, egress: bool, pod, peer| node::send(node, egress, &frames::udp_of(v6, egress, pod, peer));
    for v6 in [false, true] {
        let _server = world.datagrams(v6, 54);
        // The pod may open everything; its peer only UDP 53.
        for (until, peer, expected) in [(0, 40_000, DROP), (u32::MAX, 40_000, DROP), (u32::MAX, 4000, DROP), (0, 4000, PASS)] {
            start(&mut node, &world, endpoint_flags::ISOLATED_INGRESS, until);
            assert_eq!(udp(&node, v6, true, 54, peer), expected, "v6 {v6}, until {until}, to {peer}");
            assert_eq!(udp(&node, v6, false, 54, peer), expected, "and what it answers");
        }
        start(&mut node, &world, endpoint_flags::ISOLATED_INGRESS, u32::MAX);
        assert_eq!(udp(&node, v6, true, 55, 4000), PASS, "no socket is bound there");
        // A client: the answer comes, of which nothing is known any more.
        let client = world.datagrams(v6, 0);
        let port = client.local_addr().expect("has one").port();
        for (until, connected, isolated, peer, expected) in [
            (0, false, BOTH, 53, DROP),
            (u32::MAX, false, endpoint_flags::ISOLATED_EGRESS, 53, PASS),
            (u32::MAX, false, endpoint_flags::ISOLATED_EGRESS, 54, DROP),
            (0, true, BOTH, 53, PASS),
            (0, true, BOTH, 54, DROP),
            (u32::MAX, true, BOTH, 53, PASS),
        ] {
            if connected {
                client.connect((world.peer.address(v6), 53)).expect("connects");
            }
            start(&mut node, &world, isolated, until);
            assert_eq!(udp(&node, v6, false, port, peer), expected, "v6 {v6}, until {until}, connected {connected}, from {peer}");
            if expected == PASS {
                assert_eq!(young(&node, v6, port, peer, 17).opened, EGRESS);
            }
        }
    }
}

/// An echo's answer says itself that it is one.
#[test]
fn echo_answers_open_nothing() {
    for v6 in [false, true] {
        let (protocol, request, reply) = if v6 { (58, 128, 129) } else { (1, 8, 0) };
        let echo = |egress, kind| {
            let mut message = frames::icmp(kind, 0, b"ping");
            message[5] = 9;
            frames::between(v6, egress, protocol, &message)
        };
        for (isolated, egress) in [(endpoint_flags::ISOLATED_INGRESS, true), (endpoint_flags::ISOLATED_EGRESS, false)] {
            let node = node::start(isolated);
            for _ in 0..2 {
                assert_eq!(node::send(&node, egress, &echo(egress, reply)), DROP, "v6 {v6}, egress {egress}");
                assert_eq!(node::send(&node, !egress, &echo(!egress, request)), DROP);
            }
            assert_eq!(node::send(&node, egress, &echo(egress, request)), PASS, "its own question");
        }
    }
}
