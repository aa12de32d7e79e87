//! The commands against a running agent: filters, following, the kill switch, detaching. Needs root.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sekisho_lab::{Agent, Lab, Pod, app, kill};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(8);
const SIGINT: i32 = 2;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;

struct Shop {
    lab: Lab,
    server: Pod,
    client: Pod,
    stranger: Pod,
}

/// A server that lets the client in and nobody else.
fn shop(name: &str) -> Result<Shop> {
    let lab = Lab::new(name)?;
    lab.namespace("shop", &[])?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    let [stranger] = lab.pods("play", ["stranger"])?;
    close(&lab)?;
    Ok(Shop { lab, server, client, stranger })
}

fn close(lab: &Lab) -> Result<()> {
    lab.admit("shop", "server", &json!([{"from": [app("client")]}]))
}

fn pins(lab: &Lab) -> String {
    lab.pin_dir().display().to_string()
}

/// What a filter is to let through.
type Wanted = Box<dyn Fn(&Value) -> bool>;

/// Every filter of `observe` lets through what it names, and nothing else.
#[test]
fn filters_select_what_they_say() -> Result<()> {
    let Shop { lab, server, client, stranger } = shop("cli-filters")?;
    let (_tcp, _udp) = (server.serve("tcp", 80)?, server.serve("udp", 53)?);
    let agent = Agent::start(&lab, &["--ledger-interval", "1s"])?;
    ensure!(client.reaches("tcp", server.v4(), 80)? && client.reaches("udp", server.v6(), 53)?);
    ensure!(!stranger.reaches("tcp", server.v4(), 80)? && !stranger.pings(server.v4())?);
    agent.record("a ledger", SOON, |record| record["kind"] == "ledger")?;
    let at = |pointer: &'static str, value: Value| move |record: &Value| record.pointer(pointer) == Some(&value);
    let either = |pointer: &'static str, value: Value| {
        move |record: &Value| ["source", "destination"].iter().any(|end| record[*end].pointer(pointer) == Some(&value))
    };
    let within = |start: &'static str| {
        move |record: &Value| {
            ["source", "destination"].iter().any(|end| record[*end]["ip"].as_str().is_some_and(|ip| ip.starts_with(start)))
        }
    };
    let address = stranger.v4().to_string();
    let cases: Vec<(Vec<&str>, Wanted)> = vec![
        (vec!["--verdict", "denied"], Box::new(at("/verdict", json!("denied")))),
        (vec!["--namespace", "play"], Box::new(either("/pod/namespace", json!("play")))),
        (vec!["--pod", "play/stranger"], Box::new(either("/pod/name", json!("stranger")))),
        (vec!["--from-pod", "shop/client"], Box::new(at("/source/pod/name", json!("client")))),
        (vec!["--to-pod", "shop/server"], Box::new(at("/destination/pod/name", json!("server")))),
        (vec!["--ip", &address], Box::new(either("/ip", json!(address.clone())))),
        (vec!["--ip", "fd00::/8"], Box::new(within("fd00:"))),
        (vec!["--port", "53"], Box::new(either("/port", json!(53)))),
        (vec!["--protocol", "icmp"], Box::new(at("/protocol", json!("ICMPv4")))),
        (vec!["--protocol", "17"], Box::new(at("/protocol", json!("UDP")))),
        (vec!["--kind", "ledger"], Box::new(at("/kind", json!("ledger")))),
    ];
    for (filter, wanted) in cases {
        let answer = agent.command(&[&["observe", "--last", "all", "-o", "json"], &*filter].concat())?;
        let found = answer.json_lines()?;
        ensure!(answer.success() && !found.is_empty(), "{filter:?}: {answer:?}");
        for record in &found {
            ensure!(wanted(record), "{filter:?} lets this through: {record}");
        }
        // What was made while the two answers were fetched is in neither.
        let until = found.last().map(|record| record["seq"].clone()).and_then(|seq| seq.as_u64()).context("every record has a seq")?;
        let all = agent.records()?;
        let expected = all.iter().filter(|record| record["seq"].as_u64() <= Some(until) && wanted(record)).count();
        ensure!(found.len() == expected, "{filter:?}: {} of {expected}", found.len());
    }
    let now = agent.command(&["observe", "--since", "2100-01-01T00:00:00Z", "-o", "json"])?;
    ensure!(now.success() && now.stdout.is_empty(), "nothing is that young: {now:?}");
    let three = agent.command(&["observe", "--last", "3", "-o", "json"])?;
    ensure!(three.json_lines()?.len() == 3);
    Ok(())
}

/// A follower gets every line at once and without a gap, and ends well when it is interrupted or nobody reads.
#[test]
fn following() -> Result<()> {
    let Shop { lab, server, client, .. } = shop("cli-follow")?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    let mut follower = agent.follow(&["observe", "--follow", "--last", "all", "-o", "json"])?;
    let mut next = || -> Result<Value> { Ok(serde_json::from_str(&follower.line()?)?) };
    let mut seq = next()?["seq"].as_u64();
    ensure!(client.reaches("tcp", server.v4(), 80)?);
    let begin = Instant::now();
    loop {
        let record = next()?;
        ensure!(record["seq"].as_u64() == seq.map(|seq| seq + 1), "a gap after {seq:?}: {record}");
        seq = record["seq"].as_u64();
        if record["destination"]["port"] == 80 && record["kind"] == "start" {
            break;
        }
    }
    ensure!(begin.elapsed() < Duration::from_secs(1), "the line comes {:?} later", begin.elapsed());
    follower.signal(SIGINT)?;
    let ended = follower.finish(Duration::from_secs(2))?;
    ensure!(ended.code == Some(0), "an interrupted follower: {ended:?}");

    let words = agent.with_socket(&["observe", "--follow", "--last", "all", "-o", "json"]);
    let mut unread = lab.node().command(Agent::binary()?)?.args(words).stdout(Stdio::piped()).spawn()?;
    drop(unread.stdout.take());
    let begin = Instant::now();
    let status = loop {
        match unread.try_wait()? {
            Some(status) => break status,
            None if begin.elapsed() > SOON => {
                unread.kill()?;
                bail!("a follower that nobody reads goes on");
            }
            None => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    ensure!(status.code() == Some(0), "a follower that nobody reads: {status}");
    Ok(())
}

/// The kill switch pulled on the pins of an agent that does not answer is not undone when it goes on.
#[test]
fn the_kill_switch_outlasts_a_stuck_agent() -> Result<()> {
    let Shop { lab, server, stranger, .. } = shop("cli-stuck")?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    ensure!(!stranger.reaches("tcp", server.v4(), 80)?);
    kill(agent.pid(), SIGSTOP)?;
    let answer = agent.command(&["mode", "observe", "--pin-dir", &pins(&lab)])?;
    ensure!(answer.success(), "{answer:?}");
    ensure!(stranger.reaches("tcp", server.v4(), 80)?, "nothing is dropped while it is stuck");
    // A policy that waits to be applied is what could undo it.
    lab.policy("shop", "nobody", &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))?;
    kill(agent.pid(), SIGCONT)?;
    agent.until_status("both are known", SOON, |status| status["mode"] == "observe" && status["policy"]["policies"] == 2)?;
    ensure!(stranger.reaches("tcp", server.v4(), 80)?, "nor when it goes on");
    agent.set_mode("enforce")?;
    ensure!(!stranger.reaches("tcp", server.v4(), 80)?, "until somebody says so");
    Ok(())
}

/// `detach` refuses while an agent runs, removes everything afterwards, and minds finding nothing as little as being run twice.
#[test]
fn detaching() -> Result<()> {
    for backend in ["auto", "clsact"] {
        let Shop { lab, server, stranger, .. } = shop(&format!("cli-detach-{backend}"))?;
        let _serving = server.serve("tcp", 80)?;
        let detach = || lab.sekisho(&["detach", "--pin-dir", &pins(&lab)]);
        ensure!(detach()?.code == Some(0), "there is nothing yet");
        let mut agent = Agent::start(&lab, &["--tc-backend", backend])?;
        let answer = detach()?;
        ensure!(answer.code == Some(3) && answer.stderr.contains("stop it first"), "an agent runs: {answer:?}");
        ensure!(agent.alive()? && !stranger.reaches("tcp", server.v4(), 80)?);
        agent.kill()?;
        if backend == "clsact" {
            let strayed = Command::new(Agent::binary()?).args(["detach", "--pin-dir", &pins(&lab)]).output()?;
            let said = String::from_utf8_lossy(&strayed.stderr);
            ensure!(
                strayed.status.code() == Some(3) && said.contains("nsenter --net=/"),
                "filters are in the node's namespace: {strayed:?}"
            );
            ensure!(!stranger.reaches("tcp", server.v4(), 80)?, "and stay there");
        }
        let answer = detach()?;
        ensure!(answer.code == Some(0) && !answer.stdout.is_empty(), "{answer:?}");
        ensure!(!lab.pin_dir().exists() && stranger.reaches("tcp", server.v4(), 80)?, "nothing is left");
        ensure!(detach()?.code == Some(0), "there is nothing any more");
        let agent = Agent::start(&lab, &["--tc-backend", backend])?;
        ensure!(!stranger.reaches("tcp", server.v4(), 80)?, "an agent can start again");
        agent.terminate(SOON)?;
    }
    Ok(())
}
