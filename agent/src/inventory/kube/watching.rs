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
/// The server ends a watch after so long; it goes on from the same version.
const WATCH_SECONDS: u32 = 290;
/// Objects of one page, where the server cannot stream a list.
const PAGE: u32 = 500;

/// Watches one kind until the receiver is gone.
pub(super) async fn watch<K>(client: Client, link: Arc<Link>, events: Sender<(Kind, Event)>)
where
    K: Watched + 'static,
    Sent<K>: Clone + Debug,
{
    let mut streaming = true;
    let mut wait = FIRST_WAIT;
    'anew: loop {
        let mut config = watcher::Config::default().timeout(WATCH_SECONDS).page_size(PAGE);
        if streaming {
            config = config.streaming_lists();
        }
        let stream = watcher(Api::<Sent<K>>::all(client.clone()), config);
        let mut stream = std::pin::pin!(stream);
        while let Some(next) = stream.next().await {
            let event = match next {
                Ok(event) => event,
                Err(e) if streaming && cannot_stream(&e) => {
                    tracing::debug!("{}: the server has no streaming lists", K::KIND.plural());
                    streaming = false;
                    continue 'anew;
                }
                Err(e) => {
                    fail(K::KIND, &link, &e);
                    tokio::time::sleep(jittered(wait)).await;
                    wait = (wait * 2).min(LONGEST_WAIT);
                    continue;
                }
            };
            wait = FIRST_WAIT;
            let event = match event {
                watcher::Event::Init => Event::Init,
                watcher::Event::InitApply(sent) => Event::InitApply(sent.arrived),
                watcher::Event::InitDone => Event::InitDone,
                watcher::Event::Apply(sent) => Event::Apply(sent.arrived),
                watcher::Event::Delete(sent) => Event::Delete(sent.arrived),
            };
            if events.send((K::KIND, event)).await.is_err() {
                return;
            }
        }
    }
}

/// History that the server has thrown away is no failure: a list follows.
fn fail(kind: Kind, link: &Link, error: &watcher::Error) {
    if matches!(error, watcher::Error::WatchError(status) if status.code == 410) {
        tracing::debug!("{}: too far behind, listing anew", kind.plural());
        return;
    }
    let why = format!("{}: {}", kind.plural(), chain(error));
    if link.fail(kind, why.clone()) {
        tracing::warn!("the API server cannot be watched, the last known state stays in force: {why}");
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
    let (watcher::Error::WatchStartFailed(kube::Error::Api(status)) | watcher::Error::WatchError(status)) = error else {
        return false;
    };
    matches!(status.code, 400 | 422)
}

/// Between half of `wait` and all of it, so that a thousand agents do not come back in step.
fn jittered(wait: Duration) -> Duration {
    let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0u8);
    let [low, high, ..] = random.to_ne_bytes();
    wait / 2 + wait / 2 * u32::from(u16::from_ne_bytes([low, high])) / 65_536
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_within_half_and_whole() {
        let waits: Vec<_> = (0..1000).map(|_| jittered(Duration::from_secs(2))).collect();
        assert!(waits.iter().all(|w| (Duration::from_secs(1)..=Duration::from_secs(2)).contains(w)));
        let distinct: std::collections::BTreeSet<_> = waits.iter().collect();
        assert!(distinct.len() > 900);
    }
}
