//! Every JSON line that a real agent prints obeys the schemas in docs/schemas: records of all kinds, from a file and from the
//! command line, and the answers to status, explain and mode. Needs root.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jsonschema::Validator;
use sekisho_lab::{Agent, Lab, PodSpec, app, until};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);
/// Kinds of records that every machine is fast enough to bring about. `summarised` needs more new flows at once than a slow one makes; the
/// protocol's own tests check it.
const KINDS: [&str; 7] = ["start", "update", "end", "alert", "ledger", "policy", "coverage"];

fn validator(name: &str) -> Result<Validator> {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../docs/schemas/{name}.schema.json"));
    let schema = serde_json::from_str(&std::fs::read_to_string(&file).with_context(|| file.display().to_string())?)?;
    jsonschema::options().should_validate_formats(true).build(&schema).map_err(|error| anyhow::anyhow!("{}: {error}", file.display()))
}

fn check(validator: &Validator, value: &Value) -> Result<()> {
    let wrong: Vec<String> = validator.iter_errors(value).map(|error| format!("{} {error}", error.instance_path())).collect();
    ensure!(wrong.is_empty(), "{}\n{value:#}", wrong.join("\n"));
    Ok(())
}

/// So many records of each kind are checked: a flood's are all alike.
const CHECKED: usize = 500;

/// Adds to `found` how many records of each kind follow in a file of JSON lines from `position` on; they are valid.
fn kinds(validator: &Validator, file: &Path, position: &mut u64, found: &mut BTreeMap<String, usize>) -> Result<()> {
    let mut lines = BufReader::new(File::open(file)?);
    lines.seek(SeekFrom::Start(*position))?;
    let mut line = String::new();
    // The last line may be half written.
    while lines.read_line(&mut line)? > 0 && line.ends_with('\n') {
        let kind = line.strip_prefix("{\"kind\":\"").and_then(|rest| rest.split('"').next());
        let count = found.entry(kind.with_context(|| format!("no kind: {line}"))?.to_owned()).or_default();
        *count += 1;
        if *count <= CHECKED {
            check(validator, &serde_json::from_str(&line).with_context(|| line.clone())?)?;
        }
        *position += line.len() as u64;
        line.clear();
    }
    Ok(())
}

/// Everything that makes a record: flows of several protocols and verdicts, a scan, a forged source, a flood, a hook that is taken
/// away, an edit of policy.
#[test]
fn every_kind_of_record() -> Result<()> {
    let lab = Lab::new("schema-records")?;
    let [server, client, stranger, flooder] = lab.pods("shop", ["server", "client", "stranger", "flooder"])?;
    lab.admit("shop", "server", &json!([{"from": [app("client")], "ports": [{"port": 80}]}]))?;
    let serving = (server.serve("tcp", 80)?, server.serve("udp", 53)?);
    let file = lab.directory().join("records.jsonl");
    let path = file.to_str().context("a path in UTF-8")?;
    let agent = Agent::start(&lab, &["--jsonl", path, "--first-update", "200ms", "--ledger-interval", "1s", "--tc-backend", "clsact"])?;
    let held = client.start(&["hold", &format!("{}:80", server.v4()), "1", "5"])?;
    for v6 in [false, true] {
        ensure!(client.reaches("tcp", server.address(v6), 80)?, "the client is admitted");
        ensure!(!stranger.reaches("tcp", server.address(v6), 80)?, "the stranger is not");
        // What comes of them does not matter.
        client.tool(&["ping", &server.address(v6).to_string()])?;
        client.reaches("udp", server.address(v6), 53)?;
        client.reaches("tcp", if v6 { lab.outside_v6() } else { lab.outside_v4() }, 81)?;
    }
    stranger.tool(&["scan", "connect", &server.v4().to_string(), "5400", "5430"])?;
    flooder.tool(&["spray", "tcp", &flooder.v4().to_string(), &format!("{}:10000", server.v4()), "2000", "0"])?;
    let removed = lab.node().run("tc", &["qdisc", "del", "dev", client.interface().context("it has a veth")?, "clsact"])?;
    ensure!(removed.success(), "{removed:?}");
    lab.admit("shop", "client", &json!([]))?;
    let validator = validator("record")?;
    let (mut position, mut found) = (0, BTreeMap::new());
    let every = until(SOON, "a record of every kind", || {
        kinds(&validator, &file, &mut position, &mut found)?;
        Ok(KINDS.iter().all(|kind| found.contains_key(*kind)))
    });
    every.with_context(|| format!("{found:?}\n{}", agent.log()))?;
    // The command line prints the same.
    for record in agent.records()?.iter().take(CHECKED) {
        check(&validator, record)?;
    }
    ensure!(held.finish(SOON)?.success(), "the held connection stays open");
    drop(serving);
    agent.terminate(SOON)?;
    kinds(&validator, &file, &mut position, &mut found)?;
    println!("{found:?}");
    Ok(())
}

#[test]
fn numbers_of_64_bits_are_text() -> Result<()> {
    let lab = Lab::new("schema-digits")?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    lab.admit("shop", "server", &json!([{"from": [app("client")]}]))?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    ensure!(client.reaches("tcp", server.v4(), 80)?);
    let start = agent.record("a start", SOON, |record| record["kind"] == "start" && record["source"]["pod"]["name"] == "client")?;
    for end in ["source", "destination"] {
        let identity = start[end]["identity"].as_str().with_context(|| format!("identity is text: {start:#}"))?;
        ensure!(identity.parse::<u64>()? > 1 << 32, "a hash: {identity}");
    }
    Ok(())
}

#[test]
fn answers() -> Result<()> {
    let lab = Lab::new("schema-answers")?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    let _host = lab.pod(PodSpec::new("shop", "host").host_network())?;
    lab.admit("shop", "server", &json!([{"from": [app("server")], "ports": [{"port": 80}]}]))?;
    lab.write_manifest("broken.yaml", "kind: NetworkPolicy\n")?;
    let agent = Agent::start(&lab, &[])?;
    check(&validator("status")?, &agent.status()?)?;
    let explain = validator("explain")?;
    for (from, to, port) in [
        ("shop/client".to_owned(), "shop/server".to_owned(), "80"),
        ("shop/server".to_owned(), "shop/client".to_owned(), "ICMP"),
        (client.v6().to_string(), server.v6().to_string(), "53/UDP"),
        ("shop/client".to_owned(), "192.0.2.7".to_owned(), "443"),
    ] {
        check(&explain, &agent.command(&["explain", "--from", &from, "--to", &to, "--port", port, "-o", "json"])?.json()?)?;
    }
    let mode = validator("mode")?;
    check(&mode, &agent.command(&["mode", "-o", "json"])?.json()?)?;
    check(&mode, &agent.command(&["mode", "audit", "-o", "json"])?.json()?)
}
