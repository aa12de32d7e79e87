//! ICMP echo.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::sys::{self, SocketAddress};

/// Sends `count` echo requests; whether each was answered within a second.
pub(super) fn main(target: IpAddr, count: u16) -> Result<bool> {
    let (domain, protocol, request, reply) = match target {
        IpAddr::V4(_) => (libc::AF_INET, libc::IPPROTO_ICMP, 8u8, 0u8),
        IpAddr::V6(_) => (libc::AF_INET6, libc::IPPROTO_ICMPV6, 128, 129),
    };
    let socket = sys::socket(domain, libc::SOCK_RAW, protocol).context("cannot open a raw socket")?;
    sys::set_timeout(&socket, 100)?;
    let id = u16::try_from(std::process::id() & 0xffff).expect("masked").to_be_bytes();
    let address = SocketAddress::ip(target, 0);
    for sequence in 0..count {
        let number = sequence.to_be_bytes();
        let mut packet = [0u8; 64];
        packet[0] = request;
        packet[4..8].copy_from_slice(&[id[0], id[1], number[0], number[1]]);
        if target.is_ipv4() {
            // The kernel fills in ICMPv6's checksum, not ICMP's.
            let sum = super::spray::checksum(0, &packet).to_be_bytes();
            packet[2..4].copy_from_slice(&sum);
        }
        if sys::send_to(&socket, &packet, &address).is_err()
            || !answered(&socket, reply, [id[0], id[1], number[0], number[1]], target.is_ipv4())
        {
            return Ok(false);
        }
    }
    Ok(true)
}

fn answered(socket: &std::os::fd::OwnedFd, reply: u8, id: [u8; 4], has_ip_header: bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(1);
    let mut buffer = [0u8; 256];
    while Instant::now() < deadline {
        let Ok(got) = sys::receive(socket, &mut buffer) else { continue };
        let header = if has_ip_header { usize::from(buffer[0] & 15) * 4 } else { 0 };
        let icmp = &buffer[header.min(got)..got.min(buffer.len())];
        if icmp.first() == Some(&reply) && icmp.get(4..8) == Some(&id) {
            return true;
        }
    }
    false
}
