//! The node: its control groups, its bpffs, its network and its processes.

use std::fs;
use std::path::Path;

use super::Finding;
use crate::datapath::probe;

/// Number of the first PID namespace, the same in every kernel.
const FIRST_PIDS: &str = "pid:[4026531836]";

pub(super) fn examine(pin_dir: &Path) -> Vec<Finding> {
    let mut findings = vec![cgroups(), bpffs(pin_dir)];
    findings.extend(pids());
    findings.extend(network());
    findings
}

fn cgroups() -> Finding {
    match probe::cgroup_tree() {
        None => Finding::fatal(
            "cgroup",
            "no cgroup v2 hierarchy is mounted",
            "pods cannot be found, and their processes and sockets are not seen",
        )
        .remedy("mount one: `mount -t cgroup2 none /sys/fs/cgroup/unified`, or start the node with the unified hierarchy"),
        Some((mount, true)) => Finding::good("cgroup", format!("cgroup v2 at {}", mount.display())),
        Some((mount, false)) => Finding::note(
            "cgroup",
            format!("only a part of the cgroup v2 tree is mounted, at {}: pods outside of it are not found", mount.display()),
        ),
    }
}

fn bpffs(pin_dir: &Path) -> Finding {
    let found = match probe::on_bpffs(pin_dir) {
        Ok((true, _)) => match probe::pinned(pin_dir) {
            0 => format!("{} lies on a bpffs; nothing is pinned there yet", pin_dir.display()),
            _ => format!("{} lies on a bpffs, and a data path is pinned there", pin_dir.display()),
        },
        Ok((false, there)) => {
            let cost = "the agent does not start: what it enforces could not outlive it";
            let found = format!("{} does not lie on a bpffs ({} is none)", pin_dir.display(), there.display());
            return Finding::fatal("bpffs", found, cost).remedy("mount one: `mount -t bpf bpf /sys/fs/bpf`, or name another --pin-dir");
        }
        Err(error) => return Finding::note("bpffs", format!("{} cannot be looked at: {error}", pin_dir.display())),
    };
    Finding::good("bpffs", found)
}

fn pids() -> Option<Finding> {
    let own = fs::read_link("/proc/self/ns/pid").ok()?;
    if own.to_str() == Some(FIRST_PIDS) {
        return Some(Finding::good("processes", "the node's processes are visible by its own numbers"));
    }
    let found = "this is not the machine's first PID namespace: on a node that is itself a container that is as it should be, in a pod hostPID is missing";
    Some(Finding::note("processes", found))
}

fn network() -> Option<Finding> {
    let own = fs::read_link("/proc/self/ns/net").ok()?;
    match fs::read_link("/proc/1/ns/net") {
        Ok(first) if first == own => Some(Finding::good("network", "this is the network of process 1: pods' interfaces end here")),
        Ok(_) => Some(Finding::note("network", "this is not the network of process 1: only pods whose interfaces end here are seen")),
        Err(_) => None,
    }
}
