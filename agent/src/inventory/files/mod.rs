//! The inventory without a cluster: a folder of ordinary Kubernetes manifests, watched.
//!
//! `*.yaml`, `*.yml` and `*.json`, many documents per file. A *file* is the unit: it counts whole or not at all, and an error in
//! it leaves its last good content in force. A *change* reaches the snapshot some milliseconds after the writer closed the file,
//! or renamed it into place. ConfigMap volumes, whose files are symbolic links swapped together, work too.

mod document;
mod folder;
mod watch;
mod yaml;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

use super::Snapshot;
use super::published::{OnNews, Published};
use watch::Watched;

/// Why a folder cannot be the source.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// It does not exist, or may not be read.
    #[error("manifest folder {}: {error}; make it or name another with --manifests", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is a file or something else.
    #[error("{} is not a folder; --manifests takes the folder that holds the manifests", path.display())]
    NotFolder {
        /// The path.
        path: PathBuf,
    },
    /// The kernel has no watch left.
    #[error("cannot watch {}: {error}; is fs.inotify.max_user_instances or max_user_watches reached?", path.display())]
    Watch {
        /// The folder.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

/// The snapshot that one YAML file of this content gives, without a folder: for tests, benches and checks before a roll-out.
pub fn snapshot_of(yaml: &str) -> Arc<Snapshot> {
    let mut folder = folder::Folder::default();
    folder.apply(vec![("manifests.yaml".into(), folder::Change::Content(yaml.into()))]);
    folder.snapshot()
}

/// A watched folder. Dropping it ends the watch.
pub struct Source {
    shared: Arc<Published>,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    /// Whether the folder can be read and watched. Reads no manifest.
    pub fn check(folder: &Path) -> Result<(), SourceError> {
        Watched::open(folder).map(drop)
    }

    /// Reads the folder and watches it from now on. Broken manifests are no error here: they are refused by name, see
    /// [`Snapshot::refused`].
    pub fn start(folder: &Path) -> Result<Self, SourceError> {
        let fail = |error| SourceError::Watch { path: folder.to_owned(), error };
        let mut watched = Watched::open(folder)?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| fail(e.into()))?);
        if !watched.rescan() {
            tracing::warn!(folder = %folder.display(), "no manifests (*.yaml, *.yml, *.json) yet; nothing is isolated");
        }
        let shared = Arc::new(Published::default());
        shared.publish(watched.snapshot());
        let (theirs, stopped) = (shared.clone(), stop.clone());
        let thread = std::thread::Builder::new()
            .name("manifests".into())
            .spawn(move || watched.run(&stopped, &mut |snapshot| theirs.publish(snapshot)))
            .map_err(fail)?;
        Ok(Self { shared, stop, thread: Some(thread) })
    }

    /// The state in force.
    pub fn current(&self) -> Arc<Snapshot> {
        self.shared.current()
    }

    /// From now on, `tell` is called after every new state.
    pub fn on_news(&self, tell: OnNews) {
        self.shared.on_news(tell);
    }

    /// Waits until the state is another one than `generation`, at most `timeout`; then the state in force.
    pub fn changed(&self, generation: u64, timeout: Duration) -> Arc<Snapshot> {
        self.shared.changed(generation, timeout)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        // Writing 1 to an eventfd at 0 cannot fail.
        let written = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let (Ok(_), Some(thread)) = (written, self.thread.take()) {
            drop(thread.join());
        }
    }
}
