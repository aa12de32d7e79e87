//! Either source behind one face.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::published::OnNews;
use super::{Notice, Snapshot, files, kube};

/// Where the inventory comes from.
pub enum Source {
    /// A folder of manifests.
    Files(files::Source),
    /// The API server.
    Kube(kube::Source),
}

/// How far a source is to be trusted at this moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// `files` or `kube`.
    pub name: &'static str,
    /// Whether everything has been read once. Before that there is no snapshot to act on.
    pub synced: bool,
    /// Since when the snapshot may be behind, as the source cannot be reached.
    pub stale_since: Option<SystemTime>,
    /// Why it cannot be reached.
    pub error: Option<String>,
}

impl Source {
    /// The state in force.
    pub fn current(&self) -> Arc<Snapshot> {
        match self {
            Self::Files(source) => source.current(),
            Self::Kube(source) => source.current(),
        }
    }

    /// From now on, `tell` is called after every new state; it must not wait.
    pub fn on_news(&self, tell: OnNews) {
        match self {
            Self::Files(source) => source.on_news(tell),
            Self::Kube(source) => source.on_news(tell),
        }
    }

    /// Waits until the state is another one than `generation`, at most `timeout`; then the state in force.
    pub fn changed(&self, generation: u64, timeout: Duration) -> Arc<Snapshot> {
        match self {
            Self::Files(source) => source.changed(generation, timeout),
            Self::Kube(source) => source.changed(generation, timeout),
        }
    }

    /// Puts a notice at its object, where there is a place for it. Never waits.
    pub fn notify(&self, notice: Notice) {
        match self {
            Self::Files(_) => {}
            Self::Kube(source) => source.notify(notice),
        }
    }

    /// What became of notices, by outcome.
    pub fn notices(&self) -> Vec<(&'static str, u64)> {
        match self {
            Self::Files(_) => Vec::new(),
            Self::Kube(source) => source.notices(),
        }
    }

    /// Whether it is synced and reachable.
    pub fn state(&self) -> SourceState {
        match self {
            Self::Files(_) => SourceState { name: "files", synced: true, ..SourceState::default() },
            Self::Kube(source) => source.state(),
        }
    }
}
