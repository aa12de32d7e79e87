//! Servers.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::READY;
use crate::sys;

/// Several echo servers in one process, each `tcp:PORT` or `udp:PORT`; ready when all of them listen.
pub(super) fn many(words: &[&str]) -> Result<bool> {
    let mut running = Vec::new();
    for word in words {
        let (protocol, port) = word.split_once(':').with_context(|| format!("{word:?} is not PROTOCOL:PORT"))?;
        let port = super::number(port)?;
        running.push(match protocol {
            "tcp" => {
                let listener = listen(port)?;
                std::thread::spawn(move || each(&listener, echo))
            }
            "udp" => {
                let socket = bind(port)?;
                std::thread::spawn(move || answer(&socket))
            }
            _ => anyhow::bail!("{protocol:?} is neither tcp nor udp"),
        });
    }
    println!("{READY}");
    for thread in running {
        thread.join().expect("serving does not panic");
    }
    Ok(true)
}

/// Both families at once: an IPv6 socket takes IPv4 as well.
fn listen(port: u16) -> Result<TcpListener> {
    // Tests hold thousands of connections.
    let _limited = sys::allow_open_files(200_000);
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on TCP port {port}"))
}

fn each(listener: &TcpListener, serve: impl Fn(TcpStream) + Copy + Send + 'static) {
    for stream in listener.incoming().flatten() {
        // A thread that cannot start closes the connection; the client notices.
        let _started = std::thread::Builder::new().stack_size(64 << 10).spawn(move || serve(stream));
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0u8; 16 << 10];
    while let Ok(got @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..got]).is_err() {
            break;
        }
    }
}

/// Sends back what comes, one connection after the other in one thread: for measuring connections, not the starting of threads.
pub(super) fn in_turn(port: u16) -> Result<bool> {
    let listener = listen(port)?;
    println!("{READY}");
    listener.incoming().flatten().for_each(echo);
    Ok(true)
}

/// Sends back what comes, or `message` for everything that comes.
pub(super) fn tcp(port: u16, message: Option<&str>) -> Result<bool> {
    let listener = listen(port)?;
    println!("{READY}");
    let Some(message) = message else {
        each(&listener, echo);
        return Ok(true);
    };
    let message: &'static str = message.to_owned().leak();
    each(&listener, move |mut stream| {
        let mut buffer = [0u8; 16 << 10];
        while matches!(stream.read(&mut buffer), Ok(1..)) && stream.write_all(message.as_bytes()).is_ok() {}
    });
    Ok(true)
}

/// A web server that tells who it is.
pub(super) fn http(port: u16, name: &str) -> Result<bool> {
    let name: &'static str = name.to_owned().leak();
    let listener = listen(port)?;
    println!("{READY}");
    each(&listener, move |mut stream| {
        let mut buffer = [0u8; 4096];
        let Ok(got @ 1..) = stream.read(&mut buffer) else { return };
        let request = String::from_utf8_lossy(&buffer[..got]);
        let path = request.split(' ').nth(1).unwrap_or("/");
        let body = format!("{name} says hello from {path}\n");
        let answer =
            format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
        // The client may be gone.
        let _gone = stream.write_all(answer.as_bytes());
    });
    Ok(true)
}

/// Sends back every datagram.
pub(super) fn udp(port: u16) -> Result<bool> {
    let socket = bind(port)?;
    println!("{READY}");
    answer(&socket)
}

/// Sends back every datagram after `delay`, as a resolver does that has to ask others first.
pub(super) fn udp_late(port: u16, delay: Duration) -> Result<bool> {
    let socket = bind(port)?;
    let answering = socket.try_clone()?;
    let (asked, waiting) = std::sync::mpsc::channel::<(Instant, Vec<u8>, SocketAddr)>();
    std::thread::spawn(move || {
        for (due, question, from) in waiting {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            // An unreachable client is no reason to stop.
            let _unreachable = answering.send_to(&question, from);
        }
    });
    println!("{READY}");
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        let (got, from) = socket.recv_from(&mut buffer)?;
        asked.send((Instant::now() + delay, buffer[..got].to_vec(), from))?;
    }
}

fn bind(port: u16) -> Result<UdpSocket> {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on UDP port {port}"))
}

fn answer(socket: &UdpSocket) -> ! {
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        if let Ok((got, from)) = socket.recv_from(&mut buffer) {
            // An unreachable client is no reason to stop.
            let _unreachable = socket.send_to(&buffer[..got], from);
        }
    }
}
