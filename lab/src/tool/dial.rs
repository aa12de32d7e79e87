//! Single exchanges with a server.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::number;

struct Options {
    bytes: usize,
    count: u32,
    from: u16,
    timeout: Duration,
    bind: Option<IpAddr>,
    /// Whether a datagram socket is connected first.
    connect: bool,
}

/// Whether `count` exchanges of `bytes` bytes each are answered in full.
pub(super) fn main(protocol: &str, target: SocketAddr, words: &[&str]) -> Result<bool> {
    let mut options = Options { bytes: 32, count: 1, from: 0, timeout: Duration::from_secs(1), bind: None, connect: true };
    for pair in words.chunks(2) {
        match pair {
            ["--bytes", value] => options.bytes = number(value)?,
            ["--count", value] => options.count = number(value)?,
            ["--from", value] => options.from = number(value)?,
            ["--timeout", value] => options.timeout = Duration::from_millis(number(value)?),
            ["--user", value] => crate::sys::become_user(number(value)?).context("cannot become that user")?,
            ["--connect", value] => options.connect = *value != "no",
            ["--bind", value] => options.bind = Some(value.parse().context("not an address")?),
            _ => bail!("unknown option {pair:?}"),
        }
    }
    let outcome = match protocol {
        "tcp" => tcp(target, &options),
        "udp" => udp(target, &options),
        _ => bail!("{protocol:?} is neither tcp nor udp"),
    };
    if let Err(error) = &outcome {
        eprintln!("{target}: {error:#}");
    }
    Ok(outcome.is_ok())
}

fn tcp(target: SocketAddr, options: &Options) -> Result<()> {
    for _ in 0..options.count {
        let mut stream = match options.bind {
            None => TcpStream::connect_timeout(&target, options.timeout)?,
            Some(from) => crate::sys::connect_from(from, target, u32::try_from(options.timeout.as_millis())?)?,
        };
        stream.set_read_timeout(Some(options.timeout))?;
        let sent = vec![b'x'; options.bytes];
        let mut writer = stream.try_clone()?;
        // Sent aside, so that large exchanges do not wait for each other's buffers.
        let writing = std::thread::spawn(move || writer.write_all(&sent));
        let mut left = options.bytes;
        let mut buffer = vec![0u8; 64 << 10];
        while left > 0 {
            let got = stream.read(&mut buffer)?;
            if got == 0 {
                bail!("closed with {left} bytes to come");
            }
            left = left.saturating_sub(got);
        }
        writing.join().expect("writing does not panic")?;
    }
    Ok(())
}

fn udp(target: SocketAddr, options: &Options) -> Result<()> {
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, options.from)).context("cannot bind")?;
    if options.connect {
        socket.connect(target)?;
    }
    socket.set_read_timeout(Some(options.timeout))?;
    let sent = vec![b'x'; options.bytes];
    let mut buffer = vec![0u8; 64 << 10];
    for _ in 0..options.count {
        let got = if options.connect {
            socket.send(&sent)?;
            socket.recv(&mut buffer)?
        } else {
            socket.send_to(&sent, target)?;
            socket.recv_from(&mut buffer)?.0
        };
        if got != options.bytes {
            bail!("another answer came");
        }
    }
    Ok(())
}

/// Sends `count` datagrams, `rate` a second, each from a socket of its own, and does not care what becomes of them: one
/// that a control group's program drops is refused to the sender.
pub(super) fn knock(target: SocketAddr, count: u32, rate: u32) -> Result<bool> {
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    for _ in 0..count {
        let _refused = UdpSocket::bind((any, 0)).context("cannot bind")?.send_to(b"knock", target);
        std::thread::sleep(Duration::from_secs(1) / rate.max(1));
    }
    Ok(true)
}

/// Asks `count` times, `rate` a second, each time from a socket of its own that is not connected, as resolvers' clients do, and
/// tells how many answers came.
pub(super) fn ask(target: SocketAddr, count: u32, rate: u32) -> Result<bool> {
    const PATIENCE: Duration = Duration::from_secs(5);
    let any: IpAddr = if target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let mut sockets = Vec::new();
    for _ in 0..count {
        let socket = UdpSocket::bind((any, 0)).context("cannot bind")?;
        socket.send_to(b"question", target)?;
        sockets.push(socket);
        std::thread::sleep(Duration::from_secs(1) / rate.max(1));
    }
    let last = Instant::now();
    let answered = sockets.iter().filter(|socket| {
        let left = PATIENCE.saturating_sub(last.elapsed()).max(Duration::from_millis(1));
        socket.set_read_timeout(Some(left)).is_ok() && socket.recv_from(&mut [0; 16]).is_ok_and(|(_, from)| from == target)
    });
    println!("{}", json!({"asked": count, "answered": answered.count()}));
    Ok(true)
}

/// One GET request; prints the body's first line.
pub(super) fn http(target: SocketAddr, path: &str) -> bool {
    let timeout = Duration::from_secs(1);
    let ask = || -> Result<String> {
        let mut stream = TcpStream::connect_timeout(&target, timeout)?;
        stream.set_read_timeout(Some(timeout))?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n").as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
        Ok(body.lines().next().unwrap_or_default().to_owned())
    };
    match ask() {
        Ok(line) => println!("{line}"),
        Err(error) => {
            eprintln!("{target}: {error:#}");
            return false;
        }
    }
    true
}
