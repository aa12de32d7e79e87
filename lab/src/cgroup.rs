//! Control groups of a lab: one subtree of the v2 hierarchy, wherever that is mounted.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::sys;

/// Where the v2 hierarchy is mounted.
pub fn mount_point() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    mounts
        .lines()
        .find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            after.starts_with("cgroup2 ").then(|| before.split(' ').nth(4))?.map(PathBuf::from)
        })
        .context("no cgroup v2 hierarchy is mounted")
}

/// Ends every process of a subtree, by pid, and removes its directories, deepest first.
pub fn remove(root: &Path) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while root.exists() {
        let mut directories = Vec::new();
        collect(root, &mut directories);
        for directory in &directories {
            let pids = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            for pid in pids.lines().filter_map(|pid| pid.parse().ok()) {
                // It may have ended by itself since the list was read.
                let _gone = sys::kill(pid, libc::SIGKILL);
            }
        }
        for directory in directories.iter().rev() {
            // Busy as long as a killed process is not quite gone; the next round removes it.
            let _busy = fs::remove_dir(directory);
        }
        if !root.exists() {
            break;
        }
        if Instant::now() > deadline {
            bail!("{} cannot be removed: something still lives in it", root.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// `directory` and everything below it, parents first.
fn collect(directory: &Path, found: &mut Vec<PathBuf>) {
    found.push(directory.to_owned());
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&entry.path(), found);
        }
    }
}
