//! What a record says is true: counts equal to a sniffer's at that end, names, process, and the reason of a
//! denial. Needs root.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sekisho_lab::{Agent, Heading, Lab, Layout, Pod, PodSpec, Sniffer, app, sum};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(8);

struct Shop {
    lab: Lab,
    database: Pod,
    api: Pod,
    stranger: Pod,
}

fn shop(name: &str) -> Result<Shop> {
    let lab = Lab::new(name)?;
    lab.namespace("shop", &[("team", "shop")])?;
    let database = lab.pod(PodSpec::new("shop", "database-0").label("app", "database").owner("StatefulSet", "database"))?;
    let api = lab.pod(PodSpec::new("shop", "api-5d9f7c6b8-x2x4z").label("app", "api").owner("Deployment", "api").service_account("api"))?;
    let stranger = lab.pod(PodSpec::new("shop", "stranger").owner("Job", "stranger"))?;
    lab.admit("shop", "database", &json!([{"from": [app("api")], "ports": [{"protocol": "TCP", "port": 5432}]}]))?;
    Ok(Shop { lab, database, api, stranger })
}

/// A record of one end (`direction`) of a flow to a port, of a kind.
fn is(record: &Value, kind: &str, direction: &str, port: u16) -> bool {
    record["kind"] == kind && record["direction"] == direction && record["destination"]["port"] == port
}

#[test]
fn an_allowed_flow_says_everything() -> Result<()> {
    let Shop { lab, database, api, .. } = shop("records-allowed")?;
    let server = database.serve("tcp", 5432)?;
    let agent = Agent::start(&lab, &[])?;
    let (at_api, at_database) = (Sniffer::start(api.netns(), "eth0")?, Sniffer::start(database.netns(), "eth0")?);
    // Large enough for segmentation offload on the way there and back.
    let dial = api.spawn(sekisho_lab::tool::binary()?, &["dial", "tcp", &format!("{}:5432", database.v4()), "--bytes", "3000000"])?;
    let pid = dial.pid();
    ensure!(dial.finish(Duration::from_secs(20))?.success(), "the exchange works");
    let (at_api, at_database) = (at_api.stop()?, at_database.stop()?);
    for (direction, pod, counts) in [("egress", &api, &at_api), ("ingress", &database, &at_database)] {
        let end = agent.record("the end of the flow", SOON, |record| is(record, "end", direction, 5432))?;
        let (out, back) = if direction == "egress" { (Heading::Out, Heading::In) } else { (Heading::In, Heading::Out) };
        let forward = sum(counts, |flow| flow.heading == out && flow.destination.1 == 5432);
        let reply = sum(counts, |flow| flow.heading == back && flow.source.1 == 5432);
        for (field, forward, reply) in [("packets", forward.packets, reply.packets), ("bytes", forward.bytes, reply.bytes)] {
            let said = (end[field]["forward"].as_u64(), end[field]["reply"].as_u64());
            ensure!(
                said == (Some(forward), Some(reply)),
                "{direction} {field}: {said:?} recorded, {forward} and {reply} sniffed at {}: {end:#}",
                pod.name()
            );
        }
        ensure!(end["end_reason"] == "fin" && end["verdict"] == "allowed", "{end:#}");
        for side in ["forward", "reply"] {
            let flags = end["tcp"]["flags"][side].as_str().context("flags are letters")?;
            ensure!(["F", "S", "A"].iter().all(|letter| flags.contains(letter)), "{side} flags {flags}: {end:#}");
        }
        ensure!(end["tcp"]["conn_state"] == "SF", "{end:#}");
        ensure!(end["source"]["workload"] == json!({"kind": "Deployment", "name": "api"}), "{end:#}");
        ensure!(end["destination"]["workload"] == json!({"kind": "StatefulSet", "name": "database"}), "{end:#}");
        ensure!(end["source"]["pod"]["uid"] == api.uid() && end["destination"]["pod"]["uid"] == database.uid(), "{end:#}");
        ensure!(end["source"]["service_account"] == "api", "{end:#}");
        ensure!(end["community_id"].as_str().is_some_and(|id| id.starts_with("1:")), "{end:#}");
    }
    let egress = agent.record("the client's record", SOON, |record| is(record, "end", "egress", 5432))?;
    ensure!(
        egress["process"]["pid"] == pid && egress["process"]["comm"] == "sekisho-lab",
        "the process that connected is {pid}: {egress:#}"
    );
    let ingress = agent.record("the server's record", SOON, |record| is(record, "end", "ingress", 5432))?;
    ensure!(
        ingress["listener"]["pid"] == server.pid() && ingress["listener"]["comm"] == "sekisho-lab",
        "the listener is {}: {ingress:#}",
        server.pid()
    );
    ensure!(
        ingress["policy"]["name"] == "database" && ingress["policy"]["rule"] == "ingress[0]" && ingress["isolated"] == true,
        "{ingress:#}"
    );
    ensure!(egress["isolated"] == false && egress["policy"].is_null(), "nothing isolates the client: {egress:#}");
    ensure!(egress["community_id"] == ingress["community_id"], "both ends have one community id");
    Ok(())
}

/// The same counts over the other family, and where the control group is watched instead of an interface.
#[test]
fn counts_equal_the_wire_everywhere() -> Result<()> {
    for (name, layout) in [("records-bridge", Layout::Bridge), ("records-elsewhere", Layout::Elsewhere)] {
        let lab = Lab::new(name)?;
        let pod = |name: &str| lab.pod(PodSpec::new("shop", name).layout(layout));
        let (server, client) = (pod("server")?, pod("client")?);
        let _serving = [server.serve("tcp", 5432)?, server.serve("udp", 53)?];
        let agent = Agent::start(&lab, &[])?;
        for v6 in [false, true] {
            let (there, here) = (Sniffer::start(server.netns(), "eth0")?, Sniffer::start(client.netns(), "eth0")?);
            let target = std::net::SocketAddr::new(server.address(v6), 5432).to_string();
            ensure!(client.tool(&["dial", "tcp", &target, "--bytes", "2000000", "--timeout", "5000"])?.success(), "{name} v6 {v6}: works");
            let (there, here) = (there.stop()?, here.stop()?);
            let ip = server.address(v6).to_string();
            for (direction, counts) in [("egress", &here), ("ingress", &there)] {
                let end = agent.record("the end of the flow", SOON, |record| {
                    is(record, "end", direction, 5432) && record["destination"]["ip"] == ip
                })?;
                let forward = sum(counts, |flow| flow.protocol == 6 && flow.destination.1 == 5432);
                let reply = sum(counts, |flow| flow.protocol == 6 && flow.source.1 == 5432);
                let said = |field: &str, side: &str| end[field][side].as_u64();
                let all = [said("packets", "forward"), said("bytes", "forward"), said("packets", "reply"), said("bytes", "reply")];
                let sniffed = [forward.packets, forward.bytes, reply.packets, reply.bytes].map(Some);
                ensure!(all == sniffed, "{name} {direction} v6 {v6}: {all:?} recorded, {sniffed:?} sniffed: {end:#}");
            }
        }
    }
    Ok(())
}

/// Closed or refused, a connection ends once at each end, with all that passed in it.
#[test]
fn every_connection_ends_once() -> Result<()> {
    const EACH: u64 = 30;
    let Shop { lab, database, api, .. } = shop("records-ends")?;
    let _serving = database.serve("tcp", 5432)?;
    let agent = Agent::start(&lab, &[])?;
    for v6 in [false, true] {
        let target = std::net::SocketAddr::new(database.address(v6), 5432).to_string();
        ensure!(api.tool(&["dial", "tcp", &target, "--count", &EACH.to_string()])?.success(), "v6 {v6}: works");
    }
    let target = std::net::SocketAddr::new(api.v4(), 99).to_string();
    for _ in 0..EACH {
        ensure!(!database.tool(&["dial", "tcp", &target])?.success(), "nobody listens");
    }
    let ends = || -> Result<Vec<Value>> {
        let all = agent.records()?.into_iter();
        Ok(all.filter(|record| record["kind"] == "end" && record["protocol"] == "TCP").collect())
    };
    // Two families and the refused ones, at two ends each.
    let expected = usize::try_from(3 * 2 * EACH)?;
    let begin = std::time::Instant::now();
    while ends()?.len() < expected {
        ensure!(begin.elapsed() < Duration::from_secs(15), "{} of {expected} ended", ends()?.len());
        std::thread::sleep(Duration::from_millis(200));
    }
    // Whoever would tell an end twice has time for it.
    std::thread::sleep(Duration::from_secs(3));
    let mut seen = std::collections::HashSet::new();
    for end in ends()? {
        ensure!(seen.insert(end["flow_id"].to_string()), "ended twice: {end:#}");
        let refused = end["destination"]["port"] == 99;
        let why = if refused { "rst" } else { "fin" };
        ensure!(end["end_reason"] == why, "{end:#}");
        if refused {
            ensure!(end["packets"]["forward"] == 1 && end["packets"]["reply"] == 1, "{end:#}");
        } else {
            // Handshake, question, answer, both FINs and what acknowledges them: never less.
            ensure!(end["packets"]["forward"].as_u64() >= Some(4) && end["packets"]["reply"].as_u64() >= Some(3), "{end:#}");
        }
    }
    ensure!(seen.len() == expected, "{} ends of {expected}", seen.len());
    Ok(())
}

#[test]
fn a_denied_flow_says_why() -> Result<()> {
    let Shop { lab, database, api, stranger } = shop("records-denied")?;
    let _serving = database.serve("tcp", 5432)?;
    let agent = Agent::start(&lab, &[])?;
    ensure!(!stranger.reaches("tcp", database.v4(), 5432)?, "a stranger is turned back");
    ensure!(!api.reaches("tcp", database.v4(), 5433)?, "another port is closed to a friend");
    for (port, from, mismatch) in [(5432, &stranger, "peer"), (5433, &api, "port")] {
        let start = agent.record("the denial", SOON, |record| is(record, "start", "ingress", port))?;
        ensure!(start["verdict"] == "denied" && start["reason"] == "default_deny", "{start:#}");
        ensure!(start["source"]["pod"]["uid"] == from.uid(), "{start:#}");
        ensure!(start["isolated_by"][0]["name"] == "database" && start["isolated_by"][0]["namespace"] == "shop", "{start:#}");
        ensure!(start["nearest"]["name"] == "database" && start["nearest"]["rule"] == "ingress[0]", "{start:#}");
        ensure!(start["mismatch"] == json!([mismatch]), "{start:#}");
        ensure!(start["policy"].is_null(), "no rule decided: {start:#}");
        // Its source allowed it, and says so about its own end.
        let egress = agent.record("the other end", SOON, |record| is(record, "start", "egress", port))?;
        ensure!(egress["verdict"] == "allowed", "{egress:#}");
        ensure!(egress["process"]["comm"] == "sekisho-lab", "{egress:#}");
    }
    Ok(())
}

#[test]
fn numbers_have_no_gap_and_ledgers_balance() -> Result<()> {
    let Shop { lab, database, api, stranger } = shop("records-seq")?;
    let _servers = [database.serve("tcp", 5432)?, database.serve("udp", 53)?];
    let agent = Agent::start(&lab, &[])?;
    for _ in 0..10 {
        ensure!(api.reaches("tcp", database.v4(), 5432)?);
        ensure!(!stranger.reaches("udp", database.v6(), 53)?);
    }
    let ledger = agent.record("a ledger", Duration::from_secs(15), |record| {
        record["kind"] == "ledger" && record["kernel"]["created"].as_u64() > Some(20)
    })?;
    check_ledger(&ledger)?;
    let records = agent.records()?;
    let run = &records[0]["run"];
    for pair in records.windows(2) {
        ensure!(pair[0]["seq"].as_u64().map(|seq| seq + 1) == pair[1]["seq"].as_u64(), "a gap between {:#} and {:#}", pair[0], pair[1]);
        ensure!(pair[1]["run"] == *run, "one run");
    }
    Ok(())
}

/// The sums that a ledger promises.
fn check_ledger(ledger: &Value) -> Result<()> {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let lost = |value: &Value| value["lost"].as_object().into_iter().flatten().map(|(_, count)| number(count)).sum::<u64>();
    let kernel = &ledger["kernel"];
    ensure!(number(&kernel["created"]) == number(&kernel["start_sent"]) + number(&kernel["summarised"]) + lost(kernel), "{ledger:#}");
    for sink in ledger["sinks"].as_array().into_iter().flatten() {
        ensure!(
            number(&sink["made"]) == number(&sink["delivered"]) + number(&sink["filtered"]) + lost(sink) + number(&sink["queued"]),
            "{ledger:#}"
        );
    }
    Ok(())
}

/// A conversation ends when it has been idle for as long as the operator says, not before: one that goes on has one record.
#[test]
fn an_answered_datagram_flow_ends_when_it_has_been_idle() -> Result<()> {
    let lab = Lab::new("records-idle")?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    let _serving = server.serve("udp", 53)?;
    let agent = Agent::start(&lab, &["--udp-timeout", "1s", "--udp-stream-timeout", "4s"])?;
    for v6 in [false, true] {
        let target = std::net::SocketAddr::new(server.address(v6), 53).to_string();
        for _ in 0..3 {
            ensure!(client.tool(&["dial", "udp", &target, "--from", "4000"])?.success());
            std::thread::sleep(Duration::from_secs(2));
        }
        let ends = |record: &Value| is(record, "end", "egress", 53) && record["destination"]["ip"] == server.address(v6).to_string();
        let end = agent.record("the end of the flow", Duration::from_secs(15), ends)?;
        ensure!(end["end_reason"] == "idle" && end["packets"]["forward"] == 3 && end["packets"]["reply"] == 3, "{end:#}");
    }
    Ok(())
}
