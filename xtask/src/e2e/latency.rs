//! How long a policy takes from the API server's answer to the verdict in the kernel.

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Stage;
use super::pods::{Pod, server};
use super::scenarios::policy;

const CHANGES: u32 = 200;
const BAR: Duration = Duration::from_millis(150);
/// How long a datagram's echo may take before it counts as lost; on this machine it takes a tenth of a millisecond.
const ECHO: Duration = Duration::from_millis(20);
/// The same while the first one that passes is awaited: how finely that moment is known.
const GRAIN: Duration = Duration::from_millis(4);
/// So many lost in a row are a denial. The first of them is when it began.
const LOST: u32 = 5;

pub(super) fn a_policy_is_in_force_within_150_ms(stage: &Stage) -> Result<()> {
    stage.namespace("e2e-latency")?;
    for (name, node) in [("client", "node-1"), ("near", "node-1"), ("far", if stage.plan.nodes > 1 { "node-2" } else { "node-1" })] {
        stage.make(&server("e2e-latency", name, Some(node), &json!({"app": name})))?;
    }
    let pods = stage.ready("e2e-latency", 3)?;
    let [client, far, near] = pods.as_slice() else { bail!("three pods were made") };
    let mut took = Vec::new();
    for change in 0..CHANGES {
        let target = if change % 4 < 2 { near } else { far };
        let allow = change % 2 == 1;
        let at = stage.api.put_policy(&of(target, allow)).with_context(|| format!("change {change}"))?;
        let address = target.addresses[usize::from(change % 8 >= 4)];
        let live = client.netns().within(|| if allow { passes(address, at) } else { is_denied(address, at) });
        took.push(live.with_context(|| format!("change {change}: {}", if allow { "allow" } else { "deny" }))?);
    }
    took.sort();
    let at = |share: usize| took[(took.len() * share / 100).min(took.len() - 1)];
    let text = format!("p50 {:?}, p90 {:?}, p99 {:?}, worst {:?} of {CHANGES} changes", at(50), at(90), at(99), took[took.len() - 1]);
    eprintln!("    {text}");
    ensure!(at(99) <= BAR, "{text}; p99 may be {BAR:?}");
    stage.forget(&["e2e-latency"])
}

/// A policy of one pod that lets the client in, or nobody.
fn of(target: &Pod, allow: bool) -> Value {
    let from = if allow { json!([{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]) } else { json!([]) };
    let spec = json!({"podSelector": {"matchLabels": {"app": target.name}}, "policyTypes": ["Ingress"], "ingress": from});
    policy(&target.namespace, &target.name, &spec)
}

/// When the first of the datagrams came back. Each is a new flow.
fn passes(address: IpAddr, since: Instant) -> Result<Duration> {
    while since.elapsed() < Duration::from_secs(10) {
        let sent = Instant::now();
        if echo(address, GRAIN)? {
            return Ok(sent.saturating_duration_since(since));
        }
    }
    bail!("not within {:?}", since.elapsed())
}

/// When the first of several lost datagrams was sent.
fn is_denied(address: IpAddr, since: Instant) -> Result<Duration> {
    let mut first = None;
    let mut lost = 0;
    let deadline = Instant::now() + Duration::from_secs(10);
    while Instant::now() < deadline {
        let sent = Instant::now();
        if echo(address, ECHO)? {
            (first, lost) = (None, 0);
            std::thread::sleep(Duration::from_micros(500));
        } else {
            let began: Instant = *first.get_or_insert(sent);
            lost += 1;
            if lost == LOST {
                return Ok(began.saturating_duration_since(since));
            }
        }
    }
    bail!("not within {:?}", since.elapsed())
}

fn echo(address: IpAddr, limit: Duration) -> Result<bool> {
    let any: IpAddr = if address.is_ipv4() { [0, 0, 0, 0].into() } else { [0u16; 8].into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((address, 80))?;
    socket.set_read_timeout(Some(limit))?;
    socket.send(b"probe")?;
    Ok(socket.recv(&mut [0; 16]).is_ok())
}
