//! The inventory from the API server: watches of what policy and records need, trimmed before anything is kept.
//!
//! Nouns. A *watch* follows one kind for good; what it hears is an *event*. The *store* holds every kind and is swapped kind by
//! kind, whole after a relist. The *link* knows whether the server is being reached: when it is not, the last snapshot stays
//! in force and its age is told. Events that come close together become one snapshot.
//!
//! It runs on a thread of its own, asks the server for nothing but list and watch, and writes nothing but Events. What an object means is not decided here
//! but where manifests are read, so that both sources agree.

mod connect;
mod desk;
mod events;
mod resource;
mod rights;
mod store;
mod table;
mod texts;
mod watching;

#[cfg(test)]
mod tests;
#[cfg(test)]
mod workload_tests;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::{Client, Config};
use tokio::sync::{mpsc as channel, oneshot};

pub use connect::Access;
pub use rights::{Right, rights};

use super::published::{OnNews, Published};
use super::{Notice, Snapshot, SourceState};
use connect::Link;
use events::Tally;
use resource::Kind;
use store::{Event, Store};

/// How long an event may wait for its neighbours.
const GATHER: Duration = Duration::from_millis(3);
/// A storm of events is cut into snapshots no finer than this.
const LONGEST_GATHER: Duration = Duration::from_millis(25);
/// Events between a watch and the store.
const QUEUE: usize = 1024;
/// Notices that wait to be written.
const NOTICES: usize = 256;

/// Why the API server cannot be the source. That it does not answer is no reason: it may come back.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The service account's files are missing or wrong.
    #[error("this pod's service account cannot be used: {0}; is automountServiceAccountToken off?")]
    InCluster(String),
    /// The kubeconfig cannot be used.
    #[error("kubeconfig {path}: {error}")]
    Kubeconfig {
        /// Where it is.
        path: String,
        /// Why.
        error: String,
    },
    /// The credentials or certificates in it cannot be used.
    #[error("no connection to the API server can be set up: {0}")]
    Client(String),
    /// No thread.
    #[error("a thread does not start: {0}")]
    Thread(String),
}

/// A watched API server. Dropping it ends the watches.
pub struct Source {
    published: Arc<Published>,
    link: Arc<Link>,
    synced: Arc<AtomicBool>,
    notices: channel::Sender<Notice>,
    tally: Arc<Tally>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Source {
    /// Starts watching, for `node`. Returns once the credentials are read, long before the first list is complete.
    pub fn start(access: &Access, node: &str) -> Result<Self, SourceError> {
        let (published, link, synced) = (Arc::<Published>::default(), Arc::<Link>::default(), Arc::<AtomicBool>::default());
        let (stop, stopped) = oneshot::channel();
        let (ready, started) = mpsc::channel();
        let (access, node) = (access.clone(), node.to_owned());
        let (notices, to_write) = channel::channel(NOTICES);
        let tally = Arc::<Tally>::default();
        let theirs = (published.clone(), link.clone(), synced.clone(), notices.clone(), tally.clone());
        let run = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(e) => return drop(ready.send(Err(SourceError::Thread(e.to_string())))),
            };
            runtime.block_on(async move {
                let (published, link, synced, notices, tally) = theirs;
                let client = match connect::config(&access).await.and_then(|config| describe(config, &link)) {
                    Ok(client) => client,
                    Err(e) => return drop(ready.send(Err(e))),
                };
                drop(ready.send(Ok(())));
                tokio::spawn(events::write(client.clone(), node, to_write, tally));
                tokio::select! {
                    () = keep(client, &link, &published, &synced, &notices) => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("inventory".into()).spawn(run).map_err(|e| SourceError::Thread(e.to_string()))?;
        started.recv().map_err(|e| SourceError::Thread(e.to_string()))??;
        Ok(Self { published, link, synced, notices, tally, stop: Some(stop), thread: Some(thread) })
    }

    /// The state in force.
    pub fn current(&self) -> Arc<Snapshot> {
        self.published.current()
    }

    /// From now on, `tell` is called after every new state.
    pub fn on_news(&self, tell: OnNews) {
        self.published.on_news(tell);
    }

    /// Waits until the state is another one than `generation`, at most `timeout`; then the state in force.
    pub fn changed(&self, generation: u64, timeout: Duration) -> Arc<Snapshot> {
        self.published.changed(generation, timeout)
    }

    /// Writes an Event. Never waits: what finds no room is counted.
    pub fn notify(&self, notice: Notice) {
        if self.notices.try_send(notice).is_err() {
            self.tally.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What became of notices, by outcome.
    pub fn notices(&self) -> Vec<(&'static str, u64)> {
        let Tally { written, suppressed, failed } = &*self.tally;
        [("written", written), ("suppressed", suppressed), ("failed", failed)].map(|(name, n)| (name, n.load(Ordering::Relaxed))).into()
    }

    /// Whether it is synced and reached.
    pub fn state(&self) -> SourceState {
        let (stale_since, error) = self.link.stale().unzip();
        SourceState { name: "kube", synced: self.synced.load(Ordering::Acquire), stale_since, error }
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

fn describe(config: Config, link: &Arc<Link>) -> Result<Client, SourceError> {
    tracing::info!(url = %config.cluster_url, "the inventory comes from the API server");
    connect::client(config, link)
}

/// Watches, gathers and publishes, for good.
async fn keep(client: Client, link: &Arc<Link>, published: &Published, synced: &AtomicBool, notices: &channel::Sender<Notice>) {
    let started = Instant::now();
    let (sender, mut events) = channel::channel(QUEUE);
    let start = |kind: Kind| {
        let (client, link, sender) = (client.clone(), link.clone(), sender.clone());
        match kind {
            Kind::Namespace => tokio::spawn(watching::watch::<Namespace>(client, link, sender)),
            Kind::Pod => tokio::spawn(watching::watch::<Pod>(client, link, sender)),
            Kind::Node => tokio::spawn(watching::watch::<Node>(client, link, sender)),
            Kind::Service => tokio::spawn(watching::watch::<Service>(client, link, sender)),
            Kind::EndpointSlice => tokio::spawn(watching::watch::<EndpointSlice>(client, link, sender)),
            Kind::NetworkPolicy => tokio::spawn(watching::watch::<NetworkPolicy>(client, link, sender)),
            Kind::ReplicaSet => tokio::spawn(watching::watch::<ReplicaSet>(client, link, sender)),
            Kind::Job => tokio::spawn(watching::watch::<Job>(client, link, sender)),
        }
    };
    let watches: Vec<_> = Kind::ALL.into_iter().map(start).collect();
    let mut store = Store::default();
    while let Some(first) = events.recv().await {
        gather(&mut store, first, &mut events).await;
        for notice in store.notices() {
            // A flood of them is cut off anyway.
            let _full = notices.try_send(notice);
        }
        let Some(snapshot) = store.snapshot() else { continue };
        if !synced.load(Ordering::Acquire) {
            tracing::info!(
                pods = snapshot.pods.len(),
                policies = snapshot.policies.len(),
                services = snapshot.services.len(),
                milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
                "in step with the API server"
            );
        }
        published.publish(snapshot);
        synced.store(true, Ordering::Release);
    }
    // Only a panic of every watch leads here.
    drop(watches);
}

/// Takes in `first` and what follows closely.
async fn gather(store: &mut Store, first: (Kind, Event), events: &mut channel::Receiver<(Kind, Event)>) {
    let last = tokio::time::Instant::now() + LONGEST_GATHER;
    let (kind, event) = first;
    store.take(kind, event);
    loop {
        let until = (tokio::time::Instant::now() + GATHER).min(last);
        match tokio::time::timeout_at(until, events.recv()).await {
            Ok(Some((kind, event))) => store.take(kind, event),
            Ok(None) | Err(_) => return,
        }
        if tokio::time::Instant::now() >= last {
            return;
        }
    }
}
