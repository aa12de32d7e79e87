//! Waking up when pods may have come or gone: interface and address events, directories in the cgroup tree, and a pod's first
//! process.
//!
//! It only wakes; what happened is found by looking. What it cannot see (a process that enters an old cgroup) is found by
//! looking now and then.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use super::cgroup::{Hierarchy, pod_name};
use super::os;

/// Levels of the cgroup tree that are watched, and directories at most.
const DEPTH: usize = 6;
const WATCHES: usize = 4096;
/// How often all of the tree is walked where something happens: of a control group that goes the kernel does not take the watch.
const WALK: Duration = Duration::from_secs(1);

/// Waits for changes on this node.
#[derive(Debug)]
pub struct Watcher {
    netlink: OwnedFd,
    inotify: OwnedFd,
    hierarchy: Option<Hierarchy>,
    /// Watched directories by their watch.
    watched: HashMap<i32, Watched>,
    /// When all of the tree was walked.
    walked: Instant,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    /// How many levels below it are watched.
    depth: usize,
    /// The watch of a pod's `cgroup.events`.
    processes: Option<i32>,
}

/// What inotify told.
#[derive(Default)]
struct Told {
    /// Directories that are new, and how many levels from each are watched.
    made: Vec<(PathBuf, usize)>,
    /// Events were lost.
    lost: bool,
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
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let mut watcher = Self { netlink, inotify, hierarchy: Hierarchy::find(), watched: HashMap::new(), walked: Instant::now() };
        watcher.watch_tree();
        Ok(watcher)
    }

    /// Waits until something changed; `false` when nothing did for so long. What came in a burst wakes once.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        let woken = os::wait_readable(&[self.netlink.as_fd(), self.inotify.as_fd()], timeout)?;
        if woken {
            os::discard(self.netlink.as_fd());
            self.follow_tree()?;
        }
        Ok(woken)
    }

    /// Watches what is there, and nothing that is gone.
    fn watch_tree(&mut self) {
        let Some(mount) = self.hierarchy.as_ref().map(|hierarchy| hierarchy.mount.clone()) else { return };
        let before = std::mem::take(&mut self.watched);
        self.watch(&mount, DEPTH);
        let watches = |(watch, watched): (&i32, &Watched)| [Some(*watch), watched.processes];
        let kept: HashSet<i32> = self.watched.iter().flat_map(watches).flatten().collect();
        for watch in before.iter().flat_map(watches).flatten().filter(|watch| !kept.contains(watch)) {
            // It may have gone with its directory.
            let _gone = inotify::remove_watch(&self.inotify, watch);
        }
        self.walked = Instant::now();
    }

    /// Watches what is new. Who is woken after it finds a process that came before its group was watched.
    fn follow_tree(&mut self) -> io::Result<()> {
        let told = self.read()?;
        if told.lost || self.walked.elapsed() >= WALK {
            self.watch_tree();
            return Ok(());
        }
        for (dir, depth) in told.made {
            self.watch(&dir, depth);
        }
        Ok(())
    }

    fn read(&self) -> io::Result<Told> {
        let mut told = Told::default();
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::AGAIN) => return Ok(told),
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            let flags = event.events();
            told.lost |= flags.contains(ReadFlags::QUEUE_OVERFLOW);
            if flags.contains(ReadFlags::CREATE | ReadFlags::ISDIR)
                && let (Some(Watched { path, depth: depth @ 1.., .. }), Some(name)) = (self.watched.get(&event.wd()), event.file_name())
            {
                told.made.push((below(path, name), depth - 1));
            }
        }
    }

    /// Watches a directory and those below. Watching twice is watching once.
    fn watch(&mut self, dir: &Path, depth: usize) {
        if self.watched.len() >= WATCHES {
            return;
        }
        let Ok(watch) = inotify::add_watch(&self.inotify, dir, WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::ONLYDIR) else {
            return;
        };
        // Through its first process a pod's network is found: the kernel tells when a group is not empty any more.
        let is_pod = dir.file_name().and_then(|name| name.to_str()).is_some_and(|name| pod_name(name).is_some());
        let processes = is_pod.then(|| inotify::add_watch(&self.inotify, dir.join("cgroup.events"), WatchFlags::MODIFY));
        if let Some(Err(error)) = processes {
            tracing::debug!(%error, path = %dir.display(), "a pod's first process will be found by looking");
        }
        self.watched.insert(watch, Watched { path: dir.to_owned(), depth, processes: processes.and_then(Result::ok) });
        if depth == 0 {
            return;
        }
        let Ok(entries) = fs::read_dir(dir) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
            self.watch(&entry.path(), depth - 1);
        }
    }
}

fn below(dir: &Path, name: &CStr) -> PathBuf {
    dir.join(std::ffi::OsStr::from_bytes(name.to_bytes()))
}
