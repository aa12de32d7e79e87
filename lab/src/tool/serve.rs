//! Servers.

use std::io::{Read, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result};

use super::READY;
use crate::sys;

/// Both families at once: an IPv6 socket takes IPv4 as well.
fn listen(port: u16) -> Result<TcpListener> {
    // Tests hold thousands of connections.
    let _limited = sys::allow_open_files(200_000);
    TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on TCP port {port}"))
}

fn each(listener: &TcpListener, serve: impl Fn(TcpStream) + Copy + Send + 'static) {
    println!("{READY}");
    for stream in listener.incoming().flatten() {
        // A thread that cannot start closes the connection; the client notices.
        let _started = std::thread::Builder::new().stack_size(64 << 10).spawn(move || serve(stream));
    }
}

/// Sends back what comes, or `message` for everything that comes.
pub(super) fn tcp(port: u16, message: Option<&str>) -> Result<bool> {
    let message: Option<&'static str> = message.map(|text| &*text.to_owned().leak());
    each(&listen(port)?, move |mut stream| {
        let mut buffer = [0u8; 16 << 10];
        while let Ok(got @ 1..) = stream.read(&mut buffer) {
            let answer = message.map_or(&buffer[..got], str::as_bytes);
            if stream.write_all(answer).is_err() {
                break;
            }
        }
    });
    Ok(true)
}

/// A web server that tells who it is.
pub(super) fn http(port: u16, name: &str) -> Result<bool> {
    let name: &'static str = name.to_owned().leak();
    each(&listen(port)?, move |mut stream| {
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
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).with_context(|| format!("cannot listen on UDP port {port}"))?;
    println!("{READY}");
    let mut buffer = vec![0u8; 64 << 10];
    loop {
        if let Ok((got, from)) = socket.recv_from(&mut buffer) {
            // An unreachable client is no reason to stop.
            let _unreachable = socket.send_to(&buffer[..got], from);
        }
    }
}
