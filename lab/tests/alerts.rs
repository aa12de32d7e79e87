//! Alerts name whom they mean, leave clients alone, and outlive the agent. Needs root, nmap and a shell.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sekisho_lab::{Agent, Lab, Pod, PodSpec, until};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(8);

fn alerts_of(agent: &Agent, rule: &str) -> Result<Vec<Value>> {
    Ok(agent.alerts()?.into_iter().filter(|alert| alert["rule"] == rule).collect())
}

/// Waits for an alert that `wanted` picks and returns the last one.
fn alert(agent: &Agent, what: &str, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
    let mut found = None;
    let outcome = until(limit, what, || {
        found = agent.alerts()?.into_iter().rfind(|alert| wanted(alert));
        Ok(found.is_some())
    });
    outcome.with_context(|| format!("{:#?}\n{}", agent.alerts(), agent.log()))?;
    found.context("just found")
}

fn nmap(scanner: &Pod, target: &Pod, ports: &str) -> Result<()> {
    let nmap = scanner.run("nmap", &["-sT", "-n", "-Pn", "-p", ports, &target.v4().to_string()])?;
    ensure!(nmap.success(), "{nmap:?}");
    Ok(())
}

/// Targets of a scraper: pods of three workloads that declare the port.
fn targets(lab: &Lab, count: usize) -> Result<Vec<Pod>> {
    let owners = ["one", "two", "three"];
    let pod = |number: usize| {
        let spec = PodSpec::new("shop", &format!("t{number}")).label("app", "target").annotation("prometheus.io/port", "9100");
        lab.pod(spec.owner("StatefulSet", owners[number % 3]))
    };
    (0..count).map(pod).collect()
}

/// Nobody listens on the declared ports, or policy is in the way: the scraper comes back, and no alert comes.
#[test]
fn a_scraper_that_fails_is_no_scanner() -> Result<()> {
    let lab = Lab::new("alerts-scraper")?;
    let targets = targets(&lab, 12)?;
    let scraper = lab.pod(PodSpec::new("monitoring", "prometheus-0").owner("StatefulSet", "prometheus"))?;
    lab.admit("shop", "target", &json!([{"from": [{"podSelector": {}}]}]))?;
    let agent = Agent::start(&lab, &[])?;
    let scrape = || -> Result<()> {
        for target in &targets {
            for v6 in [false, true] {
                ensure!(!scraper.reaches("tcp", target.address(v6), 9100)?, "it is shut out");
            }
        }
        Ok(())
    };
    scrape()?;
    // Without policy the targets refuse.
    lab.remove_manifest("policy-shop-target.json")?;
    agent.until_status("the policy is gone", SOON, |status| status["policy"]["policies"] == 0)?;
    scrape()?;
    std::thread::sleep(Duration::from_secs(6));
    scrape()?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(agent.alerts()?.is_empty(), "{:#?}", agent.alerts()?);
    // The same client on a port that nobody declares is a scanner at once.
    for target in &targets {
        ensure!(!scraper.reaches("tcp", target.v4(), 6379)?);
    }
    alert(&agent, "the sweep is called out", SOON, |alert| alert["rule"] == "scan.horizontal")?;
    Ok(())
}

/// A curl comes first, nmap makes the other contacts: nmap is named, and both are listed.
#[test]
fn the_process_with_the_most_contacts_is_named() -> Result<()> {
    let lab = Lab::new("alerts-process")?;
    let [target, scanner] = lab.pods("shop", ["target", "scanner"])?;
    let agent = Agent::start(&lab, &[])?;
    let dial = scanner.run(sekisho_lab::tool::binary()?, &["dial", "tcp", &format!("{}:1000", target.v4())])?;
    ensure!(!dial.success(), "nobody listens");
    nmap(&scanner, &target, "1001-1030")?;
    let alert = alert(&agent, "the scan", SOON, |alert| alert["rule"] == "scan.vertical")?;
    ensure!(alert["process"]["comm"] == "nmap", "{alert:#}");
    let first = &alert["processes"][0];
    ensure!(first["process"]["comm"] == "nmap" && first["contacts"].as_u64().is_some_and(|n| n >= 25), "{alert:#}");
    let others = alert["processes"].as_array().context("a list")?;
    ensure!(others.len() == 2 && others[1]["contacts"] == 1, "the one dial is listed as well: {alert:#}");
    let line = agent.command(&["alerts", "-o", "wide"])?.stdout;
    ensure!(line.contains("by nmap["), "{line}");
    Ok(())
}

/// SIGTERM closes what is open; the next run shows it with its run, and an incident that goes on keeps its id.
#[test]
fn alerts_outlive_the_agent() -> Result<()> {
    let lab = Lab::new("alerts-restart")?;
    let [target, scanner] = lab.pods("shop", ["target", "scanner"])?;
    let agent = Agent::start(&lab, &[])?;
    nmap(&scanner, &target, "1001-1020")?;
    let open = alert(&agent, "the scan", SOON, |alert| alert["status"] == "open")?;
    let run = agent.status()?["run"].clone();
    ensure!(open["run"] == run, "{open:#}");
    ensure!(agent.terminate(SOON)? == Some(0));
    let agent = Agent::start(&lab, &[])?;
    let now = agent.status()?["run"].clone();
    ensure!(now != run);
    let before = agent.alerts()?;
    let shown: Vec<_> =
        before.iter().map(|alert| (alert["id"].clone(), alert["status"].as_str().unwrap_or_default(), &alert["run"])).collect();
    let id = open["id"].clone();
    ensure!(shown == [(id.clone(), "open", &run), (id.clone(), "closed", &run)], "{before:#?}");
    ensure!(before[1]["count"] == 20 && before[1]["seq"].as_u64() > before[0]["seq"].as_u64(), "{before:#?}");
    // It goes on: an update, no second alert.
    nmap(&scanner, &target, "1021-1030")?;
    let update = alert(&agent, "the scan goes on", SOON, |alert| alert["run"] == now)?;
    ensure!(update["id"] == id && update["status"] == "update", "{update:#}");
    ensure!(update["incident"] == open["incident"] && update["first"] == open["first"], "{update:#}");
    ensure!(update["count"].as_u64().is_some_and(|count| count > 20), "{update:#}");
    ensure!(alerts_of(&agent, "scan.vertical")?.iter().all(|alert| alert["id"] == id), "{:#?}", agent.alerts()?);
    // A killed agent has closed nothing; what was told some seconds before is not lost.
    std::thread::sleep(Duration::from_secs(6));
    agent.kill()?;
    let agent = Agent::start(&lab, &[])?;
    let kept = agent.alerts()?;
    ensure!(kept.len() == 3 && kept[2]["status"] == "update" && kept[2]["run"] == now, "{kept:#?}");
    let last = agent.command(&["alerts", "--last", "1", "-o", "json"])?.json_lines()?;
    ensure!(last.len() == 1 && last[0] == kept[2], "{last:#?}");
    Ok(())
}

/// A file that cannot be read is set aside, and the agent starts.
#[test]
fn a_broken_file_of_alerts_stops_nobody() -> Result<()> {
    let lab = Lab::new("alerts-broken")?;
    let [target, scanner] = lab.pods("shop", ["target", "scanner"])?;
    let folder = lab.directory().join("state");
    let state = folder.display().to_string();
    let agent = Agent::start(&lab, &["--state-dir", &state])?;
    nmap(&scanner, &target, "1001-1020")?;
    alert(&agent, "the scan", SOON, |alert| alert["status"] == "open")?;
    agent.terminate(SOON)?;
    let kept: Vec<_> = std::fs::read_dir(&folder)?.collect::<Result<Vec<_>, _>>()?.into_iter().map(|entry| entry.path()).collect();
    ensure!(kept.len() == 1, "{kept:?}");
    let text = std::fs::read(&kept[0])?;
    std::fs::write(&kept[0], &text[..text.len() / 2])?;
    let agent = Agent::start(&lab, &["--state-dir", &state])?;
    ensure!(agent.alerts()?.is_empty(), "{:#?}", agent.alerts()?);
    ensure!(agent.log().contains("set aside"), "{}", agent.log());
    ensure!(kept[0].with_extension("alerts.unreadable").exists());
    let begin = Instant::now();
    nmap(&scanner, &target, "1001-1020")?;
    alert(&agent, "a new scan is called out", SOON, |alert| alert["status"] == "open")?;
    ensure!(begin.elapsed() < SOON);
    Ok(())
}
