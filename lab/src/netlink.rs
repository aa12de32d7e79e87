//! The few rtnetlink requests that a lab needs, spoken directly: no `ip` binary, so the same code makes a
//! node inside an initramfs. Every call acts on the calling thread's network namespace.

use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::sys;

const VETH_INFO_PEER: u16 = 1;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const NLA_F_NESTED: u16 = 1 << 15;

/// One request under construction: header, fixed part, attributes.
struct Request {
    bytes: Vec<u8>,
}

impl Request {
    fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST | libc::NLM_F_ACK).expect("netlink flags are 16 bits");
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(fixed);
        Self { bytes }
    }

    fn attribute(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        let len = u16::try_from(4 + value.len()).expect("attributes are short");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self
    }

    fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        fill(self);
        let len = u16::try_from(self.bytes.len() - at).expect("attributes are short");
        self.bytes[at..at + 2].copy_from_slice(&len.to_ne_bytes());
        self
    }

    fn send(&mut self) -> io::Result<()> {
        let len = u32::try_from(self.bytes.len()).expect("requests are short");
        self.bytes[..4].copy_from_slice(&len.to_ne_bytes());
        let socket: OwnedFd = sys::socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE)?;
        let mut file = std::fs::File::from(socket);
        io::Write::write_all(&mut file, &self.bytes)?;
        let mut answer = [0u8; 4096];
        let got = io::Read::read(&mut file, &mut answer)?;
        // An acknowledgement: nlmsghdr (16 bytes), then the error number.
        match answer.get(16..20) {
            Some(code) if got >= 20 => match i32::from_ne_bytes([code[0], code[1], code[2], code[3]]) {
                0 => Ok(()),
                error => Err(io::Error::from_raw_os_error(-error)),
            },
            _ => Err(io::Error::other("short netlink answer")),
        }
    }
}

/// `ifinfomsg`: family, pad, type (4 bytes), index, flags, and the mask of flags to change.
fn ifinfo(index: u32, flags: i32) -> Vec<u8> {
    let flags = flags.to_ne_bytes();
    [[0; 4], index.to_ne_bytes(), flags, flags].concat()
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn family(address: IpAddr) -> u8 {
    let number = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    u8::try_from(number).expect("address families are small")
}

/// A pair of interfaces, the second one in another namespace.
pub fn add_veth(name: &str, peer: &str, peer_netns: BorrowedFd<'_>) -> io::Result<()> {
    Request::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &ifinfo(0, 0))
        .text(libc::IFLA_IFNAME, name)
        .nest(libc::IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |link| {
                    link.bytes.extend_from_slice(&ifinfo(0, 0));
                    link.text(libc::IFLA_IFNAME, peer);
                    link.attribute(libc::IFLA_NET_NS_FD, &sys::raw(peer_netns).to_ne_bytes());
                });
            });
        })
        .send()
}

/// A bridge.
pub fn add_bridge(name: &str) -> io::Result<()> {
    Request::new(libc::RTM_NEWLINK, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &ifinfo(0, 0))
        .text(libc::IFLA_IFNAME, name)
        .nest(libc::IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "bridge");
        })
        .send()
}

/// Makes `name` a port of `bridge`.
pub fn set_master(name: &str, bridge: &str) -> io::Result<()> {
    Request::new(libc::RTM_NEWLINK, 0, &ifinfo(sys::interface_index(name)?, 0))
        .attribute(libc::IFLA_MASTER, &sys::interface_index(bridge)?.to_ne_bytes())
        .send()
}

/// Switches an interface on.
pub fn set_up(name: &str) -> io::Result<()> {
    Request::new(libc::RTM_NEWLINK, 0, &ifinfo(sys::interface_index(name)?, libc::IFF_UP)).send()
}

/// Switches an interface off: to its peer it is a cable that was pulled out.
pub fn set_down(name: &str) -> io::Result<()> {
    let mut fixed = ifinfo(sys::interface_index(name)?, libc::IFF_UP);
    // Of the flags, the one to change, and its value.
    fixed[8..12].fill(0);
    Request::new(libc::RTM_NEWLINK, 0, &fixed).send()
}

/// Gives an interface a hardware address.
pub fn set_mac(name: &str, mac: [u8; 6]) -> io::Result<()> {
    Request::new(libc::RTM_NEWLINK, 0, &ifinfo(sys::interface_index(name)?, 0)).attribute(libc::IFLA_ADDRESS, &mac).send()
}

/// Removes an interface.
pub fn remove(name: &str) -> io::Result<()> {
    Request::new(libc::RTM_DELLINK, 0, &ifinfo(sys::interface_index(name)?, 0)).send()
}

/// Gives an interface an address.
pub fn add_address(name: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
    let index = sys::interface_index(name)?.to_ne_bytes();
    let flags = if address.is_ipv6() { 0x02 } else { 0 }; // IFA_F_NODAD
    let scope = match address {
        IpAddr::V6(v6) if is_link_local(v6) => libc::RT_SCOPE_LINK,
        _ => libc::RT_SCOPE_UNIVERSE,
    };
    let mut fixed = vec![family(address), prefix, flags, scope];
    fixed.extend_from_slice(&index);
    Request::new(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_EXCL, &fixed)
        .attribute(libc::IFA_LOCAL, &octets(address))
        .attribute(libc::IFA_ADDRESS, &octets(address))
        .send()
}

fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

/// A route to `target/prefix` (0.0.0.0/0 and ::/0 are the default) through `name`, by way of `via`, which
/// counts as on the link.
pub fn add_route(target: IpAddr, prefix: u8, via: Option<IpAddr>, name: &str) -> io::Result<()> {
    let scope = if via.is_none() && target.is_ipv4() { libc::RT_SCOPE_LINK } else { libc::RT_SCOPE_UNIVERSE };
    let onlink = if via.is_some() { 4u32 } else { 0 }; // RTNH_F_ONLINK
    let mut fixed = vec![family(target), prefix, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, scope, libc::RTN_UNICAST];
    fixed.extend_from_slice(&onlink.to_ne_bytes());
    let mut request = Request::new(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE, &fixed);
    if prefix > 0 {
        request.attribute(libc::RTA_DST, &octets(target));
    }
    if let Some(via) = via {
        request.attribute(libc::RTA_GATEWAY, &octets(via));
    }
    request.attribute(libc::RTA_OIF, &sys::interface_index(name)?.to_ne_bytes()).send()
}

/// Gives a namespace a number by which the calling thread's namespace knows it.
pub fn set_netns_number(netns: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    const RTM_NEWNSID: u16 = 88;
    const NETNSA_NSID: u16 = 1;
    const NETNSA_FD: u16 = 3;
    // `rtgenmsg`, padded.
    Request::new(RTM_NEWNSID, 0, &[0; 4])
        .attribute(NETNSA_NSID, &number.to_ne_bytes())
        .attribute(NETNSA_FD, &sys::raw(netns).to_ne_bytes())
        .send()
}
