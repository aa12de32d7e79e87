//! `bench rr`: what a single client feels. With and without the agent in turns, so that a noisy machine
//! disturbs both alike; the result is the ratio of the medians.

use anyhow::{Context, Result, bail};
use sekisho_lab::{Agent, Lab, Pod, PodSpec};
use serde_json::{Value, json};

use crate::workspace::{build_agent, build_lab, say};

const ROUNDS: usize = 7;
const SECONDS: &str = "1";

/// `(name, protocol of the server, port, kind)`.
const KINDS: [(&str, &str, u16); 3] = [("tcp", "tcp", 80), ("crr", "tcp", 80), ("udp", "udp", 53)];

pub(crate) fn run() -> Result<()> {
    sekisho_lab::use_programs(build_agent()?, build_lab()?);
    let lab = Lab::new("bench-rr")?;
    let server = lab.pod(PodSpec::new("bench", "server"))?;
    let client = lab.pod(PodSpec::new("bench", "client"))?;
    lab.policy("bench", "server", &json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]}))?;
    let _servers = [server.serve("tcp", 80)?, server.serve("udp", 53)?];
    let mut without = vec![Vec::new(); KINDS.len()];
    let mut with = vec![Vec::new(); KINDS.len()];
    for round in 1..=ROUNDS {
        say(&format!("round {round} of {ROUNDS}"));
        measure(&client, &server, &mut without)?;
        let agent = Agent::start(&lab, &[])?;
        measure(&client, &server, &mut with)?;
        drop(agent);
        let left = lab.sekisho(&["detach", "--pin-dir", &lab.pin_dir().display().to_string()])?;
        if !left.success() {
            bail!("detach: {}", left.stderr);
        }
    }
    for (at, (kind, _, _)) in KINDS.iter().enumerate() {
        let (without, with) = (median(&mut without[at]), median(&mut with[at]));
        println!("{}", json!({"bench": "rr", "kind": kind, "p50_us_without": without, "p50_us_with": with, "ratio": with / without}));
    }
    Ok(())
}

fn measure(client: &Pod, server: &Pod, into: &mut [Vec<f64>]) -> Result<()> {
    for (at, (kind, _, port)) in KINDS.iter().enumerate() {
        let answer = client.tool(&["rr", kind, &format!("{}:{port}", server.v4()), SECONDS])?;
        let value: Value = answer.json()?;
        into[at].push(value["p50_us"].as_f64().context("no p50 in the answer")?);
    }
    Ok(())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
