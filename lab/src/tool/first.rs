//! A program whose first act is to send.

use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

/// How often it tries.
const EVERY: Duration = Duration::from_millis(1);
/// A connection that was held for some seconds is tried again after as long a time.
const LONGEST: Duration = Duration::from_secs(8);

/// Sends datagrams until one is answered, and connects at the same time; tells how long either took. A connection is given
/// up with the datagrams where these are never answered.
pub(super) fn main(datagrams: SocketAddr, stream: SocketAddr, limit: Duration) -> Result<bool> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot bind")?;
    socket.connect(datagrams)?;
    socket.set_read_timeout(Some(EVERY))?;
    let begin = Instant::now();
    let (answered, connected) = std::thread::scope(|scope| {
        let connecting = scope.spawn(|| {
            let patience = if limit < LONGEST { limit } else { LONGEST };
            TcpStream::connect_timeout(&stream, patience).ok().map(|_| begin.elapsed())
        });
        let mut answered = None;
        while answered.is_none() && begin.elapsed() < limit {
            let sent = Instant::now();
            // What is held may be refused to the sender: it tries again.
            let _refused = socket.send(b"first");
            if socket.recv(&mut [0; 16]).is_ok() {
                answered = Some(begin.elapsed());
            } else {
                std::thread::sleep(EVERY.saturating_sub(sent.elapsed()));
            }
        }
        (answered, connecting.join().expect("connecting does not panic"))
    });
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    println!("{}", json!({"answered_s": seconds(answered), "connected_s": seconds(connected)}));
    Ok(answered.is_some() && connected.is_some())
}
