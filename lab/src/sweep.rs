//! Where labs lie, and how they are removed: after use, after a panic, and after a kill, by the next one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{cgroup, sys};

const ROOT: &str = "/run/sekisho-lab";

/// The directory of a lab's files.
pub(crate) fn directory(name: &str) -> PathBuf {
    Path::new(ROOT).join(name)
}

/// A lab's subtree of control groups.
pub(crate) fn cgroup(name: &str) -> Result<PathBuf> {
    Ok(cgroup::mount_point()?.join(format!("sekisho-lab-{name}")))
}

/// Notes that this process owns a lab.
pub(crate) fn claim(name: &str) -> Result<()> {
    let pid = std::process::id();
    let started = started(pid).context("this process has no start time")?;
    fs::write(directory(name).join("owner"), format!("{pid} {started}")).context("cannot note the lab's owner")
}

/// When a process started, in clock ticks since boot: tells a reused pid apart.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(19)?.parse().ok()
}

/// Removes every lab whose owner is dead; returns their names. Labs that were kept on purpose stay.
pub fn sweep() -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for name in names() {
        let Ok(owner) = fs::read_to_string(directory(&name).join("owner")) else { continue };
        let mut fields = owner.split_whitespace().filter_map(|field| field.parse::<u64>().ok());
        let (Some(pid), Some(since)) = (fields.next(), fields.next()) else { continue };
        let alive = u32::try_from(pid).ok().and_then(started) == Some(since);
        if !alive {
            remove(&name)?;
            swept.push(name);
        }
    }
    Ok(swept)
}

/// Every lab on this machine.
pub fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir(ROOT) else { return Vec::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

/// Removes a lab whoever owns it: its processes, control groups, namespaces, bpffs and files.
pub fn remove(name: &str) -> Result<()> {
    let directory = directory(name);
    cgroup::remove(&cgroup(name)?)?;
    for entry in fs::read_dir(directory.join("ns")).into_iter().flatten().flatten() {
        // Fails where making it had failed half-way; then there is nothing mounted.
        let _unmounted = sys::unmount(&entry.path());
    }
    let _unmounted = sys::unmount(&directory.join("bpf"));
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    Ok(())
}
