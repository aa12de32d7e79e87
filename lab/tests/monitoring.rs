//! What deploy/monitoring asks Prometheus for exists: every metric and every label value that the dashboard and the alert rules
//! name is on the page that a real agent serves; what happens is counted there, and the log names objects in fields. Needs root.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sekisho_lab::{Agent, Lab, PodSpec, app, until};
use serde_json::{Value, json};

const PORT: u16 = 9462;

#[test]
fn dashboard_and_alerts_name_what_there_is() -> Result<()> {
    let lab = Lab::new("monitoring")?;
    let _pod = lab.pod(PodSpec::new("shop", "server"))?;
    let _agent = Agent::start(&lab, &["--metrics", &format!("127.0.0.1:{PORT}")])?;
    let mut page = String::new();
    until(Duration::from_secs(10), "the page has the pod", || {
        page = get(&lab, "/metrics")?;
        Ok(page.contains("sekisho_endpoints{"))
    })?;
    let questions = expressions()?;
    ensure!(questions.len() > 15, "{questions:?}");
    let mut asked = BTreeSet::new();
    for question in &questions {
        for name in metrics(question) {
            ensure!(page.contains(&format!("# TYPE {name} ")), "there is no {name}, which {question:?} asks for");
            asked.insert(name);
        }
        for (name, matcher) in exact_matchers(question) {
            let there = page.lines().any(|line| line.starts_with(&format!("{name}{{")) && line.contains(&matcher));
            ensure!(there, "no {name} has {matcher}, which {question:?} asks for");
        }
    }
    println!("{} metrics are asked for by {} expressions", asked.len(), questions.len());
    Ok(())
}

/// The value of one series; zero where it is not there.
fn value(page: &str, series: &str) -> f64 {
    page.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok()).unwrap_or(0.0)
}

#[test]
fn flows_denials_and_alerts_are_counted_by_name() -> Result<()> {
    let lab = Lab::new("monitoring-counts")?;
    let [server, client, stranger] = lab.pods("shop", ["server", "client", "stranger"])?;
    lab.admit("shop", "server", &json!([{"from": [app("client")], "ports": [{"port": 80}]}]))?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &["--metrics", &format!("127.0.0.1:{PORT}"), "--first-update", "200ms"])?;
    for v6 in [false, true] {
        ensure!(client.reaches("tcp", server.address(v6), 80)?, "the client is admitted");
        ensure!(!stranger.reaches("tcp", server.address(v6), 80)?, "the stranger is not");
    }
    let allowed = r#"sekisho_policy_flows_total{namespace="shop",policy="server",direction="ingress",rule="ingress[0]",verdict="allowed"}"#;
    let denied = r#"sekisho_policy_flows_total{namespace="shop",policy="server",direction="ingress",rule="none",verdict="denied"}"#;
    let denials = r#"sekisho_denials_total{namespace="shop",direction="ingress",reason="default_deny",verdict="denied"}"#;
    let flows = r#"sekisho_flows_total{namespace="shop",direction="egress",verdict="allowed"}"#;
    let sent = r#"sekisho_traffic_bytes_total{namespace="shop",direction="sent"}"#;
    let mut page = String::new();
    until(Duration::from_secs(10), "flows are counted by policy, rule and verdict", || {
        page = get(&lab, "/metrics")?;
        // A refused attempt may be tried again from another port.
        Ok(value(&page, allowed) >= 2.0 && value(&page, denied) >= 2.0 && value(&page, denials) >= 2.0 && value(&page, flows) >= 4.0)
    })
    .with_context(|| page.clone())?;
    ensure!(value(&page, "sekisho_packets_dropped_total") >= 2.0, "{page}");
    until(Duration::from_secs(10), "traffic is counted", || Ok(value(&get(&lab, "/metrics")?, sent) > 100.0))
        .with_context(|| page.clone())?;
    // A series of every rule and severity is there before the first alert, or Prometheus would not see it grow.
    let high = r#"sekisho_alerts_total{rule="scan.vertical",severity="high"}"#;
    ensure!(page.contains(&format!("{high} 0")), "{page}");
    stranger.tool(&["scan", "connect", &server.v4().to_string(), "5400", "5499"])?;
    let all = r#"sekisho_alerts_total{rule="scan.vertical",severity=""#;
    until(Duration::from_secs(10), "the scan is counted", || {
        page = get(&lab, "/metrics")?;
        let alerts = page.lines().filter_map(|line| line.strip_prefix(all)?.split_once(' ')?.1.parse::<f64>().ok()).sum::<f64>();
        Ok(alerts >= 1.0 && value(&page, r#"sekisho_namespace_alerts_total{namespace="shop",rule="scan.vertical"}"#) >= 1.0)
    })
    .with_context(|| format!("{page}\n{}", agent.log()))
}

#[test]
fn the_kernels_part_is_served_on_request_only() -> Result<()> {
    let lab = Lab::new("monitoring-detail")?;
    let _agent = Agent::start(&lab, &["--metrics", &format!("127.0.0.1:{PORT}")])?;
    let (page, detailed) = (get(&lab, "/metrics")?, get(&lab, "/metrics?detail=kernel")?);
    for inside in ["sekisho_kernel_total{counter=\"exempt\"}", "sekisho_map_entries{map=\"OWNED\"}"] {
        ensure!(detailed.contains(inside) && !page.contains(inside), "{inside}:\n{page}");
    }
    let build = page.lines().find(|line| line.starts_with("sekisho_build_info{")).context("the build is named")?;
    ensure!(build.contains("version=\"") && build.contains("commit=\"") && build.ends_with(" 1.0"), "{build}");
    Ok(())
}

#[test]
fn the_log_names_objects_in_fields() -> Result<()> {
    let lab = Lab::new("monitoring-log")?;
    let server = lab.pod(PodSpec::new("shop", "server"))?;
    let agent = Agent::start(&lab, &["--log-format", "json"])?;
    let lines = || agent.log().lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect::<Vec<_>>();
    let found = |what: &str, wanted: &dyn Fn(&Value) -> bool| {
        until(Duration::from_secs(5), what, || Ok(lines().iter().any(wanted))).with_context(|| agent.log())
    };
    found("a pod that is found", &|line| {
        line["namespace"] == "shop" && line["pod"] == "server" && line["uid"] == server.uid() && line["message"] == "a pod is found"
    })?;
    lab.write_manifest("broken.yaml", "kind: NetworkPolicy\n")?;
    found("a manifest that is refused", &|line| {
        line["file"] == "broken.yaml"
            && line["level"] == "ERROR"
            && line["error"].as_str().is_some_and(|error| error.contains("broken.yaml"))
    })?;
    // A warning of the compiler: two pods with one address.
    let twin = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": "twin", "uid": "twin-1"},
        "spec": {"nodeName": "elsewhere", "containers": []},
        "status": {"phase": "Running", "podIPs": [{"ip": server.v4().to_string()}]},
    });
    lab.write_manifest("twin.json", &twin.to_string())?;
    found("a warning of the policy compiler", &|line| {
        line["level"] == "WARN" && line["reason"] == "AddressTaken" && line["namespace"] == "shop" && line["pod"].is_string()
    })
}

fn get(lab: &Lab, path: &str) -> Result<String> {
    lab.node().netns().within(|| {
        let mut stream = TcpStream::connect(("127.0.0.1", PORT))?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split_once("\r\n\r\n").context("no HTTP answer")?.1.to_owned())
    })
}

/// Every expression of the dashboard and of the alert rules.
fn expressions() -> Result<Vec<String>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../deploy/monitoring");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(folder.join("dashboard.json"))?)?;
    let mut found = Vec::new();
    collect(&dashboard, &mut found);
    let alerts = std::fs::read_to_string(folder.join("alerts.yaml"))?;
    found.extend(alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned));
    Ok(found)
}

fn collect(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value.as_str() {
                    Some(text) if name == "expr" => found.push(text.to_owned()),
                    // A variable's values come from `label_values(metric, label)`.
                    Some(text) if text.starts_with("label_values(") => found.push(text.to_owned()),
                    _ => collect(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
        _ => {}
    }
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// The metrics in an expression: the agent's own, and those of its process.
fn metrics(expression: &str) -> Vec<&str> {
    expression.split(|c| !is_name(c)).filter(|word| word.starts_with("sekisho_") || word.starts_with("process_")).collect()
}

/// `name{label="value"}`, as name and matcher. Matchers with patterns or variables stand for nothing in particular.
fn exact_matchers(expression: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices('{') {
        let name = expression[..at].rsplit(|c| !is_name(c)).next().unwrap_or_default();
        let inside = expression[at + 1..].split('}').next().unwrap_or_default();
        for matcher in inside.split(',').filter(|matcher| matcher.contains("=\"") && !matcher.contains(['!', '$'])) {
            found.push((name, matcher.trim().to_owned()));
        }
    }
    found
}
