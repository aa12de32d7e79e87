//! The book: the numbered sequence of all records of this run, a ring in memory.
//!
//! Nouns. A *reader* has a cursor of its own and a line in the ledger; it reads at its own pace. Whoever writes never waits for a
//! reader: a reader that falls further behind than the ring is long loses the oldest of its own stream, counted as `slow`.
//! For every reader, at every moment: `made = delivered + filtered + sum(lost) + queued`.

mod reader;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use tokio::sync::watch;

pub use self::reader::Reader;
use self::reader::State;
use super::project::Header;
use super::record::{Body, Record};
use super::tally::Tally;

/// How many records the ring holds unless told otherwise.
pub const DEFAULT_CAPACITY: usize = 65_536;

/// How many records a reader takes out of the ring at once.
const BATCH: usize = 256;

/// Cause of loss of a reader that was too slow.
pub const SLOW: &str = "slow";

/// Which records a reader wants.
pub type Filter = Arc<dyn Fn(&Record) -> bool + Send + Sync>;

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With what comes next.
    Next,
    /// With that many of the newest that pass the filter.
    Last(u64),
    /// With the oldest that is still here.
    Oldest,
    /// With the first made at or after this time, nanoseconds since 1970 UTC.
    Since(u64),
    /// Both: of what was made at or after the time, that many of the newest that pass the filter.
    LastSince(u64, u64),
}

/// A reader's line in the ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Name of the sink or client.
    pub name: Arc<str>,
    /// Records that it was due.
    pub made: u64,
    /// Handed over.
    pub delivered: u64,
    /// Not wanted by its filter.
    pub filtered: u64,
    /// Lost, by cause.
    pub lost: BTreeMap<&'static str, u64>,
    /// Still to come.
    pub queued: u64,
}

/// What all readers of one kind have come to since the book was opened, those that have ended included: it never falls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SinkTotals {
    /// Records that they were due.
    pub made: u64,
    /// Handed over.
    pub delivered: u64,
    /// Not wanted by their filters.
    pub filtered: u64,
    /// Lost, by cause.
    pub lost: BTreeMap<&'static str, u64>,
}

impl SinkTotals {
    fn add(&mut self, line: &Line) {
        self.made += line.made;
        self.delivered += line.delivered;
        self.filtered += line.filtered;
        for (cause, n) in &line.lost {
            *self.lost.entry(cause).or_default() += n;
        }
    }
}

/// A reader's kind: its name without its number.
fn kind(name: &str) -> &str {
    name.split(':').next().unwrap_or_default()
}

/// The book. Shared; everything in it takes `&self`.
pub struct Book {
    ring: Mutex<Ring>,
    tally: Mutex<Tally>,
    /// For readers on threads.
    grown: Condvar,
    /// For readers on tokio: the next sequence number, or [`CLOSED`].
    head: watch::Sender<u64>,
    /// Alerts of earlier runs, oldest first.
    past: OnceLock<Vec<Past>>,
}

/// A record of an earlier run, with what its run's records have in common.
#[derive(Clone, Debug)]
pub struct Past {
    /// Of its run.
    pub header: Arc<Header>,
    /// The record.
    pub record: Record,
}

/// Alerts that are remembered beside the ring, for the next run.
const ALERTS: usize = 256;

/// The head's value once the book is closed.
const CLOSED: u64 = u64::MAX;

struct Ring {
    records: VecDeque<Record>,
    capacity: usize,
    /// Sequence number that the next record gets.
    next: u64,
    closed: bool,
    readers: Vec<Weak<Mutex<State>>>,
    /// The newest alerts, and how many there were.
    alerts: VecDeque<Record>,
    alerts_made: u64,
    /// What readers that have ended came to, by kind.
    ended: BTreeMap<String, SinkTotals>,
}

impl Ring {
    /// The oldest sequence number that is still here.
    fn tail(&self) -> u64 {
        self.next - self.records.len() as u64
    }

    fn note_alert(&mut self, alert: Record) {
        if self.alerts.len() == ALERTS {
            self.alerts.pop_front();
        }
        self.alerts.push_back(alert);
        self.alerts_made += 1;
    }

    fn from(&self, seq: u64) -> impl Iterator<Item = &Record> {
        let skip = usize::try_from(seq.saturating_sub(self.tail())).unwrap_or(usize::MAX);
        self.records.range(skip.min(self.records.len())..)
    }
}

impl Default for Book {
    fn default() -> Self {
        Self::new(DEFAULT_CAPACITY)
    }
}

impl Book {
    /// An empty book that remembers `capacity` records.
    pub fn new(capacity: usize) -> Self {
        let ring = Ring {
            records: VecDeque::new(),
            capacity: capacity.max(1),
            next: 1,
            closed: false,
            readers: Vec::new(),
            alerts: VecDeque::new(),
            alerts_made: 0,
            ended: BTreeMap::new(),
        };
        let (ring, tally, head) = (Mutex::new(ring), Mutex::default(), watch::Sender::new(1));
        Self { ring, tally, grown: Condvar::new(), head, past: OnceLock::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes records down, numbers them, wakes the readers. Answers with the last number given. Drains `bodies`.
    pub fn append(&self, time_ns: u64, bodies: &mut Vec<Body>) -> u64 {
        if bodies.is_empty() {
            return self.last_seq();
        }
        {
            let mut tally = lock(&self.tally);
            for body in bodies.iter() {
                tally.count(body);
            }
        }
        // What leaves the ring is freed after the lock is given back.
        let mut leaving = Vec::new();
        let next = {
            let mut ring = self.lock();
            let over = (ring.records.len() + bodies.len()).saturating_sub(ring.capacity);
            leaving.reserve(over.min(ring.records.len()));
            for body in bodies.drain(..) {
                if ring.records.len() == ring.capacity {
                    leaving.extend(ring.records.pop_front());
                }
                let seq = ring.next;
                ring.next += 1;
                let record = Record { seq, time_ns, body };
                if matches!(record.body, Body::Alert(_)) {
                    ring.note_alert(record.clone());
                }
                ring.records.push_back(record);
            }
            if !ring.closed {
                self.head.send_replace(ring.next);
            }
            ring.next
        };
        self.grown.notify_all();
        next - 1
    }

    /// Writes one record down.
    pub fn append_one(&self, time_ns: u64, body: Body) -> u64 {
        self.append(time_ns, &mut vec![body])
    }

    /// The last number given; 0 before the first record.
    pub fn last_seq(&self) -> u64 {
        self.lock().next - 1
    }

    /// No record comes any more: readers read what is left and end.
    pub fn close(&self) {
        self.lock().closed = true;
        self.head.send_replace(CLOSED);
        self.grown.notify_all();
    }

    /// Opens a reader. With `follow` it goes on until the book is closed, else it ends where the book ends now.
    pub fn reader(self: &Arc<Self>, name: &str, filter: Option<Filter>, start: Start, follow: bool) -> Reader {
        let (cursor, head) = self.find(filter.as_ref(), start);
        let state = Arc::new(Mutex::new(State::new(name, cursor, (!follow).then_some(head))));
        self.lock().readers.push(Arc::downgrade(&state));
        Reader { seen: self.head.subscribe(), book: self.clone(), filter, state, taken: VecDeque::new() }
    }

    /// The number at which a reader begins, and the number that comes next.
    fn find(&self, filter: Option<&Filter>, start: Start) -> (u64, u64) {
        let (records, tail, next) = {
            let ring = self.lock();
            match start {
                Start::Next => return (ring.next, ring.next),
                Start::Oldest => return (ring.tail(), ring.next),
                // Searched on a copy: a search must not keep the writer waiting.
                _ => (ring.records.clone(), ring.tail(), ring.next),
            }
        };
        let (count, since) = match start {
            Start::Last(count) => (count, 0),
            Start::Since(since) => (u64::MAX, since),
            Start::LastSince(count, since) => (count, since),
            Start::Next | Start::Oldest => (0, 0),
        };
        let oldest = tail + records.partition_point(|r| r.time_ns < since) as u64;
        if count == u64::MAX {
            return (oldest, next);
        }
        let mut left = count;
        let mut cursor = next;
        for record in records.iter().rev().take_while(|r| r.seq >= oldest) {
            if left == 0 {
                break;
            }
            if filter.is_none_or(|f| f(record)) {
                left -= 1;
                cursor = record.seq;
            }
        }
        (cursor, next)
    }

    /// Alerts of earlier runs. To be called once, before there are readers.
    pub fn remember(&self, past: Vec<Past>) {
        self.past.get_or_init(|| past);
    }

    /// Alerts of earlier runs, oldest first.
    pub fn past(&self) -> &[Past] {
        self.past.get().map_or(&[], Vec::as_slice)
    }

    /// How many alerts this run has made.
    pub fn alerts_made(&self) -> u64 {
        self.lock().alerts_made
    }

    /// The newest of them, oldest first.
    pub fn alerts(&self) -> Vec<Record> {
        self.lock().alerts.iter().cloned().collect()
    }

    /// The alerts of earlier runs that a reader with this filter and start is due before those of this run, oldest first.
    pub fn before(&self, filter: Option<&Filter>, start: Start) -> Vec<Past> {
        let (count, since) = match start {
            Start::Next => return Vec::new(),
            Start::Oldest => (u64::MAX, 0),
            Start::Since(since) => (u64::MAX, since),
            Start::Last(count) => (count, 0),
            Start::LastSince(count, since) => (count, since),
        };
        let passes = |record: &Record| record.time_ns >= since && filter.is_none_or(|filter| filter(record));
        let held = if count == u64::MAX {
            0
        } else {
            let records = self.lock().records.clone();
            records.iter().rev().filter(|record| passes(record)).take(usize::try_from(count).unwrap_or(usize::MAX)).count() as u64
        };
        let left = usize::try_from(count - held).unwrap_or(usize::MAX);
        let mut newest: Vec<Past> = self.past().iter().rev().filter(|past| passes(&past.record)).take(left).cloned().collect();
        newest.reverse();
        newest
    }

    /// The ledger lines of all open readers, each balanced in itself.
    pub fn lines(&self) -> Vec<Line> {
        let mut ring = self.lock();
        ring.readers.retain(|r| r.strong_count() > 0);
        let readers: Vec<_> = ring.readers.iter().filter_map(Weak::upgrade).collect();
        readers.iter().map(|r| lock(r).line(ring.tail(), ring.next)).collect()
    }

    /// What all readers have come to, by kind.
    pub fn sinks(&self) -> BTreeMap<String, SinkTotals> {
        let ring = self.lock();
        let mut all = ring.ended.clone();
        for reader in ring.readers.iter().filter_map(Weak::upgrade) {
            let line = lock(&reader).line(ring.tail(), ring.next);
            all.entry(kind(&line.name).to_owned()).or_default().add(&line);
        }
        all
    }

    /// What the records have said so far.
    pub fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// Alerts of these rules are counted from zero on.
    pub fn expect_alerts(&self, rules: impl IntoIterator<Item = &'static str>) {
        lock(&self.tally).expect_alerts(rules);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
