//! What belongs to no connection that policy allows: raw segments, connections and conversations that are older than the agent,
//! were cut, or whose state was lost. Needs root.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::maps::{HashMap, Map, MapData};
use sekisho_lab::{Agent, Count, Flow, Heading, Lab, Layout, Pod, PodSpec, Sniffer, app};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(8);

/// Pods with the label `app=name` send what one of the rules says, and nothing else.
fn confine(lab: &Lab, name: &str, egress: &Value) -> Result<()> {
    let mut spec = app(name);
    spec["policyTypes"] = json!(["Egress"]);
    spec["egress"] = egress.clone();
    lab.policy("shop", &format!("{name}-egress"), &spec)
}

/// What of TCP and UDP `from` sent to `to` and arrived there: addresses are still resolved.
fn arrived(sniffer: Sniffer, from: IpAddr, to: IpAddr) -> Result<Count> {
    let ported = |flow: &Flow| matches!(flow.protocol, 6 | 17);
    sniffer.total(|flow| flow.heading == Heading::In && ported(flow) && flow.source.0 == from && flow.destination.0 == to)
}

/// Takes every flow out of the kernel's tables, as eviction, expiry and the loss of a table do.
fn forget(directory: &Path) -> Result<usize> {
    let mut forgotten = 0;
    for entry in std::fs::read_dir(directory)?.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() {
            forgotten += forget(&path)?;
        } else if ["EMBRYONIC", "ESTABLISHED", "ANSWERED"].iter().any(|table| name.starts_with(table)) {
            let data = MapData::from_pin(&path)?;
            let map = if name.starts_with("ESTABLISHED") { Map::HashMap(data) } else { Map::LruHashMap(data) };
            forgotten += if name.ends_with('4') { clear::<[u8; 16]>(map)? } else { clear::<[u8; 28]>(map)? };
        }
    }
    Ok(forgotten)
}

fn clear<K: aya::Pod>(map: Map) -> Result<usize> {
    let mut map: HashMap<_, K, [u8; size_of::<sekisho_core::layout::Flow>()]> = HashMap::try_from(map)?;
    let keys: Vec<K> = map.keys().flatten().collect();
    // Some are gone by then.
    Ok(keys.iter().filter(|key| map.remove(key).is_ok()).count())
}

fn segments(from: &Pod, flags: &str, source: IpAddr, target: SocketAddr) -> Result<()> {
    let sent = from.tool(&["segments", flags, &source.to_string(), &target.to_string(), "800", "5"])?;
    ensure!(sent.success(), "{sent:?}");
    Ok(())
}

/// Segments that open nothing and belong to nothing: out of a pod that may not send, into one that admits nobody.
fn nothing_strays(name: &str, layout: Layout, backend: &str) -> Result<()> {
    let lab = Lab::new(name)?;
    let pod = |name: &str| lab.pod(PodSpec::new("shop", name).layout(layout));
    let (jailed, walled, stranger, friend) = (pod("jailed")?, pod("walled")?, pod("stranger")?, pod("friend")?);
    confine(&lab, "jailed", &json!([]))?;
    lab.admit("shop", "walled", &json!([{"from": [app("friend")], "ports": [{"port": 80}]}]))?;
    let _serving = [walled.serve("tcp", 80)?, stranger.serve("tcp", 80)?];
    let agent = Agent::start(&lab, &["--tc-backend", backend])?;
    for v6 in [false, true] {
        let outside = if v6 { lab.outside_v6() } else { lab.outside_v4() };
        let (own, other, wall) = (jailed.address(v6), stranger.address(v6), walled.address(v6));
        for flags in ["A", "PA", "SA", "R", "RA", "FA", "F", "-"] {
            let (near, far) = (Sniffer::start(stranger.netns(), "eth0")?, Sniffer::start(lab.outside().netns(), "eth0")?);
            let inside = Sniffer::start(walled.netns(), "eth0")?;
            segments(&jailed, flags, own, SocketAddr::new(other, 80))?;
            segments(&jailed, flags, own, SocketAddr::new(other, 81))?;
            segments(&jailed, flags, own, SocketAddr::new(outside, 80))?;
            segments(&stranger, flags, other, SocketAddr::new(wall, 80))?;
            segments(&stranger, flags, other, SocketAddr::new(wall, 81))?;
            let near = near.stop()?;
            let from = |address| move |flow: &Flow| flow.protocol == 6 && flow.heading == Heading::In && flow.source.0 == address;
            let (out, back) = (sekisho_lab::sum(&near, from(own)), sekisho_lab::sum(&near, from(wall)));
            let (far, into) = (far.total(from(own))?, inside.total(from(other))?);
            ensure!(out.packets == 0 && far.packets == 0, "{flags}, v6 {v6}: out of the jail came {out:?} and {far:?}");
            ensure!(into.packets == 0 && back.packets == 0, "{flags}, v6 {v6}: {into:?} came in, {back:?} back");
        }
        ensure!(friend.reaches("tcp", wall, 80)?, "what is allowed works, v6 {v6}");
    }
    let denied = agent.records()?.into_iter().filter(|record| record["reason"] == "no_connection").count();
    ensure!(denied > 0, "what is dropped is on record");
    let scans: Vec<Value> =
        agent.alerts()?.into_iter().filter(|alert| alert["rule"].as_str().is_some_and(|rule| rule.starts_with("scan"))).collect();
    ensure!(scans.is_empty(), "no evidence of a scan: {scans:#?}");
    Ok(())
}

#[test]
fn segments_that_belong_to_nothing_pass_nowhere() -> Result<()> {
    nothing_strays("stray-segments", Layout::Bridge, "auto")
}

#[test]
fn segments_that_belong_to_nothing_pass_nowhere_by_clsact_and_routes() -> Result<()> {
    nothing_strays("stray-routed", Layout::PointToPoint, "clsact")
}

/// A pod that can make its own kernel believe in a connection gains nothing by it.
#[test]
fn a_forged_connection_opens_nothing() -> Result<()> {
    let lab = Lab::new("stray-forged")?;
    let [jailed, stranger] = lab.pods("shop", ["jailed", "stranger"])?;
    confine(&lab, "jailed", &json!([]))?;
    let _agent = Agent::start(&lab, &["--adoption-window", "1s"])?;
    std::thread::sleep(Duration::from_secs(3));
    for v6 in [false, true] {
        let (own, other) = (jailed.address(v6), stranger.address(v6));
        let sniffer = Sniffer::start(stranger.netns(), "eth0")?;
        let target = SocketAddr::new(other, 9000).to_string();
        let forging = jailed.start(&["forge", "7000", &target, "2"])?.finish(SOON)?;
        ensure!(forging.success(), "{forging:?}");
        let out = arrived(sniffer, own, other)?;
        ensure!(out.packets == 0, "v6 {v6}: {out:?}");
    }
    Ok(())
}

/// Connections that are older than the agent, or whose flows were lost: whoever opened them must be allowed to.
#[test]
fn older_connections_are_judged_as_their_openers() -> Result<()> {
    let lab = Lab::new("stray-older")?;
    let [server, friend, stranger, jailed] = lab.pods("shop", ["server", "friend", "stranger", "jailed"])?;
    // The server may answer and never open; the jailed one may open nothing.
    lab.admit("shop", "server", &json!([{"from": [app("friend"), app("jailed")], "ports": [{"port": 80}]}]))?;
    confine(&lab, "server", &json!([]))?;
    confine(&lab, "jailed", &json!([]))?;
    let _serving = server.serve("tcp", 80)?;
    let hold = |pod: &Pod, v6| pod.start(&["hold", &SocketAddr::new(server.address(v6), 80).to_string(), "4", "14"]);
    let mut held = Vec::new();
    for v6 in [false, true] {
        held.push((hold(&friend, v6)?, true));
        held.push((hold(&stranger, v6)?, false));
        held.push((hold(&jailed, v6)?, false));
    }
    let mut agent = Agent::start(&lab, &[])?;
    let of = |name: &'static str| move |record: &Value| record["adopted"] == true && record["source"]["pod"]["name"] == name;
    for direction in ["egress", "ingress"] {
        let friendly = of("friend");
        let record = agent.record(direction, SOON, |record| record["direction"] == direction && friendly(record))?;
        ensure!(record["verdict"] == "allowed" && record["destination"]["port"] == 80, "{record:#}");
    }
    let denied = agent.record("the stranger's", SOON, |record| record["direction"] == "ingress" && of("stranger")(record))?;
    ensure!(denied["verdict"] == "denied" && denied["reason"] == "default_deny", "{denied:#}");
    for round in 0..4 {
        forget(agent.pin_dir())?;
        std::thread::sleep(Duration::from_millis(500));
        if round == 1 {
            agent.kill()?;
            agent = Agent::start(&lab, &[])?;
        }
    }
    for (running, allowed) in held {
        let result = running.finish(Duration::from_secs(60))?.json()?;
        ensure!((result["broken"] == 0) == allowed && (allowed || result["broken"] == 4), "allowed {allowed}: {result}");
    }
    Ok(())
}

/// A connection that a change of policy cut stays cut when its denied flow is forgotten: its retransmission opens nothing.
#[test]
fn a_connection_that_was_cut_stays_cut() -> Result<()> {
    let lab = Lab::new("stray-cut")?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    lab.admit("shop", "server", &json!([{"from": [app("client")]}]))?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    for v6 in [false, true] {
        lab.admit("shop", "server", &json!([{"from": [app("client")]}]))?;
        agent.until_status("allowed", SOON, |status| status["policy"]["policies"] == 1)?;
        std::thread::sleep(Duration::from_millis(500));
        let held = client.start(&["hold", &SocketAddr::new(server.address(v6), 80).to_string(), "3", "9"])?;
        std::thread::sleep(Duration::from_millis(500));
        lab.admit("shop", "server", &json!([]))?;
        let cut = |record: &Value| record["end_reason"] == "verdict_changed" && record["direction"] == "ingress";
        agent.record("the cut", SOON, cut)?;
        std::thread::sleep(Duration::from_millis(300));
        // Both ends try again, again and again.
        let (to, back) = (Sniffer::start(server.netns(), "eth0")?, Sniffer::start(client.netns(), "eth0")?);
        for _ in 0..20 {
            forget(agent.pin_dir())?;
            std::thread::sleep(Duration::from_millis(250));
        }
        let (own, other) = (client.address(v6), server.address(v6));
        let (to, back) = (arrived(to, own, other)?, arrived(back, other, own)?);
        ensure!(to.packets == 0 && back.packets == 0, "v6 {v6}: {to:?} and {back:?} passed");
        ensure!(held.finish(Duration::from_secs(30))?.json()?["broken"] == 3);
    }
    Ok(())
}

/// A denied conversation in datagrams that began before the agent, or before its state was lost, does not turn round.
#[test]
fn a_denied_conversation_does_not_go_on() -> Result<()> {
    let lab = Lab::new("stray-talk")?;
    let [server, friend, stranger] = lab.pods("shop", ["server", "friend", "stranger"])?;
    lab.admit("shop", "server", &json!([{"from": [app("friend")], "ports": [{"port": 5000, "protocol": "UDP"}]}]))?;
    let _serving = server.serve("udp", 5000)?;
    let stream =
        |pod: &Pod, v6, from: &str| pod.start(&["stream", &SocketAddr::new(server.address(v6), 5000).to_string(), "500", "12", from]);
    let mut allowed = Vec::new();
    let mut denied = Vec::new();
    for v6 in [false, true] {
        // A port of the kernel's choice, and one that looks like a server's. An IPv6 socket takes its port for IPv4 as well.
        for from in ["0", if v6 { "4001" } else { "4000" }] {
            denied.push(stream(&stranger, v6, from)?);
            allowed.push(stream(&friend, v6, from)?);
        }
    }
    let mut agent = Agent::start(&lab, &[])?;
    for round in 0..4 {
        std::thread::sleep(Duration::from_millis(300));
        for v6 in [false, true] {
            let sniffer = Sniffer::start(server.netns(), "eth0")?;
            std::thread::sleep(Duration::from_millis(300));
            let into = arrived(sniffer, stranger.address(v6), server.address(v6))?;
            ensure!(into.packets == 0, "round {round}, v6 {v6}: {into:?}");
        }
        match round {
            0 => drop(forget(agent.pin_dir())?),
            1 => {
                agent.kill()?;
                agent = Agent::start(&lab, &[])?;
            }
            2 => {
                // All is lost, and traffic passes until the next agent comes.
                agent.kill()?;
                ensure!(lab.sekisho(&["detach", "--pin-dir", &lab.pin_dir().display().to_string()])?.success());
                std::thread::sleep(Duration::from_millis(300));
                agent = Agent::start(&lab, &[])?;
            }
            _ => {}
        }
    }
    for running in allowed {
        let result = running.finish(Duration::from_secs(30))?.json()?;
        ensure!(result["last_answer_ms"].as_u64().is_some_and(|last| last > 11_000), "an allowed one goes on: {result}");
    }
    Ok(())
}

/// The answer that is on its way when policy cuts a conversation does not make the server its opener.
#[test]
fn a_conversation_that_was_cut_stays_cut() -> Result<()> {
    let lab = Lab::new("stray-silenced")?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    let _serving = server.serve("udp", 5000)?;
    lab.admit("shop", "server", &json!([{"from": [app("client")]}]))?;
    let agent = Agent::start(&lab, &[])?;
    for round in 0..4 {
        lab.admit("shop", "server", &json!([{"from": [app("client")]}]))?;
        std::thread::sleep(Duration::from_secs(1));
        let streams = ["0", "4000", "4001", "4002"].map(|from| {
            let v6 = round % 2 == 1;
            client.start(&["stream", &SocketAddr::new(server.address(v6), 5000).to_string(), "2000", "5", from])
        });
        std::thread::sleep(Duration::from_millis(500));
        lab.admit("shop", "server", &json!([]))?;
        std::thread::sleep(Duration::from_secs(2));
        let sniffer = Sniffer::start(server.netns(), "eth0")?;
        std::thread::sleep(Duration::from_millis(500));
        let into = sniffer.total(|flow| flow.heading == Heading::In && flow.destination.1 == 5000)?;
        ensure!(into.packets == 0, "round {round}: {into:?}");
        for running in streams {
            running?.finish(Duration::from_secs(20))?;
        }
    }
    ensure!(agent.status()?["ready"] == true);
    Ok(())
}

/// The node's connection to a pod that admits nobody goes on, whoever speaks first after its flow was lost.
#[test]
fn the_nodes_own_connections_go_on() -> Result<()> {
    let lab = Lab::new("stray-node")?;
    let server = lab.pod(PodSpec::new("shop", "server"))?;
    lab.policy("shop", "all", &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))?;
    let _serving = server.serve("tcp", 80)?;
    let held = [false, true].map(|v6| lab.node().start(&["hold", &SocketAddr::new(server.address(v6), 80).to_string(), "30", "8"]));
    let agent = Agent::start(&lab, &[])?;
    for _ in 0..30 {
        forget(agent.pin_dir())?;
        std::thread::sleep(Duration::from_millis(50));
    }
    for running in held {
        let result = running?.finish(Duration::from_secs(30))?.json()?;
        ensure!(result["broken"] == 0 && result["exchanges"].as_u64().context("a number")? > 1000, "{result}");
    }
    Ok(())
}
