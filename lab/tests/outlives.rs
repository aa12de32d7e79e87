//! Enforcement outlives the agent: killed under load, dead for minutes, started again. Needs root.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sekisho_lab::{Agent, Heading, Lab, Pod, PodSpec, Sniffer, app};
use serde_json::json;

struct Trio {
    lab: Lab,
    server: Pod,
    friend: Pod,
    stranger: Pod,
}

fn trio(name: &str) -> Result<Trio> {
    let lab = Lab::new(name)?;
    let [server, friend, stranger] = lab.pods("shop", ["server", "friend", "stranger"])?;
    lab.admit("shop", "server", &json!([{"from": [app("friend")]}]))?;
    for pod in [&server, &friend, &stranger] {
        // Thousands of short connections between two addresses: let ports be used again at once.
        pod.netns().sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        pod.netns().sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
    }
    Ok(Trio { lab, server, friend, stranger })
}

fn pins(agent: &Agent) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![agent.pin_dir().to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            }
            found.push(entry.path().display().to_string());
        }
    }
    found.sort();
    found
}

#[test]
fn twenty_kills_under_load() -> Result<()> {
    let Trio { lab, server, friend, stranger } = trio("outlives-kills")?;
    let _serving = server.serve("tcp", 80)?;
    let mut agent = Agent::start(&lab, &[])?;
    let sniffer = Sniffer::start(server.netns(), "eth0")?;
    let target = format!("{}:80", server.v4());
    let held = friend.start(&["hold", &target, "50", "45"])?;
    let denied = stranger.spawn(sekisho_lab::tool::binary()?, &["spray", "tcp", &stranger.v4().to_string(), &target, "45000", "1000"])?;
    let begin = Instant::now();
    let mut first_pins = Vec::new();
    for round in 0..20 {
        agent.kill()?;
        agent = Agent::start(&lab, &[]).with_context(|| format!("start after kill {round}"))?;
        if round == 0 {
            first_pins = pins(&agent);
        }
    }
    ensure!(pins(&agent) == first_pins, "restarts pile up nothing: {first_pins:#?} became {:#?}", pins(&agent));
    let took = begin.elapsed();
    let result = held.finish(Duration::from_mins(2))?.json()?;
    ensure!(result["broken"] == 0, "no allowed connection breaks: {result}");
    denied.finish(Duration::from_mins(2))?;
    let (from, port) = (stranger.v4(), 80);
    let leaked = sniffer.total(|flow| flow.heading == Heading::In && flow.source.0 == from && flow.destination.1 == port)?;
    ensure!(leaked.packets == 0, "denied packets were delivered: {leaked:?}");
    ensure!(took < Duration::from_secs(45), "twenty restarts took {took:?}, longer than the load");
    // One flow, counted through all restarts.
    let exchanges = result["exchanges"].as_u64().unwrap_or(0) / 50;
    for direction in ["egress", "ingress"] {
        let what = format!("the {direction} end of a connection with its {exchanges} exchanges");
        agent.record_of(&["--from-pod", "shop/friend", "--kind", "end"], &what, Duration::from_secs(10), |record| {
            record["direction"] == direction && record["packets"]["forward"].as_u64().is_some_and(|packets| packets >= exchanges)
        })?;
    }
    Ok(())
}

/// The agent dead for three minutes while 2,000 connections come every second.
#[test]
fn three_minutes_without_an_agent() -> Result<()> {
    let Trio { lab, server, friend, stranger } = trio("outlives-dead")?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    let target = format!("{}:80", server.v4());
    agent.kill()?;
    let sniffer = Sniffer::start(server.netns(), "eth0")?;
    let load = friend.spawn(sekisho_lab::tool::binary()?, &["rate", &target, "2000", "180"])?;
    let denied = stranger.spawn(sekisho_lab::tool::binary()?, &["spray", "tcp", &stranger.v4().to_string(), &target, "18000", "100"])?;
    let result = load.finish(Duration::from_mins(5))?.json()?;
    denied.finish(Duration::from_mins(2))?;
    let worked = result["worked"].as_u64().unwrap_or(0);
    ensure!(result["failed"] == 0 && worked > 100_000, "every allowed connection works: {result}");
    ensure!(friend.reaches("tcp", server.v4(), 80)?, "allowed ones still connect at the end");
    ensure!(!stranger.reaches("tcp", server.v4(), 80)?, "denied ones still do not");
    let from = stranger.v4();
    let leaked = sniffer.total(|flow| flow.heading == Heading::In && flow.source.0 == from)?;
    ensure!(leaked.packets == 0, "denied packets were delivered: {leaked:?}");
    let agent = Agent::start(&lab, &[])?;
    ensure!(agent.status()?["ready"] == true);
    Ok(())
}

#[test]
fn sigterm_ends_records_and_leaves_enforcement() -> Result<()> {
    let Trio { lab, server, friend, stranger } = trio("outlives-term")?;
    let _serving = server.serve("tcp", 80)?;
    let lines = lab.directory().join("flows.jsonl");
    let agent = Agent::start(&lab, &["--jsonl", &lines.display().to_string()])?;
    let held = friend.start(&["hold", &format!("{}:80", server.v4()), "1", "8"])?;
    std::thread::sleep(Duration::from_secs(1));
    let code = agent.terminate(Duration::from_secs(10))?;
    ensure!(code == Some(0), "exit {code:?}");
    let text = std::fs::read_to_string(&lines)?;
    let ends = text
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|record| record["end_reason"] == "shutdown")
        .count();
    ensure!(ends >= 2, "both ends of the open connection end with `shutdown`:\n{text}");
    ensure!(!stranger.reaches("tcp", server.v4(), 80)?, "enforcement stays");
    ensure!(held.finish(Duration::from_secs(20))?.json()?["broken"] == 0, "the open connection stays");
    let pin_dir = lab.pin_dir().display().to_string();
    let detached = lab.sekisho(&["detach", "--pin-dir", &pin_dir])?;
    ensure!(detached.success(), "{detached:?}");
    ensure!(stranger.reaches("tcp", server.v4(), 80)?, "detach removes enforcement");
    ensure!(lab.sekisho(&["detach", "--pin-dir", &pin_dir])?.success(), "detach again is fine");
    let agent = Agent::start(&lab, &["--detach-on-exit"])?;
    ensure!(!stranger.reaches("tcp", server.v4(), 80)?, "an agent can start again");
    ensure!(lab.sekisho(&["detach", "--pin-dir", &pin_dir])?.code == Some(3), "not while an agent runs");
    ensure!(agent.terminate(Duration::from_secs(10))? == Some(0));
    ensure!(stranger.reaches("tcp", server.v4(), 80)?, "--detach-on-exit removes enforcement");
    Ok(())
}

/// The kill switch works on the pins when no agent answers.
#[test]
fn mode_observe_without_an_agent() -> Result<()> {
    let Trio { lab, server, stranger, .. } = trio("outlives-mode")?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    ensure!(!stranger.reaches("tcp", server.v4(), 80)?);
    agent.set_mode("audit")?;
    ensure!(stranger.reaches("tcp", server.v4(), 80)?, "audit drops nothing");
    agent.record("an audit record", Duration::from_secs(5), |record| record["verdict"] == "audit" && record["direction"] == "ingress")?;
    agent.set_mode("enforce")?;
    ensure!(!stranger.reaches("tcp", server.v4(), 80)?);
    agent.kill()?;
    let answer = lab.sekisho(&[
        "mode",
        "observe",
        "--pin-dir",
        &lab.pin_dir().display().to_string(),
        "--socket",
        &lab.socket().display().to_string(),
    ])?;
    ensure!(answer.success(), "{answer:?}");
    ensure!(stranger.reaches("tcp", server.v4(), 80)?, "nothing is dropped any more");
    Ok(())
}

/// A pod that appears while the agent runs is judged, one that vanishes is forgotten.
#[test]
fn pods_come_and_go() -> Result<()> {
    let Trio { lab, server, .. } = trio("outlives-pods")?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    for round in 0..3 {
        let friend = lab.pod(PodSpec::new("shop", "late-friend").label("app", "friend"))?;
        let foe = lab.pod(PodSpec::new("shop", "late-foe"))?;
        let limit = Duration::from_secs(5);
        let count = |status: &serde_json::Value| status["endpoints"].as_array().map_or(0, Vec::len);
        agent.until_status("both new pods are endpoints", limit, |status| status["ready"] == true && count(status) == 5)?;
        ensure!(friend.reaches("tcp", server.v4(), 80)?, "round {round}");
        ensure!(!foe.reaches("tcp", server.v4(), 80)?, "round {round}");
        friend.delete()?;
        foe.delete()?;
        agent.until_status("both are gone", limit, |status| count(status) == 3)?;
    }
    Ok(())
}
