//! A port scanner, as quiet and as fast as the usual ones.

use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::spray::segment;
use crate::sys::{self, SocketAddress};

/// Tries every port; prints which are open.
pub(super) fn main(kind: &str, target: IpAddr, ports: RangeInclusive<u16>) -> Result<bool> {
    let begin = Instant::now();
    let open = match kind {
        "connect" => connect(target, ports),
        "syn" => syn(target, ports)?,
        _ => bail!("{kind:?} is neither connect nor syn"),
    };
    println!("{}", json!({"open": open, "seconds": begin.elapsed().as_secs_f64()}));
    Ok(true)
}

/// Whole connections, 64 at a time.
fn connect(target: IpAddr, ports: RangeInclusive<u16>) -> Vec<u16> {
    let ports: Vec<u16> = ports.collect();
    let mut open = Vec::new();
    for batch in ports.chunks(64) {
        std::thread::scope(|scope| {
            let tries: Vec<_> = batch
                .iter()
                .map(|&port| {
                    scope.spawn(move || {
                        TcpStream::connect_timeout(&SocketAddr::new(target, port), Duration::from_millis(300)).is_ok().then_some(port)
                    })
                })
                .collect();
            open.extend(tries.into_iter().filter_map(|thread| thread.join().expect("dialling does not panic")));
        });
    }
    open
}

/// Half-open: SYNs from a raw socket; the kernel itself resets what answers.
fn syn(target: IpAddr, ports: RangeInclusive<u16>) -> Result<Vec<u16>> {
    let probe = UdpSocket::bind(if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    probe.connect((target, 9)).context("no route")?;
    let from = SocketAddr::new(probe.local_addr()?.ip(), 44_321);
    let domain = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = sys::socket(domain, libc::SOCK_RAW, libc::IPPROTO_TCP).context("cannot open a raw socket")?;
    sys::set_timeout(&socket, 50)?;
    let address = SocketAddress::ip(target, 0);
    for port in ports {
        sys::send_to(&socket, &segment(from, SocketAddr::new(target, port), 0x02), &address).context("cannot send")?;
    }
    let deadline = Instant::now() + Duration::from_millis(500);
    let mut open = Vec::new();
    let mut buffer = [0u8; 256];
    while Instant::now() < deadline {
        let Ok(got) = sys::receive(&socket, &mut buffer) else { continue };
        let header = if target.is_ipv4() { usize::from(buffer[0] & 15) * 4 } else { 0 };
        let Some(tcp) = buffer.get(header..got.min(buffer.len())) else { continue };
        let ours = tcp.get(2..4) == Some(&from.port().to_be_bytes());
        if ours && tcp.get(13).is_some_and(|flags| flags & 0x12 == 0x12) {
            open.push(u16::from_be_bytes([tcp[0], tcp[1]]));
        }
    }
    open.sort_unstable();
    open.dedup();
    Ok(open)
}
