//! Writes notices as Events (`events.k8s.io/v1`): the one thing that an agent writes to the API server.
//!
//! An Event has a name made of what it says, so that what every node sees is written once. Nothing depends on
//! Events: one that cannot be written is counted, and the agent goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Error};
use serde_json::json;
use tokio::sync::mpsc::Receiver;
use tokio::time::timeout;

use super::desk::{Desk, Write};
use crate::inventory::Notice;

/// How often counts are brought up to date.
const ROUND: Duration = Duration::from_secs(10);
/// How long a write may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest text that the API server takes, in bytes.
const NOTE: usize = 1024;

/// What became of notices.
#[derive(Debug, Default)]
pub(super) struct Tally {
    pub(super) written: AtomicU64,
    pub(super) suppressed: AtomicU64,
    pub(super) failed: AtomicU64,
}

/// Writes until nobody sends any more.
pub(super) async fn write(client: Client, node: String, mut notices: Receiver<Notice>, tally: Arc<Tally>) {
    let mut desk = Desk::new(&node, Instant::now());
    let mut complained = false;
    let mut round = Instant::now() + ROUND;
    while let Some(writes) = next(&mut desk, &mut notices, &mut round).await {
        tally.suppressed.store(desk.suppressed(), Ordering::Relaxed);
        for item in writes {
            let name = match &item {
                Write::Create(name, _) | Write::Count { name, .. } => name.clone(),
            };
            let result = match timeout(PATIENCE, one(&client, &node, item)).await {
                Ok(result) => result.map_err(|e| e.to_string()),
                Err(_) => Err("no answer".to_owned()),
            };
            match result {
                Ok(()) => drop(tally.written.fetch_add(1, Ordering::Relaxed)),
                Err(why) => {
                    tally.failed.fetch_add(1, Ordering::Relaxed);
                    desk.forget(&name);
                    if std::mem::replace(&mut complained, true) {
                        tracing::debug!(error = %why, "an Event cannot be written");
                    } else {
                        tracing::warn!(error = %why, "an Event cannot be written");
                    }
                }
            }
        }
    }
}

/// What is to be written next; nothing any more once nobody sends. A round comes however many notices do.
async fn next(desk: &mut Desk, notices: &mut Receiver<Notice>, round: &mut Instant) -> Option<Vec<Write>> {
    let left = round.saturating_duration_since(Instant::now());
    let sent = if left.is_zero() { None } else { timeout(left, notices.recv()).await.ok() };
    if let Some(sent) = sent {
        return sent.map(|notice| desk.take(notice, Instant::now()).into_iter().collect());
    }
    *round = Instant::now() + ROUND;
    Some(desk.due(Instant::now()))
}

async fn one(client: &Client, node: &str, write: Write) -> Result<(), Error> {
    let outcome = match write {
        Write::Create(name, notice) => {
            let event = event(name, *notice, node);
            let namespace = event.metadata.namespace.clone().unwrap_or_default();
            let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
            api.create(&PostParams::default(), &event).await.map(drop)
        }
        Write::Count { namespace, name, count } => {
            let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
            let series = json!({"series": {"count": count, "lastObservedTime": MicroTime(Timestamp::now())}});
            api.patch(&name, &PatchParams::default(), &Patch::Merge(series)).await.map(drop)
        }
    };
    match outcome {
        // Another node has said it, or we did in an earlier run.
        Err(Error::Api(status)) if status.code == 409 => Ok(()),
        other => other,
    }
}

fn event(name: String, notice: Notice, node: &str) -> Event {
    let Notice { about, reason, action, text, .. } = notice;
    let version = match about.kind {
        "NetworkPolicy" => "networking.k8s.io/v1",
        "EndpointSlice" => "discovery.k8s.io/v1",
        "ReplicaSet" => "apps/v1",
        "Job" => "batch/v1",
        _ => "v1",
    };
    let namespace = (!about.namespace.is_empty()).then(|| about.namespace.to_string());
    Event {
        metadata: ObjectMeta {
            name: Some(name),
            // Events of what lies in no namespace lie here.
            namespace: Some(namespace.clone().unwrap_or_else(|| "default".to_owned())),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(Timestamp::now())),
        action: Some(action.to_owned()),
        reason: Some(reason),
        note: Some(clipped(text)),
        type_: Some("Warning".to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some(version.to_owned()),
            kind: Some(about.kind.to_owned()),
            namespace,
            name: Some(about.name.to_string()),
            uid: about.uid.map(|uid| uid.to_string()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some("sekisho.dev/agent".to_owned()),
        reporting_instance: Some(node.chars().take(128).collect()),
        ..Event::default()
    }
}

fn clipped(mut text: String) -> String {
    if text.len() > NOTE {
        let end = (0..=NOTE - 3).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::About;

    #[tokio::test]
    async fn a_round_comes_however_many_notices_do() {
        let about = About { kind: "Pod", namespace: "shop".into(), name: "web".into(), uid: None };
        let notice = Notice { about, reason: "R".into(), action: "A", text: "t".into(), series: String::new(), shared: false };
        let (sender, mut notices) = tokio::sync::mpsc::channel(8);
        let mut desk = Desk::new("n1", Instant::now());
        let mut round = Instant::now() + ROUND;
        for _ in 0..3 {
            sender.try_send(notice.clone()).expect("room");
        }
        assert!(matches!(&next(&mut desk, &mut notices, &mut round).await.expect("goes on")[..], [Write::Create(..)]));
        round = Instant::now();
        assert_eq!(next(&mut desk, &mut notices, &mut round).await, Some(Vec::new()), "the round, with nothing due yet");
        assert!(round > Instant::now());
        assert!(matches!(&next(&mut desk, &mut notices, &mut round).await.expect("goes on")[..], [Write::Count { count: 2, .. }]));
        assert_eq!(next(&mut desk, &mut notices, &mut round).await, Some(Vec::new()), "counted");
        drop(sender);
        assert_eq!(next(&mut desk, &mut notices, &mut round).await, None);
    }

    #[test]
    fn a_long_text_is_cut_at_a_letter() {
        assert_eq!(clipped("short".to_owned()), "short");
        let long = clipped("関所".repeat(600));
        assert!(long.len() <= NOTE && long.ends_with('…'), "{}", long.len());
    }
}
