//! What fails in a cluster: agents are killed, the API server goes away.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Stage;
use super::probe::{PATIENCE, Protocol, SILENCE, answered_from};
use super::scenarios::policy;
use super::upgrade::Crossing;
use crate::cluster::{kill_api_server, node_name, restart_api_server};

/// How long the API server is away.
const AWAY: Duration = Duration::from_secs(30);
/// How soon after its return a change must be in force.
const BACK: Duration = Duration::from_secs(5);

pub(super) fn a_killed_agent_leaks_and_cuts_nothing(stage: &Stage) -> Result<()> {
    let crossing = Crossing::make(stage, "e2e-kill")?;
    let seen = crossing.watch(|| {
        for number in stage.plan.numbers() {
            stage.kill_agent(&node_name(number))?;
        }
        std::thread::sleep(Duration::from_secs(3));
        stage.agents_ready(Duration::from_secs(60))
    })?;
    seen.no_gap()?;
    stage.covered(Duration::from_secs(20))?;
    stage.forget(&["e2e-kill"])
}

/// Ends the API server and lets it return after a while without streaming lists, as servers before 1.34 are.
pub(super) fn return_without_streaming(stage: &Stage, away: Duration) -> Result<()> {
    kill_api_server()?;
    std::thread::sleep(away);
    restart_api_server(&["--feature-gates=WatchList=false"])?;
    stage
        .client
        .wait(Duration::from_secs(60), "the API server is back", |client| Ok(client.try_run(&["get", "--raw", "/readyz"])?.is_some()))
}

/// Nothing changes while it is away, agents say since when, and what changes after its return is in force soon. It
/// returns without streaming lists, so agents have to list as well.
pub(super) fn without_api_server_verdicts_stay(stage: &Stage) -> Result<()> {
    let crossing = Crossing::make(stage, "e2e-away")?;
    let pods = stage.ready("e2e-away", 3)?;
    let agents = stage.agents()?;
    let seen = crossing.watch(|| {
        return_without_streaming(stage, AWAY)?;
        std::thread::sleep(BACK);
        Ok(())
    })?;
    seen.no_gap()?;
    let since = Instant::now();
    // The stranger becomes the friend.
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "stranger"}}}]}],
    });
    stage.api.put_policy(&policy("e2e-away", "server", &spec))?;
    let (friend, server, stranger) = (&pods[0], &pods[1], &pods[2]);
    for address in &server.addresses {
        stage
            .client
            .wait(BACK, "the change is in force", |_| answered_from(&stranger.netns(), Protocol::Tcp, *address, 80, SILENCE))
            .context("after the API server's return")?;
        ensure!(!answered_from(&friend.netns(), Protocol::Tcp, *address, 80, SILENCE)?, "the old policy is still in force");
        ensure!(answered_from(&stranger.netns(), Protocol::Tcp, *address, 80, PATIENCE)?, "the new policy is in force now and then");
    }
    eprintln!("    in force {:.1} s after the change", since.elapsed().as_secs_f64());
    ensure!(agents == stage.agents()?, "agents were replaced meanwhile");
    for (node, _) in &agents {
        let status = stage.status(node)?;
        ensure!(
            status["source"]["staleSince"].is_null() && status["source"]["stale_since"] == Value::Null,
            "{node} is stale: {}",
            status["source"]
        );
    }
    stage.forget(&["e2e-away"])
}
