//! A port scan is called out within a second, once, by name; ordinary traffic is not. Needs root and nmap.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sekisho_lab::{Agent, Lab, PodSpec};
use serde_json::{Value, json};

fn alerts_of(agent: &Agent, rule: &str) -> Result<Vec<Value>> {
    Ok(agent.alerts()?.into_iter().filter(|alert| alert["rule"] == rule).collect())
}

/// Scans with nmap while following alerts; checks that one incident is told in time.
fn nmap_is_called_out(name: &str, how: &str) -> Result<()> {
    let lab = Lab::new(name)?;
    let target = lab.pod(PodSpec::new("shop", "database").owner("StatefulSet", "database"))?;
    let scanner = lab.pod(PodSpec::new("shop", "scanner-7c9d").owner("Deployment", "scanner"))?;
    let _serving = target.serve("tcp", 1080)?;
    let agent = Agent::start(&lab, &[])?;
    let mut follower = agent.follow(&["alerts", "--follow", "-o", "json"])?;
    let reader = std::thread::spawn(move || follower.line().map(|line| (line, Instant::now())));
    std::thread::sleep(Duration::from_millis(300));
    let begin = Instant::now();
    let nmap = scanner.run("nmap", &[how, "-n", "-Pn", "-p", "1001-1100", &target.v4().to_string()])?;
    ensure!(nmap.success() && nmap.stdout.contains("1080/tcp open"), "nmap finds the open port: {nmap:?}");
    let took = begin.elapsed();
    let deadline = Instant::now() + Duration::from_secs(3);
    while !reader.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(5));
    }
    ensure!(reader.is_finished(), "no alert; log:\n{}", agent.log());
    let (line, told) = reader.join().expect("reading does not panic")?;
    let alert: Value = serde_json::from_str(&line).with_context(|| format!("an alert in JSON, not {line:?}"))?;
    ensure!(alert["rule"] == "scan.vertical", "{alert:#}");
    // nmap's own start takes most of its time; the fifth port comes after it.
    ensure!(
        told.saturating_duration_since(begin) <= took + Duration::from_secs(1),
        "told {:?} after the start of a scan of {took:?}",
        told - begin
    );
    let text = alert.to_string();
    ensure!(
        text.contains("scanner-7c9d") && text.contains(scanner.uid()) && text.contains("Deployment"),
        "it names the pod and the workload: {alert:#}"
    );
    ensure!(alert["attack"].as_array().is_some_and(|ids| ids.iter().any(|id| id == "T1046")), "{alert:#}");
    ensure!(text.contains(&target.v4().to_string()) || text.contains("database"), "it names the target: {alert:#}");
    std::thread::sleep(Duration::from_secs(2));
    let mut incidents: Vec<_> = alerts_of(&agent, "scan.vertical")?.iter().map(|alert| alert["id"].to_string()).collect();
    incidents.dedup();
    ensure!(incidents.len() == 1, "one incident: {:#?}", agent.alerts()?);
    Ok(())
}

#[test]
fn a_half_open_scan() -> Result<()> {
    nmap_is_called_out("scan-syn", "-sS")
}

#[test]
fn a_connect_scan() -> Result<()> {
    nmap_is_called_out("scan-connect", "-sT")
}

#[test]
fn a_scan_of_many_hosts() -> Result<()> {
    let lab = Lab::new("scan-wide")?;
    let targets = (0..12).map(|number| lab.pod(PodSpec::new("shop", &format!("t{number}")))).collect::<Result<Vec<_>>>()?;
    let scanner = lab.pod(PodSpec::new("shop", "scanner").owner("Deployment", "scanner"))?;
    let agent = Agent::start(&lab, &[])?;
    for target in &targets {
        ensure!(!scanner.reaches("tcp", target.v4(), 6379)?, "nobody listens");
    }
    std::thread::sleep(Duration::from_secs(2));
    let alerts = alerts_of(&agent, "scan.horizontal")?;
    ensure!(!alerts.is_empty() && alerts.iter().all(|alert| alert["id"] == alerts[0]["id"]), "one incident: {:#?}", agent.alerts()?);
    Ok(())
}

/// A minute of what a shop does: requests, name look-ups, a retry now and then, a forbidden port once.
#[test]
fn ordinary_traffic_is_quiet() -> Result<()> {
    let lab = Lab::new("scan-quiet")?;
    let server = lab.pod(PodSpec::new("shop", "server"))?;
    let clients = (0..4)
        .map(|number| lab.pod(PodSpec::new("shop", &format!("client-{number}")).owner("Deployment", "client")))
        .collect::<Result<Vec<_>>>()?;
    lab.admit("shop", "server", &json!([{"ports": [{"port": 80}, {"port": 443}, {"port": 53, "protocol": "UDP"}]}]))?;
    let _servers = [server.serve("tcp", 80)?, server.serve("tcp", 443)?, server.serve("udp", 53)?];
    let agent = Agent::start(&lab, &[])?;
    let begin = Instant::now();
    let mut round = 0u32;
    while begin.elapsed() < Duration::from_mins(1) {
        for client in &clients {
            for v6 in [false, true] {
                ensure!(client.reaches("tcp", server.address(v6), 80)? && client.reaches("tcp", server.address(v6), 443)?);
                ensure!(client.reaches("udp", server.address(v6), 53)?);
            }
        }
        if round.is_multiple_of(100) {
            ensure!(!clients[0].reaches("tcp", server.v4(), 8080)?);
        }
        round += 1;
    }
    ensure!(agent.alerts()?.is_empty(), "{:#?}", agent.alerts()?);
    Ok(())
}
