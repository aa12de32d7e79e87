//! How long an edited manifest takes to be the kernel's verdict, measured by what arrives.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::{Agent, Lab, app};

/// Rules that admit the pods `app=client` alone.
fn only(client: &str) -> Value {
    json!([{"from": [app(client)]}])
}

/// Edits a policy so many times, alternately denying and allowing an open flow of datagrams. Returns, in order of
/// size, the times from each edit to the first packet that met the new verdict.
pub fn edit_delays(edits: usize) -> Result<Vec<Duration>> {
    let lab = Lab::new("edits-speed")?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    lab.admit("shop", "server", &only("client"))?;
    let _agent = Agent::start(&lab, &[])?;
    let receiver = server.netns().within(|| UdpSocket::bind((server.v4(), 7000)).context("bind"))?;
    let sender = client.netns().within(|| UdpSocket::bind((client.v4(), 7001)).context("bind"))?;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    sender.connect((server.v4(), 7000))?;
    let begin = Instant::now();
    // The time of sending, in microseconds since `begin`, of the newest packet that arrived.
    let (newest, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let micros = |since: Instant| u64::try_from(since.duration_since(begin).as_micros()).expect("a short test");
    let mut delays = std::thread::scope(|scope| -> Result<Vec<Duration>> {
        scope.spawn(|| {
            let mut buffer = [0u8; 8];
            while !stop.load(Ordering::Relaxed) {
                if receiver.recv(&mut buffer).is_ok() {
                    newest.store(u64::from_be_bytes(buffer), Ordering::Relaxed);
                }
            }
        });
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _refused = sender.send(&micros(Instant::now()).to_be_bytes());
                std::thread::sleep(Duration::from_micros(300));
            }
        });
        let measured = edit(edits, &lab, &newest, micros);
        stop.store(true, Ordering::Relaxed);
        measured
    })?;
    delays.sort();
    Ok(delays)
}

fn edit(count: usize, lab: &Lab, newest: &AtomicU64, micros: impl Fn(Instant) -> u64) -> Result<Vec<Duration>> {
    let mut delays = Vec::new();
    for edit in 0..count {
        std::thread::sleep(Duration::from_millis(60));
        let edited = Instant::now();
        let deny = edit % 2 == 0;
        lab.admit("shop", "server", &only(if deny { "nobody" } else { "client" }))?;
        let deadline = edited + Duration::from_secs(2);
        loop {
            let arrived = newest.load(Ordering::Relaxed);
            let now = micros(Instant::now());
            // Denied: the newest packet to arrive was sent a while ago, and nothing comes after it.
            if deny && now.saturating_sub(arrived) > 30_000 && now > micros(edited) + 35_000 {
                delays.push(Duration::from_micros(arrived.saturating_sub(micros(edited))));
                break;
            }
            if !deny && arrived > micros(edited) {
                delays.push(Duration::from_micros(arrived - micros(edited)));
                break;
            }
            ensure!(Instant::now() < deadline, "edit {edit} (deny {deny}) has no effect");
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    Ok(delays)
}
