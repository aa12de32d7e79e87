//! The ledger: proves that nothing is missing without a number for it.
//!
//! Nouns. A *tally* counts one side since this run began: [`KernelTally`] what the kernel programs counted, [`FlowTally`] flows, and every
//! reader of the book its own [`Line`]. [`Ledger`] joins them into the record and checks the sums itself.
//!
//! The kernel's counters are pinned and outlive the agent; a run counts from where the run before stopped writing
//! down, so what passed while no agent ran is in the sums of the next one.

use std::collections::BTreeMap;

use sekisho_core::counters;
use sekisho_proto as proto;

use super::book::Line;
use super::number::NumberSet;

/// Causes for which a start may be lost.
const LOST: [u32; 3] = [counters::LOST_RING_FULL, counters::LOST_INSERT_FAILED, counters::LOST_INSERT_LIMITED];

/// For how many sweeps flows of before this run may turn up.
const ADOPTING_SWEEPS: u64 = 3;

fn at(counters: &[u64], slot: u32) -> u64 {
    counters.get(slot as usize).copied().unwrap_or(0)
}

/// Flows that became entries of a table.
fn entries(counters: &[u64]) -> u64 {
    let stateless = at(counters, counters::LOST_INSERT_FAILED) + at(counters, counters::LOST_INSERT_LIMITED);
    at(counters, counters::CREATED).saturating_sub(stateless)
}

/// Starts whose fate is known.
fn settled(counters: &[u64]) -> u64 {
    at(counters, counters::START_SENT) + at(counters, counters::SUMMARISED) + LOST.iter().map(|slot| at(counters, *slot)).sum::<u64>()
}

/// Flows since this run began: `created = ended + open + evicted_unseen`.
///
/// The kernel says how many were created, the engine how many ended, a sweep how many there are. What is left over after a sweep was
/// pushed out of its table before anything but its start was told.
pub struct FlowTally {
    began_ns: u64,
    /// Entries that the kernel had counted when this run began.
    base: Option<u64>,
    adopted: u64,
    ended: u64,
    evicted_unseen: u64,
    /// Entries counted at the beginning of the sweep.
    before: u64,
    /// Entries met in the sweep.
    met: u64,
    /// Flows of before this run that were counted already; `None` once all have turned up.
    adopting: Option<NumberSet<(u64, u64)>>,
}

impl FlowTally {
    pub(super) fn new(began_ns: u64) -> Self {
        Self { began_ns, base: None, adopted: 0, ended: 0, evicted_unseen: 0, before: 0, met: 0, adopting: Some(NumberSet::default()) }
    }

    /// Where the kernel's counters stand when this run begins. Without it, they are taken to stand at zero.
    pub fn begin(&mut self, counters: &[u64]) {
        self.base = Some(entries(counters));
    }

    fn created(&self, counters: &[u64]) -> u64 {
        self.adopted + entries(counters).saturating_sub(self.base.unwrap_or(0))
    }

    fn adopt(&mut self, id: u64, start_ns: u64) {
        if start_ns <= self.began_ns
            && let Some(adopting) = &mut self.adopting
            && adopting.insert((id, start_ns))
        {
            self.adopted += 1;
        }
    }

    pub(super) fn begin_sweep(&mut self, counters: &[u64]) {
        self.before = entries(counters).saturating_sub(self.base.unwrap_or(0));
        self.met = 0;
    }

    pub(super) fn met(&mut self, id: u64, start_ns: u64) {
        self.met += 1;
        self.adopt(id, start_ns);
    }

    pub(super) fn ended(&mut self, id: u64, start_ns: u64) {
        self.ended += 1;
        self.adopt(id, start_ns);
    }

    /// `missed` flows are open here, were not met, and are given another sweep.
    pub(super) fn end_sweep(&mut self, sweeps: u64, missed: u64) {
        // What was created before the sweep and is neither met in it nor ended by now is gone. Flows that came meanwhile only make this too small.
        let missing = (self.adopted + self.before).saturating_sub(self.ended + self.met + missed);
        self.evicted_unseen = self.evicted_unseen.max(missing);
        if sweeps >= ADOPTING_SWEEPS {
            self.adopting = None;
        }
    }

    /// The ledger's part.
    pub fn ledger(&self, counters: &[u64]) -> proto::ledger::Flows {
        let open = self.created(counters).saturating_sub(self.ended + self.evicted_unseen);
        proto::ledger::Flows {
            created: self.ended + self.evicted_unseen + open,
            ended: self.ended,
            open,
            evicted_unseen: self.evicted_unseen,
        }
    }

    /// How many more flows ended than were created, if the kernel's counters say so: impossible when quiet.
    fn excess(&self, counters: &[u64]) -> u64 {
        (self.ended + self.evicted_unseen).saturating_sub(self.created(counters))
    }
}

/// Starts since this run began, and since the run before stopped writing down:
/// `created = start_sent + summarised + sum(lost)`.
pub struct KernelTally {
    base: Vec<u64>,
    unattended: u64,
    last: Vec<u64>,
}

impl KernelTally {
    /// `now` as the kernel counts when the run begins, `before` as the run before wrote down last.
    pub fn new(now: &[u64], before: Option<&[u64]>) -> Self {
        // Counters below what was written down are of other maps: those that are there now began at zero.
        let fits = |before: &&[u64]| before.iter().zip(now).all(|(b, n)| b <= n);
        let mut base = before.filter(fits).map_or_else(Vec::new, <[u64]>::to_vec);
        // Another version may know more counters, or fewer.
        base.resize(now.len(), 0);
        // A start may have been between two counters when they were read: what is not settled yet belongs to this run.
        let settled_before = settled(&base);
        if let Some(created) = base.get_mut(counters::CREATED as usize) {
            *created = settled_before;
        }
        let unattended = at(now, counters::CREATED).saturating_sub(at(&base, counters::CREATED));
        Self { base, unattended, last: Vec::new() }
    }

    /// Flows that were judged while no agent ran.
    pub fn unattended(&self) -> u64 {
        self.unattended
    }

    fn since(&self, counters: &[u64], slot: u32) -> u64 {
        at(counters, slot).saturating_sub(at(&self.base, slot))
    }

    /// The ledger's part, and by how much it is out of balance if nothing moved since the last time.
    fn ledger(&mut self, counters: &[u64]) -> (proto::ledger::Kernel, i128) {
        let created = self.since(counters, counters::CREATED);
        let known = settled(counters).saturating_sub(settled(&self.base));
        let quiet = self.last == counters;
        self.last = counters.to_vec();
        // While packets pass, a start may be between two counters; it is told once its fate is known.
        let shown = if quiet { created } else { known };
        let ledger = proto::ledger::Kernel {
            created: shown,
            start_sent: self.since(counters, counters::START_SENT),
            summarised: self.since(counters, counters::SUMMARISED),
            lost: LOST.iter().map(|slot| (name(*slot).to_owned(), self.since(counters, *slot))).collect(),
            stateless: self.since(counters, counters::STATELESS),
        };
        (ledger, if quiet { i128::from(created) - i128::from(known) } else { 0 })
    }
}

fn name(slot: u32) -> &'static str {
    counters::NAMES.iter().find(|(s, _)| *s == slot).map_or("other", |(_, name)| name)
}

/// Makes ledger records.
pub struct Ledger {
    kernel: KernelTally,
    reported: bool,
}

impl Ledger {
    /// A ledger over these kernel counters.
    pub fn new(kernel: KernelTally) -> Self {
        Self { kernel, reported: false }
    }

    /// The record as of now. An imbalance is a bug of ours: it is logged once, and can be asked for with [`imbalance`].
    pub fn record(&mut self, counters: &[u64], flows: &FlowTally, lines: &[Line]) -> proto::Ledger {
        let (kernel, off) = self.kernel.ledger(counters);
        let quiet_excess = if off == 0 { 0 } else { flows.excess(counters) };
        let record = proto::Ledger { kernel: Some(kernel), flows: Some(flows.ledger(counters)), sinks: lines.iter().map(sink).collect() };
        let wrong = imbalance(&record).or_else(|| (off != 0).then(|| format!("kernel counters are off by {off}, flows by {quiet_excess}")));
        match wrong {
            Some(wrong) if !self.reported => {
                tracing::error!(%wrong, "the ledger does not balance: this is a bug");
                self.reported = true;
            }
            Some(_) => {}
            None => self.reported = false,
        }
        record
    }
}

fn sink(line: &Line) -> proto::ledger::Sink {
    proto::ledger::Sink {
        name: line.name.to_string(),
        made: line.made,
        delivered: line.delivered,
        filtered: line.filtered,
        lost: line.lost.iter().map(|(cause, n)| ((*cause).to_owned(), *n)).collect(),
        queued: line.queued,
    }
}

/// What in a ledger does not add up, if anything.
pub fn imbalance(ledger: &proto::Ledger) -> Option<String> {
    let sum = |lost: &BTreeMap<String, u64>| lost.values().sum::<u64>();
    if let Some(k) = &ledger.kernel {
        let known = k.start_sent + k.summarised + sum(&k.lost);
        if k.created != known {
            return Some(format!("kernel: created {} but {known} accounted for", k.created));
        }
    }
    if let Some(f) = &ledger.flows {
        let known = f.ended + f.open + f.evicted_unseen;
        if f.created != known {
            return Some(format!("flows: created {} but {known} accounted for", f.created));
        }
    }
    ledger.sinks.iter().find_map(|s| {
        let known = s.delivered + s.filtered + sum(&s.lost) + s.queued;
        (s.made != known).then(|| format!("sink {}: made {} but {known} accounted for", s.name, s.made))
    })
}
