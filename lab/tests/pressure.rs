//! Floods: a scan cannot evict anybody's live connections, one pod cannot exhaust another's state, and every
//! record is accounted for. Needs root.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sekisho_lab::{Agent, Lab, PodSpec, app, kill, until};
use serde_json::{Value, json};

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn lost(value: &Value) -> u64 {
    value["lost"].as_object().into_iter().flatten().map(|(_, count)| number(count)).sum()
}

/// The sums that a ledger promises. Flows balance when nothing moves.
fn balanced(ledger: &Value, quiet: bool) -> Result<()> {
    let kernel = &ledger["kernel"];
    ensure!(
        number(&kernel["created"]) == number(&kernel["start_sent"]) + number(&kernel["summarised"]) + lost(kernel),
        "kernel: {ledger:#}"
    );
    for sink in ledger["sinks"].as_array().into_iter().flatten() {
        ensure!(
            number(&sink["made"]) == number(&sink["delivered"]) + number(&sink["filtered"]) + lost(sink) + number(&sink["queued"]),
            "sink: {ledger:#}"
        );
    }
    let flows = &ledger["flows"];
    if quiet {
        ensure!(
            number(&flows["created"]) == number(&flows["ended"]) + number(&flows["open"]) + number(&flows["evicted_unseen"]),
            "flows: {ledger:#}"
        );
    }
    Ok(())
}

#[test]
fn a_syn_flood_cuts_nobody() -> Result<()> {
    let lab = Lab::new("pressure-syn")?;
    let [server, busy, other, flooder] = lab.pods("shop", ["server", "busy", "other", "flooder"])?;
    lab.admit("shop", "server", &json!([{"ports": [{"port": 80}]}]))?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    let held = busy.start(&["hold", &format!("{}:80", server.v4()), "1000", "25"])?;
    let before = agent.status()?["ledger"]["kernel"]["created"].as_u64().unwrap_or(0);
    let flood = flooder.tool(&["spray", "tcp", &flooder.v4().to_string(), &format!("{}:10000", server.v4()), "200000", "0"])?.json()?;
    for v6 in [false, true] {
        ensure!(other.reaches("tcp", server.address(v6), 80)?, "another pod's new connections succeed");
    }
    let result = held.finish(Duration::from_mins(1))?.json()?;
    ensure!(result["broken"] == 0, "no established connection is cut: {result}");
    std::thread::sleep(Duration::from_secs(1));
    let ledger = agent.status()?["ledger"].clone();
    balanced(&ledger, false)?;
    let created = number(&ledger["kernel"]["created"]) - before;
    // Each SYN is a flow at the flooder's end; the server's end denies them and is another.
    ensure!(created >= number(&flood["sent"]), "{created} flows for {flood}: {ledger:#}");
    Ok(())
}

/// One pod that answers itself 100,000 UDP flows fills its own share and nobody else's.
#[test]
fn answered_datagrams_of_one_pod() -> Result<()> {
    let lab = Lab::new("pressure-udp")?;
    let [server, busy, greedy, mirror] = lab.pods("shop", ["server", "busy", "greedy", "mirror"])?;
    let _servers = [server.serve("udp", 53)?, server.serve("tcp", 80)?, mirror.serve("udp", 9000)?, mirror.serve("udp", 9001)?];
    let agent = Agent::start(&lab, &[])?;
    let held = busy.start(&["hold", &format!("{}:80", server.v4()), "100", "20"])?;
    ensure!(busy.reaches("udp", server.v4(), 53)?);
    let target = format!("{}:9000", mirror.v4());
    greedy.tool(&["spray", "udp", &greedy.v4().to_string(), &target, "100000", "20000"])?;
    for _ in 0..20 {
        ensure!(busy.reaches("udp", server.v4(), 53)?, "another pod's datagrams are answered");
    }
    ensure!(held.finish(Duration::from_mins(1))?.json()?["broken"] == 0);
    balanced(&agent.status()?["ledger"], false)
}

/// A denied peer floods an isolated pod with datagrams of ever new ports, as fast as it can, while the pod asks a server that
/// takes its time. Every answer arrives: the flood uses up neither the budget nor the place of what the pod asks, small as the table is.
#[test]
fn a_denied_flood_leaves_an_isolated_pod_its_answers() -> Result<()> {
    let lab = Lab::new("pressure-answers")?;
    let [server, asker, flooder] = lab.pods("shop", ["server", "asker", "flooder"])?;
    let out = json!([{"to": [app("server")], "ports": [{"protocol": "UDP", "port": 53}]}]);
    let isolated = json!({"podSelector": {"matchLabels": {"app": "asker"}}, "policyTypes": ["Ingress", "Egress"], "egress": out});
    lab.policy("shop", "asker", &isolated)?;
    let _serving = server.start(&["serve", "udp-late", "53", "700"])?;
    let agent = Agent::start(&lab, &["--memory-budget", "8Mi"])?;
    for v6 in [false, true] {
        let target = std::net::SocketAddr::new(asker.address(v6), 9000).to_string();
        let spray = ["spray", "udp", &flooder.address(v6).to_string(), &target, "9000000", "0"];
        let mut flood = flooder.spawn(sekisho_lab::tool::binary()?, &spray)?;
        std::thread::sleep(Duration::from_secs(1));
        let question = std::net::SocketAddr::new(server.address(v6), 53).to_string();
        let result = asker.tool(&["ask", &question, "100", "25"])?.json()?;
        ensure!(flood.alive()?, "the flood outlasts the questions");
        drop(flood);
        ensure!(result["answered"] == 100, "v6 {v6}: {result}");
    }
    let kernel = agent.status()?["ledger"]["kernel"].clone();
    ensure!(number(&kernel["lost"]["insert_limited"]) > 100_000, "it was a flood: {kernel:#}");
    balanced(&agent.status()?["ledger"], false)
}

/// The agent stopped while rings overflow: what was lost is counted, cause by cause.
#[test]
fn full_rings_are_accounted_for() -> Result<()> {
    let lab = Lab::new("pressure-ring")?;
    let clients = (0..4).map(|number| lab.pod(PodSpec::new("shop", &format!("client-{number}")))).collect::<Result<Vec<_>>>()?;
    let lines = lab.directory().join("records.jsonl");
    let agent = Agent::start(&lab, &["--memory-budget", "16Mi", "--jsonl", &lines.display().to_string()])?;
    // A follower that never reads: its own stream is lost, nobody else's.
    let slow = agent.follow(&["observe", "--follow", "-o", "json"])?;
    kill(agent.pid(), 19)?;
    let target = format!("{}:9000", lab.outside_v4());
    let mut sent = 0;
    for client in &clients {
        let answer = client.tool(&["spray", "udp", &client.v4().to_string(), &target, "50000", "0"])?.json()?;
        sent += number(&answer["sent"]);
    }
    kill(agent.pid(), 18)?;
    std::thread::sleep(Duration::from_secs(3));
    let ledger = agent.status()?["ledger"].clone();
    balanced(&ledger, false)?;
    ensure!(number(&ledger["kernel"]["created"]) >= sent, "{sent} sent: {ledger:#}");
    ensure!(lost(&ledger["kernel"]) + number(&ledger["kernel"]["summarised"]) > 0, "something had to be lost: {ledger:#}");
    let names: Vec<_> = ledger["kernel"]["lost"]
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, count)| number(count) > 0)
        .map(|(name, _)| name.clone())
        .collect();
    ensure!(names.iter().any(|name| name == "ring_full"), "a full ring is a cause of its own: {names:?}");
    drop(slow);
    let record = agent.record("a ledger record", Duration::from_secs(15), |record| {
        record["kind"] == "ledger" && number(&record["kernel"]["created"]) >= sent
    })?;
    balanced(&record, false)?;
    told_is_written(agent, &lines)
}

/// What the ledger says was sent is in the file, line by line, without a gap in the numbers but where the sink itself says so.
fn told_is_written(agent: Agent, lines: &Path) -> Result<()> {
    agent.terminate(Duration::from_secs(20))?;
    let records: Vec<Value> = fs::read_to_string(lines)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let last = records.last().context("an empty file")?;
    ensure!(last["kind"] == "ledger", "an agent ends with its ledger: {last:#}");
    balanced(last, false)?;
    let sinks = last["sinks"].as_array().into_iter().flatten();
    let sink = sinks.into_iter().find(|sink| sink["name"] == "jsonl").with_context(|| format!("no line for the sink: {last:#}"))?;
    ensure!(
        number(&sink["made"]) + 1 == number(&last["seq"]),
        "the ledger is the last record, and every other was made before it: {last:#}"
    );
    let missing = number(&last["seq"]) - records.len() as u64;
    ensure!(missing == lost(sink), "{missing} lines missing, {} told: {sink:#}", lost(sink));
    let starts = records.iter().filter(|record| record["kind"] == "start").count() as u64;
    let sent = number(&last["kernel"]["start_sent"]);
    ensure!(starts <= sent && starts + lost(sink) >= sent, "{starts} starts written, {sent} sent: {last:#}");
    Ok(())
}

/// A cluster of more addresses than the budget has room for. While no policy tells the far ones apart, they have no room and are known
/// by name all the same. When one does, the policy in force stays and the status says what is full; what fits is applied again.
#[test]
fn a_full_address_table_keeps_what_is_in_force() -> Result<()> {
    let lab = Lab::new("pressure-addresses")?;
    let [server, client, stranger] = lab.pods("shop", ["server", "client", "stranger"])?;
    lab.admit("shop", "server", &json!([{"from": [app("client")]}]))?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &["--memory-budget", "8Mi"])?;
    let passes = |pod: &sekisho_lab::Pod| pod.reaches("tcp", server.v4(), 80);
    ensure!(passes(&client)? && !passes(&stranger)?, "the policy is in force");

    let far = |index: u32| {
        let ip = std::net::Ipv4Addr::from(0x0a64_0000 + index);
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "far", "name": format!("far-{index}"), "uid": format!("00000000-0000-4000-8000-{index:012}"), "labels": {"app": "far"}},
            "spec": {"nodeName": "node-2", "containers": []},
            "status": {"phase": "Running", "podIP": ip.to_string(), "podIPs": [{"ip": ip.to_string()}]},
        })
    };
    let pods: Vec<Value> = (1..=8000).map(far).collect();
    lab.manifest("far", &json!({"apiVersion": "v1", "kind": "List", "items": pods}))?;
    agent
        .until_status("the far ones have no room", Duration::from_secs(20), |status| status["policy"]["left_out"].as_u64() >= Some(8000))?;
    ensure!(agent.status()?["ready"] == true && passes(&client)? && !passes(&stranger)?, "nobody misses them");
    lab.admit("shop", "stranger", &json!([{"from": [{"namespaceSelector": {}, "podSelector": {"matchLabels": {"app": "far"}}}]}]))?;
    agent.until_status("the status says what is full", Duration::from_secs(20), |status| {
        status["ready"] == false && status["unready"].to_string().contains("ADDRESSES")
    })?;
    ensure!(passes(&client)? && !passes(&stranger)?, "what was in force still is");
    lab.admit("shop", "server", &json!([{"from": [app("stranger")]}]))?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(passes(&client)? && !passes(&stranger)?, "nothing is half applied: {}", agent.log());

    lab.remove_manifest("policy-shop-stranger.json")?;
    until(Duration::from_secs(10), "the next policy that fits is applied", || Ok(!passes(&client)? && passes(&stranger)?))
        .with_context(|| agent.log())?;
    agent.until_status("nothing is in the way any more", Duration::from_secs(5), |status| status["ready"] == true)?;
    Ok(())
}

/// A policy that alone would fill the kernel's table of networks: it isolates its pods, allows nothing and is named, and what
/// other namespaces change takes effect as ever.
#[test]
fn a_policy_that_is_too_large_starves_its_own_namespace_alone() -> Result<()> {
    let lab = Lab::new("pressure-share")?;
    let [server, client, stranger] = lab.pods("shop", ["server", "client", "stranger"])?;
    let [greedy] = lab.pods("tenant", ["greedy"])?;
    let _servers = [server.serve("tcp", 80)?, lab.outside().serve("tcp", 80)?];
    let agent = Agent::start(&lab, &["--memory-budget", "8Mi"])?;
    let goes_out = || greedy.reaches("tcp", lab.outside_v4(), 80);
    ensure!(goes_out()?, "without policy everything is open");
    let others = (0..4000).map(|n| format!("198.{}.{}.0/24", n / 256, n % 256));
    let networks: Vec<Value> = others.chain([format!("{}/32", lab.outside_v4())]).map(|cidr| json!({"ipBlock": {"cidr": cidr}})).collect();
    lab.policy("tenant", "list", &json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": networks}]}))?;
    until(Duration::from_secs(5), "it fails closed", || Ok(!goes_out()?)).with_context(|| agent.log())?;
    ensure!(agent.log().contains("tenant/list is too large"), "it is named: {}", agent.log());
    lab.admit("shop", "server", &json!([{"from": [app("client")]}]))?;
    until(Duration::from_secs(5), "others' policy is in force", || Ok(!stranger.reaches("tcp", server.v4(), 80)?))
        .with_context(|| agent.log())?;
    ensure!(client.reaches("tcp", server.v4(), 80)? && agent.status()?["ready"] == true, "{}", agent.log());
    lab.policy("tenant", "list", &json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": [{"to": &networks[3900..]}]}))?;
    until(Duration::from_secs(5), "a shorter one is in force", goes_out).with_context(|| agent.log())
}
