//! Frames built by hand, between a pod and its peer, in either family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The two ends and who else there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Pod,
    Peer,
    /// Nobody that a policy knows.
    Stranger,
    /// The pod's own node.
    Node,
}

impl Who {
    pub(super) fn address(self, v6: bool) -> IpAddr {
        let last = match self {
            Self::Node => 1,
            Self::Pod => 2,
            Self::Peer => 3,
            Self::Stranger => 9,
        };
        if v6 {
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last).into()
        } else {
            Ipv4Addr::new(10, 1, 0, u8::try_from(last).expect("a small number")).into()
        }
    }

    pub(super) fn v4(self) -> [u8; 4] {
        match self.address(false) {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(_) => unreachable!("asked for IPv4"),
        }
    }

    pub(super) fn v6(self) -> [u8; 16] {
        match self.address(true) {
            IpAddr::V6(v6) => v6.octets(),
            IpAddr::V4(_) => unreachable!("asked for IPv6"),
        }
    }
}

/// The pod's hardware address.
pub(super) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// An Ethernet header from the pod (or, if it is the receiver, to it), for a protocol.
pub(super) fn ethernet(egress: bool, ether_type: u16) -> Vec<u8> {
    let (to, from) = if egress { (NODE_MAC, POD_MAC) } else { (POD_MAC, NODE_MAC) };
    [&to[..], &from, &ether_type.to_be_bytes()].concat()
}

/// An IP packet without Ethernet, `protocol` being what comes next.
pub(super) fn ip(from: IpAddr, to: IpAddr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => ip4(from, to, protocol, &[], [0x40, 0], payload),
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            let length = u16::try_from(payload.len()).expect("short");
            let mut packet = vec![0x60, 0, 0, 0];
            packet.extend(length.to_be_bytes());
            packet.extend([protocol, 64]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            packet.extend(payload);
            packet
        }
        _ => panic!("one family"),
    }
}

/// IPv4 with options (a multiple of 4 bytes) and flags with offset.
pub(super) fn ip4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, options: &[u8], piece: [u8; 2], payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let mut packet = vec![0x40 | u8::try_from(header / 4).expect("short"), 0];
    packet.extend(u16::try_from(header + payload.len()).expect("short").to_be_bytes());
    packet.extend([0, 77, piece[0], piece[1], 64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(options);
    packet.extend(payload);
    packet
}

/// The frame of an IP packet.
pub(super) fn frame(egress: bool, packet: &[u8]) -> Vec<u8> {
    let mut frame = ethernet(egress, if packet[0] >> 4 == 6 { 0x86dd } else { 0x0800 });
    frame.extend(packet);
    frame
}

/// A TCP segment with its ports and flags, and `length` bytes of payload.
pub(super) fn segment(from: u16, to: u16, flags: u8, length: usize) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    segment.resize(20 + length, b'x');
    segment
}

/// A UDP datagram with `length` bytes of payload.
pub(super) fn datagram(from: u16, to: u16, length: usize) -> Vec<u8> {
    let mut datagram = [from.to_be_bytes(), to.to_be_bytes()].concat();
    datagram.extend(u16::try_from(8 + length).expect("short").to_be_bytes());
    datagram.extend([0, 0]);
    datagram.resize(8 + length, b'u');
    datagram
}

/// What the pod sends to its peer, or (not `egress`) gets from it.
pub(super) fn between(v6: bool, egress: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (from, to) = if egress { (Who::Pod, Who::Peer) } else { (Who::Peer, Who::Pod) };
    frame(egress, &ip(from.address(v6), to.address(v6), protocol, payload))
}

/// A TCP segment between the two, ports from the pod's side.
pub(super) fn tcp_of(v6: bool, egress: bool, pod_port: u16, peer_port: u16, flags: u8) -> Vec<u8> {
    let (from, to) = if egress { (pod_port, peer_port) } else { (peer_port, pod_port) };
    between(v6, egress, 6, &segment(from, to, flags, 0))
}

/// A UDP datagram of 4 bytes between the two, ports from the pod's side.
pub(super) fn udp_of(v6: bool, egress: bool, pod_port: u16, peer_port: u16) -> Vec<u8> {
    let (from, to) = if egress { (pod_port, peer_port) } else { (peer_port, pod_port) };
    between(v6, egress, 17, &datagram(from, to, 4))
}

/// An IPv4 TCP segment between the two.
pub(super) fn tcp(egress: bool, pod_port: u16, peer_port: u16, flags: u8) -> Vec<u8> {
    tcp_of(false, egress, pod_port, peer_port, flags)
}

/// An IPv4 UDP datagram between the two.
pub(super) fn udp(egress: bool, pod_port: u16, peer_port: u16) -> Vec<u8> {
    udp_of(false, egress, pod_port, peer_port)
}

/// An ICMP message of either family: type, code and what it quotes.
pub(super) fn icmp(kind: u8, code: u8, quoted: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, code, 0, 0, 0, 0, 0, 0];
    message.extend(quoted);
    message
}
