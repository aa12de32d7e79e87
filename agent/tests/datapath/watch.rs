//! The watch on control groups, which the kernel does not take back when a group goes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sekisho::datapath::{self, Watcher};
use sekisho_lab::{Lab, Pod, PodSpec};

const PATIENCE: Duration = Duration::from_secs(10);

/// Whether this process watches an inode, as the kernel tells (`proc_pid_fdinfo(5)`).
fn is_watched(inode: u64) -> Result<bool> {
    let wanted = format!(" ino:{inode:x} ");
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // Descriptors of other threads come and go.
        let text = fs::read_to_string(entry?.path()).unwrap_or_default();
        if text.lines().any(|line| line.starts_with("inotify ") && line.contains(&wanted)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Waits until a group is watched, or is not; others come and go meanwhile, or nothing would wake the watcher.
fn wait_until(watched: bool, inodes: &[u64], watcher: &mut Watcher, parent: &Path) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    for inode in inodes {
        while is_watched(*inode)? != watched {
            ensure!(Instant::now() < until, "watched: {}, not {watched}", !watched);
            let other = parent.join("other");
            fs::create_dir(&other)?;
            watcher.wait(Duration::from_millis(100))?;
            fs::remove_dir(&other)?;
        }
    }
    Ok(())
}

#[test]
fn a_group_that_is_gone_is_not_watched_for_ever() -> Result<()> {
    let lab = Lab::new("dp-watch")?;
    let (stays, goes) = (lab.pod(PodSpec::new("shop", "stays"))?, lab.pod(PodSpec::new("shop", "goes"))?);
    // A container's group is in its pod's, and that in one of its class.
    let above = |pod: &Pod| pod.cgroup().parent().map(Path::to_owned).context("a container's group is in its pod's");
    let inodes = |pod: &Pod| -> Result<[u64; 2]> {
        let group = above(pod)?;
        Ok([fs::metadata(&group)?.ino(), fs::metadata(group.join("cgroup.events"))?.ino()])
    };
    let mut watcher = datapath::watch()?;
    let (kept, gone) = (inodes(&stays)?, inodes(&goes)?);
    let parent = above(&stays)?.parent().context("a pod's group is in another")?.to_owned();
    for group in [kept, gone] {
        wait_until(true, &group, &mut watcher, &parent).context("a pod's group")?;
    }
    goes.delete()?;
    wait_until(false, &gone, &mut watcher, &parent).context("the group of a pod that is gone")?;
    wait_until(true, &kept, &mut watcher, &parent).context("the group of a pod that is there")
}
