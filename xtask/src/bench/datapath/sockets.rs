//! What the programs of sockets add to a system call: calls with and without them, by turns, in a control group of
//! this process.

use std::net::UdpSocket;
use std::time::Instant;

use anyhow::{Context, Result};
use sekisho_lab::programs::{Group, Programs};

use super::rounds::Samples;

const CALLS: u32 = 1_000;
const TURNS: usize = 41;

/// Nanoseconds that `program` adds to a call.
pub(super) fn added(programs: &mut Programs, group: &Group, program: &str, mut call: impl FnMut() -> Result<()>) -> Result<f64> {
    let directory = group.open()?;
    let mut samples = Samples::default();
    for _ in 0..TURNS {
        let without = mean(&mut call)?;
        samples.add(programs.attached(program, &directory, || mean(&mut call))?, without);
    }
    samples.over()
}

/// Nanoseconds of a call.
fn mean(call: &mut impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..CALLS {
        call()?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS))
}

/// Connects the same socket over and over: all but the first find it known.
pub(super) fn connect() -> Result<impl FnMut() -> Result<()>> {
    let peer = UdpSocket::bind("127.0.0.1:0").context("binding a socket")?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    Ok(move || Ok(socket.connect(peer.local_addr()?)?))
}

/// Connects a new socket each time.
pub(super) fn connect_anew() -> Result<impl FnMut() -> Result<()>> {
    let peer = UdpSocket::bind("127.0.0.1:0").context("binding a socket")?;
    Ok(move || Ok(UdpSocket::bind("127.0.0.1:0")?.connect(peer.local_addr()?)?))
}

/// Sends datagrams from one socket that is not connected.
pub(super) fn send() -> Result<impl FnMut() -> Result<()>> {
    let peer = UdpSocket::bind("127.0.0.1:0").context("binding a socket")?;
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let mut taken = [0; 8];
    Ok(move || {
        socket.send_to(&[0], peer.local_addr()?)?;
        peer.recv(&mut taken)?;
        Ok(())
    })
}
