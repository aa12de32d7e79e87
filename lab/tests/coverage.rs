//! The agent proves its own coverage: what hides packets from it, or takes its programs away, is noticed
//! within seconds, said, and where possible mended. Needs root and TCX (Linux 6.6).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sekisho_lab::raw::{self, Raw};
use sekisho_lab::{Agent, Heading, Lab, Layout, Place, Pod, PodSpec, ShortCut, Sniffer, app, counts_are_the_wires, newcomer, tool, until};
use serde_json::{Value, json};

const SYN: u8 = 2;
const ACK: u8 = 16;

fn endpoint<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["endpoints"].as_array()?.iter().find(|endpoint| endpoint["pod"]["name"] == name)
}

/// The lab's short cut is one: without an agent it carries connections past the veth.
#[test]
fn a_short_cut_hides_packets() -> Result<()> {
    let lab = Lab::new("coverage-lab")?;
    let server = lab.pod(PodSpec::new("shop", "server"))?;
    let _serving = server.serve("tcp", 80)?;
    let interface = server.interface().expect("it has a veth").to_owned();
    let _short_cut = ShortCut::into_pod(&lab, &server)?;
    let sniffer = sekisho_lab::Sniffer::start(lab.node().netns(), &interface)?;
    ensure!(lab.outside().reaches("tcp", server.v4(), 80)?, "the short cut leads into the pod");
    let counts = sniffer.stop()?;
    let to = sekisho_lab::sum(&counts, |flow| flow.destination.0 == server.v4() && flow.protocol == 6);
    let from = sekisho_lab::sum(&counts, |flow| flow.source.0 == server.v4() && flow.protocol == 6);
    ensure!(to.packets == 0 && from.packets > 0, "only replies are seen: {to:?} and {from:?}");
    Ok(())
}

#[test]
fn blindness_is_detected_and_said() -> Result<()> {
    let lab = Lab::new("coverage-blind")?;
    let server = lab.pod(PodSpec::new("shop", "server"))?;
    let _serving = server.serve("tcp", 80)?;
    lab.admit("shop", "server", &json!([{"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}], "ports": [{"port": 80}]}]))?;
    let agent = Agent::start(&lab, &[])?;
    let _short_cut = ShortCut::into_pod(&lab, &server)?;
    // Most of these pass before the control group is watched as well: their records go on under the same number.
    let target = format!("{}:80", server.v4());
    let held = lab.outside().start(&["hold", &target, "20", "8"])?;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(1) {
        ensure!(lab.outside().reaches("tcp", server.v4(), 80)?, "allowed");
    }
    agent.until_status("it is watched at its control group as well", Duration::from_secs(6), |status| {
        endpoint(status, "server").is_some_and(|endpoint| endpoint["attach"] == "tcx+cgroup" && endpoint["coverage"] == "full")
    })?;
    let status = agent.status()?;
    let shown = endpoint(&status, "server").context("it is listed")?["message"].as_str().unwrap_or_default().to_owned();
    ensure!(shown.contains("SYN-ACKs without a SYN") && shown.contains(&lab.outside_v4().to_string()), "{shown}");
    let record = agent.record("a coverage record", Duration::from_secs(5), |record| record["kind"] == "coverage")?;
    ensure!(record.to_string().contains("server") && record.to_string().contains("tcx+cgroup"), "{record:#}");
    ensure!(held.finish(Duration::from_secs(30))?.json()?["broken"] == 0, "nothing breaks");
    // Judged where the packets are: the port that is allowed answers, the one that is not is silent.
    let _closed = [server.serve("tcp", 81)?, server.serve("udp", 82)?];
    ensure!(lab.outside().reaches("tcp", server.v4(), 80)?, "allowed at the control group");
    ensure!(!lab.outside().reaches("tcp", server.v4(), 81)?, "denied at the control group");
    ensure!(!lab.outside().reaches("udp", server.v4(), 82)?, "denied at the control group");
    counted_once(&lab, &agent, &server)?;
    // A kubelet's probe: the node's own process, from any of its addresses.
    for (from, to) in
        [(lab.node_v4(), server.v4()), (lab.bridge_v4(), server.v4()), (lab.node_v6(), server.v6()), (lab.bridge_v6(), server.v6())]
    {
        let target = std::net::SocketAddr::new(to, 81).to_string();
        ensure!(lab.node().tool(&["dial", "tcp", &target, "--bind", &from.to_string()])?.success(), "the node's own process, from {from}");
    }
    let probe = agent.record("the probe", Duration::from_secs(5), |record| {
        record["direction"] == "ingress" && record["destination"]["port"] == 81 && record["source"]["ip"] == lab.bridge_v4().to_string()
    })?;
    ensure!(probe["verdict"] == "allowed", "{probe:#}");
    Ok(())
}

/// A pod that may open nothing serves through the short cut once it is watched at its control group: what it answers is known there. What it
/// sends to itself in others' names, over loopback, lets it answer nobody.
#[test]
fn an_isolated_pod_serves_through_a_short_cut() -> Result<()> {
    let lab = Lab::new("coverage-isolated")?;
    let server = lab.pod(PodSpec::new("shop", "server"))?;
    let _serving = [server.serve("tcp", 80)?, server.serve("tcp", 81)?, server.serve("udp", 80)?];
    let from = json!([{"ipBlock": {"cidr": "192.0.2.0/24"}}]);
    let ports = json!([{"port": 80}, {"port": 80, "protocol": "UDP"}]);
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "server"}},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": from, "ports": ports}],
    });
    lab.policy("shop", "server", &spec)?;
    let agent = Agent::start(&lab, &["--mode", "enforce", "--adoption-window", "1s"])?;
    let _short_cut = ShortCut::into_pod(&lab, &server)?;
    let begin = Instant::now();
    agent.until_status("it is watched at its control group as well", Duration::from_secs(10), |status| {
        let _answered = lab.outside().reaches("tcp", server.v4(), 80);
        endpoint(status, "server").is_some_and(|endpoint| endpoint["attach"] == "tcx+cgroup" && endpoint["coverage"] == "full")
    })?;
    println!("watched at both after {:?}", begin.elapsed());
    for _ in 0..5 {
        ensure!(lab.outside().reaches("tcp", server.v4(), 80)?, "allowed");
        ensure!(lab.outside().reaches("udp", server.v4(), 80)?, "allowed");
        ensure!(!lab.outside().reaches("tcp", server.v4(), 81)?, "denied");
    }
    let held = lab.outside().start(&["hold", &SocketAddr::new(server.v4(), 80).to_string(), "10", "3"])?;
    ensure!(held.finish(Duration::from_secs(20))?.json()?["broken"] == 0, "nothing breaks");
    ensure!(!server.reaches("tcp", lab.outside_v4(), 80)?, "it may open nothing");
    // The outsider is silent now, and the pod speaks for it.
    let [within, wire] = [Sniffer::start(server.netns(), "lo")?, Sniffer::start(lab.outside().netns(), "eth0")?];
    let forged = 6000..6020_u16;
    let loopback = Raw::open(server.netns(), "lo")?;
    for port in forged.clone() {
        let (stranger, own) = (SocketAddr::new(lab.outside_v4(), port), SocketAddr::new(server.v4(), 80));
        loopback.send(&raw::tcp([[0; 6]; 2], stranger, own, raw::Tcp { flags: SYN, data: &[] }))?;
        loopback.send(&raw::udp([[0; 6]; 2], stranger, own, b"question"))?;
    }
    std::thread::sleep(Duration::from_secs(1));
    let forgeries = sekisho_lab::sum(&within.stop()?, |flow| forged.contains(&flow.source.1));
    ensure!(forgeries.packets > 0, "it spoke for the other");
    let passed = wire.total(|flow| flow.heading == Heading::In && forged.contains(&flow.destination.1))?;
    ensure!(passed.packets == 0, "{passed:?} passed");
    Ok(())
}

/// Connections through the short cut, which one hook sees in each direction, and over the veth, where two hooks see what comes in:
/// each has one record, with the packets of the wire.
fn counted_once(lab: &Lab, agent: &Agent, server: &Pod) -> Result<()> {
    const CONNECTIONS: usize = 10;
    let near = lab.pod(PodSpec::new("shop", "near"))?;
    lab.admit("shop", "server", &json!([{"from": [{"ipBlock": {"cidr": "192.0.2.0/24"}}, app("near")], "ports": [{"port": 80}]}]))?;
    until(Duration::from_secs(10), "the other pod is admitted", || near.reaches("tcp", server.v4(), 80))?;
    let outside: &Place = lab.outside();
    for (from, client, v6) in [(lab.outside_v4(), outside, false), (near.v4(), &near, false), (near.v6(), &near, true)] {
        let wire = Sniffer::start(client.netns(), "eth0")?;
        let server = (server.address(v6), 80);
        let held = client.start(&["hold", &SocketAddr::from(server).to_string(), &CONNECTIONS.to_string(), "2"])?;
        ensure!(held.finish(Duration::from_secs(20))?.json()?["broken"] == 0, "nothing breaks");
        let wire = wire.stop()?;
        let of_these = |end: &Value| wire.keys().any(|flow| end["source"]["port"] == flow.source.1 && flow.destination == server);
        let mut ends = Vec::new();
        until(Duration::from_secs(10), "every connection's end is recorded", || {
            ends = agent.records_of(&["--kind", "end"])?;
            ends.retain(|end| end["direction"] == "ingress" && end["source"]["ip"] == from.to_string() && of_these(end));
            Ok(ends.len() >= CONNECTIONS)
        })?;
        ensure!(ends.len() == CONNECTIONS, "{} ends of {CONNECTIONS} connections", ends.len());
        ends.iter().try_for_each(|end| counts_are_the_wires(end, &wire, server))?;
    }
    Ok(())
}

/// An isolated pod forges all evidence there is, from both ends, with raw frames: its programs stay, nothing passes, and what it
/// reached is said.
#[test]
fn forged_evidence_takes_no_program_away() -> Result<()> {
    for layout in [Layout::Bridge, Layout::PointToPoint] {
        let lab = Lab::new(if layout == Layout::Bridge { "coverage-forged" } else { "coverage-forged-ptp" })?;
        let pod = lab.pod(PodSpec::new("shop", "pod").layout(layout))?;
        let peer = lab.pod(PodSpec::new("shop", "peer"))?;
        lab.policy("shop", "closed", &json!({"podSelector": {"matchLabels": {"app": "pod"}}, "policyTypes": ["Ingress", "Egress"]}))?;
        let agent = Agent::start(&lab, &["--mode", "enforce"])?;
        let raw = Raw::open(pod.netns(), "eth0")?;
        let macs = [raw::mac(&pod), [0xff; 6]];
        let wires = [Sniffer::start(peer.netns(), "eth0")?, Sniffer::start(lab.outside().netns(), "eth0")?];
        let begin = Instant::now();
        let mut port = 1024u16;
        while begin.elapsed() < Duration::from_secs(12) {
            for (v6, target) in [(false, peer.v4()), (true, peer.v6()), (false, lab.outside_v4()), (true, lab.outside_v6())] {
                port = port.wrapping_add(1).max(1024);
                let (own, other) = (SocketAddr::new(pod.address(v6), 80), SocketAddr::new(target, port));
                // A SYN-ACK without a SYN; a SYN, and the ACK to a SYN-ACK that never came.
                for (source, flags) in [(own, SYN | ACK), (SocketAddr::new(own.ip(), port), SYN), (SocketAddr::new(own.ip(), port), ACK)] {
                    raw.send(&raw::tcp(macs, source, other, raw::Tcp { flags, data: b"out" }))?;
                }
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for wire in wires {
            let passed = wire.total(|flow| {
                flow.heading == Heading::In && flow.protocol == 6 && (flow.source.0 == pod.v4() || flow.source.0 == pod.v6())
            })?;
            ensure!(passed.packets == 0, "{passed:?} passed");
        }
        let status = agent.status()?;
        let shown = endpoint(&status, "pod").context("it is listed")?;
        let attach = shown["attach"].as_str().unwrap_or_default();
        ensure!(attach.starts_with("tcx") && shown["coverage"] == "full" && shown["ready"] == true, "{shown:#}");
        let added = attach == "tcx+cgroup";
        ensure!(added == shown["message"].as_str().is_some_and(|message| message.contains("one_way")), "{shown:#}");
        println!("{layout:?}: {attach}, {}", shown["message"]);
    }
    Ok(())
}

/// An agent that starts at full churn of connections takes nothing that crosses its start for evidence.
#[test]
fn a_start_at_full_churn_is_no_evidence() -> Result<()> {
    const PODS: usize = 8;
    let lab = Lab::new("coverage-churn")?;
    let mut servers = Vec::new();
    for number in 0..PODS {
        let server = lab.pod(PodSpec::new("shop", &format!("server-{number}")))?;
        let serving = server.serve("tcp", 80)?;
        servers.push((server, serving));
    }
    let client = lab.pod(PodSpec::new("shop", "client"))?;
    let target = |pod: &Pod| format!("{}:80", pod.v4());
    let churn = servers
        .iter()
        .map(|(server, _)| client.spawn(tool::binary()?, &["rate", &target(server), "150", "14"]))
        .collect::<Result<Vec<_>>>()?;
    std::thread::sleep(Duration::from_secs(1));
    let agent = Agent::start(&lab, &[])?;
    std::thread::sleep(Duration::from_secs(8));
    let status = agent.status()?;
    for endpoint in status["endpoints"].as_array().context("endpoints")? {
        ensure!(endpoint["attach"] == "tcx" && endpoint["coverage"] == "full", "{endpoint:#}");
    }
    drop(churn);
    Ok(())
}

/// Where others have TCX programs at pods' interfaces, a filter would come after them, and they might send packets past it: a pod
/// that comes in a hurry gets links all the same.
#[test]
fn a_newcomer_gets_links_where_others_use_them() -> Result<()> {
    let first_hooks = |others: bool| -> Result<Value> {
        let lab = Lab::new(if others { "coverage-shared" } else { "coverage-alone" })?;
        let known = lab.pod(PodSpec::new("shop", "known"))?;
        let _other = if others { Some(ShortCut::onto(&lab, known.interface().expect("it has a veth"))?) } else { None };
        let agent = Agent::start(&lab, &[])?;
        let _newcomer = lab.pod(newcomer("shop", "newcomer"))?;
        let mut attach = Value::Null;
        agent.until_status("the newcomer is attached", Duration::from_secs(5), |status| {
            attach = endpoint(status, "newcomer").map_or(Value::Null, |endpoint| endpoint["attach"].clone());
            attach.as_str().is_some_and(|attach| attach != "none")
        })?;
        Ok(attach)
    };
    ensure!(first_hooks(false)? == "clsact", "alone it begins with filters");
    ensure!(first_hooks(true)? == "tcx", "with others it begins with links");
    Ok(())
}

/// Somebody removes our qdisc: it is back within seconds.
#[test]
fn a_removed_program_comes_back() -> Result<()> {
    let lab = Lab::new("coverage-removed")?;
    let [server, stranger] = lab.pods("shop", ["server", "stranger"])?;
    let _serving = server.serve("tcp", 80)?;
    lab.admit("shop", "server", &json!([]))?;
    let agent = Agent::start(&lab, &["--tc-backend", "clsact"])?;
    ensure!(!stranger.reaches("tcp", server.v4(), 80)?);
    let removed = lab.node().run("tc", &["qdisc", "del", "dev", server.interface().expect("it has a veth"), "clsact"])?;
    ensure!(removed.success(), "{removed:?}");
    let begin = Instant::now();
    while stranger.reaches("tcp", server.v4(), 80)? {
        ensure!(begin.elapsed() < Duration::from_secs(8), "still unguarded after {:?}", begin.elapsed());
        std::thread::sleep(Duration::from_millis(100));
    }
    agent.record("a coverage record", Duration::from_secs(5), |record| record["kind"] == "coverage")?;
    Ok(())
}
