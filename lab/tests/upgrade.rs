//! Upgrades and rollbacks between two real builds whose boundary types differ, under traffic. Needs root, and the agent
//! built a second time with the feature `next-layout`.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sekisho_lab::{Agent, AgentOptions, Heading, Lab, Pod, Running, Sniffer, app, counts_are_the_wires, tool, until};
use serde_json::{Value, json};

const LIMIT: Duration = Duration::from_secs(20);
const HELD: usize = 20;

/// Everything that runs while agents change.
struct Traffic {
    held: Running,
    new: Running,
    denied: Running,
}

fn pods(lab: &Lab) -> Result<[Pod; 3]> {
    let pods = lab.pods("shop", ["server", "friend", "stranger"])?;
    lab.admit("shop", "server", &json!([{"from": [app("friend")]}]))?;
    for pod in &pods {
        pod.netns().sysctl("net/ipv4/tcp_tw_reuse", "1")?;
    }
    Ok(pods)
}

/// Directories of layouts on the pins.
fn layouts(agent: &Agent) -> Vec<String> {
    let entries = std::fs::read_dir(agent.pin_dir()).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Waits until nothing of another layout is left.
fn settled(agent: &Agent) -> Result<()> {
    let layout = agent.status()?["layout"].as_str().context("status names the layout")?.to_owned();
    until(LIMIT, "only one layout is left", || Ok(layouts(agent).len() == 1)).with_context(|| agent.log())?;
    ensure!(layouts(agent)[0].starts_with(&layout), "{:?} is not {layout}", layouts(agent));
    Ok(())
}

/// `flow_id` by source port of the friend's connections, as its own end sees them.
fn flow_ids(agent: &Agent) -> Result<BTreeMap<u64, String>> {
    let records = agent.records_of(&["--from-pod", "shop/friend"])?;
    let ends =
        records.iter().filter(|record| record["kind"] == "start" && record["direction"] == "egress" && record["destination"]["port"] == 80);
    ends.map(|record| {
        let port = record["source"]["port"].as_u64().context("a port")?;
        Ok((port, record["flow_id"].as_str().context("a flow_id")?.to_owned()))
    })
    .collect()
}

fn counter(agent: &Agent, name: &str) -> Result<u64> {
    let counters = &agent.status()?["counters"];
    let value = &counters[name];
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).with_context(|| format!("no counter {name}: {counters}"))
}

/// The run that an agent's first record names as the one before.
fn previous(agent: &Agent) -> Result<Value> {
    Ok(agent.record("its first record", LIMIT, |record| record["seq"] == 1)?["previous"].clone())
}

#[test]
fn another_layout_and_back_under_traffic() -> Result<()> {
    let next = AgentOptions::new(&[]).next_layout()?;
    let lab = Lab::new("upgrade-layout")?;
    let [server, friend, stranger] = pods(&lab)?;
    let _serving = server.serve("tcp", 80)?;
    let first = Agent::start(&lab, &[])?;
    let (at_friend, at_server) = (Sniffer::start(friend.netns(), "eth0")?, Sniffer::start(server.netns(), "eth0")?);
    let target = format!("{}:80", server.v4());
    let held = friend.start(&["hold", &target, &HELD.to_string(), "40"])?;
    let mut ids = BTreeMap::new();
    until(LIMIT, "every held connection is recorded", || {
        ids = flow_ids(&first)?;
        Ok(ids.len() == HELD)
    })?;
    let traffic = Traffic {
        held,
        new: friend.spawn(tool::binary()?, &["rate", &target, "200", "35"])?,
        denied: stranger.spawn(tool::binary()?, &["spray", "tcp", &stranger.v4().to_string(), &target, "17500", "500"])?,
    };
    std::thread::sleep(Duration::from_secs(2));
    let (layout, run, created) = (first.status()?["layout"].clone(), first.status()?["run"].clone(), counter(&first, "created")?);
    first.kill()?;

    // Upgrade; whoever is killed half-way leaves what the one after it can go on with.
    for delay in [60, 250, 600] {
        let early = Agent::launch(&lab, &next)?;
        std::thread::sleep(Duration::from_millis(delay));
        early.kill()?;
    }
    let second = Agent::start_with(&lab, &next)?;
    ensure!(second.status()?["layout"] != layout, "the second build has the same layout: {layout}");
    settled(&second)?;
    ensure!(previous(&second)?["seq"].is_number() || previous(&second)?["seq"].is_string(), "it knows no run before it");
    ensure!(counter(&second, "created")? > created, "what was counted before is forgotten");
    ensure!(!stranger.reaches("tcp", server.v4(), 80)? && friend.reaches("tcp", server.v4(), 80)?, "verdicts after the upgrade");
    std::thread::sleep(Duration::from_secs(2));
    let (next_run, created) = (second.status()?["run"].clone(), counter(&second, "created")?);
    ensure!(next_run != run);
    ensure!(second.terminate(Duration::from_secs(15))? == Some(0));

    // And back.
    let third = Agent::start(&lab, &[])?;
    ensure!(third.status()?["layout"] == layout);
    settled(&third)?;
    ensure!(previous(&third)?["run"] == next_run, "{}", previous(&third)?);
    ensure!(counter(&third, "created")? > created, "what was counted before is forgotten");
    ensure!(!stranger.reaches("tcp", server.v4(), 80)? && friend.reaches("tcp", server.v4(), 80)?, "verdicts after the rollback");

    let held = traffic.held.finish(Duration::from_mins(2))?.json()?;
    ensure!(held["broken"] == 0, "open connections stay open: {held}");
    let new = traffic.new.finish(Duration::from_mins(2))?.json()?;
    ensure!(new["failed"] == 0 && new["worked"].as_u64() > Some(3000), "every allowed connection works: {new}");
    traffic.denied.finish(Duration::from_mins(2))?;
    let from = stranger.v4();
    let leaked = at_server.total(|flow| flow.heading == Heading::In && flow.source.0 == from)?;
    ensure!(leaked.packets == 0, "denied packets were delivered: {leaked:?}");
    until(LIMIT, "every held connection's end is recorded", || Ok(ends(&third, &ids)?.len() == HELD))
        .with_context(|| format!("{:?}\n{}", ends(&third, &ids).map(|ends| ends.len()), third.log()))?;
    let wire = at_friend.stop()?;
    for end in ends(&third, &ids)?.values() {
        counts_are_the_wires(end, &wire, (server.v4(), 80))?;
        ensure!(end["source"]["pod"]["name"] == "friend" && end["destination"]["pod"]["name"] == "server", "{end}");
    }
    Ok(())
}

/// The last records of the held connections that bear the `flow_id` of their first.
fn ends(agent: &Agent, ids: &BTreeMap<u64, String>) -> Result<BTreeMap<u64, Value>> {
    let records = agent.records_of(&["--from-pod", "shop/friend", "--kind", "end"])?;
    let known = |record: &Value| Some((record["source"]["port"].as_u64()?, record["flow_id"].as_str()?.to_owned()));
    Ok(records
        .into_iter()
        .filter(|record| record["direction"] == "egress" && record["end_reason"] != "shutdown")
        .filter_map(|record| known(&record).filter(|(port, id)| ids.get(port) == Some(id)).map(|(port, _)| (port, record)))
        .collect())
}
