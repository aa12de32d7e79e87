//! Several nodes' records as one sequence, by the time that each record bears. Pure: time is passed in.
//!
//! Every lane's own order is kept: it is the order of its `seq`. As long as a lane's past is still coming, nothing overtakes it, so
//! that history is exact. Afterwards a lane that says nothing holds the others up for at most the *window*.

use std::time::{Duration, Instant};

use sekisho_proto::{Record, to_nanoseconds};

/// A head that has waited for so many windows goes, whoever may still come before it: one node's clock may be wrong by hours.
const WINDOWS: u32 = 10;

/// What a lane tells.
#[derive(Debug)]
pub(super) enum Said {
    /// A record.
    Record(Instant, Box<Record>),
    /// The past is told; what follows is new.
    Caught(Instant),
    /// Nothing comes until further notice.
    Down,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Its past is still coming, or has not begun to.
    Past,
    /// It tells what happens.
    Live,
    /// It is not reached.
    Down,
    /// Nothing will come any more.
    Ended,
}

#[derive(Debug)]
struct Head {
    time: u64,
    arrived: Instant,
    record: Box<Record>,
}

#[derive(Debug)]
struct Lane {
    state: State,
    head: Option<Head>,
    heard: Option<Instant>,
}

/// What is to be done next.
#[derive(Debug)]
pub(super) enum Next {
    /// This record is the next.
    Print(Box<Record>),
    /// Nothing may be printed before a lane says something, or before this moment.
    Wait(Option<Instant>),
    /// All lanes have ended and are empty.
    End,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Merge {
    lanes: Vec<Lane>,
    window: Duration,
}

impl Merge {
    pub(super) fn new(lanes: usize, window: Duration) -> Self {
        Self { lanes: (0..lanes).map(|_| Lane { state: State::Past, head: None, heard: None }).collect(), window }
    }

    /// One more lane, whose past nobody waits for.
    pub(super) fn add(&mut self) {
        self.lanes.push(Lane { state: State::Down, head: None, heard: None });
    }

    /// Whether a lane's next word can be taken in.
    pub(super) fn wants(&self, lane: usize) -> bool {
        self.lanes[lane].head.is_none() && self.lanes[lane].state != State::Ended
    }

    /// Takes in what a lane says; it must want it.
    pub(super) fn hear(&mut self, lane: usize, said: Said) {
        let lane = &mut self.lanes[lane];
        match said {
            Said::Record(arrived, record) => {
                let time = record.time.as_ref().map(to_nanoseconds).unwrap_or_default();
                lane.heard = Some(arrived);
                lane.head = Some(Head { time, arrived, record });
                if lane.state == State::Down {
                    lane.state = State::Live;
                }
            }
            Said::Caught(at) => {
                lane.heard = Some(at);
                lane.state = State::Live;
            }
            Said::Down => lane.state = State::Down,
        }
    }

    /// A lane will say nothing more.
    pub(super) fn end(&mut self, lane: usize) {
        self.lanes[lane].state = State::Ended;
    }

    /// Whether no lane's past is still to come.
    pub(super) fn past_is_told(&self) -> bool {
        self.lanes.iter().all(|lane| lane.state != State::Past)
    }

    /// What is to be done now.
    pub(super) fn next(&mut self, now: Instant) -> Next {
        let heads = self.lanes.iter().enumerate().filter_map(|(n, lane)| lane.head.as_ref().map(|head| (head.time, n, head.arrived)));
        let Some((_, first, arrived)) = heads.min() else {
            let ended = self.lanes.iter().all(|lane| lane.state == State::Ended);
            return if ended { Next::End } else { Next::Wait(None) };
        };
        match self.holds_up(arrived) {
            Hold::Forever => return Next::Wait(None),
            Hold::Until(moment) if moment > now => return Next::Wait(Some(moment)),
            Hold::Not | Hold::Until(_) => {}
        }
        match self.lanes[first].head.take() {
            Some(head) => Next::Print(head.record),
            None => Next::Wait(None),
        }
    }

    /// How long the lanes without a record hold up one that arrived at that moment.
    fn holds_up(&self, arrived: Instant) -> Hold {
        let mut hold = Hold::Not;
        for lane in self.lanes.iter().filter(|lane| lane.head.is_none()) {
            match lane.state {
                State::Past => return Hold::Forever,
                State::Live => {
                    let quiet = lane.heard.map_or(arrived, |heard| heard.max(arrived)) + self.window;
                    let moment = quiet.min(arrived + self.window * WINDOWS);
                    hold = match hold {
                        Hold::Until(later) if later > moment => hold,
                        _ => Hold::Until(moment),
                    };
                }
                State::Down | State::Ended => {}
            }
        }
        hold
    }
}

enum Hold {
    Not,
    Until(Instant),
    Forever,
}
