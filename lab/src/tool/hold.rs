//! Many connections: held open and busy, or made anew all the time.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::json;

use super::READY;
use crate::sys;

const PATIENCE: Duration = Duration::from_secs(3);

fn exchange(stream: &mut TcpStream, payload: &[u8; 64]) -> bool {
    let mut answer = [0u8; 64];
    stream.write_all(payload).is_ok() && stream.read_exact(&mut answer).is_ok() && answer == *payload
}

fn connect(target: SocketAddr) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Holds `count` connections for `time`, exchanging data on each in turn; tells how many broke.
pub(super) fn main(target: SocketAddr, count: usize, time: Duration) -> Result<bool> {
    let _limited = sys::allow_open_files(200_000);
    let mut streams = Vec::with_capacity(count);
    for number in 0..count {
        streams.push(Some(connect(target).with_context(|| format!("connection {number} of {count}"))?));
    }
    println!("{READY}");
    let deadline = Instant::now() + time;
    let (mut exchanges, mut broken, mut slowest) = (0u64, 0u64, Duration::ZERO);
    while Instant::now() < deadline {
        let round = Instant::now();
        for slot in &mut streams {
            let Some(stream) = slot else { continue };
            let begin = Instant::now();
            if exchange(stream, b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef") {
                exchanges += 1;
                slowest = slowest.max(begin.elapsed());
            } else {
                broken += 1;
                *slot = None;
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        // A round takes at least this long, so that a few connections do not spin.
        std::thread::sleep(Duration::from_millis(20).saturating_sub(round.elapsed()));
    }
    println!("{}", json!({"connections": count, "exchanges": exchanges, "broken": broken, "slowest_ms": slowest.as_secs_f64() * 1000.0}));
    Ok(broken == 0)
}

/// Makes `rate` connections a second for `time`, each with one exchange; tells how many worked.
pub(super) fn rate(target: SocketAddr, rate: u32, time: Duration) -> bool {
    let begin = Instant::now();
    let workers = (rate / 500).clamp(1, 4);
    let results: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..workers).map(|_| scope.spawn(|| dial_at_rate(target, f64::from(rate) / f64::from(workers), time))).collect();
        threads.into_iter().map(|thread| thread.join().expect("dialling does not panic")).collect()
    });
    let (worked, failed) = results.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    println!("{}", json!({"worked": worked, "failed": failed, "seconds": begin.elapsed().as_secs_f64()}));
    failed == 0
}

fn dial_at_rate(target: SocketAddr, rate: f64, time: Duration) -> (u64, u64) {
    let begin = Instant::now();
    let (mut worked, mut failed) = (0u64, 0u64);
    let mut due = Duration::ZERO;
    while begin.elapsed() < time {
        std::thread::sleep(due.saturating_sub(begin.elapsed()));
        due += Duration::from_secs_f64(1.0 / rate);
        let done = connect(target).is_ok_and(|mut stream| exchange(&mut stream, &[b'r'; 64]));
        if done { worked += 1 } else { failed += 1 }
    }
    (worked, failed)
}
