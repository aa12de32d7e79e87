//! `bench rr`: what a single client feels. With and without the agent in turns, so that a noisy machine
//! disturbs both alike; each round gives one ratio, and the result is the median of the rounds.
//!
//! Client and server share one processor: the medians of a request that crosses processors depend more on how
//! deep the other one slept than on what runs on the way.

use std::net::SocketAddr;

use anyhow::{Context, Result, bail};
use sekisho_lab::{Agent, Lab, Pod, PodSpec, go_first, interrupted, on_interrupt};
use serde_json::{Value, json};

use super::table::Table;
use crate::workspace::{build_agent, build_fast_lab, say};

const ROUNDS: usize = 11;
const SECONDS: &str = "1";
/// The processor for client and server.
const PROCESSOR: &str = "0";

/// One kind of exchange.
struct Kind {
    tool: &'static str,
    what: &'static str,
    port: u16,
    /// What the ratio is expected to be, from measurements of programs alone.
    expected: f64,
}

const KINDS: [Kind; 3] = [
    Kind { tool: "tcp", what: "TCP request/response", port: 80, expected: 1.04 },
    Kind { tool: "crr", what: "TCP connect/request/response", port: 80, expected: 1.06 },
    Kind { tool: "udp", what: "UDP request/response", port: 53, expected: 1.10 },
];

/// Medians of one kind in every round, in microseconds.
#[derive(Default)]
struct Rounds {
    without: Vec<f64>,
    with: Vec<f64>,
}

pub(crate) fn run() -> Result<()> {
    sekisho_lab::use_programs(build_agent()?, build_fast_lab()?);
    on_interrupt();
    go_first()?;
    let lab = Lab::new("bench-rr")?;
    let server = lab.pod(PodSpec::new("bench", "server"))?;
    let client = lab.pod(PodSpec::new("bench", "client"))?;
    let spec = json!({"podSelector": {"matchLabels": {"app": "server"}}, "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "client"}}}]}]});
    lab.policy("bench", "server", &spec)?;
    let _tcp = server.start(&["pin", PROCESSOR, "serve", "tcp-in-turn", "80"])?;
    let _udp = server.start(&["pin", PROCESSOR, "serve", "udp", "53"])?;
    let mut rounds: [Rounds; KINDS.len()] = Default::default();
    for round in 1..=ROUNDS {
        if interrupted() {
            bail!("interrupted; everything is removed");
        }
        say(&format!("round {round} of {ROUNDS}"));
        for (kind, rounds) in KINDS.iter().zip(&mut rounds) {
            rounds.without.push(measure(kind, &client, &server)?);
        }
        let agent = Agent::start(&lab, &[])?;
        for (kind, rounds) in KINDS.iter().zip(&mut rounds) {
            rounds.with.push(measure(kind, &client, &server)?);
        }
        drop(agent);
        let detached = lab.sekisho(&["detach", "--pin-dir", &lab.pin_dir().display().to_string()])?;
        if !detached.success() {
            bail!("detach: {}", detached.stderr);
        }
    }
    let mut table = Table::new();
    for (kind, rounds) in KINDS.iter().zip(&rounds) {
        let ratios: Vec<f64> = rounds.with.iter().zip(&rounds.without).map(|(with, without)| with / without).collect();
        table.told(&format!("{}, p50 without", kind.what), format!("{:.1} us", median(&rounds.without)));
        table.told(&format!("{}, p50 with", kind.what), format!("{:.1} us", median(&rounds.with)));
        let expected = format!("{:.3} (expected about {:.2})", median(&ratios), kind.expected);
        table.told(&format!("{}, ratio", kind.what), expected);
    }
    table.finish()
}

fn measure(kind: &Kind, client: &Pod, server: &Pod) -> Result<f64> {
    let target = SocketAddr::new(server.v4(), kind.port).to_string();
    let answer: Value = client.tool(&["pin", PROCESSOR, "rr", kind.tool, &target, SECONDS])?.json()?;
    answer["p50_us"].as_f64().context("no p50 in the answer")
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}
