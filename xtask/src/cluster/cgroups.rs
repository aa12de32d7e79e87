//! Control groups of the cluster: the same subtree in every hierarchy that this machine has. On a machine
//! with version 2 alone that is one; beside version 1 kubelets want their root in each.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::plan::CGROUP;

/// The path that a kubelet is given as its root.
pub(super) fn kubelet_root(node: &str) -> String {
    format!("/{CGROUP}/{node}")
}

/// Where a site's daemons live: in version 2, which every process is a member of, whatever else there is.
pub(super) fn daemons(site: &str) -> Result<PathBuf> {
    Ok(sekisho_lab::cgroup::mount_point()?.join(CGROUP).join(site).join("daemons"))
}

/// Makes a node's root in every hierarchy.
pub(super) fn make(node: &str) -> Result<()> {
    for (hierarchy, version2) in hierarchies()? {
        let above = hierarchy.join(CGROUP);
        for (parent, directory) in [(&hierarchy, above.clone()), (&above, above.join(node))] {
            if version2 {
                pass_controllers(parent)?;
            }
            fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
            inherit_cpuset(parent, &directory)?;
        }
    }
    Ok(())
}

/// Ends every process of the cluster and removes its directories from every hierarchy.
pub(super) fn remove() -> Result<()> {
    sekisho_lab::cgroup::remove(&sekisho_lab::cgroup::mount_point()?.join(CGROUP))?;
    for (hierarchy, _) in hierarchies()? {
        sekisho_lab::cgroup::remove(&hierarchy.join(CGROUP))?;
    }
    Ok(())
}

/// Whether anything of the cluster is left in any hierarchy.
pub(super) fn exist() -> Result<bool> {
    Ok(hierarchies()?.iter().any(|(hierarchy, _)| hierarchy.join(CGROUP).exists()))
}

/// Mount points of all hierarchies, and whether each is of version 2.
fn hierarchies() -> Result<Vec<(PathBuf, bool)>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    Ok(mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let kind = after.split(' ').next()?;
            let at = PathBuf::from(before.split(' ').nth(4)?);
            (kind.starts_with("cgroup") && at.starts_with("/sys/fs/cgroup")).then_some((at, kind == "cgroup2"))
        })
        .collect())
}

/// Version 2 gives its children only the controllers that are passed on.
fn pass_controllers(directory: &Path) -> Result<()> {
    let offered = fs::read_to_string(directory.join("cgroup.controllers")).context("cannot read cgroup.controllers")?;
    for controller in offered.split_whitespace() {
        // Some are in use by version 1, or not to be passed on; a kubelet says which it misses.
        let _refused = fs::write(directory.join("cgroup.subtree_control"), format!("+{controller}"));
    }
    Ok(())
}

/// A new directory of version 1's cpuset is empty, and nothing can run in it.
fn inherit_cpuset(parent: &Path, directory: &Path) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(value) = fs::read_to_string(parent.join(file)) else { continue };
        if fs::read_to_string(directory.join(file)).is_ok_and(|own| own.trim().is_empty()) && !value.trim().is_empty() {
            fs::write(directory.join(file), value.trim()).with_context(|| format!("cannot set {file} in {}", directory.display()))?;
        }
    }
    Ok(())
}

/// The processes of a pod on a node.
pub(crate) fn processes_of_pod(node: &str, uid: &str) -> Result<Vec<u32>> {
    let root = sekisho_lab::cgroup::mount_point()?.join(CGROUP).join(node);
    let mut pids = Vec::new();
    if let Some(directory) = directory_of_pod(&root, uid) {
        collect_processes(&directory, &mut pids);
    }
    Ok(pids)
}

fn directories(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn directory_of_pod(directory: &Path, uid: &str) -> Option<PathBuf> {
    let below = directories(directory);
    let names_it = |path: &&PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().replace('_', "-").contains(uid));
    below.iter().find(names_it).cloned().or_else(|| below.iter().find_map(|path| directory_of_pod(path, uid)))
}

fn collect_processes(directory: &Path, pids: &mut Vec<u32>) {
    let own = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    pids.extend(own.lines().filter_map(|pid| pid.parse::<u32>().ok()));
    for below in directories(directory) {
        collect_processes(&below, pids);
    }
}
