//! The two ends of one flow as one line, with the verdict that counts.
//!
//! A flow between two pods that are both watched has two records of each moment, one from each end, with one Community ID. The end
//! with the worse verdict speaks for the flow: its records are shown, with what only the other end knows, and the other's are left
//! out. Records keep their order: one that waits for its other end holds back those behind it, for a moment and no longer.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use sekisho_proto::record::Body;
use sekisho_proto::{Direction, Flow, Kind, Peer, Record, Verdict, to_nanoseconds};

/// How long a record of now waits for that of the other end.
pub(super) const WAIT: Duration = Duration::from_millis(400);
/// How much later, in the records' own time, the other end's record of the past may come.
const APART: u64 = 2_500_000_000;
/// How far apart the first packets may be at the two ends.
const STARTS: u64 = 1_000_000_000;
/// Records that are held back at most, and flows whose two ends are remembered.
const HELD: usize = 8192;
const KNOWN: usize = 65_536;

/// Which part an end plays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Speaks,
    /// It is left out, unless its verdict becomes worse than this.
    Silent(u8),
}

/// A moment of a flow's life.
type Key = (String, i32);

#[derive(Debug)]
struct Held {
    record: Record,
    arrived: Instant,
    time: u64,
    /// What it waits for; nothing any more where absent.
    key: Option<Key>,
}

/// See the module. Pure: time is passed in.
#[derive(Debug, Default)]
pub(super) struct Fold {
    held: VecDeque<Held>,
    /// How many records have left the queue: the number of its first.
    gone: usize,
    /// Where the newest record stands that waits for its other end.
    waiting: HashMap<Key, usize>,
    roles: HashMap<String, Role>,
    known: VecDeque<String>,
    newest: u64,
    /// Every node's records come, not only one's.
    nodes: bool,
}

impl Fold {
    /// Of one node's records, or of several nodes'.
    pub(super) fn new(nodes: bool) -> Self {
        Self { nodes, ..Self::default() }
    }

    /// Takes in the next record.
    pub(super) fn push(&mut self, record: Record, now: Instant) {
        let time = record.time.as_ref().map(to_nanoseconds).unwrap_or_default();
        self.newest = self.newest.max(time);
        let key = match &record.body {
            Some(Body::Flow(flow)) => match self.part(&record, flow) {
                Part::Shown(key) => key,
                Part::LeftOut => return,
                Part::Joins(at) => return self.join(at, record),
            },
            _ => None,
        };
        if let Some(key) = &key {
            self.waiting.insert(key.clone(), self.gone + self.held.len());
        }
        self.held.push_back(Held { record, arrived: now, time, key });
    }

    /// The next record that may be shown.
    pub(super) fn pop(&mut self, now: Instant) -> Option<Record> {
        let first = self.held.front()?;
        let due = first.key.is_none() || now >= first.arrived + WAIT || self.newest >= first.time + APART || self.held.len() > HELD;
        if due { self.take() } else { None }
    }

    /// The next record, whoever it waits for: nothing comes any more.
    pub(super) fn take(&mut self) -> Option<Record> {
        let held = self.held.pop_front()?;
        if let Some(key) = &held.key
            && self.waiting.get(key) == Some(&self.gone)
        {
            self.waiting.remove(key);
        }
        self.gone += 1;
        Some(held.record)
    }

    /// When the next record may be shown, if one is held back.
    pub(super) fn due(&self) -> Option<Instant> {
        self.held.front().map(|held| if held.key.is_some() { held.arrived + WAIT } else { held.arrived })
    }

    /// What becomes of a flow's record.
    fn part(&mut self, record: &Record, flow: &Flow) -> Part {
        match self.roles.get(&flow.flow_id) {
            Some(Role::Speaks) => return Part::Shown(None),
            Some(Role::Silent(verdict)) if rank(flow) <= *verdict => return Part::LeftOut,
            Some(Role::Silent(_)) => {
                // Its verdict has become the worse one.
                self.roles.insert(flow.flow_id.clone(), Role::Speaks);
                return Part::Shown(None);
            }
            None => {}
        }
        let Some(key) = key(record, flow) else { return Part::Shown(None) };
        let other = self.waiting.get(&key).copied();
        if let Some(at) = other
            && let Some(Body::Flow(first)) = self.held.get(at - self.gone).and_then(|held| held.record.body.as_ref())
            && are_ends(first, flow)
        {
            return Part::Joins(at);
        }
        Part::Shown(self.has_other_end(record, flow).then_some(key))
    }

    /// Whether the other end's record is likely to come.
    fn has_other_end(&self, record: &Record, flow: &Flow) -> bool {
        // What is dropped where it is sent never arrives.
        if flow.direction() == Direction::Egress && flow.verdict() == Verdict::Denied {
            return false;
        }
        let remote = if flow.direction() == Direction::Ingress { &flow.source } else { &flow.destination };
        let Some(remote) = remote else { return false };
        let near = |peer: &Peer| self.nodes || peer.node.as_ref().is_none_or(|node| *node == record.node);
        let pod = remote.pod.is_some() && near(remote);
        pod || remote.translated.as_ref().is_some_and(|behind| behind.pod.is_some())
    }

    /// Joins a record with that of the other end, which stands at this place in the queue.
    fn join(&mut self, at: usize, record: Record) {
        let Some(held) = self.held.get_mut(at - self.gone) else { return };
        if let Some(key) = held.key.take() {
            self.waiting.remove(&key);
        }
        let first = std::mem::take(&mut held.record);
        let (speaker, silent) = if speaks_before(&record, &first) { (record, first) } else { (first, record) };
        let (Some(Body::Flow(loud)), Some(Body::Flow(quiet))) = (&speaker.body, &silent.body) else { return };
        let (loud, quiet) = ((loud.flow_id.clone(), Role::Speaks), (quiet.flow_id.clone(), Role::Silent(rank(loud))));
        let mut joined = speaker;
        if let (Some(Body::Flow(flow)), Some(Body::Flow(other))) = (&mut joined.body, silent.body) {
            flow.process = flow.process.take().or(other.process);
            flow.listener = flow.listener.take().or(other.listener);
        }
        held.record = joined;
        for (id, role) in [loud, quiet] {
            if self.roles.insert(id.clone(), role).is_none() {
                self.known.push_back(id);
            }
        }
        while self.known.len() > KNOWN {
            if let Some(oldest) = self.known.pop_front() {
                self.roles.remove(&oldest);
            }
        }
    }
}

enum Part {
    /// It is shown; with a key, once its other end has come or may no longer.
    Shown(Option<Key>),
    LeftOut,
    /// It is the other end of the record at this place.
    Joins(usize),
}

/// What the two ends' records of one moment have in common.
fn key(record: &Record, flow: &Flow) -> Option<Key> {
    let community = flow.community_id_translated.as_ref().or(flow.community_id.as_ref())?;
    let lives = matches!(record.kind(), Kind::Start | Kind::Update | Kind::End);
    lives.then(|| (community.clone(), record.kind))
}

fn are_ends(first: &Flow, second: &Flow) -> bool {
    let start = |flow: &Flow| flow.start.as_ref().map(to_nanoseconds).unwrap_or_default();
    let unknown = matches!(first.direction(), Direction::Unknown | Direction::Unspecified);
    first.flow_id != second.flow_id && (unknown || first.direction != second.direction) && start(first).abs_diff(start(second)) <= STARTS
}

/// The worse a verdict is, the higher.
fn rank(flow: &Flow) -> u8 {
    match flow.verdict() {
        Verdict::Denied => 3,
        Verdict::Audit => 2,
        Verdict::Allowed => 1,
        Verdict::Unspecified => 0,
    }
}

/// Whether `a` speaks rather than `b`: for its verdict, then because it names a rule, then because it opened the flow.
fn speaks_before(a: &Record, b: &Record) -> bool {
    let order = |record: &Record| match &record.body {
        Some(Body::Flow(flow)) => (rank(flow), flow.policy.is_some(), flow.direction() == Direction::Egress),
        _ => (0, false, false),
    };
    order(a) > order(b)
}

#[cfg(test)]
mod tests {
    use sekisho_proto::{Pod, PolicyRule, Process, from_nanoseconds};

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn flow(id: &str, direction: Direction, verdict: Verdict) -> Flow {
        let end = |name: &str| {
            let pod = Pod { namespace: "shop".into(), name: name.into(), ..Pod::default() };
            Some(Peer { pod: Some(pod), node: Some("n1".into()), ..Peer::default() })
        };
        Flow {
            flow_id: id.into(),
            community_id: Some("1:x".into()),
            direction: direction.into(),
            verdict: verdict.into(),
            start: Some(from_nanoseconds(SECOND)),
            source: end("web"),
            destination: end("db"),
            ..Flow::default()
        }
    }

    fn record(seq: u64, kind: Kind, flow: Flow) -> Record {
        let time = Some(from_nanoseconds(SECOND + seq));
        Record { kind: kind.into(), seq, node: "n1".into(), time, body: Some(Body::Flow(flow)), ..Record::default() }
    }

    fn ledger(seq: u64) -> Record {
        Record { kind: Kind::Ledger.into(), seq, time: Some(from_nanoseconds(SECOND + seq)), ..Record::default() }
    }

    fn all(fold: &mut Fold) -> Vec<Record> {
        std::iter::from_fn(|| fold.take()).collect()
    }

    fn numbers(records: &[Record]) -> Vec<u64> {
        records.iter().map(|record| record.seq).collect()
    }

    fn body(record: &Record) -> &Flow {
        match &record.body {
            Some(Body::Flow(flow)) => flow,
            other => panic!("no flow: {other:?}"),
        }
    }

    #[test]
    fn the_worse_verdict_speaks_with_what_both_ends_know() {
        for turned in [false, true] {
            let mut sent = flow("a", Direction::Egress, Verdict::Allowed);
            sent.process = Some(Process { pid: 7, ..Process::default() });
            let mut received = flow("b", Direction::Ingress, Verdict::Denied);
            received.listener = Some(Process { pid: 9, ..Process::default() });
            let mut both = [record(1, Kind::Start, sent), record(2, Kind::Start, received)];
            if turned {
                both.reverse();
            }
            let (mut fold, now) = (Fold::new(false), Instant::now());
            for record in both {
                fold.push(record, now);
            }
            let shown = all(&mut fold);
            assert_eq!(shown.len(), 1, "{shown:?}");
            let shown = body(&shown[0]);
            assert_eq!(shown.verdict(), Verdict::Denied);
            assert_eq!((shown.process.as_ref().map(|p| p.pid), shown.listener.as_ref().map(|p| p.pid)), (Some(7), Some(9)));
        }
    }

    #[test]
    fn the_silent_end_stays_silent_until_its_verdict_is_the_worse_one() {
        let (mut fold, now) = (Fold::new(false), Instant::now());
        fold.push(record(1, Kind::Start, flow("a", Direction::Egress, Verdict::Allowed)), now);
        fold.push(record(2, Kind::Start, flow("b", Direction::Ingress, Verdict::Allowed)), now);
        fold.push(record(3, Kind::Update, flow("b", Direction::Ingress, Verdict::Allowed)), now);
        fold.push(record(4, Kind::Update, flow("a", Direction::Egress, Verdict::Allowed)), now);
        fold.push(record(5, Kind::End, flow("b", Direction::Ingress, Verdict::Denied)), now);
        assert_eq!(numbers(&all(&mut fold)), [1, 4, 5]);
    }

    #[test]
    fn the_end_that_names_a_rule_speaks_if_the_verdicts_are_one() {
        let (mut fold, now) = (Fold::new(false), Instant::now());
        let ruled = Flow { policy: Some(PolicyRule::default()), ..flow("b", Direction::Ingress, Verdict::Allowed) };
        fold.push(record(1, Kind::Start, flow("a", Direction::Egress, Verdict::Allowed)), now);
        fold.push(record(2, Kind::Start, ruled), now);
        let shown = all(&mut fold);
        assert_eq!((shown.len(), body(&shown[0]).flow_id.as_str()), (1, "b"));
    }

    #[test]
    fn what_waits_is_shown_after_a_moment_and_keeps_its_place() {
        let (mut fold, now) = (Fold::new(false), Instant::now());
        fold.push(record(1, Kind::Start, flow("a", Direction::Egress, Verdict::Allowed)), now);
        fold.push(ledger(2), now);
        assert_eq!(fold.pop(now), None);
        assert_eq!(fold.due(), Some(now + WAIT));
        let later = now + WAIT;
        assert_eq!(fold.pop(later).map(|record| record.seq), Some(1));
        assert_eq!(fold.pop(later).map(|record| record.seq), Some(2));
        // Its other end comes too late, and is shown too.
        fold.push(record(3, Kind::Start, flow("b", Direction::Ingress, Verdict::Denied)), later);
        assert_eq!(numbers(&all(&mut fold)), [3]);
    }

    #[test]
    fn in_the_past_the_records_own_time_tells_how_long() {
        let (mut fold, now) = (Fold::new(false), Instant::now());
        fold.push(record(1, Kind::Start, flow("a", Direction::Egress, Verdict::Allowed)), now);
        fold.push(ledger(3 * SECOND), now);
        assert_eq!(fold.pop(now).map(|record| record.seq), Some(1));
    }

    #[test]
    fn nobody_waits_for_an_end_that_is_elsewhere() {
        let mut there = flow("a", Direction::Egress, Verdict::Allowed);
        there.destination.as_mut().expect("an end").node = Some("n2".into());
        let now = Instant::now();
        let mut one = Fold::new(false);
        one.push(record(1, Kind::Start, there.clone()), now);
        assert!(one.pop(now).is_some());
        let mut dropped = Fold::new(true);
        dropped.push(record(1, Kind::Start, flow("a", Direction::Egress, Verdict::Denied)), now);
        assert!(dropped.pop(now).is_some(), "it never gets there");
        let mut outside = there.clone();
        outside.destination = Some(Peer { ip: "192.0.2.1".into(), ..Peer::default() });
        let mut several = Fold::new(true);
        several.push(record(1, Kind::Start, outside), now);
        assert!(several.pop(now).is_some());
        several.push(record(2, Kind::Start, there), now);
        assert!(several.pop(now).is_none(), "its node is asked as well");
    }

    #[test]
    fn flows_that_are_not_one_are_not_joined() {
        let now = Instant::now();
        let shown = |first: Flow, second: Flow| {
            let mut fold = Fold::new(false);
            fold.push(record(1, Kind::Start, first), now);
            fold.push(record(2, Kind::Start, second), now);
            all(&mut fold).len()
        };
        let sent = flow("a", Direction::Egress, Verdict::Allowed);
        let received = flow("b", Direction::Ingress, Verdict::Allowed);
        assert_eq!(shown(sent.clone(), received.clone()), 1);
        assert_eq!(shown(sent.clone(), Flow { direction: Direction::Egress.into(), ..received.clone() }), 2);
        assert_eq!(shown(sent.clone(), Flow { community_id: Some("1:y".into()), ..received.clone() }), 2);
        assert_eq!(shown(sent.clone(), Flow { start: Some(from_nanoseconds(5 * SECOND)), ..received.clone() }), 2);
        // To a Service: the client's end knows the Community ID of the other.
        let dialled = Flow { community_id: Some("1:s".into()), community_id_translated: Some("1:x".into()), ..sent };
        assert_eq!(shown(dialled, received), 1);
    }
}
