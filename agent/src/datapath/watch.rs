//! Waking up when pods may have come or gone: interface and address events, directories in the cgroup tree, and a pod's first
//! process.
//!
//! It only wakes; what happened is found by looking. What it cannot see (a process that enters an old cgroup) is found by
//! looking now and then.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use super::cgroup::{Hierarchy, pod_name};
use super::os;

/// Levels of the cgroup tree that are watched, and directories at most.
const DEPTH: usize = 6;
const WATCHES: usize = 4096;

/// Waits for changes on this node.
#[derive(Debug)]
pub struct Watcher {
    netlink: OwnedFd,
    inotify: OwnedFd,
    hierarchy: Option<Hierarchy>,
}

impl Watcher {
    pub(super) fn start() -> io::Result<Self> {
        const LINK: u32 = 1;
        const ADDRESS4: u32 = 0x10;
        const ADDRESS6: u32 = 0x100;
        let netlink = os::netlink(LINK | ADDRESS4 | ADDRESS6)?;
        // Addresses appear inside the pods: hear of them too, where the kernel allows it.
        if let Err(error) = os::netlink_all_namespaces(netlink.as_fd()) {
            tracing::debug!(%error, "events of other namespaces cannot be heard");
        }
        let watcher = Self { netlink, inotify: os::inotify()?, hierarchy: Hierarchy::find() };
        watcher.watch_tree();
        Ok(watcher)
    }

    /// Waits until something changed; `false` when nothing did for so long. What came in a burst wakes once.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        let woken = os::wait_readable(&[self.netlink.as_fd(), self.inotify.as_fd()], timeout)?;
        if woken {
            os::discard(self.netlink.as_fd());
            os::discard(self.inotify.as_fd());
            self.watch_tree();
        }
        Ok(woken)
    }

    fn watch_tree(&self) {
        if let Some(hierarchy) = &self.hierarchy {
            let mut left = WATCHES;
            self.watch(&hierarchy.mount, DEPTH, &mut left);
        }
    }

    /// Watching twice is watching once; a directory that went away takes its watch with it.
    fn watch(&self, dir: &Path, depth: usize, left: &mut usize) {
        if *left == 0 || os::inotify_watch(self.inotify.as_fd(), dir).is_err() {
            return;
        }
        *left -= 1;
        // Through its first process a pod's network is found: the kernel tells when a group is not empty any more.
        if dir.file_name().and_then(|name| name.to_str()).is_some_and(|name| pod_name(name).is_some())
            && let Err(error) = os::inotify_watch_file(self.inotify.as_fd(), &dir.join("cgroup.events"))
        {
            tracing::debug!(%error, path = %dir.display(), "a pod's first process will be found by looking");
        }
        if depth == 0 {
            return;
        }
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            self.watch(&entry.path(), depth - 1, left);
        }
    }
}
