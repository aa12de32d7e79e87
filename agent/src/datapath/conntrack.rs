//! The node's connection tracking, asked for one connection at a time: what stands behind a Service's address.
//!
//! kube-proxy rewrites addresses after a pod's packet has passed our hook. The kernel remembers how: the *original* tuple is
//! what the pod sent, the *reply* tuple what its server answers to. Asked over netlink with the rights that the agent has
//! anyhow; nothing is dumped, nothing is changed. A data path that translates by itself (eBPF, IPVS without tracking) is
//! not in there.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use super::netlink::{Message, Netlink, attributes, family_of, ip};

/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_GET` and `IPCTNL_MSG_CT_NEW`.
const GET: u16 = 0x101;
const NEW: u16 = 0x100;
/// `CTA_TUPLE_ORIG`, `CTA_TUPLE_REPLY` and what is in them.
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ADDRESSES: u16 = 1;
const PROTOCOL: u16 = 2;
const NUMBER: u16 = 1;
const SOURCE_PORT: u16 = 2;
const DESTINATION_PORT: u16 = 3;

/// How long this node's connection tracking keeps UDP without an answer, and with answers; `None` where it is not loaded.
pub fn udp_timeouts() -> Option<(Duration, Duration)> {
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?;
        text.trim().parse().ok().map(Duration::from_secs)
    };
    Some((read("nf_conntrack_udp_timeout")?, read("nf_conntrack_udp_timeout_stream")?))
}

/// Address and port.
type Side = (IpAddr, u16);

/// A conversation with the connection tracking of the calling thread's network namespace.
#[derive(Debug)]
pub struct Conntrack(Netlink);

impl Conntrack {
    /// Opens it.
    pub fn open() -> io::Result<Self> {
        Netlink::open_netfilter().map(Self)
    }

    /// Source and destination as the destination sees them, of a connection as its source sent it; `None` where the
    /// connection is not known, or not translated.
    pub fn behind(&mut self, protocol: u8, source: Side, destination: Side) -> io::Result<Option<(Side, Side)>> {
        let reply = match self.0.ask_one(request(protocol, source, destination), &mut |kind, body| reply(kind, body)) {
            Ok(reply) => reply,
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        // The reply goes from the server to whom the server sees.
        Ok(reply.filter(|(from, _)| *from != destination).map(|(from, to)| (to, from)))
    }
}

fn request(protocol: u8, source: Side, destination: Side) -> Message {
    let (family, _, from) = family_of(source.0);
    let (_, _, to) = family_of(destination.0);
    let first = if source.0.is_ipv4() { 1 } else { 3 };
    let addresses = Message::bare().put(first, &from).put(first + 1, &to);
    let ports = Message::bare()
        .put(NUMBER, &[protocol])
        .put(SOURCE_PORT, &source.1.to_be_bytes())
        .put(DESTINATION_PORT, &destination.1.to_be_bytes());
    let tuple = Message::bare().put(ADDRESSES | NESTED, addresses.bytes()).put(PROTOCOL | NESTED, ports.bytes());
    Message::new(GET, 0, &[family, 0, 0, 0]).put(ORIGINAL | NESTED, tuple.bytes())
}

/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;

/// The reply tuple of an answer.
fn reply(kind: u16, body: &[u8]) -> Option<(Side, Side)> {
    let inside = |bytes, wanted| attributes(bytes).find(|(attribute, _)| *attribute == wanted).map(|(_, value)| value);
    let tuple = inside(body.get(4..).filter(|_| kind == NEW)?, REPLY)?;
    let addresses = inside(tuple, ADDRESSES)?;
    let ports = inside(tuple, PROTOCOL)?;
    let address = |four, six| ip(inside(addresses, four).or_else(|| inside(addresses, six))?);
    let port = |which| Some(u16::from_be_bytes(inside(ports, which)?.try_into().ok()?));
    Some(((address(1, 3)?, port(SOURCE_PORT)?), (address(2, 4)?, port(DESTINATION_PORT)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_the_server_sees_the_connection() {
        // What the kernel writes has the layout of what it is asked.
        let asked = request(6, ("10.0.0.9".parse().unwrap(), 8080), ("10.0.0.1".parse().unwrap(), 4000));
        let mut body = asked.bytes()[16..].to_vec();
        body[6..8].copy_from_slice(&(REPLY | NESTED).to_ne_bytes());
        let read = reply(NEW, &body);
        assert_eq!(read, Some((("10.0.0.9".parse().unwrap(), 8080), ("10.0.0.1".parse().unwrap(), 4000))));
        assert_eq!(reply(GET, &body), None);
        assert_eq!(reply(NEW, &body[..30]), None);
        assert_eq!(reply(NEW, &[]), None);
    }
}
