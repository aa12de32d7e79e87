//! Request and response, one after the other: what a single client feels.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use serde_json::json;

use crate::sys;

/// Repeats exchanges of one byte for `time`; prints how long they took, in microseconds.
pub(super) fn main(kind: &str, target: SocketAddr, time: Duration) -> Result<bool> {
    let mut taken = match kind {
        "tcp" => {
            let mut stream = TcpStream::connect(target)?;
            stream.set_nodelay(true)?;
            repeat(time, || exchange(&mut stream))?
        }
        // Ports that wait for their end would run out within two seconds, and looking for a free one be what is measured.
        "crr" => repeat(time, || {
            let mut stream = TcpStream::connect(target)?;
            sys::reset_on_close(&stream)?;
            exchange(&mut stream)
        })?,
        "udp" => {
            let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            let socket = UdpSocket::bind((any, 0))?;
            socket.connect(target)?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            repeat(time, || {
                socket.send(b"x")?;
                socket.recv(&mut [0u8; 8]).map(drop)
            })?
        }
        _ => bail!("{kind:?} is none of tcp, crr, udp"),
    };
    taken.sort_unstable();
    let at = |share: usize| taken[(taken.len() - 1) * share / 100].as_secs_f64() * 1e6;
    println!("{}", json!({"count": taken.len(), "p50_us": at(50), "p99_us": at(99)}));
    Ok(true)
}

fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0u8; 1])
}

fn repeat(time: Duration, mut once: impl FnMut() -> std::io::Result<()>) -> Result<Vec<Duration>> {
    let begin = Instant::now();
    let mut taken = Vec::new();
    while begin.elapsed() < time || taken.is_empty() {
        let start = Instant::now();
        once()?;
        taken.push(start.elapsed());
    }
    Ok(taken)
}
