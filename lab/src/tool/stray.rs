//! Packets that claim to belong to a connection, and conversations that do not end: what a pod sends that would get round its policy.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::READY;
use super::spray::{checksum, pseudo};
use crate::sys::{self, SocketAddress};

/// `TCP_REPAIR` of `linux/tcp.h`: a socket is established without a handshake.
const TCP_REPAIR: i32 = 19;

/// TCP flags by their letters; `-` = none.
fn flags(letters: &str) -> Result<u8> {
    letters.chars().filter(|letter| *letter != '-').try_fold(0, |flags, letter| {
        let bit = "FSRPAU".find(letter).with_context(|| format!("{letter:?} is none of FSRPAU"))?;
        Ok(flags | 1 << bit)
    })
}

fn segment(from: SocketAddr, to: SocketAddr, flags: u8, payload: usize) -> Vec<u8> {
    let mut bytes = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    bytes.extend(0x1234_5678_u32.to_be_bytes());
    bytes.extend(0x2345_6789_u32.to_be_bytes());
    bytes.extend([5 << 4, flags, 4, 0, 0, 0, 0, 0]);
    bytes.resize(20 + payload, b's');
    let sum = checksum(pseudo(from.ip(), to.ip(), 6, bytes.len()), &bytes);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// Sends `count` segments with those flags and `bytes` of payload, each from another port.
pub(super) fn segments(letters: &str, from: IpAddr, to: SocketAddr, bytes: usize, count: u16) -> Result<bool> {
    let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = sys::socket(domain, libc::SOCK_RAW, libc::IPPROTO_TCP).context("cannot open a raw socket")?;
    sys::bind(&socket, &SocketAddress::ip(from, 0)).context("cannot send from that address")?;
    let (flags, address) = (flags(letters)?, SocketAddress::ip(to.ip(), 0));
    for port in 40_000..40_000 + count {
        sys::send_to(&socket, &segment(SocketAddr::new(from, port), to, flags, bytes), &address).context("cannot send")?;
    }
    Ok(true)
}

/// Makes its own kernel believe that `to` had connected to `port`, where it listens, and sends to it every tenth of a second.
pub(super) fn forge(port: u16, to: SocketAddr, time: Duration) -> Result<bool> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let domain = if to.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = sys::socket(domain, libc::SOCK_STREAM, 0)?;
    sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    sys::set_option(&socket, libc::IPPROTO_TCP, TCP_REPAIR, 1).context("cannot repair")?;
    sys::bind(&socket, &SocketAddress::ip(any, port))?;
    sys::connect(&socket, &SocketAddress::ip(to.ip(), to.port())).context("cannot connect without a handshake")?;
    sys::set_option(&socket, libc::IPPROTO_TCP, TCP_REPAIR, 0)?;
    // The end of the repair took it away.
    sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
    let _listener = TcpListener::bind(SocketAddr::new(any, port)).context("cannot listen beside it")?;
    let mut stream = TcpStream::from(socket);
    println!("{READY}");
    let begin = Instant::now();
    while begin.elapsed() < time {
        // The other side may reset what it does not know.
        let _reset = stream.write_all(&[b'f'; 800]);
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(true)
}

/// Sends datagrams from one socket, whatever comes back, and says how many did and for how long.
pub(super) fn stream(target: SocketAddr, rate: u32, time: Duration, from: u16) -> Result<bool> {
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, from)).context("cannot bind")?;
    socket.connect(target)?;
    socket.set_nonblocking(true)?;
    println!("{READY}");
    let begin = Instant::now();
    let (mut sent, mut answers, mut last) = (0u64, 0u64, Duration::ZERO);
    let mut buffer = [0u8; 64];
    while begin.elapsed() < time {
        sent += u64::from(socket.send(&[b'd'; 32]).is_ok());
        while matches!(socket.recv(&mut buffer), Ok(1..)) {
            answers += 1;
            last = begin.elapsed();
        }
        std::thread::sleep(Duration::from_secs(1) / rate.max(1));
    }
    if sent == 0 {
        bail!("nothing could be sent");
    }
    println!("{}", json!({"sent": sent, "answers": answers, "last_answer_ms": last.as_millis()}));
    Ok(true)
}
