//! Raw frames, as a process with `NET_RAW` sends them: past the sockets of its pod, with any addresses and flags.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use crate::netns::Netns;
use crate::pod::Pod;
use crate::sys::{self, SocketAddress};

/// A packet socket at an interface.
#[derive(Debug)]
pub struct Raw {
    socket: OwnedFd,
    interface: u32,
}

impl Raw {
    /// Opens one in a network namespace.
    pub fn open(netns: &Netns, interface: &str) -> Result<Self> {
        netns.within(|| {
            let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).context("cannot open a packet socket")?;
            Ok(Self { socket, interface: sys::interface_index(interface)? })
        })
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        sys::send_to(&self.socket, frame, &SocketAddress::packet(self.interface)).context("cannot send a frame").map(drop)
    }
}

/// The MAC of a pod with default addresses.
pub fn mac(pod: &Pod) -> [u8; 6] {
    let number = match pod.v4() {
        IpAddr::V4(v4) => v4.octets()[3].wrapping_sub(1),
        IpAddr::V6(_) => 0,
    };
    [0x0a, 0x58, 10, 244, 0, number]
}

/// What a TCP segment shows.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<'a> {
    /// Flags as on the wire: SYN 2, RST 4, ACK 16.
    pub flags: u8,
    /// Data.
    pub data: &'a [u8],
}

/// A frame with a TCP segment; `macs` are source and destination.
pub fn tcp(macs: [[u8; 6]; 2], source: SocketAddr, destination: SocketAddr, tcp: Tcp<'_>) -> Vec<u8> {
    let mut segment = Vec::new();
    segment.extend(source.port().to_be_bytes());
    segment.extend(destination.port().to_be_bytes());
    segment.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, tcp.flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(tcp.data);
    frame(macs, source.ip(), destination.ip(), 6, 16, segment)
}

/// A frame with a UDP datagram.
pub fn udp(macs: [[u8; 6]; 2], source: SocketAddr, destination: SocketAddr, data: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(source.port().to_be_bytes());
    datagram.extend(destination.port().to_be_bytes());
    datagram.extend(u16::try_from(8 + data.len()).expect("it is short").to_be_bytes());
    datagram.extend([0, 0]);
    datagram.extend(data);
    frame(macs, source.ip(), destination.ip(), 17, 6, datagram)
}

/// Puts IP and Ethernet headers before `body`, and its checksum at `at`.
fn frame([from, to]: [[u8; 6]; 2], source: IpAddr, destination: IpAddr, protocol: u8, at: usize, mut body: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(body.len()).expect("it is short");
    let mut frame = [to, from].concat();
    let mut pseudo = Vec::new();
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let addresses = [source.octets(), destination.octets()].concat();
            pseudo.extend(&addresses);
            let [high, low] = (20 + length).to_be_bytes();
            let mut header = vec![0x45, 0, high, low, 0, 1, 0x40, 0, 64, protocol, 0, 0];
            header.extend(&addresses);
            let sum = checksum(&header).to_be_bytes();
            header[10..12].copy_from_slice(&sum);
            frame.extend([0x08, 0x00]);
            frame.extend(header);
        }
        (source, destination) => {
            let octets = |address: IpAddr| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            let addresses = [octets(source), octets(destination)].concat();
            pseudo.extend(&addresses);
            let [high, low] = length.to_be_bytes();
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, high, low, protocol, 64]);
            frame.extend(addresses);
        }
    }
    pseudo.extend([0, protocol]);
    pseudo.extend(length.to_be_bytes());
    pseudo.extend(&body);
    let sum = checksum(&pseudo).to_be_bytes();
    body[at..at + 2].copy_from_slice(&sum);
    frame.extend(body);
    frame
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("it was folded")
}
