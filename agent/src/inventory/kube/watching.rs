//! The watches: one task per kind, kept alive for good. They hand what they hear to the store's task and wait, with jitter, when
//! the server is away.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc::Sender;

use super::connect::Link;
use super::resource::{Kind, Sent, Watched};
use super::store::Event;

/// The first wait after a failure, and the longest: what changed while the server was away shall be live seconds after its return.
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// The longest where the server is there and has said so often in a row that it cannot: thousands of agents ask it. One that has
/// just started says so for some seconds.
const LONGEST_BUSY: Duration = Duration::from_secs(30);
const BUSY: u32 = 10;
/// A server that has just started does not know its roles yet: so often it may say no.
const DENIED: u32 = 5;
/// The server ends a watch after so long at most; it goes on from the same version. Each watch has its own time, so that agents
/// that began together do not come back together.
const WATCH: Duration = Duration::from_secs(290);
/// Objects of one page, where the server cannot stream a list.
const PAGE: u32 = 500;

/// Watches one kind until the receiver is gone.
pub(super) async fn watch<K>(client: Client, link: Arc<Link>, events: Sender<(Kind, Event)>)
where
    K: Watched + 'static,
    Sent<K>: Clone + Debug,
{
    let mut streaming = true;
    let mut backoff = Backoff::default();
    let mut denied = 0;
    let seconds = u32::try_from(jittered(WATCH).as_secs()).unwrap_or(u32::MAX);
    'anew: loop {
        let mut config = watcher::Config::default().timeout(seconds).page_size(PAGE);
        if streaming {
            config = config.streaming_lists();
        }
        let stream = watcher(Api::<Sent<K>>::all(client.clone()), config);
        let mut stream = std::pin::pin!(stream);
        let mut listing = false;
        while let Some(next) = stream.next().await {
            let event = match next {
                Ok(event) => event,
                Err(e) if streaming && cannot_stream(&e) => {
                    tracing::debug!(resource = K::KIND.plural(), "the server has no streaming lists");
                    streaming = false;
                    continue 'anew;
                }
                Err(e) => {
                    fail(K::KIND, &link, &e);
                    denied = if said(&e) == Some(403) { denied + 1 } else { 0 };
                    if denied == DENIED && events.send((K::KIND, Event::Denied)).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(backoff.after(is_busy(&e))).await;
                    listing = false;
                    continue;
                }
            };
            // That a list begins says nothing of the server yet.
            if !matches!(event, watcher::Event::Init | watcher::Event::InitApply(_)) {
                backoff = Backoff::default();
            }
            let event = match event {
                watcher::Event::Init => {
                    // The list before ended in peace, and incomplete.
                    if std::mem::replace(&mut listing, true) {
                        tokio::time::sleep(backoff.after(false)).await;
                    }
                    Event::Init
                }
                watcher::Event::InitApply(sent) => Event::InitApply(sent.arrived),
                watcher::Event::InitDone => {
                    listing = false;
                    Event::InitDone
                }
                watcher::Event::Apply(sent) => Event::Apply(sent.arrived),
                watcher::Event::Delete(sent) => Event::Delete(sent.arrived),
            };
            if events.send((K::KIND, event)).await.is_err() {
                return;
            }
        }
    }
}

/// Failures in a row.
struct Backoff {
    wait: Duration,
    busy: u32,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { wait: FIRST_WAIT, busy: 0 }
    }
}

impl Backoff {
    /// How long to wait after one more failure, where the server was `busy` or something else was wrong.
    fn after(&mut self, busy: bool) -> Duration {
        self.busy = if busy { self.busy + 1 } else { 0 };
        let longest = if self.busy > BUSY { LONGEST_BUSY } else { LONGEST_WAIT };
        let wait = self.wait.min(longest);
        self.wait = (wait * 2).min(LONGEST_BUSY);
        jittered(wait)
    }
}

/// What the server itself said was wrong.
fn said(error: &watcher::Error) -> Option<u16> {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
        | WatchError(status) => Some(status.code),
        InitialListFailed(_) | WatchStartFailed(_) | WatchFailed(_) | NoResourceVersion => None,
    }
}

/// Whether the server is there, and takes no more.
fn is_busy(error: &watcher::Error) -> bool {
    said(error).is_some_and(|code| code == 429 || code >= 500)
}

/// History that the server has thrown away is no failure: a list follows.
fn fail(kind: Kind, link: &Link, error: &watcher::Error) {
    if said(error) == Some(410) {
        tracing::debug!(resource = kind.plural(), "too far behind, listing anew");
        return;
    }
    let why = format!("{}: {}", kind.plural(), chain(error));
    if link.fail(kind, why.clone()) {
        tracing::warn!(error = %why, "the API server cannot be watched, the last known state stays in force");
    }
}

/// An error with its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

/// A server without streaming lists calls the parameters invalid.
fn cannot_stream(error: &watcher::Error) -> bool {
    matches!(said(error), Some(400 | 422))
}

/// Between half of `wait` and all of it, so that a thousand agents do not come back in step.
fn jittered(wait: Duration) -> Duration {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8);
    let [low, high, ..] = random.to_ne_bytes();
    wait / 2 + wait / 2 * u32::from(u16::from_ne_bytes([low, high])) / 65_536
}

#[cfg(test)]
mod tests;
