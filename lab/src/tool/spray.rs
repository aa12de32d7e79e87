//! Packets from many ports, each a new flow: raw ones without a socket of their own behind them, or each from a socket of its own,
//! as programs make them.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::sys::{self, SocketAddress};

/// The Internet checksum over `data`, continued from `sum`.
pub(super) fn checksum(sum: u32, data: &[u8]) -> u16 {
    let mut sum = data.chunks(2).fold(sum, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

/// What the pseudo header adds to a checksum.
pub(super) fn pseudo(from: IpAddr, to: IpAddr, protocol: u8, len: usize) -> u32 {
    let words = |address: IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum::<u32>(),
        IpAddr::V6(v6) => v6.segments().into_iter().map(u32::from).sum(),
    };
    words(from) + words(to) + u32::from(protocol) + u32::try_from(len).expect("packets are short")
}

/// A TCP segment with `flags` and no payload, checksum done.
pub(super) fn segment(from: SocketAddr, to: SocketAddr, flags: u8) -> [u8; 20] {
    let mut bytes = [0u8; 20];
    bytes[..2].copy_from_slice(&from.port().to_be_bytes());
    bytes[2..4].copy_from_slice(&to.port().to_be_bytes());
    bytes[4..8].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
    bytes[12] = 5 << 4;
    bytes[13] = flags;
    bytes[14..16].copy_from_slice(&1024u16.to_be_bytes());
    let sum = checksum(pseudo(from.ip(), to.ip(), 6, bytes.len()), &bytes);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn datagram(from: SocketAddr, to: SocketAddr) -> [u8; 24] {
    let mut bytes = [b'u'; 24];
    bytes[..2].copy_from_slice(&from.port().to_be_bytes());
    bytes[2..4].copy_from_slice(&to.port().to_be_bytes());
    bytes[4..6].copy_from_slice(&24u16.to_be_bytes());
    bytes[6..8].copy_from_slice(&[0, 0]);
    let sum = checksum(pseudo(from.ip(), to.ip(), 17, bytes.len()), &bytes);
    bytes[6..8].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The first source port, and how many follow.
type Ports = (u16, u16);
const ANY: Ports = (2000, 60_000);
/// What the kernel gives to clients: a socket that is bound below is taken for a server's.
const CLIENTS: Ports = (32_768, 32_000);

/// Where the flow with this number goes from and to: another source port each, and after the last one another destination port.
fn ends(from: IpAddr, to: SocketAddr, index: u32, (first, count): Ports) -> Result<(SocketAddr, SocketAddr)> {
    let (turn, port) = (index / u32::from(count), index % u32::from(count));
    let source = SocketAddr::new(from, first + u16::try_from(port).expect("less than the number of ports"));
    let target = SocketAddr::new(to.ip(), to.port().wrapping_add(u16::try_from(turn).context("too many packets")?));
    Ok((source, target))
}

/// Sends `count` packets, `rate` a second, each a new flow; `sockets` sends each as a UDP datagram from a socket that was opened
/// for it.
pub(super) fn main(protocol: &str, from: IpAddr, to: SocketAddr, count: u32, rate: u32) -> Result<bool> {
    let number = match protocol {
        "tcp" => libc::IPPROTO_TCP,
        "udp" => libc::IPPROTO_UDP,
        "sockets" => return pace(count, rate, |index| Ok(from_a_socket(ends(from, to, index, CLIENTS)?))),
        _ => bail!("{protocol:?} is none of tcp, udp and sockets"),
    };
    let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = sys::socket(domain, libc::SOCK_RAW, number).context("cannot open a raw socket")?;
    sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 8 << 20)?;
    // Sources that are not ours are the point of some tests.
    let (level, transparent) =
        if to.is_ipv4() { (libc::IPPROTO_IP, libc::IP_TRANSPARENT) } else { (libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT) };
    sys::set_option(&socket, level, transparent, 1).context("cannot use any source")?;
    sys::bind(&socket, &SocketAddress::ip(from, 0)).context("cannot send from that address")?;
    let address = SocketAddress::ip(to.ip(), 0);
    pace(count, rate, |index| {
        let (source, target) = ends(from, to, index, ANY)?;
        Ok(match number {
            libc::IPPROTO_TCP => sys::send_to(&socket, &segment(source, target, 0x02), &address),
            _ => sys::send_to(&socket, &datagram(source, target), &address),
        }
        .is_ok())
    })
}

/// One datagram from a socket that lives no longer than this.
fn from_a_socket((source, target): (SocketAddr, SocketAddr)) -> bool {
    UdpSocket::bind(source).and_then(|socket| socket.send_to(&[b'u'; 16], target)).is_ok()
}

/// Calls `send` with each number in its time and prints what became of it. A full queue loses a packet; the count says so.
fn pace(count: u32, rate: u32, send: impl Fn(u32) -> Result<bool>) -> Result<bool> {
    let begin = Instant::now();
    let mut failed = 0u32;
    for index in 0..count {
        if rate > 0 && index % 50 == 0 {
            let due = Duration::from_secs_f64(f64::from(index) / f64::from(rate));
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
        }
        failed += u32::from(!send(index)?);
    }
    println!("{}", json!({"sent": count - failed, "failed": failed, "seconds": begin.elapsed().as_secs_f64()}));
    Ok(true)
}
