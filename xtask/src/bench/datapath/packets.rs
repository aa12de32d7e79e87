//! Frames between the pod and its peers.

use sekisho_core::layout::{Address, EGRESS};
use sekisho_core::parse::mapped;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

/// Whom the pod talks with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// A pod that a rule allows.
    Friend,
    /// A pod that no rule allows.
    Stranger,
}

/// What is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// TCP with these flags.
    Tcp(u8),
    Udp,
}

/// One packet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Packet {
    pub(super) family: Family,
    pub(super) peer: Peer,
    pub(super) direction: u8,
    pub(super) transport: Transport,
    /// [`EGRESS`] where the pod is the client, else the peer is.
    pub(super) dialled: u8,
    /// The server's port.
    pub(super) service: u16,
}

/// The server's port that a rule allows.
pub(super) const SERVICE: u16 = 8080;
/// The client's first port.
pub(super) const FIRST: u16 = 0x0080;

impl Family {
    /// The pod's address.
    pub(super) fn pod(self) -> Address {
        match self {
            Self::V4 => mapped([10, 1, 0, 2]),
            Self::V6 => [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2],
        }
    }

    /// A peer's address.
    pub(super) fn peer(self, peer: Peer) -> Address {
        let last = if peer == Peer::Friend { 3 } else { 4 };
        match self {
            Self::V4 => mapped([10, 1, 7, last]),
            Self::V6 => [0xfd, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7, last],
        }
    }

    const fn ip(self) -> usize {
        match self {
            Self::V4 => 20,
            Self::V6 => 40,
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }
}

impl Packet {
    /// The frame, with its Ethernet header.
    pub(super) fn frame(self) -> Vec<u8> {
        let (pod, peer) = (self.family.pod(), self.family.peer(self.peer));
        let egress = self.direction == EGRESS;
        let (source, destination) = if egress { (pod, peer) } else { (peer, pod) };
        let (from, to) = if self.dialled == self.direction { (FIRST, self.service) } else { (self.service, FIRST) };
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        let (number, length) = match self.transport {
            Transport::Tcp(_) => (6, 20),
            Transport::Udp => (17, 12),
        };
        match self.family {
            Family::V4 => {
                frame.extend([8, 0, 0x45, 0, 0, 20 + length, 0, 1, 0x40, 0, 64, number, 0, 0]);
                frame.extend([&source[12..], &destination[12..]].concat());
            }
            Family::V6 => {
                frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, length, number, 64]);
                frame.extend([source, destination].concat());
            }
        }
        frame.extend(from.to_be_bytes());
        frame.extend(to.to_be_bytes());
        match self.transport {
            Transport::Tcp(flags) => frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]),
            Transport::Udp => frame.extend([0, 12, 0, 0, 1, 2, 3, 4]),
        }
        frame
    }

    /// What the classifier should say.
    pub(super) fn code(self) -> i32 {
        if self.peer == Peer::Friend { -1 } else { 2 }
    }

    /// Where the client's port stands.
    pub(super) fn client_port(self) -> u16 {
        let ports = 14 + self.family.ip() + if self.dialled == self.direction { 0 } else { 2 };
        u16::try_from(ports).unwrap_or_default()
    }
}
