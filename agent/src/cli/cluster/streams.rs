//! `observe` and `alerts` over several nodes: lanes, merged by time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use prost_types::Timestamp;
use sekisho_proto::{AlertsRequest, FlowsRequest, Record};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{Notify, Semaphore, mpsc};
use tonic::{Status, Streaming};

use super::super::client::{Client, run};
use super::super::fold::Fold;
use super::super::names;
use super::super::output::OutputArgs;
use super::super::records::Page;
use super::super::{Exit, Failure};
use super::answers::first_names;
use super::lanes::{self, Road};
use super::merge::{Merge, Next, Said};
use super::places::Place;
use super::{AT_ONCE, ClusterArgs, places};

/// How long one node's record waits for another's that may be older.
const WINDOW: Duration = Duration::from_millis(500);

/// How often nodes are looked for that have joined the cluster.
const NEWCOMERS: Duration = Duration::from_secs(15);

/// What is asked of every node.
#[derive(Clone, Debug)]
pub(in crate::cli) enum Ask {
    /// Records.
    Flows(FlowsRequest),
    /// Alerts alone.
    Alerts(AlertsRequest),
}

impl Ask {
    fn follow(&self) -> bool {
        match self {
            Self::Flows(request) => request.follow,
            Self::Alerts(request) => request.follow,
        }
    }

    /// How many of the past at most, over all nodes.
    fn last(&self) -> Option<usize> {
        let (all, last) = match self {
            Self::Flows(request) => (request.all, request.last),
            Self::Alerts(request) => (request.all, request.last),
        };
        last.filter(|_| !all).map(|last| usize::try_from(last).unwrap_or(usize::MAX))
    }

    /// Whether any of the past is asked for.
    pub(super) fn wants_past(&self) -> bool {
        match self {
            Self::Flows(request) => request.all || request.last.map_or(request.since.is_some(), |last| last > 0),
            Self::Alerts(request) => request.all || request.last.map_or(request.since.is_some(), |last| last > 0),
        }
    }

    /// Asks for the past alone.
    pub(super) async fn past(&self, client: &mut Client) -> Result<Streaming<Record>, Status> {
        let answer = match self {
            Self::Flows(request) => client.flows(FlowsRequest { follow: false, ..request.clone() }).await,
            Self::Alerts(request) => client.alerts(AlertsRequest { follow: false, ..request.clone() }).await,
        };
        answer.map(tonic::Response::into_inner)
    }

    /// Asks for what comes; `again`, after some was told already, for everything remembered since that time as well.
    pub(super) async fn coming(&self, client: &mut Client, again: bool, since: Option<Timestamp>) -> Result<Streaming<Record>, Status> {
        let answer = match self {
            Self::Flows(request) => {
                let since = since.or(request.since);
                client.flows(FlowsRequest { last: None, all: again, since: since.filter(|_| again), follow: true, ..request.clone() }).await
            }
            Self::Alerts(request) => {
                let since = since.or(request.since);
                client
                    .alerts(AlertsRequest { last: None, all: again, since: since.filter(|_| again), follow: true, ..request.clone() })
                    .await
            }
        };
        answer.map(tonic::Response::into_inner)
    }
}

/// Prints what the nodes tell, merged, and folded where that is wanted; with `most`, so many of the newest lines.
pub(in crate::cli) fn records(
    args: &ClusterArgs,
    ask: &Ask,
    output: OutputArgs,
    folds: bool,
    most: Option<usize>,
) -> Result<Exit, Failure> {
    run(async {
        let kube = args.client().await?;
        let places = places::find(&kube, args).await?;
        let width = places.iter().map(|place| place.node.len()).max().unwrap_or_default();
        let road = Arc::new(Road {
            kube,
            args: args.clone(),
            ask: ask.clone(),
            follow: ask.follow(),
            hand: lanes::hand(places.len()),
            turns: Semaphore::new(AT_ONCE),
            said: Notify::new(),
            lost: AtomicBool::new(false),
        });
        let names = places.iter().map(|place| place.node.clone()).collect();
        let lanes = places.into_iter().map(|place| lanes::start(&road, place)).collect();
        let (tell, newcomers) = mpsc::unbounded_channel();
        if road.follow && args.all() {
            tokio::spawn(watch(Arc::clone(&road), names, tell));
        }
        let fold = folds.then(|| Fold::new(!args.one()));
        let mut page = Page::new(output, fold, if args.one() { 0 } else { width }).with_newest(most);
        let warning = async {
            if road.follow {
                names::warn(missing(&road).await);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            printed = print(&road, lanes, newcomers, &mut page) => printed?,
            _ = tokio::signal::ctrl_c() => return Ok(ending(&road)),
            () = warning => {}
        }
        if page.is_empty() && !road.follow && ending(&road) == Exit::Done {
            names::nothing(missing(&road).await)
        } else {
            Ok(ending(&road))
        }
    })
}

/// A node that went away is a hole in what was printed.
fn ending(road: &Road) -> Exit {
    if road.lost.load(Ordering::Relaxed) { Exit::NotReady } else { Exit::Done }
}

/// What the filter asks for and no node's agent knows. Every agent knows the pods of all nodes.
async fn missing(road: &Road) -> Option<String> {
    let filter = match &road.ask {
        Ask::Flows(request) => request.filter.as_ref(),
        Ask::Alerts(request) => request.filter.as_ref(),
    };
    names::missing(filter?, async |request| first_names(&road.args, &request).await).await
}

/// Looks for nodes that join the cluster, for good.
async fn watch(road: Arc<Road>, mut known: Vec<String>, tell: mpsc::UnboundedSender<Place>) {
    loop {
        tokio::time::sleep(NEWCOMERS).await;
        for place in places::find_new(&road.kube, &road.args, &known).await {
            known.push(place.node.clone());
            if tell.send(place).is_err() {
                return;
            }
            road.said.notify_one();
        }
    }
}

async fn print(
    road: &Arc<Road>,
    mut lanes: Vec<mpsc::Receiver<Said>>,
    mut newcomers: mpsc::UnboundedReceiver<Place>,
    page: &mut Page,
) -> Result<(), Failure> {
    // Where no past is wanted, a node that is slow to be reached holds nobody up.
    let past = !road.follow || road.ask.wants_past();
    let mut merge = Merge::new(if past { lanes.len() } else { 0 }, WINDOW);
    if !past {
        for _ in &lanes {
            merge.add();
        }
    }
    // The newest of the past, where not all of it is wanted.
    let mut newest: Option<VecDeque<Box<Record>>> = road.ask.last().map(|_| VecDeque::new());
    let most = road.ask.last().unwrap_or(usize::MAX);
    loop {
        while let Ok(place) = newcomers.try_recv() {
            lanes.push(lanes::start(road, place));
            merge.add();
        }
        for (number, lane) in lanes.iter_mut().enumerate() {
            listen(&mut merge, number, lane);
        }
        match merge.next(Instant::now()) {
            Next::Print(record) => match &mut newest {
                Some(newest) if !merge.past_is_told() => {
                    newest.push_back(record);
                    if newest.len() > most {
                        newest.pop_front();
                    }
                }
                kept => {
                    for record in kept.take().into_iter().flatten().chain([record]) {
                        page.push(*record, Instant::now())?;
                    }
                }
            },
            Next::Wait(until) => {
                if merge.past_is_told() {
                    for old in newest.take().into_iter().flatten() {
                        page.push(*old, Instant::now())?;
                    }
                }
                page.tick(Instant::now())?;
                page.flush()?;
                let said = road.said.notified();
                match until.into_iter().chain(page.due()).min() {
                    // It does not matter which of the two it was.
                    Some(moment) => drop(tokio::time::timeout_at(moment.into(), said).await),
                    None => said.await,
                }
            }
            Next::End => {
                for old in newest.take().into_iter().flatten() {
                    page.push(*old, Instant::now())?;
                }
                return page.finish();
            }
        }
    }
}

/// Takes in what a lane has said, as far as the merge wants it.
fn listen(merge: &mut Merge, number: usize, lane: &mut mpsc::Receiver<Said>) {
    while merge.wants(number) {
        match lane.try_recv() {
            Ok(said) => merge.hear(number, said),
            Err(TryRecvError::Empty) => return,
            Err(TryRecvError::Disconnected) => merge.end(number),
        }
    }
}
