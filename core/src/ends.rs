//! A packet seen from the endpoint: what is local, what is remote.

use crate::layout::{Address, FlowKey4, FlowKey6, INGRESS};
use crate::parse::{Packet, echo};

/// The local and remote half of a packet's tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Ends {
    /// The endpoint's address.
    pub local: Address,
    /// The peer's address.
    pub remote: Address,
    /// The endpoint's port; the ICMP identifier where the endpoint asked.
    pub local_port: u16,
    /// The peer's port; the ICMP identifier where the peer asked.
    pub remote_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 3],
}

impl Ends {
    /// Of a packet that the endpoint sends (egress) or receives.
    #[inline(always)]
    pub fn of(packet: &Packet, direction: u8) -> Self {
        let mut ends = Self { local: [0; 16], remote: [0; 16], local_port: 0, remote_port: 0, protocol: 0, pad: [0; 3] };
        ends.set(packet, direction);
        ends
    }

    /// As [`Self::of`], in place.
    #[inline(always)]
    pub fn set(&mut self, packet: &Packet, direction: u8) {
        let (mut source, mut destination) = (packet.source_port, packet.destination_port);
        // The identifier stands at whoever asked.
        if packet.echo == echo::REPLY {
            (source, destination) = (0, packet.source_port);
        }
        self.protocol = packet.protocol;
        if direction == INGRESS {
            (self.local_port, self.remote_port) = (destination, source);
            (self.local, self.remote) = (packet.destination, packet.source);
        } else {
            (self.local_port, self.remote_port) = (source, destination);
            (self.local, self.remote) = (packet.source, packet.destination);
        }
    }

    /// Writes the key of an IPv4 flow; its padding stays as it is.
    #[inline(always)]
    pub fn key4(&self, endpoint: u32, key: &mut FlowKey4) {
        key.endpoint = endpoint;
        key.remote = [self.remote[12], self.remote[13], self.remote[14], self.remote[15]];
        key.local_port = self.local_port;
        key.remote_port = self.remote_port;
        key.protocol = self.protocol;
    }

    /// Writes the key of an IPv6 flow, which is the neutral form of either; its padding stays as it is.
    #[inline(always)]
    pub fn key6(&self, endpoint: u32, key: &mut FlowKey6) {
        key.remote = self.remote;
        key.endpoint = endpoint;
        key.local_port = self.local_port;
        key.remote_port = self.remote_port;
        key.protocol = self.protocol;
    }
}
