//! One node's records: its past, then what comes, over as many tunnels as it takes. No record goes twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use kube::Client;
use prost_types::Timestamp;
use sekisho_proto::{Kind, Record, from_nanoseconds, to_nanoseconds};
use tokio::sync::{Notify, Semaphore, mpsc};
use tonic::Streaming;

use super::merge::Said;
use super::places::{Place, find_again};
use super::streams::Ask;
use super::tunnel::Tunnel;
use super::{ClusterArgs, complain};

/// Records that wait for the merge, over all lanes; and how many of one lane at least and at most.
const HANDS: usize = 16_384;
const HAND: (usize, usize) = (16, 256);
/// How long a stream of the past may be silent: an agent sends it without a pause.
const SILENCE: Duration = Duration::from_secs(10);
/// Pauses between attempts to reach an agent again; the last is repeated.
const PAUSES: [u64; 4] = [1, 2, 5, 10];
/// Records of so long before the break are asked for again, and dropped if they came already.
const OVERLAP: i64 = 10;

/// Records of one of so many lanes that wait for the merge.
pub(super) fn hand(lanes: usize) -> usize {
    (HANDS / lanes.max(1)).clamp(HAND.0, HAND.1)
}

/// What all lanes share.
pub(super) struct Road {
    pub(super) kube: Client,
    pub(super) args: ClusterArgs,
    pub(super) ask: Ask,
    pub(super) follow: bool,
    /// How many of a lane's records wait for the merge.
    pub(super) hand: usize,
    /// Taken while an agent is looked for and reached.
    pub(super) turns: Semaphore,
    /// Something was said, or a lane has ended.
    pub(super) said: Notify,
    /// A node could not be asked, or not to the end.
    pub(super) lost: AtomicBool,
}

/// The newest record of each run that passed.
#[derive(Default)]
struct Passed {
    run: String,
    seq: u64,
    time: Option<Timestamp>,
    /// Runs before that.
    former: Vec<String>,
    /// Where nothing has passed yet and the past is not wanted: from when on records are.
    floor: Option<Timestamp>,
}

impl Passed {
    /// Whether a record is new; it is noted then.
    fn is_new(&mut self, record: &Record) -> bool {
        let known = record.run == self.run && record.seq <= self.seq;
        let past =
            self.run.is_empty() && self.floor.zip(record.time).is_some_and(|(floor, time)| to_nanoseconds(&time) < to_nanoseconds(&floor));
        // An agent tells alerts of earlier runs each time that it is asked for all.
        let older = self.time.zip(record.time).is_some_and(|(newest, time)| to_nanoseconds(&time) < to_nanoseconds(&newest));
        let another = !self.run.is_empty() && record.run != self.run;
        let former = another && (self.former.contains(&record.run) || older && record.kind == i32::from(Kind::Alert));
        if known || past || former {
            return false;
        }
        if another {
            self.former.push(std::mem::take(&mut self.run));
        }
        self.run.clone_from(&record.run);
        self.seq = record.seq;
        self.time = record.time;
        true
    }

    /// From when on is asked for again.
    fn since(&self) -> Option<Timestamp> {
        self.time.map(|time| Timestamp { seconds: (time.seconds - OVERLAP).max(0), nanos: 0 }).or(self.floor)
    }
}

/// Whether the merge still listens.
struct Gone;

/// One node's lane.
struct Lane {
    road: Arc<Road>,
    node: String,
    out: mpsc::Sender<Said>,
    passed: Passed,
}

/// Starts a lane; it ends by itself.
pub(super) fn start(road: &Arc<Road>, place: Place) -> mpsc::Receiver<Said> {
    let (out, merge) = mpsc::channel(road.hand);
    let lane = Lane { road: Arc::clone(road), node: place.node, out, passed: Passed::default() };
    let road = Arc::clone(road);
    tokio::spawn(async move {
        lane.run(place.pod).await;
        road.said.notify_one();
    });
    merge
}

impl Lane {
    async fn run(mut self, mut pod: Result<String, String>) {
        let mut failures = 0;
        let mut told = false;
        loop {
            let outcome = match pod {
                Ok(pod) => self.converse(&pod, &mut told, &mut failures).await,
                Err(why) => Err(why),
            };
            match outcome {
                Ok(Gone) => return,
                Err(why) => {
                    self.road.lost.store(true, Ordering::Relaxed);
                    if failures == 0 {
                        complain(&self.node, why);
                    }
                }
            }
            if !self.road.follow || self.say(Said::Down).await.is_err() {
                return;
            }
            let pause = PAUSES[failures.min(PAUSES.len() - 1)];
            failures += 1;
            tokio::time::sleep(Duration::from_secs(pause)).await;
            let _turn = self.road.turns.acquire().await;
            pod = find_again(&self.road.kube, &self.road.args, &self.node).await;
        }
    }

    /// One tunnel's life. `told` says whether the past was told, be it over an earlier one.
    async fn converse(&mut self, pod: &str, told: &mut bool, failures: &mut usize) -> Result<Gone, String> {
        let road = Arc::clone(&self.road);
        let broke = *failures > 0;
        let mut tunnel = {
            let _turn = road.turns.acquire().await;
            Tunnel::open(&road.kube, &road.args.agents_namespace, pod).await?
        };
        if !*told && (!road.follow || road.ask.wants_past()) {
            let past = road.ask.past(&mut tunnel.client).await;
            let past = match past {
                Ok(past) => past,
                Err(status) => return Err(tunnel.why(&status).await),
            };
            if self.pass(past, Some(SILENCE), &tunnel, failures).await?.is_some() {
                return Ok(Gone);
            }
        }
        if !road.follow {
            return Ok(Gone);
        }
        // What came since the past was told, or since the break.
        let again = *told || road.ask.wants_past();
        let new = match road.ask.coming(&mut tunnel.client, again, self.passed.since()).await {
            Ok(new) => new,
            Err(status) => return Err(tunnel.why(&status).await),
        };
        let begun = SystemTime::now();
        let first = !std::mem::replace(told, true);
        if broke {
            complain(&self.node, "its agent answers again; what it kept meanwhile follows, older than what others have told");
        }
        *failures = 0;
        if self.say(Said::Caught(Instant::now())).await.is_err() {
            return Ok(Gone);
        }
        let ended = self.pass(new, None, &tunnel, failures).await;
        if first && !road.ask.wants_past() {
            let begun = begun.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            self.passed.floor = Some(from_nanoseconds(u64::try_from(begun.as_nanos()).unwrap_or(u64::MAX)));
        }
        match ended? {
            Some(gone) => Ok(gone),
            None => Err("its agent has ended".to_owned()),
        }
    }

    /// Hands on a stream to its end; says where the merge has gone before.
    async fn pass(
        &mut self,
        mut records: Streaming<Record>,
        silence: Option<Duration>,
        tunnel: &Tunnel,
        failures: &mut usize,
    ) -> Result<Option<Gone>, String> {
        loop {
            let next = match silence {
                Some(silence) => tokio::time::timeout(silence, records.message())
                    .await
                    .map_err(|_| format!("its agent stopped in the middle: nothing came for {} s", silence.as_secs()))?,
                None => records.message().await,
            };
            let record = match next {
                Ok(Some(record)) => record,
                Ok(None) => return Ok(None),
                Err(status) => return Err(tunnel.why(&status).await),
            };
            *failures = 0;
            if self.passed.is_new(&record) && self.say(Said::Record(Instant::now(), Box::new(record))).await.is_err() {
                return Ok(Some(Gone));
            }
        }
    }

    async fn say(&self, said: Said) -> Result<(), Gone> {
        self.out.send(said).await.map_err(|_| Gone)?;
        self.road.said.notify_one();
        Ok(())
    }
}
