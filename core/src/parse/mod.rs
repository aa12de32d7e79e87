//! Reads a packet's headers into a [`Packet`], from bytes that may be hostile.
//!
//! Two ways in. [`fast4`] and [`fast6`] know the one shape that nearly all packets have (no options, no
//! extensions, no fragments, TCP or UDP) at constant offsets. [`frame`] and [`network`] read everything
//! else in steps ([`link`], [`walk`], [`transport()`]): VLAN tags, IPv4 options, IPv6 extension chains, fragments, ICMP and the header inside an ICMP
//! error ([`inner`]).
//!
//! Nouns: a *window* is where bytes come from: packet pointers in the kernel, slices elsewhere. *Exempt* is
//! what no policy may stop: neighbour discovery, address configuration.
//!
//! It does not judge, and keeps no state.

mod chain;
mod exempt;
pub mod neighbour;
mod transport;

pub use chain::walk;
pub use exempt::{
    asks_for_address, discovers, discovers_on_link, fits_error, gives_addresses, impersonates, is_broadcast, link_local, on_link,
};
pub use transport::{identify, read as transport};

#[cfg(test)]
mod tests;

use crate::layout::Address;

/// Protocol numbers that mean something here.
pub mod protocol {
    /// ICMP for IPv4.
    pub const ICMP4: u8 = 1;
    /// Multicast groups, IPv4.
    pub const IGMP: u8 = 2;
    /// TCP.
    pub const TCP: u8 = 6;
    /// UDP.
    pub const UDP: u8 = 17;
    /// ICMP for IPv6.
    pub const ICMP6: u8 = 58;
    /// SCTP.
    pub const SCTP: u8 = 132;
}

/// Whether flows of an IP protocol are told apart by what the transport header says: ports, or the identifier of a query.
#[inline(always)]
pub const fn named_by_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | protocol::SCTP | protocol::ICMP4 | protocol::ICMP6)
}

/// Bytes of a packet, read with bounds checks.
pub trait Window {
    /// `N` bytes from `offset` on; `None` beyond what can be read.
    fn get<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
    /// How long the packet really is; more than can be read, perhaps.
    fn length(&self) -> usize;
    /// Whether the packet stands for several segments; its IP header may then say length 0.
    fn large(&self) -> bool;
    /// The value itself. In the kernel it takes a way that makes the verifier forget where the value came from, so
    /// that a loop's rounds look alike and are walked once.
    #[inline(always)]
    fn forget(&self, value: usize) -> usize {
        value
    }
}

impl Window for &[u8] {
    #[inline]
    fn get<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        <[u8]>::get(self, offset..offset.checked_add(N)?)?.try_into().ok()
    }

    fn length(&self) -> usize {
        self.len()
    }

    fn large(&self) -> bool {
        false
    }
}

/// What a packet turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Part of a flow.
    Flow = 0,
    /// An ICMP error: it belongs to the flow of the header inside it, at [`Packet::payload`].
    IcmpError = 1,
    /// Always allowed.
    Exempt = 2,
    /// Not IP.
    NonIp = 3,
    /// Headers that contradict themselves or end too early.
    Malformed = 4,
    /// Headers that may be right but cannot be judged.
    Unsupported = 5,
    /// ARP: no policy judges it, but a pod must not lie there.
    Arp = 6,
}

/// A piece of a datagram.
pub mod fragment {
    /// Not a fragment.
    pub const WHOLE: u8 = 0;
    /// The first one, with the ports.
    pub const FIRST: u8 = 1;
    /// A later one, without.
    pub const LATER: u8 = 2;
}

/// An ICMP query, whose identifier takes the place of ports.
pub mod echo {
    /// None.
    pub const NONE: u8 = 0;
    /// Asked.
    pub const REQUEST: u8 = 1;
    /// Answered.
    pub const REPLY: u8 = 2;
}

/// The headers of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Packet {
    /// Source address, IPv4 v4-mapped.
    pub source: Address,
    /// Destination address, IPv4 v4-mapped.
    pub destination: Address,
    /// Identification of the fragmented datagram.
    pub fragment_id: u32,
    /// IP bytes, headers included.
    pub total: u32,
    /// Source port; the identifier of an ICMP query.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// IP and transport header bytes, which every segment of a large packet repeats.
    pub headers: u16,
    /// Offset behind the headers: an ICMP error's inner packet.
    pub payload: u16,
    /// 4 or 6; 0 where not even that is known.
    pub family: u8,
    /// IP protocol number.
    pub protocol: u8,
    /// TCP flags as on the wire.
    pub tcp_flags: u8,
    /// One of [`fragment`].
    pub fragment: u8,
    /// ICMP type and code.
    pub icmp: [u8; 2],
    /// One of [`echo`].
    pub echo: u8,
    /// TTL or hop limit.
    pub hops: u8,
}

impl Packet {
    /// Nothing known.
    pub const EMPTY: Self = Self {
        source: [0; 16],
        destination: [0; 16],
        fragment_id: 0,
        total: 0,
        source_port: 0,
        destination_port: 0,
        headers: 0,
        payload: 0,
        family: 0,
        protocol: 0,
        tcp_flags: 0,
        fragment: fragment::WHOLE,
        icmp: [0; 2],
        echo: echo::NONE,
        hops: 0,
    };
}

/// An IPv4 address as this crate keeps it.
#[inline(always)]
pub const fn mapped(v4: [u8; 4]) -> Address {
    // In words: of bytes the kernel programs would make a loop.
    zerocopy::transmute!([0, 0, 0xffff_u32.to_be(), u32::from_ne_bytes(v4)])
}

/// The common shape of a packet of family `N` (4 or 16 address bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fast<const N: usize> {
    /// Source address.
    pub source: [u8; N],
    /// Destination address.
    pub destination: [u8; N],
    /// Source port.
    pub source_port: u16,
    /// Destination port.
    pub destination_port: u16,
    /// TCP or UDP.
    pub protocol: u8,
    /// TCP flags as on the wire; 0 for UDP.
    pub tcp_flags: u8,
    /// IP bytes, headers included.
    pub total: u32,
    /// IP and transport header bytes.
    pub headers: u32,
}

/// IPv4 without options or fragments, TCP or UDP; `None` sends the packet to [`frame`] or [`network`].
#[inline(always)]
pub fn fast4<W: Window>(window: &W, at: usize) -> Option<Fast<4>> {
    let ip: [u8; 20] = window.get(at)?;
    // The low 14 bits of the fragment field: more-fragments and offset.
    if ip[0] != 0x45 || (ip[6] & 0x3f) | ip[7] != 0 {
        return None;
    }
    let source = [ip[12], ip[13], ip[14], ip[15]];
    let destination = [ip[16], ip[17], ip[18], ip[19]];
    let total = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
    let ports = ports_and_flags(window, at + 20, ip[9])?;
    let headers = 20 + ports.headers;
    // DHCP's exemption is the careful reader's matter.
    if total < headers
        || total as usize > window.length().wrapping_sub(at)
        || (ip[9] == protocol::UDP && ports.source.min(ports.destination) == 67)
    {
        return None;
    }
    Some(Fast {
        source,
        destination,
        source_port: ports.source,
        destination_port: ports.destination,
        protocol: ip[9],
        tcp_flags: ports.flags,
        total,
        headers,
    })
}

/// IPv6 without extensions, TCP or UDP; `None` sends the packet to [`frame`] or [`network`].
#[inline(always)]
pub fn fast6<W: Window>(window: &W, at: usize) -> Option<Fast<16>> {
    let ip: [u8; 40] = window.get(at)?;
    if ip[0] >> 4 != 6 {
        return None;
    }
    let mut source = [0; 16];
    source.copy_from_slice(&ip[8..24]);
    let mut destination = [0; 16];
    destination.copy_from_slice(&ip[24..40]);
    let total = 40 + u32::from(u16::from_be_bytes([ip[4], ip[5]]));
    let ports = ports_and_flags(window, at + 40, ip[6])?;
    let headers = 40 + ports.headers;
    // DHCPv6's exemption and v4-mapped addresses on the wire are the careful reader's matter.
    if total < headers
        || total as usize > window.length().wrapping_sub(at)
        || (ip[6] == protocol::UDP && ports.source.min(ports.destination) == 546)
        || is_mapped(&source)
        || is_mapped(&destination)
    {
        return None;
    }
    Some(Fast {
        source,
        destination,
        source_port: ports.source,
        destination_port: ports.destination,
        protocol: ip[6],
        tcp_flags: ports.flags,
        total,
        headers,
    })
}

struct Ports {
    source: u16,
    destination: u16,
    flags: u8,
    headers: u32,
}

#[inline(always)]
fn ports_and_flags<W: Window>(window: &W, at: usize, number: u8) -> Option<Ports> {
    if number == protocol::TCP {
        let tcp: [u8; 20] = window.get(at)?;
        let headers = u32::from(tcp[12] >> 4) * 4;
        if headers < 20 {
            return None;
        }
        Some(Ports {
            source: u16::from_be_bytes([tcp[0], tcp[1]]),
            destination: u16::from_be_bytes([tcp[2], tcp[3]]),
            flags: tcp[13],
            headers,
        })
    } else if number == protocol::UDP {
        let udp: [u8; 8] = window.get(at)?;
        Some(Ports {
            source: u16::from_be_bytes([udp[0], udp[1]]),
            destination: u16::from_be_bytes([udp[2], udp[3]]),
            flags: 0,
            headers: 8,
        })
    } else {
        None
    }
}

/// Whether an IPv6 address is IPv4 in disguise, which no wire should carry: it would borrow an IPv4 pod's identity.
#[inline(always)]
pub(crate) fn is_mapped(address: &Address) -> bool {
    let high = u64::from_ne_bytes([address[0], address[1], address[2], address[3], address[4], address[5], address[6], address[7]]);
    let middle = u32::from_ne_bytes([address[8], address[9], address[10], address[11]]);
    high == 0 && middle == u32::from_ne_bytes([0, 0, 0xff, 0xff])
}

/// VLAN tags that may stand before the IP header.
const TAGS: usize = 2;

/// Where in an Ethernet frame the IP header begins.
#[inline(always)]
pub fn link<W: Window>(window: &W) -> Result<usize, Kind> {
    let mut at = 12;
    for _ in 0..=TAGS {
        let Some(number) = window.get::<2>(at) else { return Err(Kind::Malformed) };
        at += 2;
        match u16::from_be_bytes(number) {
            0x0800 | 0x86dd => return Ok(at),
            0x0806 => return Err(Kind::Arp),
            0x8100 | 0x88a8 | 0x9100 => at += 2,
            _ => return Err(Kind::NonIp),
        }
    }
    Err(Kind::Unsupported)
}

/// Reads an Ethernet frame.
#[inline(always)]
pub fn frame<W: Window>(window: &W, packet: &mut Packet) -> Kind {
    match link(window) {
        Ok(at) => network(window, at, packet),
        Err(kind) => kind,
    }
}

/// Reads an IP packet that begins at `at`. What could be read before trouble is in `packet`.
#[inline(always)]
pub fn network<W: Window>(window: &W, at: usize, packet: &mut Packet) -> Kind {
    match walk(window, at, packet, false) {
        Ok(end) => transport(window, at, end, packet),
        Err(kind) => kind,
    }
}

/// Reads the IP packet inside an ICMP error as far as it identifies a flow: it is cut off behind 8 bytes of transport.
#[inline(always)]
pub fn inner<W: Window>(window: &W, at: usize, packet: &mut Packet) -> Kind {
    match walk(window, at, packet, true) {
        Ok(end) => identify(window, end, packet),
        Err(kind) => kind,
    }
}

/// What it means that `N` bytes at `at` cannot be read: the packet ends there, or our window does.
#[inline(always)]
fn short<W: Window>(window: &W, at: usize, count: usize) -> Kind {
    if at + count > window.length() { Kind::Malformed } else { Kind::Unsupported }
}
