//! A pod whose address becomes known after its first packet: what was denied is judged again at once, and the record
//! of the first packet waits for the name. Needs root.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sekisho_lab::{Agent, Lab, PodSpec, app};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(8);

/// A pod of another node.
fn remote(name: &str, ip: Option<&str>) -> Value {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": name, "uid": format!("uid-{name}"), "labels": {"app": name}},
        "spec": {"nodeName": "node-2", "containers": [{"name": "main", "image": "x"}]},
        "status": {"phase": "Pending"}});
    if let Some(ip) = ip {
        pod["status"] = json!({"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]});
    }
    pod
}

#[test]
fn a_name_that_comes_late_lets_in_whom_it_allows() -> Result<()> {
    let lab = Lab::new("late-name")?;
    let server = lab.pod(PodSpec::new("shop", "server"))?;
    let _serving = server.serve("tcp", 80)?;
    lab.admit("shop", "server", &json!([{"from": [app("client")]}]))?;
    // The outside plays the other node's pod; a neighbour of it is known.
    let address = lab.outside_v4().to_string();
    let neighbour = match address.rsplit_once('.') {
        Some((net, _)) => format!("{net}.250"),
        None => anyhow::bail!("{address} is no IPv4 address"),
    };
    lab.manifest("neighbour", &remote("neighbour", Some(&neighbour)))?;
    lab.manifest("client", &remote("client", None))?;
    let agent = Agent::start(&lab, &[])?;

    let target = format!("{}:80", server.v4());
    let dialled = Instant::now();
    let dial = lab.outside().spawn(sekisho_lab::tool::binary()?, &["dial", "tcp", &target, "--timeout", "6000"])?;
    thread::sleep(Duration::from_millis(700));
    let starts = |record: &Value| record["kind"] == "start" && record["destination"]["port"] == 80;
    ensure!(!agent.records()?.iter().any(starts), "the denied packet's record waits for a name");
    lab.manifest("client", &remote("client", Some(&address)))?;
    let start = agent.record("the denied packet's record", Duration::from_secs(1), starts)?;
    ensure!(start["verdict"] == "denied" && start["reason"] == "default_deny", "{start:#}");
    ensure!(start["source"]["pod"]["uid"] == "uid-client" && start["source"]["late_identity"] == true, "{start:#}");
    // The kernel's next SYN of the same connection meets the new verdict.
    let answer = dial.finish(SOON)?;
    ensure!(answer.success(), "the cached deny is judged again: {}", answer.stderr);
    ensure!(dialled.elapsed() < Duration::from_secs(4), "at the next SYN: {:?}", dialled.elapsed());
    let changed = agent.record("the end of the denied life", SOON, |record| record["end_reason"] == "verdict_changed")?;
    ensure!(changed["flow_id"] == start["flow_id"] && changed["source"]["pod"]["uid"] == "uid-client", "{changed:#}");
    let again = agent.record("the allowed life", SOON, |record| {
        record["kind"] == "start" && record["flow_id"] == start["flow_id"] && record["verdict"] == "allowed"
    })?;
    ensure!(again["source"]["pod"]["uid"] == "uid-client" && again["source"]["late_identity"].is_null(), "{again:#}");
    let seq = |record: &Value| record["seq"].as_u64().context("no seq");
    ensure!(seq(&start)? < seq(&changed)? && seq(&changed)? < seq(&again)?, "in order");
    Ok(())
}

#[test]
fn a_name_that_does_not_come_holds_the_record_two_seconds_at_most() -> Result<()> {
    let lab = Lab::new("late-never")?;
    let server = lab.pod(PodSpec::new("shop", "server"))?;
    let address = lab.outside_v4().to_string();
    let neighbour = format!("{}.250", address.rsplit_once('.').context("IPv4")?.0);
    lab.manifest("neighbour", &remote("neighbour", Some(&neighbour)))?;
    lab.manifest("client", &remote("client", None))?;
    lab.policy("shop", "server", &json!({"podSelector": {}, "policyTypes": ["Ingress"]}))?;
    let agent = Agent::start(&lab, &[])?;
    let dialled = Instant::now();
    ensure!(!lab.outside().reaches("tcp", server.v4(), 80)?, "denied");
    let start = agent.record("the record", SOON, |record| record["kind"] == "start" && record["destination"]["port"] == 80)?;
    ensure!(dialled.elapsed() < Duration::from_secs(3), "after {:?}", dialled.elapsed());
    ensure!(start["source"]["pod"].is_null() && start["source"]["late_identity"].is_null(), "{start:#}");
    // Another address, of which nobody waits to know: at once.
    lab.remove_manifest("client.json")?;
    agent.until_status("no pod is without an address", SOON, |status| status["policy"]["policies"] == 1)?;
    thread::sleep(Duration::from_millis(200));
    let dialled = Instant::now();
    ensure!(!lab.outside().reaches("tcp", server.v4(), 81)?, "denied");
    let _record = agent.record("the record", SOON, |record| record["kind"] == "start" && record["destination"]["port"] == 81)?;
    ensure!(dialled.elapsed() < Duration::from_millis(1500), "after {:?}", dialled.elapsed());
    Ok(())
}
