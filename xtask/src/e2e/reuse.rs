//! One address, two hundred owners: a pod is deleted and another gets its address at once, under traffic. What arrives
//! shows the verdicts, the agent's book the names.
//!
//! The owners are pods of a node that does not exist, written straight to the API; their packets come from the control plane's
//! side of the network, where the address is. So an owner's whole life takes less than half a second.

use std::net::{IpAddr, UdpSocket};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use sekisho_lab::netlink;
use serde_json::{Value, json};

use super::Stage;
use super::pods::server;
use super::scenarios::policy;
use crate::cluster::control_plane_netns;

const NAMESPACE: &str = "e2e-reuse-fast";
const OWNERS: usize = 200;
/// How long each one has the address.
const LIFE: Duration = Duration::from_millis(400);
/// How long the API server's answer may take to be the kernel's verdict: the bar of policy changes.
const BAR: Duration = Duration::from_millis(150);
/// Nothing at all may be as late as this on the busiest machine.
const LATEST: Duration = Duration::from_millis(390);
/// How long silence is a drop.
const SILENCE: Duration = Duration::from_millis(15);
const ADDRESSES: [&str; 2] = ["10.244.200.240", "fd00:244:0:c8::240"];

/// One owner's life, as the API server answered.
struct Owner {
    uid: String,
    may: bool,
    made: SystemTime,
    named: Instant,
    named_at: SystemTime,
    /// Before anybody asked for its end: agents may hear of that before the answer comes.
    whole_until: SystemTime,
    gone: Instant,
    gone_at: SystemTime,
}

/// One attempt: when, and whether it was answered.
type Attempt = (Instant, bool);

pub(super) fn two_hundred_owners_of_one_address(stage: &Stage) -> Result<()> {
    stage.namespace(NAMESPACE)?;
    stage.make(&server(NAMESPACE, "db", Some("node-1"), &json!({"app": "db"})))?;
    let db = stage.ready_pod(NAMESPACE, "db")?;
    let allow = json!({
        "podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"may": "yes"}}}]}],
    });
    stage.api.put_policy(&policy(NAMESPACE, "db", &allow))?;
    let outside = control_plane_netns();
    let own: Vec<IpAddr> = ADDRESSES.iter().map(|address| address.parse()).collect::<Result<_, _>>()?;
    outside.within(|| {
        for address in &own {
            match netlink::add_address("lo", *address, if address.is_ipv4() { 32 } else { 128 }) {
                // Left by an earlier run.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                done => done.context("cannot take the address")?,
            }
        }
        Ok(())
    })?;
    let stop = AtomicBool::new(false);
    let attempts = [Mutex::new(Vec::new()), Mutex::new(Vec::new())];
    let mut owners = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        for (at, attempts) in own.iter().zip(&attempts) {
            let to = *db.addresses.iter().find(|address| address.is_ipv4() == at.is_ipv4()).expect("one of each family");
            let (stop, outside) = (&stop, &outside);
            scope.spawn(move || {
                outside.within(|| {
                    knock(*at, to, stop, attempts);
                    Ok(())
                })
            });
        }
        let outcome = succeed_one_another(stage, &mut owners);
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    for (family, attempts) in ["IPv4", "IPv6"].iter().zip(&attempts) {
        verdicts(family, &owners, &attempts.lock().expect("nobody panicked"))?;
    }
    stage.forget(&[NAMESPACE])
}

/// Sends from the address until told to stop, each datagram a new flow.
fn knock(from: IpAddr, to: IpAddr, stop: &AtomicBool, attempts: &Mutex<Vec<Attempt>>) {
    while !stop.load(Ordering::Relaxed) {
        let sent = Instant::now();
        let answered = (|| {
            let socket = UdpSocket::bind((from, 0))?;
            socket.connect((to, 80))?;
            socket.set_read_timeout(Some(SILENCE))?;
            socket.send(b"probe")?;
            socket.recv(&mut [0; 16])
        })();
        attempts.lock().expect("nobody panicked").push((sent, answered.is_ok()));
        std::thread::sleep(Duration::from_millis(4));
    }
}

/// Lets owners live one after the other, and reads the book between.
fn succeed_one_another(stage: &Stage, owners: &mut Vec<Owner>) -> Result<()> {
    let folder = format!("/api/v1/namespaces/{NAMESPACE}/pods");
    let (mut book, mut named) = (stage.last_record("node-1")?, 0);
    for round in 0..OWNERS {
        let (name, may) = (format!("owner-{round}"), round % 2 == 0);
        // Pods of a node that stays unknown are collected after 40 s.
        let node = format!("far-away-{}", round / 20);
        let mut pod = server(NAMESPACE, &name, Some(&node), &json!({"may": if may { "yes" } else { "no" }}));
        pod["spec"]["terminationGracePeriodSeconds"] = 0.into();
        let made = SystemTime::now();
        let pod = stage.api.must("POST", &folder, Some(&pod))?.body;
        let ips: Vec<Value> = ADDRESSES.iter().map(|ip| json!({"ip": ip})).collect();
        let status = json!({"status": {"phase": "Running", "podIP": ADDRESSES[0], "podIPs": ips}});
        let answer = stage.api.must("PATCH", &format!("{folder}/{name}/status"), Some(&status))?;
        let (named_now, named_at) = (answer.at, SystemTime::now());
        std::thread::sleep(LIFE.saturating_sub(named_now.elapsed()));
        let whole_until = SystemTime::now();
        let answer = stage.api.must("DELETE", &format!("{folder}/{name}"), Some(&json!({"gracePeriodSeconds": 0})))?;
        owners.push(Owner {
            uid: pod["metadata"]["uid"].as_str().context("a pod has a uid")?.to_owned(),
            may,
            made,
            named: named_now,
            named_at,
            whole_until,
            gone: answer.at,
            gone_at: SystemTime::now(),
        });
        if round % 20 == 19 {
            named += names(stage, owners, &mut book)?;
        }
    }
    eprintln!("    {named} records of {OWNERS} owners name the right one");
    ensure!(named > OWNERS * 10, "only {named} records name an owner");
    Ok(())
}

/// Fails if something was answered that the owner at that time may not do, or the other way round, for longer than a
/// change may take.
fn verdicts(family: &str, owners: &[Owner], attempts: &[Attempt]) -> Result<()> {
    let mut delays = Vec::new();
    for (round, owner) in owners.iter().enumerate() {
        let next = owners.get(round + 1).map_or(owner.gone, |next| next.named);
        let of = |from: Instant, to: Instant| attempts.iter().filter(move |(sent, _)| (from..to).contains(sent));
        if owner.may {
            let first = of(owner.named, owner.gone).find(|(_, answered)| *answered).map(|(sent, _)| *sent);
            let first = first.with_context(|| format!("{family}: owner {round} may speak and never could"))?;
            delays.push(first - owner.named);
            // From its end on, nothing of it.
            let until = owners.get(round + 1).map_or(next, |next| next.gone);
            let last = of(owner.gone, until).filter(|(_, answered)| *answered).map(|(sent, _)| *sent).max();
            delays.push(last.map_or(Duration::ZERO, |last| last - owner.gone));
        }
    }
    delays.sort();
    let at = |share: usize| delays[(delays.len() * share / 100).min(delays.len() - 1)];
    let text =
        format!("{family}: {} attempts, {} changes: p50 {:?}, p99 {:?}, worst {:?}", attempts.len(), delays.len(), at(50), at(99), at(100));
    eprintln!("    {text}");
    ensure!(at(99) <= BAR && at(100) <= LATEST, "{text}; p99 may be {BAR:?}");
    Ok(())
}

/// Fails if a record after `book` names an owner that had not the address when the flow began; returns how many name one.
fn names(stage: &Stage, owners: &[Owner], book: &mut u64) -> Result<usize> {
    let before = *book;
    let mut named = 0;
    for record in stage.records("node-1")? {
        let seq = record["seq"].as_u64().unwrap_or_default();
        *book = seq.max(*book);
        let source = &record["source"];
        if seq <= before || record["kind"] != "start" || !ADDRESSES.iter().any(|address| source["ip"] == *address) {
            continue;
        }
        let start: jiff::Timestamp = record["start"].as_str().unwrap_or_default().parse().context("a record's start")?;
        let start = SystemTime::from(start);
        if let Some(uid) = source["pod"]["uid"].as_str() {
            let owner = owners.iter().find(|owner| owner.uid == uid).with_context(|| format!("a stranger: {record:#}"))?;
            // Of an address that nobody had before, the first owner's name may be late: it counts for a moment before, and is marked.
            let late = owner.uid == owners[0].uid && source["late_identity"] == true;
            ensure!(late || start >= owner.made, "before its owner was made: {record:#}");
            ensure!(start <= owner.gone_at + LATEST, "its owner was gone since {:?}: {record:#}", start.duration_since(owner.gone_at));
            named += 1;
        } else {
            let lacks = owners.iter().find(|owner| start >= owner.named_at + LATEST && start < owner.whole_until);
            ensure!(lacks.is_none(), "its owner was known: {record:#}");
        }
    }
    Ok(named)
}
