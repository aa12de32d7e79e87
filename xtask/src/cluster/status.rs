//! What of the cluster runs.

use std::process::ExitCode;

use anyhow::Result;

use super::plan::{self, CONTROL_PLANE, Plan};
use super::site::{alive, pid};
use super::{Client, control_plane, node};

/// Every daemon of a plan: its site and name.
fn daemons(plan: Plan) -> Vec<(String, &'static str)> {
    let center = control_plane::DAEMONS.iter().map(|daemon| (CONTROL_PLANE.to_owned(), *daemon));
    let nodes = plan.numbers().flat_map(|number| node::DAEMONS.iter().map(move |daemon| (plan::node_name(number), *daemon)));
    center.chain(nodes).collect()
}

/// Whether all of it runs and the API server answers.
pub(super) fn whole(plan: Plan) -> bool {
    Plan::is_complete()
        && daemons(plan).iter().all(|(site, daemon)| alive(site, daemon))
        && Client::connect().is_ok_and(|client| matches!(client.try_run(&["get", "--raw", "/readyz"]), Ok(Some(_))))
}

/// Prints it.
pub(super) fn print() -> Result<ExitCode> {
    let Some(plan) = Plan::read() else {
        println!("no cluster is here; bring it up with `cargo xtask cluster up`");
        return Ok(ExitCode::FAILURE);
    };
    println!("{plan}; files in {}", plan::root().display());
    let mut dead = 0;
    for (site, daemon) in daemons(plan) {
        if let Some(pid) = pid(&site, daemon) {
            println!("{site:14} {daemon:24} pid {pid}");
        } else {
            dead += 1;
            println!("{site:14} {daemon:24} not running, see {}/{site}-{daemon}.log", plan::logs().display());
        }
    }
    println!();
    if let Some(nodes) = Client::connect()?.try_run(&["get", "nodes", "-o", "wide"])? {
        print!("{nodes}");
    } else {
        dead += 1;
        println!("the API server does not answer");
    }
    Ok(if dead == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
