//! The cluster's end: every process, mount, namespace, control group and file, whatever state it was left in.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::{cgroups, plan};
use crate::workspace::{output, say};

/// What kubelets set for the whole machine, and what `down` puts back.
const SYSCTLS: [&str; 5] = ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys"];

/// Removes what there is.
pub(crate) fn down() -> Result<()> {
    if !sekisho_lab::is_root() {
        bail!("the cluster was made by root and is removed by root");
    }
    if !plan::root().exists() && !cgroups::exist()? {
        say("no cluster is here");
        return Ok(());
    }
    say("take the cluster down");
    let begin = Instant::now();
    // All processes are in its control groups: daemons, shims, containers. Their mount namespaces go with them.
    cgroups::remove().context("cannot remove the cluster's control groups")?;
    restore_sysctls();
    for mount in mounts_below(plan::root())? {
        output(std::process::Command::new("umount").arg("--lazy").arg(&mount))?;
    }
    if plan::root().exists() {
        fs::remove_dir_all(plan::root()).with_context(|| format!("cannot remove {}", plan::root().display()))?;
    }
    eprintln!("    done in {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Writes down what this machine's values are before any kubelet starts.
pub(super) fn note_sysctls() -> Result<()> {
    let directory = plan::root().join("sysctl");
    fs::create_dir_all(&directory)?;
    for name in SYSCTLS {
        if let Ok(value) = fs::read_to_string(Path::new("/proc/sys").join(name)) {
            fs::write(directory.join(name.replace('/', ".")), value)?;
        }
    }
    Ok(())
}

fn restore_sysctls() {
    for name in SYSCTLS {
        let Ok(value) = fs::read_to_string(plan::root().join("sysctl").join(name.replace('/', "."))) else { continue };
        if let Err(error) = fs::write(Path::new("/proc/sys").join(name), value.trim()) {
            eprintln!("    {name} cannot be set back to {}: {error}", value.trim());
        }
    }
}

/// What is mounted below a directory, deepest first.
fn mounts_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let mut found: Vec<PathBuf> =
        mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from).filter(|at| at.starts_with(directory)).collect();
    found.sort();
    found.reverse();
    Ok(found)
}
