//! What remains after the tests, however they end: nothing, but the logs where something failed.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use sekisho_lab::interrupted;

use crate::cluster::{self, Plan, node_name};
use crate::workspace::{output, target_dir};

/// The one program of ours outside the cluster's control groups.
static HELPER: AtomicU32 = AtomicU32::new(0);

/// Names a program that an interrupt is to end.
pub(super) fn end_on_interrupt(pid: u32) {
    HELPER.store(pid, Ordering::Relaxed);
}

/// From now on an interrupt takes the cluster down. Whatever the tests do then, their threads end first: this process becomes
/// the one that cleans up.
pub(super) fn on_interrupt() {
    sekisho_lab::on_interrupt();
    std::thread::spawn(|| {
        while !interrupted() {
            std::thread::sleep(Duration::from_millis(100));
        }
        eprintln!("\n==> interrupted");
        let helper = HELPER.load(Ordering::Relaxed);
        if helper != 0 {
            // It may have got the same interrupt.
            let _gone = sekisho_lab::kill(helper, 9);
        }
        let ourselves = std::env::current_exe().unwrap_or_else(|_| "xtask".into());
        let error = Command::new("sh").args(["-c", "\"$0\" cluster down; exit 130"]).arg(ourselves).exec();
        eprintln!("error: the cluster cannot be taken down: {error}");
        std::process::exit(130);
    });
}

/// Takes the cluster down unless it is to stay.
pub(super) fn after(plan: Plan, passed: bool, keep: bool) -> Result<()> {
    if !passed && cluster::root().exists() {
        save_logs(plan)?;
    }
    if keep {
        eprintln!("    the cluster is still up; `cargo xtask cluster down` removes it");
        return Ok(());
    }
    cluster::down()
}

/// Keeps what daemons and agents said, and what the API server was asked.
fn save_logs(plan: Plan) -> Result<()> {
    let target = target_dir().join("e2e-logs");
    if target.exists() {
        fs::remove_dir_all(&target).with_context(|| format!("cannot remove {}", target.display()))?;
    }
    fs::create_dir_all(&target)?;
    let mut found = vec![cluster::logs(), cluster::audit_log()];
    for number in plan.numbers() {
        let pods = fs::read_dir(cluster::root().join(node_name(number)).join("pod-logs")).into_iter().flatten().flatten();
        found.extend(pods.map(|entry| entry.path()).filter(|path| is_an_agents(path)));
    }
    for path in found.iter().filter(|path| path.exists()) {
        output(Command::new("cp").args(["--recursive", "--dereference"]).args([path, &target]))?;
    }
    eprintln!("    logs of daemons and agents are in {}", target.display());
    Ok(())
}

fn is_an_agents(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&format!("{}_", super::NAMESPACE)))
}
