//! Readers of the book.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::watch;

use super::{BATCH, Book, Filter, Line, Record, Ring, SLOW, kind, lock};

/// What a reader has done so far. Locked after the ring, never before it.
#[derive(Default)]
pub(super) struct State {
    name: Arc<str>,
    start: u64,
    /// Next number to take out of the ring.
    cursor: u64,
    /// Where it ends, for a reader that does not follow.
    until: Option<u64>,
    delivered: u64,
    filtered: u64,
    lost: BTreeMap<&'static str, u64>,
    /// Taken out of the ring, wanted, and not yet settled.
    taken: u64,
}

impl State {
    pub(super) fn new(name: &str, cursor: u64, until: Option<u64>) -> Self {
        Self { name: name.into(), start: cursor, cursor, until, ..Self::default() }
    }

    /// Notices what has left the ring before it was read.
    fn catch_up(&mut self, tail: u64) {
        let tail = self.until.map_or(tail, |until| tail.min(until));
        if self.cursor < tail {
            *self.lost.entry(SLOW).or_default() += tail - self.cursor;
            self.cursor = tail;
        }
    }

    pub(super) fn line(&mut self, tail: u64, next: u64) -> Line {
        self.catch_up(tail);
        let end = self.until.unwrap_or(next);
        Line {
            name: self.name.clone(),
            made: end - self.start,
            delivered: self.delivered,
            filtered: self.filtered,
            lost: self.lost.clone(),
            queued: end - self.cursor + self.taken,
        }
    }
}

/// Reads the book at its own pace. Dropping it closes its line.
pub struct Reader {
    pub(super) book: Arc<Book>,
    pub(super) filter: Option<Filter>,
    pub(super) state: Arc<Mutex<State>>,
    pub(super) taken: VecDeque<Record>,
    pub(super) seen: watch::Receiver<u64>,
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut ring = self.book.lock();
        let line = lock(&self.state).line(ring.tail(), ring.next);
        // At once: nobody meets it both among those that are open and among those that have ended.
        ring.readers.retain(|reader| !std::ptr::eq(reader.as_ptr(), Arc::as_ptr(&self.state)));
        ring.ended.entry(kind(&line.name).to_owned()).or_default().add(&line);
    }
}

impl Reader {
    /// The next record that passes the filter; `None` at the end.
    pub async fn next(&mut self) -> Option<Record> {
        loop {
            if let Some(record) = self.try_next() {
                return Some(record);
            }
            if self.ended() {
                return None;
            }
            // The value was looked at before the ring, so a record that came in between wakes us at once.
            self.seen.changed().await.ok()?;
        }
    }

    /// The next record that passes the filter, if there is one now. It counts as delivered.
    pub fn try_next(&mut self) -> Option<Record> {
        if self.taken.is_empty() {
            self.fetch();
        }
        let record = self.taken.pop_front()?;
        self.settle_delivered(1);
        Some(record)
    }

    /// Up to 256 records that pass the filter. They count as queued until the caller settles them, in order, with
    /// [`settle_delivered`](Self::settle_delivered) or [`settle_lost`](Self::settle_lost).
    pub fn take(&mut self) -> Vec<Record> {
        if self.taken.is_empty() {
            self.fetch();
        }
        self.taken.drain(..).collect()
    }

    /// That many of the records taken have arrived.
    pub fn settle_delivered(&mut self, records: u64) {
        let mut state = lock(&self.state);
        state.taken -= records;
        state.delivered += records;
    }

    /// That many of the records taken are lost.
    pub fn settle_lost(&mut self, cause: &'static str, records: u64) {
        if records == 0 {
            return;
        }
        let mut state = lock(&self.state);
        state.taken -= records;
        *state.lost.entry(cause).or_default() += records;
    }

    /// Blocks this thread until there is something to read, the book is closed, or the time is over.
    pub fn wait(&self, at_most: Duration) {
        let ring = self.book.lock();
        let cursor = lock(&self.state).cursor;
        let idle = |ring: &mut Ring| ring.next <= cursor && !ring.closed;
        drop(self.book.grown.wait_timeout_while(ring, at_most, idle));
    }

    /// Whether nothing comes any more.
    pub fn ended(&self) -> bool {
        let ring = self.book.lock();
        let state = lock(&self.state);
        let end = state.until.or(ring.closed.then_some(ring.next));
        self.taken.is_empty() && end.is_some_and(|end| state.cursor >= end)
    }

    /// This reader's line in the ledger.
    pub fn line(&self) -> Line {
        let ring = self.book.lock();
        lock(&self.state).line(ring.tail(), ring.next)
    }

    /// Takes the next wanted records out of the ring. What is not wanted is looked at in its place: most readers want little of it.
    fn fetch(&mut self) {
        self.seen.borrow_and_update();
        loop {
            let ring = self.book.lock();
            let mut state = lock(&self.state);
            state.catch_up(ring.tail());
            let end = state.until.unwrap_or(ring.next);
            let count = usize::try_from(end.saturating_sub(state.cursor)).unwrap_or(BATCH).min(BATCH);
            if count == 0 {
                return;
            }
            let batch = ring.from(state.cursor).take(count);
            match &self.filter {
                None => self.taken.extend(batch.cloned()),
                Some(filter) => self.taken.extend(batch.filter(|r| filter(r)).cloned()),
            }
            state.cursor += count as u64;
            state.taken += self.taken.len() as u64;
            state.filtered += (count - self.taken.len()) as u64;
            if !self.taken.is_empty() {
                return;
            }
        }
    }
}
