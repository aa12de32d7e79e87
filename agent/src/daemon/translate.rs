//! Asks the node's connection tracking what stands behind Service addresses, beside the pump.
//!
//! The pump hands over what was dialled and takes answers when there are some; it never waits. Questions cost two system calls
//! each, so their rate has a limit: what exceeds it is not asked, and counted. A connection that the kernel does not know
//! yet (its first packet is still under way) is asked for once more.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use tracing::{debug, warn};

use crate::datapath::Conntrack;
use crate::flow::{Dialled, Side};

/// Questions a second, and how many may come at once.
const RATE: u32 = 4000;
const BURST: u32 = 1000;
/// Questions that may wait for their answers: connection tracking that is slow is asked less.
const WAITING: u32 = 4 * BURST;
/// When what was not found is asked for again.
const AGAIN: Duration = Duration::from_millis(25);

/// What was found, as [`flow::Engine::on_translated`](crate::flow::Engine::on_translated) takes it.
pub(super) type Answer = (Dialled, Option<(Side, Side)>);

enum Outcome {
    Found(Side, Side),
    NotFound,
    Failed,
}

/// What became of the questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) found: u64,
    pub(super) not_found: u64,
    pub(super) failed: u64,
}

/// See the module.
pub(super) struct Translator {
    questions: Sender<Vec<Dialled>>,
    answers: Receiver<(Dialled, Outcome)>,
    /// Questions that may be asked now, and since when that is so.
    left: u32,
    filled: Instant,
    /// Questions without an answer yet.
    waiting: u32,
    tally: Tally,
}

impl Translator {
    /// Starts the thread; it ends with this value.
    pub(super) fn start() -> std::io::Result<Self> {
        let conntrack = Conntrack::open()?;
        let (questions, asked) = channel();
        let (answer, answers) = channel();
        thread::Builder::new().name("translations".into()).spawn(move || serve(conntrack, &asked, &answer))?;
        Ok(Self { questions, answers, left: BURST, filled: Instant::now(), waiting: 0, tally: Tally::default() })
    }

    /// How many may be asked now.
    pub(super) fn room(&mut self, now: Instant) -> usize {
        let millis = u32::try_from(now.saturating_duration_since(self.filled).as_millis()).unwrap_or(u32::MAX);
        let more = millis.saturating_mul(RATE) / 1000;
        if more > 0 {
            self.left = self.left.saturating_add(more).min(BURST);
            self.filled = now;
        }
        self.left.min(WAITING.saturating_sub(self.waiting)) as usize
    }

    /// Hands questions over, as many as there was room for.
    pub(super) fn ask(&mut self, dialled: Vec<Dialled>) {
        if dialled.is_empty() {
            return;
        }
        let count = u32::try_from(dialled.len()).unwrap_or(u32::MAX);
        self.left = self.left.saturating_sub(count);
        if self.questions.send(dialled).is_ok() {
            self.waiting = self.waiting.saturating_add(count);
        } else {
            // The thread is gone: nothing will be found any more.
            self.tally.failed += u64::from(count);
        }
    }

    /// An answer, if there is one.
    pub(super) fn answer(&mut self) -> Option<Answer> {
        let (dialled, outcome) = self.answers.try_recv().ok()?;
        self.waiting = self.waiting.saturating_sub(1);
        let found = match outcome {
            Outcome::Found(source, destination) => {
                self.tally.found += 1;
                Some((source, destination))
            }
            Outcome::NotFound => {
                self.tally.not_found += 1;
                None
            }
            Outcome::Failed => {
                self.tally.failed += 1;
                None
            }
        };
        Some((dialled, found))
    }

    pub(super) fn tally(&self) -> Tally {
        self.tally
    }
}

/// Answers until nobody asks any more.
fn serve(mut conntrack: Conntrack, asked: &Receiver<Vec<Dialled>>, answers: &Sender<(Dialled, Outcome)>) {
    let mut again: VecDeque<(Instant, Dialled)> = VecDeque::new();
    let mut complained = false;
    let mut look = |dialled: &Dialled| match conntrack.behind(dialled.protocol, dialled.source, dialled.destination) {
        Ok(Some((source, destination))) => Outcome::Found(source, destination),
        Ok(None) => Outcome::NotFound,
        Err(error) => {
            if std::mem::replace(&mut complained, true) {
                debug!(%error, "connection tracking does not answer");
            } else {
                warn!(%error, "connection tracking does not answer; records do not say what stands behind Services");
            }
            Outcome::Failed
        }
    };
    loop {
        let wait = again.front().map_or(Duration::from_secs(3600), |(due, _)| due.saturating_duration_since(Instant::now()));
        match asked.recv_timeout(wait) {
            Ok(batch) => {
                for dialled in batch {
                    match look(&dialled) {
                        Outcome::NotFound => again.push_back((Instant::now() + AGAIN, dialled)),
                        outcome => drop(answers.send((dialled, outcome))),
                    }
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        while let Some((_, dialled)) = again.pop_front_if(|(due, _)| *due <= Instant::now()) {
            let outcome = look(&dialled);
            drop(answers.send((dialled, outcome)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_answer_is_asked_no_more() {
        let (questions, asked) = channel();
        let (answer, answers) = channel();
        let began = Instant::now();
        let mut translator = Translator { questions, answers, left: BURST, filled: began, waiting: 0, tally: Tally::default() };
        let side = ([10, 0, 0, 1].into(), 80);
        let dialled = Dialled { flow_id: 1, start_ns: 1, protocol: 6, source: side, destination: side };
        let mut given = 0;
        for second in 1..60 {
            let room = translator.room(began + Duration::from_secs(second));
            translator.ask(vec![dialled; room]);
            given += room;
        }
        assert_eq!((given, asked.try_iter().flatten().count()), (WAITING as usize, WAITING as usize));
        for _ in 0..7 {
            answer.send((dialled, Outcome::NotFound)).unwrap();
            assert_eq!(translator.answer(), Some((dialled, None)));
        }
        assert_eq!((translator.room(began + Duration::from_secs(60)), translator.tally().not_found), (7, 7));
    }
}
