//! Agents are killed.

use std::time::Duration;

use anyhow::Result;

use super::Stage;
use super::upgrade::Crossing;
use crate::cluster::node_name;

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
