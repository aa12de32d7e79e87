//! Pods that start and whose first act is to send: as a kubelet and a CNI start them, one after the other.
//!
//! The API knows a pod before its node begins with it; its network is whole before its first process runs; its own
//! program starts right after. What arrives is counted on the wire in front of the server, not told by anybody.

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{Heading, Lab, Pod, PodSpec, Sniffer, tool};

/// What became of a pod's first acts.
#[derive(Clone, Copy, Debug, Default)]
pub struct Start {
    /// From the first datagram sent to the first that was answered; absent where none was.
    pub answered: Option<Duration>,
    /// From the beginning of a connection, tried at the same moment, to its end; absent where it failed.
    pub connected: Option<Duration>,
}

/// What became of many.
#[derive(Clone, Debug, Default)]
pub struct Starts {
    /// One by one.
    pub starts: Vec<Start>,
    /// Packets of theirs that arrived at the server: TCP and UDP, both families.
    pub arrived: u64,
}

impl Starts {
    /// The time within which so many percent of the first datagrams got through, those that never did being late for ever.
    pub fn answered_within(&self, percent: usize) -> Duration {
        self.within(percent, |start| start.answered)
    }

    /// The same of the connections.
    pub fn connected_within(&self, percent: usize) -> Duration {
        self.within(percent, |start| start.connected)
    }

    fn within(&self, percent: usize, took: fn(&Start) -> Option<Duration>) -> Duration {
        let mut all: Vec<Duration> = self.starts.iter().map(|start| took(start).unwrap_or(Duration::MAX)).collect();
        all.sort();
        all.get((all.len().max(1) - 1) * percent / 100).copied().unwrap_or(Duration::MAX)
    }

    /// How many connections were made.
    pub fn connected(&self) -> usize {
        self.starts.iter().filter(|start| start.connected.is_some()).count()
    }
}

/// How a pod is made that its node has never seen: known to the API without addresses, as one that was just scheduled.
pub fn newcomer(namespace: &str, name: &str) -> PodSpec {
    PodSpec::new(namespace, name).label("app", "newcomer").just_scheduled()
}

/// Lets `count` pods start in `namespace` and send to the server for at most `limit` each. A node full of them vanishes
/// before the next ones start.
pub fn starts(lab: &Lab, server: &Pod, namespace: &str, count: usize, limit: Duration) -> Result<Starts> {
    /// Addresses that they use in turn.
    const PLACES: usize = 100;
    const FIRST: usize = 100;
    let sniffer = Sniffer::start(server.netns(), "eth0")?;
    let mut all = Starts::default();
    let mut senders = Vec::new();
    let mut alive = Vec::new();
    for number in 0..count {
        let place = u8::try_from(FIRST + number % PLACES)?;
        let pod = lab.pod_at(newcomer(namespace, &format!("newcomer-{number}")), place)?;
        let running = pod.spawn(tool::binary()?, &first(server, limit))?;
        let told = running.finish(limit + Duration::from_secs(10))?.json().with_context(|| format!("newcomer {number}"))?;
        all.starts.push(Start::read(&told));
        senders.extend([pod.v4(), pod.v6()]);
        alive.push(pod);
        if alive.len() == PLACES {
            alive.drain(..).try_for_each(Pod::delete)?;
        }
    }
    alive.into_iter().try_for_each(Pod::delete)?;
    all.arrived =
        sniffer.total(|flow| flow.heading == Heading::In && matches!(flow.protocol, 6 | 17) && senders.contains(&flow.source.0))?.packets;
    Ok(all)
}

/// The words of a program whose first act is to send to the server, see [`tool`].
pub fn first(server: &Pod, limit: Duration) -> [String; 4] {
    ["first".to_owned(), format!("{}:53", server.v4()), format!("{}:80", server.v4()), limit.as_millis().to_string()]
}

impl Start {
    /// What that program prints.
    pub fn read(told: &Value) -> Self {
        let time = |value: &Value| value.as_f64().map(Duration::from_secs_f64);
        Self { answered: time(&told["answered_s"]), connected: time(&told["connected_s"]) }
    }
}
