//! The agent proves its own coverage: what hides packets from it, or takes its programs away, is noticed
//! within seconds, said, and where possible mended. Needs root and TCX (Linux 6.6).

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sekisho_lab::{Agent, Lab, PodSpec, ShortCut, newcomer};
use serde_json::{Value, json};

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
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(2) {
        // What comes of it is the next question; that it is noticed is this one.
        let _either = lab.outside().reaches("tcp", server.v4(), 80)?;
    }
    agent.until_status("the endpoint is said to be one-way, or is judged at its control group", Duration::from_secs(4), |status| {
        endpoint(status, "server").is_some_and(|endpoint| endpoint["coverage"] == "one_way" || endpoint["attach"] == "cgroup")
    })?;
    let record = agent.record("a coverage record", Duration::from_secs(5), |record| record["kind"] == "coverage")?;
    ensure!(record.to_string().contains("server"), "{record:#}");
    // Judged where the packets are: the port that is allowed answers, the one that is not is silent.
    agent.until_status("judged at its control group", Duration::from_secs(5), |status| {
        endpoint(status, "server").is_some_and(|endpoint| endpoint["attach"] == "cgroup")
    })?;
    let _closed = server.serve("tcp", 81)?;
    ensure!(lab.outside().reaches("tcp", server.v4(), 80)?, "allowed at the control group");
    ensure!(!lab.outside().reaches("tcp", server.v4(), 81)?, "denied at the control group");
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
    ensure!(probe["verdict"] == "allowed" && probe["attach"] == "cgroup", "{probe:#}");
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
