//! What happened, added up from the records themselves, and what to type next.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Result;
use sekisho_lab::{Agent, Lab};
use serde_json::Value;

use super::shop::Shop;
use crate::workspace::program;

/// One line of the summary.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    verdict: String,
    from: String,
    to: String,
    why: String,
}

pub(crate) fn print(lab: &Lab, agent: &Agent, scanned: Instant) -> Result<()> {
    let records = agent.records()?;
    let mut lines: BTreeMap<Line, (u64, String)> = BTreeMap::new();
    let mut ports = 0u64;
    for record in records.iter().filter(|record| record["kind"] == "start" && record["direction"] == "ingress") {
        let denied_scan = record["verdict"] == "denied" && record["destination"]["port"] != 5432;
        if denied_scan {
            ports += 1;
            continue;
        }
        add(&mut lines, record);
    }
    for record in
        records.iter().filter(|record| record["kind"] == "start" && record["direction"] == "egress" && record["verdict"] == "denied")
    {
        add(&mut lines, record);
    }
    println!("\nWho talked to whom");
    for (line, (count, process)) in &lines {
        println!("  {:<7} {:>3} x  {} -> {}{process}", line.verdict, count, line.from, line.to);
        if !line.why.is_empty() {
            println!("                 because {}", line.why);
        }
    }
    if ports > 0 {
        println!("  denied  {ports:>3} x  the scanned ports, one record each");
    }
    println!("\nAlerts");
    for alert in records.iter().filter(|record| record["kind"] == "alert") {
        let source = alert["source"]["pod"]
            .as_str()
            .map_or_else(|| text(&alert["source"]["ip"]).to_owned(), |pod| format!("{}/{pod}", text(&alert["source"]["namespace"])));
        println!(
            "  {} {} by {source}, ATT&CK {}, {} contacts",
            text(&alert["severity"]),
            text(&alert["rule"]),
            alert["attack"],
            alert["count"]
        );
    }
    let ledger = agent.status()?["ledger"].clone();
    println!(
        "\nThe book: {} flows seen, {} records started, lost {}",
        ledger["kernel"]["created"],
        ledger["kernel"]["start_sent"],
        lost(&ledger["kernel"])
    );
    println!("  every record as a line of JSON was in {}", lab.directory().join("flows.jsonl").display());
    println!("  the scan began {:.1} s before this summary", scanned.elapsed().as_secs_f64());
    Ok(())
}

fn add(lines: &mut BTreeMap<Line, (u64, String)>, record: &Value) {
    let line = Line {
        verdict: text(&record["verdict"]).to_owned(),
        from: name(&record["source"]),
        to: format!("{}:{}", name(&record["destination"]), record["destination"]["port"]),
        why: why(record),
    };
    let process =
        record["process"]["comm"].as_str().map(|comm| format!("  (process {comm}, pid {})", record["process"]["pid"])).unwrap_or_default();
    lines.entry(line).or_insert((0, process)).0 += 1;
}

fn why(record: &Value) -> String {
    if record["verdict"] != "denied" {
        return record["policy"]["name"]
            .as_str()
            .map(|policy| format!("{policy} {} allows it", text(&record["policy"]["rule"])))
            .unwrap_or_default();
    }
    let isolated: Vec<&str> = record["isolated_by"].as_array().into_iter().flatten().map(|policy| text(&policy["name"])).collect();
    let wrong: Vec<&str> = record["mismatch"].as_array().into_iter().flatten().map(text).collect();
    format!(
        "{} isolates it and no rule matches; nearest is {} {}, wrong {}",
        isolated.join(", "),
        text(&record["nearest"]["name"]),
        text(&record["nearest"]["rule"]),
        wrong.join(" and ")
    )
}

fn name(peer: &Value) -> String {
    match (peer["pod"]["namespace"].as_str(), peer["workload"]["kind"].as_str()) {
        (Some(namespace), Some(kind)) => format!("{namespace}/{kind}/{}", text(&peer["workload"]["name"])),
        (Some(namespace), None) => format!("{namespace}/{}", text(&peer["pod"]["name"])),
        _ => text(&peer["ip"]).to_owned(),
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("?")
}

fn lost(ledger: &Value) -> u64 {
    ledger["lost"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
}

pub(crate) fn how_to_explore(lab: &Lab, shop: &Shop) {
    let sekisho = program("release", "sekisho").display().to_string();
    let tool = program("debug", "sekisho-lab").display().to_string();
    let socket = lab.socket().display().to_string();
    let inside = |pod: &sekisho_lab::Pod| format!("nsenter --net={}", pod.netns().path().display());
    println!("\nThe shop stays open. Try, as root:");
    println!("  export SEKISHO_SOCKET={socket}");
    println!("  {sekisho} status");
    println!("  {sekisho} observe --follow");
    println!("  {sekisho} observe --last 5 --verdict denied -o json");
    println!("  {sekisho} alerts");
    println!("  {sekisho} explain --from playground/stranger-h8v9t --to shop/database-0 --port 5432/TCP");
    println!("  {sekisho} mode audit          # watch only; `mode enforce` to go back");
    println!("  edit {}/03-policies.yaml and watch the verdict change", lab.manifests().display());
    println!("A process inside a pod (the network namespace; its control group is {}):", shop.stranger.cgroup().display());
    println!("  {} {tool} dial tcp {}:5432", inside(&shop.stranger), shop.database.v4());
    println!("  {} {tool} http {}:8080 /", inside(&shop.frontend), shop.api.v4());
    println!("Close it:");
    println!("  cargo xtask demo --clean");
}
