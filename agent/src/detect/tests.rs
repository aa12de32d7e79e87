//! Detections on a virtual clock: contacts and flows go in with their times, nothing sleeps.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use sekisho_core::layout::{self, Flow, FlowKey6, reason, verdict};
use sekisho_proto as proto;

use super::{Contact, Detector, Outcome, Party};
use crate::flow::testing::{SECOND, at, flow, ip, pod_identity};
use crate::flow::{Directory, FlowRecord, Holding, Identity, Moment, Sighting, Witness};

pub(super) const MINUTE: u64 = 60 * SECOND;

pub(super) fn party(identity: Option<&Arc<Identity>>, address: &str) -> Party {
    Party { ip: address.parse().unwrap(), identity: identity.cloned() }
}

pub(super) fn scanner() -> Arc<Identity> {
    pod_identity(1, "scanner-1", "scanner", "10.0.0.1")
}

pub(super) fn contact(target: &str, port: u16, outcome: Outcome, time_ns: u64) -> Contact {
    Contact {
        source: party(Some(&scanner()), "10.0.0.1"),
        target: party(Some(&pod_identity(2, "db-1", "db", target)), target),
        port,
        protocol: 6,
        outcome,
        time_ns,
        wall_ns: at(time_ns).wall_ns,
        first_flags: Some(2),
        flow: Some(u64::from(port)),
        process: None,
        claimed: None,
    }
}

pub(super) fn detector() -> Detector {
    Detector::new("node-1", 1)
}

/// Lets the clock run in steps of 100 ms and gathers what is said, with the time.
pub(super) fn run(detector: &mut Detector, from: u64, to: u64) -> Vec<(u64, proto::Alert)> {
    let mut said = Vec::new();
    let mut now = from;
    while now <= to {
        said.extend(detector.tick(&at(now)).into_iter().map(|a| (now, a)));
        now += SECOND / 10;
    }
    said
}

#[test]
fn a_hundred_closed_ports_are_one_alert_within_a_second_of_the_fifth() {
    for outcome in [Outcome::Refused, Outcome::Denied, Outcome::Silent] {
        let mut detector = detector();
        let mut fifth = 0;
        let mut said = Vec::new();
        for n in 0..100u16 {
            let time = MINUTE + u64::from(n) * SECOND / 100;
            detector.contact(&contact("10.0.0.2", 1 + n, outcome, time));
            if n == 4 {
                fifth = time;
            }
            said.extend(detector.tick(&at(time)).into_iter().map(|a| (time, a)));
        }
        said.extend(run(&mut detector, MINUTE + SECOND, 2 * MINUTE));
        assert_eq!(said.len(), 1, "{outcome:?}");
        let (when, alert) = &said[0];
        assert!(when - fifth < SECOND);
        assert_eq!((alert.rule.as_str(), alert.status.as_str()), ("scan.vertical", "open"));
        assert_eq!(alert.attack, ["T1046"]);
        let source = alert.source.as_ref().unwrap();
        assert_eq!((source.pod.as_deref(), source.uid.as_deref()), (Some("scanner-1"), Some("uid-scanner-1")));
        assert_eq!(source.workload.as_ref().unwrap().name, "scanner");
        assert_eq!((alert.targets.len(), alert.targets[0].pod.as_deref()), (1, Some("db-1")));
        let evidence = alert.evidence.as_ref().unwrap();
        assert!(evidence.ports.len() >= 5 && evidence.failed.unwrap() >= 5);
        assert_eq!((evidence.threshold, evidence.window_s), (Some(5), Some(60)));
    }
}

#[test]
fn what_waits_for_a_breath_is_said_before_an_end() {
    let mut detector = detector();
    for port in 1..6 {
        detector.contact(&contact("10.0.0.2", port, Outcome::Refused, MINUTE));
    }
    assert!(detector.tick(&at(MINUTE)).is_empty());
    let said = detector.last_words(&at(MINUTE));
    assert_eq!(said.iter().map(|alert| alert.status.as_str()).collect::<Vec<_>>(), ["open", "closed"]);
}

#[test]
fn four_failed_ports_are_none_and_five_spread_over_minutes_are_none() {
    let mut detector = detector();
    for n in 0..4 {
        detector.contact(&contact("10.0.0.2", 1 + n, Outcome::Refused, MINUTE));
    }
    for n in 0..5 {
        detector.contact(&contact("10.0.0.3", 1 + n, Outcome::Refused, MINUTE + u64::from(n) * 16 * SECOND));
    }
    assert_eq!(run(&mut detector, MINUTE, 3 * MINUTE), []);
}

#[test]
fn the_same_port_again_and_again_is_a_dead_dependency() {
    let mut detector = detector();
    for n in 0..1000 {
        detector.contact(&contact("10.0.0.2", 5432, Outcome::Refused, MINUTE + n * SECOND / 20));
    }
    assert_eq!(run(&mut detector, MINUTE, 3 * MINUTE), []);
}

#[test]
fn a_minute_of_ordinary_traffic_is_nothing() {
    let mut detector = detector();
    for n in 0..6000u64 {
        let time = MINUTE + n * SECOND / 100;
        let target = format!("10.0.{}.{}", n % 3, 2 + n % 40);
        let port = [80, 443, 5432, 53][(n % 4) as usize];
        // One in fifty fails: a restart, a full queue.
        let outcome = if n % 50 == 0 { Outcome::Refused } else { Outcome::Tried };
        let mut contact = contact(&target, port, outcome, time);
        // The targets are one workload's pods.
        contact.target.identity = Some(pod_identity(2, "db-1", "db", &target));
        detector.contact(&contact);
    }
    assert_eq!(run(&mut detector, MINUTE, 3 * MINUTE), []);
}

#[test]
fn answered_only_fires_at_fifteen_ports_in_ten_seconds_and_not_before() {
    let mut detector = detector();
    for n in 0..14 {
        detector.contact(&contact("10.0.0.2", 1 + n, Outcome::Tried, MINUTE));
    }
    assert_eq!(run(&mut detector, MINUTE, MINUTE + SECOND), []);
    detector.contact(&contact("10.0.0.2", 15, Outcome::Tried, MINUTE + SECOND));
    let said = run(&mut detector, MINUTE + SECOND, MINUTE + 2 * SECOND);
    assert_eq!(said.len(), 1);
    assert_eq!(said[0].1.evidence.as_ref().unwrap().port_count, Some(15));
}

#[test]
fn both_ends_and_the_kernels_array_may_tell_the_same() {
    let mut detector = detector();
    for n in 0..4 {
        for outcome in [Outcome::Tried, Outcome::Denied, Outcome::Denied, Outcome::Refused] {
            detector.contact(&contact("10.0.0.2", 1 + n, outcome, MINUTE));
        }
        let twice = layout::Contact {
            remote: ip("10.0.0.2"),
            time_ns: MINUTE,
            remote_port: 1 + n,
            protocol: 6,
            result: layout::contact::DENIED,
            remote_instance: 2,
        };
        detector.kernel_contact(&scanner(), &twice, false, &at(MINUTE));
    }
    assert_eq!(run(&mut detector, MINUTE, MINUTE + SECOND), []);
}

#[test]
fn an_alert_grows_under_its_id_at_most_once_a_minute_and_ends_after_a_quarter_of_an_hour() {
    let mut detector = detector();
    let mut said = Vec::new();
    for n in 0..2000u16 {
        let time = MINUTE + u64::from(n) * SECOND / 10;
        detector.contact(&contact("10.0.0.2", 1 + n, Outcome::Refused, time));
        said.extend(detector.tick(&at(time)).into_iter().map(|a| (time, a)));
    }
    said.extend(run(&mut detector, MINUTE + 200 * SECOND, 25 * MINUTE));
    assert!(said.iter().all(|(_, a)| a.id == said[0].1.id));
    let status: Vec<&str> = said.iter().map(|(_, a)| a.status.as_str()).collect();
    assert_eq!((status[0], *status.last().unwrap()), ("open", "closed"));
    assert!(status.len() >= 3 && status[1..status.len() - 1].iter().all(|s| *s == "update"), "{status:?}");
    assert!(said.windows(2).all(|w| w[1].0 - w[0].0 >= MINUTE - SECOND / 10));
    assert_eq!(said.last().unwrap().1.count, 2000);
    let last = &said.last().unwrap().1;
    assert_eq!(last.evidence.as_ref().unwrap().ports.len(), 32);
    assert_eq!(last.severity, "high");
    assert_eq!(detector.open_incidents(), 0);
}

/// Five failed ports of a target, from one second on.
fn scan(detector: &mut Detector, source: &Party, target: &str, from: u64) {
    for port in 1..=5u16 {
        let one = contact(target, port, Outcome::Refused, from + u64::from(port));
        detector.contact(&Contact { source: source.clone(), ..one });
    }
}

#[test]
fn what_comes_back_within_a_day_has_the_same_id() {
    let mut detector = detector();
    let source = party(Some(&scanner()), "10.0.0.1");
    let mut opened = Vec::new();
    // The first again after an hour of quiet, the second time after two days.
    for begin in [MINUTE, 61 * MINUTE, 61 * MINUTE + 2 * 24 * 60 * MINUTE] {
        scan(&mut detector, &source, "10.0.0.2", begin);
        let said = run(&mut detector, begin, begin + 16 * MINUTE);
        assert_eq!(said.iter().map(|(_, a)| a.status.as_str()).collect::<Vec<_>>(), ["open", "closed"]);
        opened.push(said[0].1.clone());
    }
    assert_eq!((&opened[0].id, opened[0].reopened), (&opened[1].id, None));
    assert_eq!(opened[1].reopened, Some(1));
    assert_ne!(opened[1].id, opened[2].id);
    assert_eq!(opened[2].reopened, None);
}

#[test]
fn alerts_of_one_pod_within_an_hour_are_one_incident() {
    let mut detector = detector();
    let (one, other) = (party(Some(&scanner()), "10.0.0.1"), party(Some(&pod_identity(9, "other-1", "other", "10.0.0.9")), "10.0.0.9"));
    scan(&mut detector, &one, "10.0.0.2", MINUTE);
    scan(&mut detector, &other, "10.0.0.2", MINUTE);
    let spoof = Contact { claimed: Some((party(None, "10.9.9.9"), [2; 6])), ..contact("10.0.0.2", 80, Outcome::Spoofed, 40 * MINUTE) };
    let mut said = run(&mut detector, MINUTE, 2 * MINUTE);
    detector.contact(&spoof);
    said.extend(run(&mut detector, 40 * MINUTE, 41 * MINUTE));
    let of = |rule: &str, pod: &str| {
        let mut found = said.iter().filter(|(_, a)| a.rule == rule && a.source.as_ref().and_then(|s| s.pod.as_deref()) == Some(pod));
        found.next().expect("an alert").1.incident.clone().expect("an incident")
    };
    assert_eq!(of("scan.vertical", "scanner-1"), of("spoof.ip", "scanner-1"));
    assert_ne!(of("scan.vertical", "scanner-1"), of("scan.vertical", "other-1"));
}

#[test]
fn a_storm_is_counted_not_told() {
    let mut detector = detector();
    for n in 0..200u32 {
        let address = format!("10.1.0.{n}");
        let pod = pod_identity(100 + n, &format!("p{n}"), &format!("w{n}"), &address);
        scan(&mut detector, &party(Some(&pod), &address), "10.0.0.2", MINUTE);
    }
    let said = run(&mut detector, MINUTE, 20 * MINUTE);
    let opened = said.iter().filter(|(_, a)| a.rule == "scan.vertical" && a.status == "open").count();
    assert_eq!(opened, 60);
    let storm: Vec<_> = said.iter().filter(|(_, a)| a.rule == "alert.storm").map(|(_, a)| (a.status.as_str(), a.count)).collect();
    assert_eq!(storm, [("open", 140), ("closed", 140)]);
}

#[test]
fn open_ports_among_failed_ones_are_named() {
    let mut detector = detector();
    for n in 0..6 {
        detector.contact(&contact("10.0.0.2", 1 + n, Outcome::Refused, MINUTE));
    }
    detector.contact(&contact("10.0.0.2", 5432, Outcome::Answered, MINUTE));
    let said = run(&mut detector, MINUTE, MINUTE + SECOND);
    assert_eq!(said[0].1.evidence.as_ref().unwrap().open_ports, [5432]);
}

#[test]
fn a_sweep_needs_five_hosts_and_more_than_one_stale_workload() {
    // Five pods of one workload that are gone: a stale client.
    let mut detector = detector();
    for n in 0..8 {
        let target = format!("10.0.0.{}", 10 + n);
        detector.contact(&contact(&target, 6379, Outcome::Silent, MINUTE));
    }
    assert_eq!(run(&mut detector, MINUTE, MINUTE + SECOND), []);
    // Five addresses that nobody has.
    for n in 0..8 {
        let mut contact = contact("10.0.0.2", 6379, Outcome::Silent, MINUTE);
        contact.target = party(None, &format!("10.0.1.{}", 10 + n));
        detector.contact(&contact);
    }
    let said = run(&mut detector, MINUTE, MINUTE + SECOND);
    assert_eq!(said.len(), 1);
    assert_eq!((said[0].1.rule.as_str(), said[0].1.attack.len()), ("scan.horizontal", 2));
}

#[test]
fn a_scan_of_a_whole_net_is_a_handful_of_alerts() {
    let mut detector = detector();
    for host in 0..50u8 {
        for port in 0..100 {
            let mut contact = contact("10.0.0.2", 1 + port, Outcome::Refused, MINUTE);
            contact.target = party(None, &format!("10.0.1.{host}"));
            detector.contact(&contact);
        }
    }
    let said = run(&mut detector, MINUTE, MINUTE + SECOND);
    assert!(said.len() <= 6, "{}", said.len());
    assert!(said.iter().any(|(_, a)| a.rule == "scan.horizontal"));
}

/// A flow as the engine shows it: endpoint 5 is local.
fn record(key: FlowKey6, flow: Flow) -> FlowRecord {
    FlowRecord {
        moment: Moment::Start,
        flow_id: u64::from(key.remote_port),
        key,
        family: 4,
        flow,
        start_ns: at(flow.start_ns).wall_ns,
        last_ns: at(flow.start_ns).wall_ns,
        delta: None,
        local: Some(scanner()),
        remote: Some(pod_identity(2, "db-1", "db", "10.0.0.2")),
        late_identity: false,
        translated: None,
        decision: None,
        process: None,
        listener: None,
        interface: None,
    }
}

fn witness(detector: &mut Detector, sighting: Sighting, change: impl Fn(&mut FlowRecord), one_way: bool) -> usize {
    for n in 0..8 {
        let (key, flow) = flow(MINUTE, 100 + n);
        let mut record = record(key, flow);
        change(&mut record);
        detector.saw(sighting, &record, one_way, &at(MINUTE));
    }
    // Silence is three seconds old when it is told.
    run(detector, MINUTE, MINUTE + 4 * SECOND).len()
}

fn denied(record: &mut FlowRecord) {
    (record.flow.verdict, record.flow.reason) = (verdict::DENIED, reason::DEFAULT_DENY);
}

/// The same flow seen from its destination, whose endpoint is local.
fn inbound(record: &mut FlowRecord) {
    record.flow.opened = layout::INGRESS;
    (record.key.local_port, record.key.remote_port) = (record.key.remote_port, record.key.local_port);
    std::mem::swap(&mut record.local, &mut record.remote);
}

#[test]
fn who_decides() {
    assert_eq!(witness(&mut detector(), Sighting::Started, denied, false), 1);
    assert_eq!(witness(&mut detector(), Sighting::Refused, |_| {}, false), 1);
    assert_eq!(witness(&mut detector(), Sighting::Silent, |_| {}, false), 1);
    let refused = |r: &mut FlowRecord| inbound(r);
    assert_eq!(witness(&mut detector(), Sighting::Refused, refused, false), 0, "its own node tells that");
    let denied_here = |r: &mut FlowRecord| {
        denied(r);
        inbound(r);
    };
    assert_eq!(witness(&mut detector(), Sighting::Started, denied_here, false), 1, "a local pod, denied at its target");
    let mut elsewhere = Detector::new("node-2", 1);
    assert_eq!(witness(&mut elsewhere, Sighting::Started, denied_here, false), 0, "the pod's node decides");
    let outside = |r: &mut FlowRecord| {
        denied_here(r);
        r.remote = None;
    };
    assert_eq!(witness(&mut detector(), Sighting::Started, outside, false), 1);
}

#[test]
fn what_does_not_count_is_counted() {
    let mut detector = detector();
    assert_eq!(witness(&mut detector, Sighting::Silent, |_| {}, true), 0, "replies may pass unseen");
    let probe = |r: &mut FlowRecord| {
        inbound(r);
        r.flow.flags = layout::flow_flags::OWN_NODE;
    };
    assert_eq!(witness(&mut detector, Sighting::Refused, probe, false), 0);
    let late = |r: &mut FlowRecord| {
        (r.key.protocol, r.key.local_port) = (17, 53);
        r.key.remote_port += 40_000;
        denied(r);
    };
    assert_eq!(witness(&mut detector, Sighting::Started, late, false), 0);
    let nothing = |r: &mut FlowRecord| (r.flow.verdict, r.flow.reason) = (verdict::DENIED, reason::NO_CONNECTION);
    assert_eq!(witness(&mut detector, Sighting::Started, nothing, false), 0, "no_connection is no evidence");
    let expected =
        BTreeMap::from([(("scan", "late_reply"), 8), (("scan", "one_way"), 8), (("scan", "own_node"), 8), (("scan", "state_full"), 0)]);
    assert_eq!(detector.suppressed(), expected);
}

#[test]
fn scans_without_syn_show_by_the_rst_that_answers() {
    for first_flags in [0, 1, 0x29, 0x10] {
        let reset = |r: &mut FlowRecord| {
            (r.flow.first_flags, r.flow.tcp_flags, r.flow.packets) = (first_flags, [first_flags, 0x14], [1, 1]);
            if first_flags == 0x10 {
                r.flow.opened = layout::UNKNOWN;
            }
        };
        assert_eq!(witness(&mut detector(), Sighting::Ended, reset, false), 1, "{first_flags:#x}");
    }
}

#[test]
fn one_spoofed_packet_is_an_alert_that_names_the_true_owner() {
    let mut detector = detector();
    let claimed: IpAddr = "10.0.0.2".parse().unwrap();
    let holding = Holding { identity: pod_identity(2, "db-1", "db", "10.0.0.2"), since: 0, until: None };
    let directory = Directory { by_address: [(claimed, holding)].into(), ..Directory::default() };
    detector.set_directory(Arc::new(directory));
    let mut said = Vec::new();
    for n in 0..500u64 {
        let time = MINUTE + n * SECOND;
        let (mut key, mut flow) = flow(time, 80);
        key.remote = ip("10.9.9.9");
        (flow.local, flow.mac) = (ip("10.0.0.2"), [2, 0, 0, 0, 0, 9]);
        (flow.verdict, flow.reason) = (verdict::DENIED, reason::SPOOFED_SOURCE);
        detector.saw(Sighting::Started, &record(key, flow), false, &at(time));
        said.extend(run(&mut detector, time, time + SECOND * 9 / 10));
    }
    assert_eq!(said.len(), 2, "one per pod in five minutes");
    let alert = &said[0].1;
    assert!(said[0].0 - MINUTE < SECOND);
    assert_eq!((alert.rule.as_str(), alert.severity.as_str()), ("spoof.ip", "high"));
    assert_eq!(alert.source.as_ref().unwrap().pod.as_deref(), Some("scanner-1"));
    let evidence = alert.evidence.as_ref().unwrap();
    assert_eq!(evidence.claimed_ip.as_deref(), Some("10.0.0.2"));
    assert_eq!(evidence.claimed_owner.as_ref().unwrap().pod.as_deref(), Some("db-1"));
    assert_eq!(evidence.mac.as_deref(), Some("02:00:00:00:00:09"));
    assert!(alert.title.contains("shop/scanner-1") && alert.title.contains("shop/db-1"), "{}", alert.title);
}

#[test]
fn one_message_of_a_false_router_is_an_alert() {
    let mut detector = detector();
    let (mut key, mut flow) = flow(MINUTE, 0);
    (key.remote, key.protocol, key.cause) = (ip("10.9.9.9"), 58, reason::ROGUE_MESSAGE);
    (flow.verdict, flow.reason, flow.mac) = (verdict::DENIED, reason::ROGUE_MESSAGE, [2, 0, 0, 0, 0, 9]);
    detector.saw(Sighting::Started, &record(key, flow), false, &at(MINUTE));
    let said = run(&mut detector, MINUTE, MINUTE + SECOND);
    let [(_, alert)] = &said[..] else { panic!("{said:?}") };
    assert_eq!((alert.rule.as_str(), alert.severity.as_str()), ("spoof.router", "high"));
    assert!(alert.title.starts_with("shop/scanner-1 speaks as a router"), "{}", alert.title);
    assert_eq!(alert.evidence.as_ref().unwrap().claimed_ip, None);
}

/// More keys than there is room for: bounded, and told.
#[test]
fn state_is_bounded() {
    let mut detector = detector();
    for n in 0..200_000u32 {
        let mut contact = contact("10.0.0.2", 80, Outcome::Tried, MINUTE);
        contact.target = party(None, &std::net::Ipv4Addr::from(0x0b00_0000 + n).to_string());
        detector.contact(&contact);
    }
    assert!(detector.suppressed()[&("scan", "state_full")] > 100_000);
}
