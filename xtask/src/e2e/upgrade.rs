//! Traffic that watches for gaps while something happens to the agents: a connection that must stay open, new
//! ones that must be allowed, and datagrams that must never arrive.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::Stage;
use super::pods::{Pod, server};
use super::probe::{Protocol, SILENCE, answered};
use super::scenarios::policy;

/// What the traffic saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// Allowed exchanges that were tried, over one connection and each over its own.
    pub(super) tried: u32,
    /// Of these, those that failed.
    pub(super) cut: u32,
    /// Datagrams that are denied, and those of them that came back.
    pub(super) denied: u32,
    pub(super) leaked: u32,
}

/// Three pods: one that may reach the server, one that may not, and the server.
pub(super) struct Crossing {
    friend: Pod,
    stranger: Pod,
    server: Pod,
}

impl Crossing {
    pub(super) fn make(stage: &Stage, namespace: &str) -> Result<Self> {
        stage.namespace(namespace)?;
        let far = if stage.plan.nodes > 1 { "node-2" } else { "node-1" };
        for (name, node) in [("friend", far), ("server", "node-1"), ("stranger", "node-1")] {
            stage.make(&server(namespace, name, Some(node), &json!({"app": name})))?;
        }
        let spec = json!({
            "podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
            "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}],
        });
        stage.api.put_policy(&policy(namespace, "server", &spec))?;
        let pods = stage.ready(namespace, 3)?;
        let [friend, server, stranger] = <[Pod; 3]>::try_from(pods).map_err(|pods| anyhow::anyhow!("three pods, not {pods:?}"))?;
        let crossing = Self { friend, stranger, server };
        let calm = crossing.watch(|| {
            std::thread::sleep(Duration::from_secs(1));
            Ok(())
        })?;
        ensure!(calm.cut == 0 && calm.leaked == 0 && calm.tried > 20 && calm.denied > 5, "before anything happens: {calm:?}");
        Ok(crossing)
    }

    /// Runs `work` under traffic.
    pub(super) fn watch(&self, work: impl FnOnce() -> Result<()>) -> Result<Seen> {
        let stop = AtomicBool::new(false);
        let address = self.server.addresses[0];
        std::thread::scope(|scope| {
            let open = scope.spawn(|| self.friend.netns().within(|| Ok(keep_open((address, 81).into(), &stop))));
            let new = scope.spawn(|| self.friend.netns().within(|| Ok(open_anew(&self.server, &stop))));
            let never = scope.spawn(|| self.stranger.netns().within(|| knock((address, 80).into(), &stop)));
            let done = work();
            stop.store(true, Ordering::Relaxed);
            let mut seen = Seen::default();
            for (tried, cut) in
                [open, new].map(|thread| thread.join().expect("traffic does not panic")).into_iter().collect::<Result<Vec<_>>>()?
            {
                seen.tried += tried;
                seen.cut += cut;
            }
            (seen.denied, seen.leaked) = never.join().expect("traffic does not panic")?;
            done.map(|()| seen)
        })
    }
}

impl Seen {
    /// Fails unless nothing was cut and nothing came through.
    pub(super) fn no_gap(&self) -> Result<()> {
        eprintln!("    {} allowed exchanges, {} cut; {} denied datagrams, {} came through", self.tried, self.cut, self.denied, self.leaked);
        if self.cut > 0 || self.leaked > 0 {
            bail!("there was a gap: {self:?}");
        }
        Ok(())
    }
}

/// Exchanges over one connection, every ten milliseconds.
fn keep_open(target: SocketAddr, stop: &AtomicBool) -> (u32, u32) {
    let mut tried = 0;
    let exchange = |stream: &mut TcpStream| -> std::io::Result<()> {
        stream.write_all(b"still")?;
        stream.read_exact(&mut [0; 5])
    };
    let Ok(mut stream) = TcpStream::connect_timeout(&target, Duration::from_secs(3)) else { return (1, 1) };
    // Longer than a few retransmissions, shorter than giving up.
    let _set = stream.set_read_timeout(Some(Duration::from_secs(5)));
    while !stop.load(Ordering::Relaxed) {
        tried += 1;
        if exchange(&mut stream).is_err() {
            return (tried, 1);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    (tried, 0)
}

/// A connection every twenty milliseconds, over both families in turn.
fn open_anew(server: &Pod, stop: &AtomicBool) -> (u32, u32) {
    let (mut tried, mut cut) = (0u32, 0);
    while !stop.load(Ordering::Relaxed) {
        let address = server.addresses[(tried % 2) as usize];
        tried += 1;
        cut += u32::from(!answered(Protocol::Tcp, address, 80, Duration::from_secs(3)));
        std::thread::sleep(Duration::from_millis(20));
    }
    (tried, cut)
}

/// A datagram from a new port every two milliseconds; all answers are collected, however late they come.
fn knock(target: SocketAddr, stop: &AtomicBool) -> Result<(u32, u32)> {
    let mut sockets: Vec<UdpSocket> = Vec::new();
    let (mut sent, mut back) = (0, 0);
    let mut collect = |sockets: &mut Vec<UdpSocket>| {
        back += sockets.iter().map(|socket| u32::from(socket.recv(&mut [0; 16]).is_ok())).sum::<u32>();
        sockets.clear();
        back
    };
    while !stop.load(Ordering::Relaxed) {
        let socket = UdpSocket::bind("0.0.0.0:0").context("cannot bind")?;
        socket.connect(target)?;
        socket.set_nonblocking(true)?;
        // A refusal would come as an error of the next call; there is none.
        let _sent = socket.send(b"knock");
        sent += 1;
        sockets.push(socket);
        if sockets.len() >= 200 {
            collect(&mut sockets);
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    std::thread::sleep(SILENCE);
    let back = collect(&mut sockets);
    Ok((sent, back))
}

pub(super) fn a_rolling_update_leaks_and_cuts_nothing(stage: &Stage) -> Result<()> {
    let crossing = Crossing::make(stage, "e2e-upgrade")?;
    let before = stage.agents()?;
    let seen = crossing.watch(|| {
        let begin = Instant::now();
        stage.replace_agents()?;
        eprintln!("    all agents replaced in {:.1} s", begin.elapsed().as_secs_f64());
        Ok(())
    })?;
    let after = stage.agents()?;
    ensure!(before.iter().all(|agent| !after.contains(agent)), "not every agent was replaced: {before:?}, {after:?}");
    seen.no_gap()?;
    stage.covered(Duration::from_secs(20))?;
    stage.forget(&["e2e-upgrade"])
}
