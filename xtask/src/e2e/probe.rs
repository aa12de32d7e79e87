//! Attempts of connections from inside a network namespace. A drop is silence, so every attempt has a limit: a
//! short one where nothing is expected, a long one where an answer must come.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result};
use sekisho_lab::Netns;

/// How long silence must last to be a drop.
pub(super) const SILENCE: Duration = Duration::from_millis(400);
/// How long an answer may take on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(4);

/// The protocols that probes speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// As policies name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// Whether one exchange is answered within `limit`, from the calling thread's namespace.
pub(super) fn answered(protocol: Protocol, address: IpAddr, port: u16, limit: Duration) -> bool {
    let target = SocketAddr::new(address, port);
    match protocol {
        Protocol::Tcp => tcp(target, limit).is_ok(),
        Protocol::Udp => udp(target, limit).is_ok(),
    }
}

/// The same from another namespace.
pub(super) fn answered_from(netns: &Netns, protocol: Protocol, address: IpAddr, port: u16, limit: Duration) -> Result<bool> {
    netns.within(|| Ok(answered(protocol, address, port, limit)))
}

fn tcp(target: SocketAddr, limit: Duration) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"probe")?;
    stream.read_exact(&mut [0; 5])
}

fn udp(target: SocketAddr, limit: Duration) -> std::io::Result<()> {
    let any: IpAddr = if target.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(target)?;
    socket.set_read_timeout(Some(limit))?;
    socket.send(b"probe")?;
    socket.recv(&mut [0; 16]).map(drop)
}

/// What a plain HTTP server answers to GET, from the calling thread's namespace: its status line and body.
pub(super) fn get(address: IpAddr, port: u16, path: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(address, port), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    Ok((head.lines().next().unwrap_or_default().to_owned(), body.to_owned()))
}
