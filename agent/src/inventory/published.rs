//! Where a source puts its newest snapshot, and where readers wait for the next.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::Snapshot;

/// What is done at every new snapshot.
pub type OnNews = Box<dyn Fn() + Send + Sync>;

/// What a source's thread and its readers share.
#[derive(Default)]
pub(super) struct Published {
    snapshot: Mutex<Arc<Snapshot>>,
    changed: Condvar,
    on_news: OnceLock<OnNews>,
}

impl Published {
    fn lock(&self) -> MutexGuard<'_, Arc<Snapshot>> {
        self.snapshot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `next` the state in force.
    pub(super) fn publish(&self, next: Arc<Snapshot>) {
        *self.lock() = next;
        self.changed.notify_all();
        if let Some(tell) = self.on_news.get() {
            tell();
        }
    }

    /// From now on, `tell` is called after every new snapshot. The first who asks is told.
    pub(super) fn on_news(&self, tell: OnNews) {
        let _ = self.on_news.set(tell);
    }

    /// The state in force.
    pub(super) fn current(&self) -> Arc<Snapshot> {
        self.lock().clone()
    }

    /// Waits until the state is another one than `generation`, at most `timeout`; then the state in force.
    pub(super) fn changed(&self, generation: u64, timeout: Duration) -> Arc<Snapshot> {
        let until = Instant::now() + timeout;
        let mut guard = self.lock();
        while guard.generation == generation {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            guard = self.changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        guard.clone()
    }
}
