//! Notices what happens in the folder, and reads only the files that changed.
//!
//! inotify says when a writer closed a file, renamed it or removed it. Where it says nothing (links to elsewhere, network
//! file systems) a look at every file's stamp once in a while does; a file counts then only after its stamp rested.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use super::SourceError;
use super::document::MAX_BYTES;
use super::folder::{Change, Folder};
use crate::inventory::Snapshot;

/// Events that belong together (an editor's rename after write, `cp` of many files) come within this.
const SETTLE: Duration = Duration::from_millis(2);
/// But nobody waits longer than this.
const SETTLE_AT_MOST: Duration = Duration::from_millis(8);
/// How often stamps are compared.
const LOOK: Duration = Duration::from_secs(1);

/// Tells two contents of a file apart without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> std::io::Result<Option<Self>> {
        let m = fs::metadata(path)?;
        Ok(m.is_file().then(|| Self {
            device: m.dev(),
            inode: m.ino(),
            size: m.size(),
            modified: (m.mtime(), m.mtime_nsec()),
            changed: (m.ctime(), m.ctime_nsec()),
        }))
    }
}

/// What one batch of events asks for.
#[derive(Default)]
struct Batch {
    names: BTreeSet<Arc<str>>,
    /// Compare every stamp: links were swapped, or events were lost.
    everything: bool,
    folder_gone: bool,
}

/// A folder under watch.
pub(super) struct Watched {
    path: PathBuf,
    inotify: OwnedFd,
    folder: Folder,
    /// As last read.
    stamps: BTreeMap<Arc<str>, Stamp>,
    /// Seen changed at the last look, not read yet.
    resting: BTreeMap<Arc<str>, Stamp>,
    gone: bool,
}

impl Watched {
    /// Begins the watch; nothing is read yet.
    pub(super) fn open(path: &Path) -> Result<Self, SourceError> {
        let unreadable = |error| SourceError::Unreadable { path: path.to_owned(), error };
        if !fs::metadata(path).map_err(unreadable)?.is_dir() {
            return Err(SourceError::NotFolder { path: path.to_owned() });
        }
        fs::read_dir(path).map_err(unreadable)?;
        let fail = |error: rustix::io::Errno| SourceError::Watch { path: path.to_owned(), error: error.into() };
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC).map_err(fail)?;
        let watched = Self {
            path: path.to_owned(),
            inotify,
            folder: Folder::default(),
            stamps: BTreeMap::new(),
            resting: BTreeMap::new(),
            gone: false,
        };
        watched.watch().map_err(fail)?;
        Ok(watched)
    }

    fn watch(&self) -> rustix::io::Result<()> {
        let what = WatchFlags::CLOSE_WRITE
            | WatchFlags::MOVED_TO
            | WatchFlags::MOVED_FROM
            | WatchFlags::DELETE
            | WatchFlags::CREATE
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&self.inotify, &self.path, what).map(drop)
    }

    /// The state in force.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.folder.snapshot()
    }

    /// Watches until `stop` becomes readable.
    pub(super) fn run(&mut self, stop: &OwnedFd, publish: &mut dyn FnMut(Arc<Snapshot>)) {
        let mut next_look = Instant::now() + LOOK;
        loop {
            let left = next_look.saturating_duration_since(Instant::now());
            let (stopped, readable) = wait(stop, &self.inotify, left);
            if stopped {
                return;
            }
            let mut changed = readable && self.on_events(stop);
            if Instant::now() >= next_look {
                changed |= self.look();
                next_look = Instant::now() + LOOK;
            }
            if changed {
                publish(self.folder.snapshot());
            }
        }
    }

    fn on_events(&mut self, stop: &OwnedFd) -> bool {
        let began = Instant::now();
        let mut batch = Batch::default();
        loop {
            self.drain(&mut batch);
            let left = SETTLE_AT_MOST.saturating_sub(began.elapsed()).min(SETTLE);
            if left.is_zero() || !wait(stop, &self.inotify, left).1 {
                break;
            }
        }
        // Removing a folder first removes its files, one by one: that is no order to drop their policies.
        if batch.folder_gone || self.is_gone() {
            return self.lose();
        }
        if batch.everything {
            return self.rescan();
        }
        self.read(batch.names)
    }

    fn drain(&self, batch: &mut Batch) {
        let mut buffer = [MaybeUninit::uninit(); 8192];
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let flags = event.events();
            batch.folder_gone |= flags.intersects(ReadFlags::DELETE_SELF | ReadFlags::MOVE_SELF | ReadFlags::UNMOUNT);
            batch.everything |= flags.contains(ReadFlags::QUEUE_OVERFLOW);
            let Some(name) = event.file_name().and_then(|n| n.to_str().ok()) else { continue };
            if !is_manifest(name) {
                // A ConfigMap volume swaps `..data`, and all its files with it.
                batch.everything |= name.starts_with("..");
            } else if !flags.contains(ReadFlags::CREATE) || self.is_link(name) {
                batch.names.insert(name.into());
            }
            // A plain file that was created is still being written: its close will be told.
        }
    }

    /// Symbolic and hard links come with their content.
    fn is_link(&self, name: &str) -> bool {
        fs::symlink_metadata(self.path.join(name)).is_ok_and(|m| m.is_symlink() || m.nlink() > 1)
    }

    fn is_gone(&self) -> bool {
        !fs::metadata(&self.path).is_ok_and(|m| m.is_dir())
    }

    fn lose(&mut self) -> bool {
        if !self.gone {
            tracing::error!(folder = %self.path.display(), "the manifest folder is gone; its last state stays in force until it is back");
        }
        self.gone = true;
        false
    }

    /// Compares every stamp and reads what differs.
    pub(super) fn rescan(&mut self) -> bool {
        self.resting.clear();
        let names = self.differing().into_keys().collect();
        self.read(names)
    }

    /// Like a rescan, but a file must have rested since the last look.
    fn look(&mut self) -> bool {
        if self.is_gone() {
            return self.lose();
        }
        if self.gone && self.watch().is_ok() {
            self.gone = false;
            tracing::info!(folder = %self.path.display(), "the manifest folder is back");
        }
        let differing = self.differing();
        let rested = |name: &Arc<str>, stamp: &Option<Stamp>| stamp.is_none() || self.resting.get(name) == stamp.as_ref();
        let ready: BTreeSet<_> = differing.iter().filter(|(name, stamp)| rested(name, stamp)).map(|(name, _)| name.clone()).collect();
        self.resting = differing.into_iter().filter_map(|(name, stamp)| Some((name, stamp?))).collect();
        self.resting.retain(|name, _| !ready.contains(name));
        !ready.is_empty() && self.read(ready)
    }

    /// Files whose stamp is not the one that was read; `None` = gone.
    fn differing(&self) -> BTreeMap<Arc<str>, Option<Stamp>> {
        let mut now = BTreeMap::new();
        let Ok(entries) = fs::read_dir(&self.path) else { return BTreeMap::new() };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if let Some(name) = name.to_str().filter(|n| is_manifest(n))
                && let Ok(Some(stamp)) = Stamp::of(&entry.path())
            {
                now.insert(Arc::<str>::from(name), Some(stamp));
            }
        }
        let gone: Vec<_> = self.stamps.keys().filter(|name| !now.contains_key(*name)).cloned().collect();
        now.retain(|name, stamp| self.stamps.get(name) != stamp.as_ref());
        now.extend(gone.into_iter().map(|name| (name, None)));
        now
    }

    /// Reads these files, those that are gone first, then the oldest first: the newer of two that collide is refused.
    fn read(&mut self, names: BTreeSet<Arc<str>>) -> bool {
        let mut changes: Vec<((u8, i64, i64), Arc<str>, Change)> = Vec::new();
        for name in names {
            let path = self.path.join(&*name);
            match Stamp::of(&path) {
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                    self.stamps.remove(&name);
                    changes.push(((0, 0, 0), name, Change::Gone));
                }
                Err(e) => changes.push(((1, 0, 0), name, Change::Unreadable(e.to_string()))),
                Ok(None) => {}
                Ok(Some(stamp)) => {
                    let change = content(&path).unwrap_or_else(Change::Unreadable);
                    self.stamps.insert(name.clone(), stamp);
                    changes.push(((1, stamp.modified.0, stamp.modified.1), name, change));
                }
            }
        }
        changes.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        self.folder.apply(changes.into_iter().map(|(_, name, change)| (name, change)).collect())
    }
}

fn content(path: &Path) -> Result<Change, String> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| format!("cannot be read: {e}"))?;
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(|e| format!("cannot be read: {e}"))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(format!("larger than {} MiB; split it into several files", MAX_BYTES >> 20));
    }
    Ok(Change::Content(bytes))
}

/// Hidden files are editors' own.
fn is_manifest(name: &str) -> bool {
    let extension = Path::new(name).extension().and_then(|e| e.to_str());
    !name.starts_with('.') && matches!(extension, Some("yaml" | "yml" | "json"))
}

/// `(stop, inotify)` readable, after at most `timeout`.
fn wait(stop: &OwnedFd, inotify: &OwnedFd, timeout: Duration) -> (bool, bool) {
    let mut fds = [PollFd::new(stop, PollFlags::IN), PollFd::new(inotify, PollFlags::IN)];
    let timeout = Timespec::try_from(timeout).ok();
    match poll(&mut fds, timeout.as_ref()) {
        Ok(_) => (!fds[0].revents().is_empty(), !fds[1].revents().is_empty()),
        Err(_) => (false, false),
    }
}
