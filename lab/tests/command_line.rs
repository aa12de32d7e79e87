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

/// The same, of closures that are shared.
type Test<'a> = &'a dyn Fn(&Value) -> bool;

/// The filters that operators know from kubectl and hubble, on real traffic; the agent applies them.
#[test]
fn filters_of_kubectl_and_hubble() -> Result<()> {
    let Shop { lab, server, client, stranger } = shop("cli-known")?;
    let _tcp = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    ensure!(client.reaches("tcp", server.v4(), 80)? && !stranger.reaches("tcp", server.v6(), 80)?);
    agent.record("the denial", SOON, |record| record["verdict"] == "denied")?;
    let text = |record: &Value, pointer: &str| record.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let source = |record: &Value| text(record, "/source/pod/name");
    let address = stranger.v6().to_string();
    let policy = lab_policy(&agent)?;
    let of_client = |record: &Value| source(record) == "client";
    let of_stranger = |record: &Value| source(record) == "stranger";
    let denied = |record: &Value| record["verdict"] == "denied";
    let ended = |record: &Value| record["kind"] == "end";
    let none = |_: &Value| false;
    let cases: [(&[&str], Test<'_>); 20] = [
        (&["--pod", "shop/cli"], &of_client),
        (&["-n", "shop", "--from-pod", "cli"], &of_client),
        (&["-A", "--pod", "stran"], &of_stranger),
        (&["--pod", "play/"], &of_stranger),
        (&["--from-namespace", "play"], &of_stranger),
        (&["--to-namespace", "play"], &none),
        (&["-n", "play"], &of_stranger),
        (&["--not", "-n", "play"], &of_client),
        (&["--not", "--verdict", "denied", "--from-namespace", "play"], &|r| of_stranger(r) && !denied(r)),
        (&["-l", "app=stranger"], &of_stranger),
        (&["-l", "app in (client,x),!none"], &of_client),
        (&["--to-selector", "app=server"], &|r| text(r, "/destination/pod/name") == "server"),
        (&["--workload", "play/stranger"], &of_stranger),
        (&["--from-ip", &address], &of_stranger),
        (&["--to-port", "80", "--not", "--protocol", "UDP"], &|r| r.pointer("/destination/port") == Some(&json!(80))),
        (&["--from-port", "80"], &none),
        (&["--reason", "default_deny"], &denied),
        (&["--policy", &policy, "--verdict", "denied"], &denied),
        (&["--type", "end"], &ended),
        (&["--until", "2026-01-01 00:00"], &none),
    ];
    for (filter, wanted) in cases {
        let answer = agent.command(&[&["observe", "--last", "all", "-o", "json"], filter].concat())?;
        let found = answer.json_lines()?;
        ensure!(answer.success(), "{filter:?}: {answer:?}");
        for record in found.iter().filter(|record| !record["source"].is_null()) {
            ensure!(wanted(record), "{filter:?} lets this through: {record}");
        }
        let until = found.iter().filter_map(|record| record["seq"].as_u64()).max().unwrap_or(0);
        let all = agent.records()?;
        let flows =
            |records: &[Value]| records.iter().filter(|r| !r["source"].is_null() && r["seq"].as_u64() <= Some(until) && wanted(r)).count();
        ensure!(flows(&found) == flows(&all), "{filter:?}: {} of {}", flows(&found), flows(&all));
        let must_find =
            filter.first() != Some(&"--until") && filter[0] != "--from-port" && filter[0] != "--to-namespace" && filter[0] != "--type";
        ensure!(!must_find || !found.is_empty(), "{filter:?} finds nothing");
    }
    Ok(())
}

/// The policy of the shop, as records name it.
fn lab_policy(agent: &Agent) -> Result<String> {
    let denied = agent.record("the denial", SOON, |record| record["verdict"] == "denied")?;
    let by = &denied["isolated_by"][0];
    Ok(format!("{}/{}", by["namespace"].as_str().context("a namespace")?, by["name"].as_str().context("a name")?))
}

/// Text comes without being asked for, fits, and shows a dropped connection once; JSON is a record for each end.
#[test]
fn lines_for_people() -> Result<()> {
    let Shop { lab, server, client, stranger } = shop("cli-lines")?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    let status = agent.command(&["status"])?;
    ensure!(status.success() && status.stdout.starts_with("Ready "), "a page, although nobody's terminal: {status:?}");
    let mut follower = agent.follow(&["observe", "--follow", "--type", "start", "--to-port", "80"])?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(!stranger.reaches("tcp", server.v4(), 80)? && client.reaches("tcp", server.v4(), 80)?);
    let mut lines = vec![follower.line()?, follower.line()?];
    lines.sort();
    ensure!(lines.iter().any(|line| line.contains(" DENIED  play/stranger -> shop/server:80 TCP ")), "{lines:?}");
    ensure!(lines.iter().any(|line| line.contains(" ALLOWED shop/client -> shop/server:80 TCP ")), "{lines:?}");
    follower.signal(SIGINT)?;
    agent.record("both ends of it", SOON, |record| record["direction"] == "egress" && record["source"]["pod"]["name"] == "stranger")?;
    let of_stranger = ["observe", "--last", "all", "--from-pod", "play/stranger", "--type", "start"];
    let shown = |more: &[&str]| -> Result<Vec<String>> {
        let answer = agent.command(&[&of_stranger, more].concat())?;
        ensure!(answer.success(), "{answer:?}");
        Ok(answer.stdout.lines().map(str::to_owned).collect())
    };
    let folded = shown(&[])?;
    ensure!(folded.len() == 1 && folded[0].contains("DENIED") && folded[0].chars().count() <= 100, "{folded:?}");
    let both = shown(&["--both"])?;
    ensure!(both.len() == 2 && both.iter().filter(|line| line.contains("ALLOWED")).count() == 1, "{both:?}");
    let wide = shown(&["-o", "wide"])?;
    ensure!(wide.len() == 1 && wide[0].contains("default_deny; isolated by") && wide[0].chars().count() > 100, "{wide:?}");
    ensure!(shown(&["-o", "json"])?.len() == 2, "a record for each end");
    // The verdict that counts is shown, also where the last line would be the other end's.
    let last = agent.command(&["observe", "--last", "1", "--from-pod", "play/stranger", "--type", "start"])?;
    ensure!(last.stdout.lines().count() == 1 && last.stdout.contains("DENIED"), "{last:?}");
    let painted = agent.command(&["observe", "--color", "always", "--verdict", "denied"])?;
    let plain = agent.command(&["observe", "--color", "never", "--verdict", "denied"])?;
    ensure!(painted.stdout.contains("\u{1b}[") && !plain.stdout.contains('\u{1b}') && !status.stdout.contains('\u{1b}'), "{painted:?}");
    Ok(())
}

/// A question about something that does not exist is answered with that, and not with silence.
#[test]
fn what_does_not_exist_is_said() -> Result<()> {
    let Shop { lab, .. } = shop("cli-nobody")?;
    let agent = Agent::start(&lab, &[])?;
    for (words, said) in [
        (&["observe", "--pod", "shop/nobody"][..], "no such pod: shop/nobody"),
        (&["observe", "--pod", "client"], "no such pod: default/client"),
        (&["observe", "-n", "shpo"], "no such namespace: shpo"),
        (&["observe", "--policy", "shop/x"], "no such policy: shop/x"),
        (&["observe", "--service", "shop/x"], "no such service: shop/x"),
        (&["observe", "--workload", "deploy/x"], "no such workload: Deployment/x"),
        (&["alerts", "-n", "shpo"], "no such namespace: shpo"),
        (&["alerts", "--pod", "shop/nobody", "-o", "json"], "no such pod: shop/nobody"),
    ] {
        let answer = agent.command(words)?;
        ensure!(answer.code == Some(1) && answer.stdout.is_empty() && answer.stderr.contains(said), "{words:?}: {answer:?}");
    }
    for words in [
        &["observe", "--pod", "shop/cli", "--verdict", "audit"][..],
        &["alerts", "-n", "shop"],
        &["observe", "--workload", "client", "--reason", "malformed"],
    ] {
        let answer = agent.command(words)?;
        ensure!(
            answer.code == Some(0) && answer.stdout.is_empty() && answer.stderr.is_empty(),
            "it exists and has done nothing: {words:?}: {answer:?}"
        );
    }
    Ok(())
}

/// Versions of both sides, and what a shell offers out of the running agent.
#[test]
fn version_and_completion() -> Result<()> {
    let Shop { lab, .. } = shop("cli-version")?;
    let version = lab.sekisho(&["version", "--client", "-o", "json"])?.json()?;
    ensure!(
        version["client"]["version"].is_string() && version["client"]["commit"].is_string() && version["agents"] == json!([]),
        "{version}"
    );
    let agent = Agent::start(&lab, &[])?;
    let version = agent.command(&["version", "-o", "json"])?.json()?;
    ensure!(version["agents"][0]["commit"] == version["client"]["commit"] && version["agents"][0]["node"].is_string(), "{version}");
    let flag = lab.sekisho(&["--version"])?;
    ensure!(flag.stdout.contains(version["client"]["commit"].as_str().context("a commit")?), "{flag:?}");
    let offered = |line: &[&str]| -> Result<Vec<String>> {
        let words = agent.with_socket(line);
        // The word that is being typed is the last.
        let (mut words, socket): (Vec<String>, Vec<String>) = (words[..line.len()].to_vec(), words[line.len()..].to_vec());
        words.splice(1..1, socket);
        let index = words.len().to_string();
        let mut command = lab.node().command(Agent::binary()?)?;
        command
            .env("SEKISHO_COMPLETE", "bash")
            .env("_CLAP_COMPLETE_INDEX", index)
            .env("_CLAP_IFS", "\n")
            .args(["--", "sekisho"])
            .args(words);
        let answer = command.stdin(Stdio::null()).output()?;
        Ok(String::from_utf8_lossy(&answer.stdout).lines().map(str::to_owned).collect())
    };
    ensure!(offered(&["observe", "--namespace", "sh"])? == ["shop"], "{:?}", offered(&["observe", "--namespace", "sh"])?);
    ensure!(offered(&["observe", "--pod", "shop/c"])? == ["shop/client"], "{:?}", offered(&["observe", "--pod", "shop/c"])?);
    ensure!(offered(&["observe", "-n", "shop", "--pod", "s"])? == ["server"], "{:?}", offered(&["observe", "-n", "shop", "--pod", "s"])?);
    ensure!(offered(&["observe", "--verdict", "den"])? == ["denied"]);
    let script = lab.sekisho(&["completion", "bash"])?;
    ensure!(script.success() && script.stdout.contains("SEKISHO_COMPLETE"), "{script:?}");
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
