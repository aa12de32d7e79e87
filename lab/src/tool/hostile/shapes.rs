//! The shapes: each one got through some policy engine once.

use std::net::{IpAddr, Ipv6Addr};

use super::packet::{self, frame, ip, ip_frame, ip4, number, payload};
use super::{MARKER, Scene, Target};

/// TCP flags that do not open a connection, and some that do.
const FLAGS: [(&str, u8); 9] = [
    ("tcp-syn", 0x02),
    ("tcp-synack", 0x12),
    ("tcp-ack", 0x10),
    ("tcp-psh", 0x18),
    ("tcp-rst", 0x04),
    ("tcp-rstack", 0x14),
    ("tcp-fin", 0x11),
    ("tcp-null", 0x00),
    ("tcp-xmas", 0x29),
];

/// Data beyond what any header needs.
const LONG: usize = 800;

type Shape = (&'static str, Vec<u8>);

/// Every shape once. `round` varies the ports, so that each round opens flows of its own.
pub(super) fn all(scene: &Scene, round: u16) -> Vec<Shape> {
    let mut shapes = Vec::new();
    for v6 in [false, true] {
        for target in [&scene.victim, &scene.outside] {
            transport(scene, target, v6, round, &mut shapes);
            errors(scene, target, v6, &mut shapes);
            tunnels(scene, target, v6, &mut shapes);
        }
        forged(scene, v6, round, &mut shapes);
    }
    headers(scene, round, &mut shapes);
    fragments(scene, &mut shapes);
    discovery(scene, &mut shapes);
    link(scene, &mut shapes);
    shapes
}

/// Plain packets that policy denies, of every kind.
fn transport(scene: &Scene, target: &Target, v6: bool, round: u16, shapes: &mut Vec<Shape>) {
    let (from, to) = (scene.own.address(v6), target.address(v6));
    let ports = (20_000 + round % 20_000, 80);
    let mut send = |name, protocol, body: &[u8]| {
        shapes.push((name, ip_frame(target.mac, scene.own.mac, &ip(from, to, protocol, 64, body))));
    };
    for (port, (name, flags)) in (80..).zip(FLAGS) {
        // A port of its own for each, or all but the first would meet the denied flow of the first.
        send(name, number::TCP, &packet::tcp(from, to, (ports.0, port), flags, &payload(LONG)));
    }
    send("udp", number::UDP, &packet::udp(from, to, ports, &payload(LONG)));
    send("udp-from-dns", number::UDP, &packet::udp(from, to, (53, ports.0), &payload(LONG)));
    send("dhcp-server", number::UDP, &packet::udp(from, to, if v6 { (547, 546) } else { (67, 68) }, &payload(LONG)));
    let echo = if v6 { (number::ICMP6, 128, 129) } else { (number::ICMP, 8, 0) };
    let id = round.to_be_bytes();
    for (name, kind) in [("echo", echo.1), ("echo-reply", echo.2)] {
        send(name, echo.0, &packet::icmp(from, to, [kind, 0], [id[0], id[1], 0, 1], &payload(LONG)));
    }
    let ports = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    send("sctp", number::SCTP, &[&ports[..], &[0; 8], &payload(LONG)].concat());
}

/// ICMP errors that quote the one allowed flow, sent to somebody else or longer than errors are.
fn errors(scene: &Scene, target: &Target, v6: bool, shapes: &mut Vec<Shape>) {
    let (own, allowed) = (scene.own.address(v6), scene.allowed.address(v6));
    // As the allowed server's answer would look, which this pod pretends to refuse.
    let quoted = ip(allowed, own, number::UDP, 64, &packet::udp(allowed, own, (53, 5353), &[]));
    let (protocol, kind) = if v6 { (number::ICMP6, [1, 4]) } else { (number::ICMP, [3, 3]) };
    let to = target.address(v6);
    let mut send = |name, from: IpAddr, to: IpAddr, mac, length| {
        let body = [&quoted[..], &payload(length)].concat();
        let message = packet::icmp(from, to, kind, [0; 4], &body);
        shapes.push((name, ip_frame(mac, scene.own.mac, &ip(from, to, protocol, 64, &message))));
    };
    send("error-elsewhere", own, to, target.mac, 200);
    send("error-elsewhere-long", own, to, target.mac, 1_000);
    send("error-forged", scene.neighbour.address(v6), to, target.mac, 200);
    send("error-oversized", own, allowed, scene.allowed.mac, 1_350);
}

/// Protocols without ports.
fn tunnels(scene: &Scene, target: &Target, v6: bool, shapes: &mut Vec<Shape>) {
    let (from, to) = (scene.own.address(v6), target.address(v6));
    let inner = ip(from, to, number::UDP, 64, &packet::udp(from, to, (5353, 53), &payload(LONG)));
    let inner_kind = if v6 { 41 } else { number::IPIP };
    for (name, protocol, body) in [
        ("ipip", inner_kind, inner.clone()),
        ("gre", number::GRE, [&[0, 0, 8, 0][..], &inner].concat()),
        ("esp", number::ESP, payload(LONG)),
    ] {
        shapes.push((name, ip_frame(target.mac, scene.own.mac, &ip(from, to, protocol, 64, &body))));
    }
}

/// In another pod's name, also to the server that the pod itself may reach.
fn forged(scene: &Scene, v6: bool, round: u16, shapes: &mut Vec<Shape>) {
    let from = scene.neighbour.address(v6);
    let ports = (20_000 + round % 20_000, 53);
    for target in [&scene.victim, &scene.allowed, &scene.outside] {
        let to = target.address(v6);
        let datagram = packet::udp(from, to, ports, &payload(LONG));
        shapes.push(("forged-udp", ip_frame(target.mac, scene.own.mac, &ip(from, to, number::UDP, 64, &datagram))));
        for (name, flags) in [("forged-syn", 0x02), ("forged-ack", 0x18)] {
            let segment = packet::tcp(from, to, ports, flags, &payload(LONG));
            shapes.push((name, ip_frame(target.mac, scene.own.mac, &ip(from, to, number::TCP, 64, &segment))));
        }
    }
    // To itself, in somebody's name: the bridge or the node would pass it back or on.
    let own = scene.own.address(v6);
    let datagram = packet::udp(from, own, ports, &payload(LONG));
    shapes.push(("forged-to-self", ip_frame(scene.victim.mac, scene.own.mac, &ip(from, own, number::UDP, 64, &datagram))));
}

/// Options and extension headers in front of what policy denies.
fn headers(scene: &Scene, round: u16, shapes: &mut Vec<Shape>) {
    let ports = (20_000 + round % 20_000, 53);
    for from in [&scene.own, &scene.neighbour] {
        for target in [&scene.victim, &scene.outside] {
            let datagram = packet::udp(from.v4.into(), target.v4.into(), ports, &payload(LONG));
            for (name, options) in [("option-nops", [1u8; 40]), ("option-timestamp", timestamps())] {
                let packet = ip4(from.v4, target.v4, number::UDP, (64, [0x40, 0]), &options, &datagram);
                shapes.push((name, ip_frame(target.mac, scene.own.mac, &packet)));
            }
            for (name, first, count) in [("option-headers", number::OPTIONS, 7), ("option-hop-by-hop", number::HOP_BY_HOP, 1)] {
                let (from, to) = (from.v6.into(), target.v6.into());
                let body = chain(count, number::UDP, &packet::udp(from, to, ports, &payload(LONG)));
                shapes.push((name, ip_frame(target.mac, scene.own.mac, &ip(from, to, first, 64, &body))));
            }
        }
    }
}

/// An IPv4 timestamp option without room (RFC 791), padded.
fn timestamps() -> [u8; 40] {
    let mut options = [0u8; 40];
    options[..4].copy_from_slice(&[68, 36, 37, 0]);
    options
}

/// `count` empty option headers before a body of protocol `last`.
fn chain(count: usize, last: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for index in 0..count {
        let next = if index + 1 == count { last } else { number::OPTIONS };
        // Six bytes of padding (PadN).
        bytes.extend([next, 0, 1, 4, 0, 0, 0, 0]);
    }
    bytes.extend(body);
    bytes
}

/// First, later and orphaned pieces.
fn fragments(scene: &Scene, shapes: &mut Vec<Shape>) {
    for target in [&scene.victim, &scene.outside] {
        let (from, to) = (scene.own.v4, target.v4);
        let datagram = packet::udp(from.into(), to.into(), (5353, 53), &payload(LONG));
        for (name, protocol, piece, body) in [
            ("fragment-first", number::UDP, [0x20, 0], &datagram[..]),
            ("fragment-later", number::UDP, [0, 100], &payload(LONG)),
            ("fragment-tiny", number::TCP, [0x20, 0], &[&[0x4e, 0x20, 0, 80][..], &MARKER[..]].concat()),
            ("fragment-esp", number::ESP, [0, 100], &payload(LONG)),
            ("fragment-gre", number::GRE, [0, 100], &payload(LONG)),
            ("fragment-icmp", number::ICMP, [0, 100], &payload(LONG)),
        ] {
            shapes.push((name, ip_frame(target.mac, scene.own.mac, &ip4(from, to, protocol, (64, piece), &[], body))));
        }
        for (name, offset) in [("fragment6-first", [0, 1]), ("fragment6-later", [3, 0x20])] {
            let (from, to) = (scene.own.v6.into(), target.v6.into());
            let body = [&[number::UDP, 0, offset[0], offset[1], 0, 0, 0x51, 0x17][..], &packet::udp(from, to, (5353, 53), &payload(LONG))];
            shapes.push((name, ip_frame(target.mac, scene.own.mac, &ip(from, to, number::FRAGMENT, 64, &body.concat()))));
        }
    }
}

/// Neighbour discovery with data to far addresses, and messages that only routers send.
fn discovery(scene: &Scene, shapes: &mut Vec<Shape>) {
    let own: IpAddr = scene.own.v6.into();
    for target in [&scene.victim, &scene.outside] {
        for (name, kind) in [("nd-133", 133), ("nd-134", 134), ("nd-135", 135), ("nd-136", 136), ("nd-137", 137)] {
            let to = target.v6.into();
            let body = [&target.v6.octets()[..], &payload(LONG)].concat();
            let message = packet::icmp(own, to, [kind, 0], [0; 4], &body);
            shapes.push((name, ip_frame(target.mac, scene.own.mac, &ip(own, to, number::ICMP6, 255, &message))));
        }
    }
    // A router advertisement and a redirect to all nodes, and the gateway's address claimed.
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let all_nodes_mac = [0x33, 0x33, 0, 0, 0, 1];
    for from in [IpAddr::from(link_local(scene.own.mac)), IpAddr::from(link_local(scene.gateway.mac))] {
        let advertisement = packet::icmp(from, all_nodes.into(), [134, 0], [64, 0, 7, 8], &[&[0; 8][..], MARKER].concat());
        shapes.push(("nd-router", ip_frame(all_nodes_mac, scene.own.mac, &ip(from, all_nodes.into(), number::ICMP6, 255, &advertisement))));
        let body = [&scene.gateway.v6.octets()[..], &[2, 1], &scene.own.mac, MARKER].concat();
        let claim = packet::icmp(from, all_nodes.into(), [136, 0], [0x20, 0, 0, 0], &body);
        shapes.push(("nd-claim", ip_frame(all_nodes_mac, scene.own.mac, &ip(from, all_nodes.into(), number::ICMP6, 255, &claim))));
    }
    // An IPv4 redirect in the gateway's name.
    let (gateway, victim) = (scene.gateway.v4, scene.victim.v4);
    let quoted = ip4(victim, scene.outside.v4, number::UDP, (64, [0, 0]), &[], &payload(24));
    let redirect = packet::icmp(gateway.into(), victim.into(), [5, 1], scene.own.v4.octets(), &quoted);
    let packet = ip4(gateway, victim, number::ICMP, (64, [0, 0]), &[], &redirect);
    shapes.push(("redirect", ip_frame(scene.victim.mac, scene.own.mac, &packet)));
}

/// Layer 2: another's MAC, claims by ARP, tags, and frames that are not IP.
fn link(scene: &Scene, shapes: &mut Vec<Shape>) {
    for v6 in [false, true] {
        let (from, to) = (scene.own.address(v6), scene.allowed.address(v6));
        // The tuple of the allowed flow, so that the frame meets a known flow.
        let datagram = packet::udp(from, to, (5353, 53), &payload(64));
        shapes.push(("mac-in-flow", ip_frame(scene.allowed.mac, scene.victim.mac, &ip(from, to, number::UDP, 64, &datagram))));
    }
    for (name, claimed, mac) in [
        ("arp-claims-victim", scene.victim.v4, scene.own.mac),
        ("arp-claims-gateway", scene.gateway.v4, scene.own.mac),
        ("arp-from-victim", scene.victim.v4, scene.victim.mac),
    ] {
        let head = [0, 1, 8, 0, 6, 4, 0, 2];
        let reply = [&head[..], &mac, &claimed.octets(), &scene.neighbour.mac, &scene.neighbour.v4.octets(), MARKER].concat();
        shapes.push((name, frame([0xff; 6], mac, 0x0806, &reply)));
    }
    let (from, to) = (scene.own.address(false), scene.victim.address(false));
    let datagram = ip(from, to, number::UDP, 64, &packet::udp(from, to, (5353, 53), &payload(LONG)));
    for (name, tag) in [("vlan", 0x8100u16), ("vlan-service", 0x88a8)] {
        let rest = [&[0, 0, 8, 0][..], &datagram].concat();
        shapes.push((name, frame(scene.victim.mac, scene.own.mac, tag, &rest)));
    }
    shapes.push(("not-ip", frame(scene.victim.mac, scene.own.mac, 0x88b5, &payload(LONG))));
}

/// The address that a MAC gives (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]])
}
