//! Route netlink as far as this room needs it: who is on the other side of a veth, which addresses live there, and
//! the filters of the clsact backend. Names nothing by name: interfaces are indices, namespaces are ids.
//!
//! It only asks and parses; who owns what is decided elsewhere.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use super::os;

const HEADER: usize = 16;
const REQUEST: u16 = 1;
const ACK: u16 = 4;
const DUMP: u16 = 0x300;
/// `NLM_F_CREATE`: make it where it is missing.
pub(super) const CREATE: u16 = 0x400;
/// `NLM_F_EXCL`: fail where it exists.
pub(super) const EXCLUSIVE: u16 = 0x200;

/// `NLM_F_DUMP_INTR`: what is listed changed meanwhile, and something may be missing.
const TORN: u16 = 0x10;
/// How often a list is asked for until it comes in one piece.
const TRIES: usize = 4;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
/// `IFLA_TARGET_NETNSID`.
const LINK_TARGET: u16 = 46;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;
const NEW_NEIGHBOUR: u16 = 28;
const GET_NEIGHBOUR: u16 = 30;
const NEW_NSID: u16 = 88;
const GET_NSID: u16 = 90;

/// An interface of the node, or of a namespace that was asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    /// Interface index.
    pub(super) index: u32,
    /// Name.
    pub(super) name: String,
    /// `veth`, `bridge`, ...
    pub(super) kind: Option<String>,
    /// Of a veth: the index of its other end.
    pub(super) peer: Option<u32>,
    /// Namespace of the other end, as the asking namespace numbers it.
    pub(super) nsid: Option<i32>,
    /// Link-layer address.
    pub(super) mac: Option<[u8; 6]>,
    /// Bridge that it is a port of.
    pub(super) master: Option<u32>,
    /// Its packets begin with an Ethernet header.
    pub(super) ethernet: bool,
}

/// An address and the interface that holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Held {
    /// Interface index, within its namespace.
    pub(super) ifindex: u32,
    /// The address.
    pub(super) address: IpAddr,
}

/// Where a packet to an address leaves the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    /// Interface index.
    pub(super) ifindex: u32,
    /// The route is for this address alone.
    pub(super) host: bool,
}

/// A netlink conversation. One request at a time.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
    /// The last answer is not of one piece.
    torn: bool,
}

/// A message under construction.
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// Attributes alone, to be put into another message.
    pub(super) fn bare() -> Self {
        Self { bytes: Vec::new() }
    }

    /// What has been written.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Starts a message with its family header.
    pub(super) fn new(kind: u16, flags: u16, family_header: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        bytes.extend_from_slice(family_header);
        Self { bytes }
    }

    /// Adds an attribute.
    pub(super) fn put(mut self, kind: u16, value: &[u8]) -> Self {
        self.attribute(kind, value);
        self
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(value.len() + 4).expect("an attribute of ours is short");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute made of attributes.
    pub(super) fn nest(mut self, kind: u16, inside: &[(u16, &[u8])]) -> Self {
        let start = self.bytes.len();
        self.attribute(kind, &[]);
        for (kind, value) in inside {
            self.attribute(*kind, value);
        }
        let len = u16::try_from(self.bytes.len() - start).expect("an attribute of ours is short");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }
}

/// The attributes of a message from `bytes` on.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const NESTED_AND_ORDER: u16 = 0xc000;
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & !NESTED_AND_ORDER;
        let value = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// An attribute of 32 bits.
pub(super) fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// An attribute that is a terminated string.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

pub(super) fn ip(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(value).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(value).ok()?)),
        _ => None,
    }
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let socket = os::netlink(0)?;
        os::netlink_strict(socket.as_fd())?;
        os::receive_timeout(socket.as_fd(), Duration::from_secs(5))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; 64 * 1024], torn: false })
    }

    /// Opens a socket to netfilter in the namespace of the calling thread.
    pub(super) fn open_netfilter() -> io::Result<Self> {
        let socket = os::netlink_netfilter()?;
        os::receive_timeout(socket.as_fd(), Duration::from_secs(5))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; 16 * 1024], torn: false })
    }

    /// Sends a request; hands every answering message (type, body) to `each`.
    fn ask(&mut self, mut message: Message, each: &mut dyn FnMut(u16, &[u8])) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        self.torn = false;
        let len = u32::try_from(message.bytes.len()).expect("a request of ours is short");
        message.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        message.bytes[8..12].copy_from_slice(&self.sequence.to_ne_bytes());
        os::send(self.socket.as_fd(), &message.bytes)?;
        loop {
            let received = os::receive(self.socket.as_fd(), &mut self.buffer)?;
            let mut rest = &self.buffer[..received];
            while rest.len() >= HEADER {
                let len = u32::from_ne_bytes(rest[..4].try_into().expect("four bytes")) as usize;
                if len < HEADER || len > rest.len() {
                    return Err(io::ErrorKind::InvalidData.into());
                }
                let kind = u16::from_ne_bytes([rest[4], rest[5]]);
                let flags = u16::from_ne_bytes([rest[6], rest[7]]);
                let sequence = u32::from_ne_bytes(rest[8..12].try_into().expect("four bytes"));
                let body = &rest[HEADER..len];
                rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
                if sequence != self.sequence {
                    continue;
                }
                self.torn |= flags & TORN != 0;
                match kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = number(body).unwrap_or(0).cast_signed();
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => each(kind, body),
                }
            }
        }
    }

    /// Asks for everything of a kind.
    pub(super) fn dump(&mut self, message: Message, each: &mut dyn FnMut(u16, &[u8])) -> io::Result<()> {
        self.ask(flagged(message, DUMP), each)
    }

    /// Tells the kernel to do something.
    pub(super) fn tell(&mut self, message: Message) -> io::Result<()> {
        self.ask(flagged(message, ACK), &mut |_, _| {})
    }

    /// Asks for one thing; `None` where there is no such thing.
    pub(super) fn ask_one<T>(&mut self, message: Message, parse: &mut dyn FnMut(u16, &[u8]) -> Option<T>) -> io::Result<Option<T>> {
        let mut answer = None;
        let result = self.ask(flagged(message, ACK), &mut |kind, body| answer = answer.take().or_else(|| parse(kind, body)));
        result.map(|()| answer)
    }

    /// Interfaces of the node, or of the namespace `nsid`.
    pub(super) fn links(&mut self, nsid: Option<i32>) -> io::Result<Vec<Link>> {
        /// Counting what passed each interface is most of the work.
        const EXTENSIONS: u16 = 29;
        const SKIP_STATISTICS: u32 = 1 << 3;
        let message = || {
            let message = Message::new(GET_LINK, 0, &[0; 16]).put(EXTENSIONS, &SKIP_STATISTICS.to_ne_bytes());
            in_namespace(message, LINK_TARGET, nsid)
        };
        self.list(message, |kind, body| parse_link(body).filter(|_| kind == NEW_LINK))
    }

    /// Whether nothing was missing in what was listed last.
    pub(super) fn is_whole(&self) -> bool {
        !self.torn
    }

    /// The interface `index` of the namespace `nsid`.
    pub(super) fn link(&mut self, index: u32, nsid: i32) -> io::Result<Option<Link>> {
        let mut header = [0; 16];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let message = in_namespace(Message::new(GET_LINK, 0, &header), LINK_TARGET, Some(nsid));
        self.ask_one(message, &mut |kind, body| parse_link(body).filter(|_| kind == NEW_LINK))
    }

    /// Addresses of the node, or of the namespace `nsid`.
    pub(super) fn addresses(&mut self, nsid: Option<i32>) -> io::Result<Vec<Held>> {
        const TARGET_NETNSID: u16 = 10;
        let message = || in_namespace(Message::new(GET_ADDRESS, 0, &[0; 8]), TARGET_NETNSID, nsid);
        self.list(message, |kind, body| parse_address(body).filter(|_| kind == NEW_ADDRESS))
    }

    /// Asks for everything of a kind, again where the answer is torn: while pods come and go, the kernel may pass one over.
    fn list<T>(&mut self, message: impl Fn() -> Message, parse: impl Fn(u16, &[u8]) -> Option<T>) -> io::Result<Vec<T>> {
        let mut all = Vec::new();
        for _ in 0..TRIES {
            all.clear();
            self.dump(message(), &mut |kind, body| all.extend(parse(kind, body)))?;
            if !self.torn {
                break;
            }
        }
        Ok(all)
    }

    /// The id that the node's namespace has for the namespace of a process; `None` where it has none.
    pub(super) fn nsid_of(&mut self, pid: u32) -> io::Result<Option<i32>> {
        const NSID: u16 = 1;
        const PID: u16 = 2;
        let message = Message::new(GET_NSID, 0, &[0; 4]).put(PID, &pid.to_ne_bytes());
        let nsid = self.ask_one(message, &mut |kind, body| {
            let value = attributes(body.get(4..)?).find(|(attribute, _)| *attribute == NSID)?.1;
            (kind == NEW_NSID).then_some(number(value)?.cast_signed())
        })?;
        Ok(nsid.filter(|nsid| *nsid >= 0))
    }

    /// The id that the node's namespace has in the namespace `inside` (as the node's calls it), or in itself; `None` where it has none.
    pub(super) fn node_seen_from(&mut self, inside: Option<i32>) -> io::Result<Option<i32>> {
        const NSID: u16 = 1;
        const FD: u16 = 3;
        const TARGET_NSID: u16 = 4;
        let own = std::fs::File::open("/proc/thread-self/ns/net")?;
        let message = Message::new(GET_NSID, 0, &[0; 4]).put(FD, &own.as_raw_fd().to_ne_bytes());
        let nsid = self.ask_one(in_namespace(message, TARGET_NSID, inside), &mut |kind, body| {
            let value = attributes(body.get(4..)?).find(|(attribute, _)| *attribute == NSID)?.1;
            (kind == NEW_NSID).then_some(number(value)?.cast_signed())
        })?;
        Ok(nsid.filter(|nsid| *nsid >= 0))
    }

    /// The route by which the node reaches an address without a gateway.
    pub(super) fn route_to(&mut self, address: IpAddr) -> io::Result<Option<Route>> {
        const DESTINATION: u16 = 1;
        const OUT_INTERFACE: u16 = 4;
        const GATEWAY: u16 = 5;
        const FIB_MATCH: u32 = 0x2000;
        const UNICAST: u8 = 1;
        let (family, bits, bytes) = family_of(address);
        let mut header = [0u8; 12];
        header[0] = family;
        header[1] = bits;
        header[8..].copy_from_slice(&FIB_MATCH.to_ne_bytes());
        let message = Message::new(GET_ROUTE, 0, &header).put(DESTINATION, &bytes);
        self.ask_one(message, &mut |kind, body| {
            let rest = body.get(12..).filter(|_| kind == NEW_ROUTE && body[7] == UNICAST)?;
            if attributes(rest).any(|(attribute, _)| attribute == GATEWAY) {
                return None;
            }
            let ifindex = number(attributes(rest).find(|(attribute, _)| *attribute == OUT_INTERFACE)?.1)?;
            Some(Route { ifindex, host: body[1] == bits })
        })
    }

    /// The link-layer address that the node's neighbour table has for an address.
    pub(super) fn neighbour(&mut self, ifindex: u32, address: IpAddr) -> io::Result<Option<[u8; 6]>> {
        const DESTINATION: u16 = 1;
        const LINK_ADDRESS: u16 = 2;
        let (family, _, bytes) = family_of(address);
        let mut header = [0u8; 12];
        header[0] = family;
        let mut found = None;
        self.dump(Message::new(GET_NEIGHBOUR, 0, &header), &mut |kind, body| {
            let Some(rest) = body.get(12..).filter(|_| kind == NEW_NEIGHBOUR && body.get(4..8).and_then(number) == Some(ifindex)) else {
                return;
            };
            if attributes(rest).any(|(attribute, value)| attribute == DESTINATION && value == bytes) {
                found = attributes(rest).find(|(attribute, _)| *attribute == LINK_ADDRESS).and_then(|(_, value)| value.try_into().ok());
            }
        })?;
        Ok(found)
    }

    /// The bridge port behind which a link-layer address was learnt.
    pub(super) fn bridge_port(&mut self, mac: [u8; 6]) -> io::Result<Option<u32>> {
        const LINK_ADDRESS: u16 = 2;
        let mut header = [0u8; 12];
        header[0] = u8::try_from(libc::AF_BRIDGE).expect("a small number");
        let mut found = None;
        self.dump(Message::new(GET_NEIGHBOUR, 0, &header), &mut |kind, body| {
            let Some(rest) = body.get(12..).filter(|_| kind == NEW_NEIGHBOUR) else { return };
            if attributes(rest).any(|(attribute, value)| attribute == LINK_ADDRESS && value == mac) {
                found = body.get(4..8).and_then(number);
            }
        })?;
        Ok(found)
    }
}

/// The message, about the namespace `nsid` if one is told.
fn in_namespace(message: Message, attribute: u16, nsid: Option<i32>) -> Message {
    match nsid {
        Some(nsid) => message.put(attribute, &nsid.to_ne_bytes()),
        None => message,
    }
}

fn flagged(mut message: Message, flags: u16) -> Message {
    let old = u16::from_ne_bytes([message.bytes[6], message.bytes[7]]);
    message.bytes[6..8].copy_from_slice(&(old | flags).to_ne_bytes());
    message
}

pub(super) fn family_of(address: IpAddr) -> (u8, u8, Vec<u8>) {
    match address {
        IpAddr::V4(address) => (2, 32, address.octets().to_vec()),
        IpAddr::V6(address) => (10, 128, address.octets().to_vec()),
    }
}

fn parse_link(body: &[u8]) -> Option<Link> {
    const ADDRESS: u16 = 1;
    const NAME: u16 = 3;
    const LINK: u16 = 5;
    const MASTER: u16 = 10;
    const INFO: u16 = 18;
    const INFO_KIND: u16 = 1;
    const LINK_NETNSID: u16 = 37;
    /// `ARPHRD_ETHER`.
    const ETHERNET: [u8; 2] = 1u16.to_ne_bytes();
    let mut link = Link { index: number(body.get(4..8)?)?, ethernet: body.get(2..4)? == ETHERNET, ..Link::default() };
    for (kind, value) in attributes(body.get(16..)?) {
        match kind {
            ADDRESS => link.mac = value.try_into().ok(),
            NAME => link.name = text(value),
            LINK => link.peer = number(value),
            MASTER => link.master = number(value),
            INFO => link.kind = attributes(value).find(|(kind, _)| *kind == INFO_KIND).map(|(_, value)| text(value)),
            LINK_NETNSID => link.nsid = number(value).map(u32::cast_signed),
            _ => {}
        }
    }
    Some(link)
}

fn parse_address(body: &[u8]) -> Option<Held> {
    const ADDRESS: u16 = 1;
    const LOCAL: u16 = 2;
    let ifindex = number(body.get(4..8)?)?;
    let (mut local, mut address) = (None, None);
    for (kind, value) in attributes(body.get(8..)?) {
        match kind {
            ADDRESS => address = ip(value),
            LOCAL => local = ip(value),
            _ => {}
        }
    }
    Some(Held { ifindex, address: local.or(address)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip_and_stop_at_nonsense() {
        let message = Message::new(GET_LINK, 0, &[]).put(3, b"abc\0").put(7, &9u32.to_ne_bytes()).nest(18, &[(1, b"veth")]);
        let parsed: Vec<_> = attributes(&message.bytes[HEADER..]).collect();
        assert_eq!(text(parsed[0].1), "abc");
        assert_eq!(number(parsed[1].1), Some(9));
        assert_eq!(attributes(parsed[2].1).next(), Some((1, &b"veth"[..])));
        assert_eq!(attributes(&[0, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[9, 0, 1, 0, 1]).count(), 0);
    }

    #[test]
    fn the_loopback_is_there() {
        let mut netlink = Netlink::open().unwrap();
        assert!(netlink.links(None).unwrap().iter().any(|link| link.name == "lo" && link.index == 1));
        assert!(netlink.addresses(None).unwrap().iter().any(|held| held.address.is_loopback()));
    }
}
