//! How often the pump does what.

use std::time::{Duration, Instant};

/// How often rings are read and changes looked for.
pub(super) const BEAT: Duration = Duration::from_millis(10);
/// How long closed flows may wait for their end beyond their linger.
const REAP: Duration = Duration::from_millis(100);
/// How often the flow tables are walked, and what part of the time that may take: great tables are walked less often.
const SWEEP: Duration = Duration::from_secs(2);
const SWEEP_SHARE: u32 = 100;
const SWEEP_RAREST: Duration = Duration::from_secs(5);
/// How often attachments and coverage are checked.
const CHECK: Duration = Duration::from_secs(2);
/// How often one of the pods that came in a hurry settles, if missing ones are looked for no oftener, and nothing changed for so long.
const SETTLE: Duration = Duration::from_millis(500);
const UNHURRIED: Duration = Duration::from_secs(2);
const CALM: Duration = Duration::from_millis(300);
/// How often pods are looked for without being woken, when some are missing first and otherwise.
const LOOK_MISSING: Duration = Duration::from_millis(20);
const LOOK: Duration = Duration::from_secs(5);
/// When the rest is looked at after a look that was not whole.
const LOOK_WHOLE: Duration = Duration::from_millis(100);
/// How often the run's progress is written down for the next run.
const NOTE: Duration = Duration::from_secs(1);
/// How often the journal forgets, and the node's connection tracking is asked how long it keeps what.
const FORGET: Duration = Duration::from_secs(60);

/// Something with a period.
pub(super) struct Timer {
    period: Duration,
    due: Instant,
}

impl Timer {
    fn every(period: Duration) -> Self {
        Self { period, due: Instant::now() + period }
    }

    /// Whether it is due; if so, it is set again.
    pub(super) fn rings(&mut self, now: Instant) -> bool {
        let rings = now >= self.due;
        if rings {
            self.due = now + self.period;
        }
        rings
    }
}

/// All that have one.
pub(super) struct Timers {
    pub(super) reap: Timer,
    pub(super) sweep: Timer,
    pub(super) check: Timer,
    settle: Timer,
    pub(super) look: Timer,
    pub(super) ledger: Timer,
    pub(super) note: Timer,
    pub(super) forget: Timer,
}

impl Timers {
    pub(super) fn new(ledger: Duration) -> Self {
        Self {
            reap: Timer::every(REAP),
            sweep: Timer::every(SWEEP),
            check: Timer::every(CHECK),
            settle: Timer::every(SETTLE),
            look: Timer::every(LOOK_MISSING),
            ledger: Timer::every(ledger),
            note: Timer::every(NOTE),
            forget: Timer::every(FORGET),
        }
    }

    /// There was a look; some pods are `missing`, and it was `whole`.
    pub(super) fn looked(&mut self, news: bool, missing: bool, whole: bool) {
        // One that never starts is looked for less and less: the lookout wakes when there is something new.
        let again = if news { LOOK_MISSING } else { (self.look.period * 2).min(LOOK) };
        let period = if missing { again } else { LOOK };
        self.look = Timer::every(if whole { period } else { period.min(LOOK_WHOLE) });
    }

    /// A sweep took so long.
    pub(super) fn swept(&mut self, took: Duration) {
        self.sweep = Timer::every((took * SWEEP_SHARE).clamp(SWEEP, SWEEP_RAREST));
    }

    /// A check is not through: it goes on in the next beat.
    pub(super) fn check_on(&mut self, now: Instant) {
        self.check.due = now;
    }

    /// Whether a pod may settle, where no snapshot has been taken for so long. One that is missing for long is not waited for; a
    /// change of policy must not wait for this.
    pub(super) fn may_settle(&mut self, now: Instant, quiet_for: Duration) -> bool {
        self.settle.rings(now) && self.look.period >= UNHURRIED && quiet_for >= CALM
    }
}
