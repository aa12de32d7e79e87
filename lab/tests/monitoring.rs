//! What deploy/monitoring asks Prometheus for exists: every metric and every label value that the dashboard and the alert rules
//! name is on the page that a real agent serves. Needs root.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sekisho_lab::{Agent, Lab, PodSpec, until};
use serde_json::Value;

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
