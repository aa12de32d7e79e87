//! One run of the agent ends, the next one begins: alerts, windows and ids go on.

use std::sync::Arc;

use sekisho_proto as proto;

use super::client_tests::{PODS, knowing, with};
use super::tests::{MINUTE, contact, detector, party, run};
use super::{Contact, Detector, Outcome, State};
use crate::flow::ProcessInfo;
use crate::flow::testing::{SECOND, at, pod_identity};
use crate::inventory::{Snapshot, files};

/// The next run's detector: what the first hands over goes through the file's form. `now` is the moment of the end.
fn next(detector: &Detector, now: u64, snapshot: Arc<Snapshot>) -> Detector {
    let text = serde_json::to_string(&detector.state(&at(now))).unwrap();
    let state: State = serde_json::from_str(&text).unwrap();
    let mut next = Detector::new("node-1", 99);
    next.restore(state);
    next.set_snapshot(snapshot);
    next
}

fn refused(detector: &mut Detector, ports: std::ops::Range<u16>, time: u64) {
    for port in ports {
        let process = Some(Arc::new(ProcessInfo { pid: 7, comm: "nmap".into(), uid: None, container_id: None, exe: None }));
        detector.contact(&Contact { process, ..contact("10.0.0.2", port, Outcome::Refused, time) });
    }
}

fn said(alerts: &[(u64, proto::Alert)]) -> Vec<(&str, u64)> {
    alerts.iter().map(|(_, alert)| (alert.status.as_str(), alert.count)).collect()
}

#[test]
fn an_incident_that_goes_on_over_a_restart_keeps_its_id() {
    let mut first = detector();
    refused(&mut first, 1..11, MINUTE);
    let opened = run(&mut first, MINUTE, MINUTE + SECOND);
    assert_eq!(said(&opened), [("open", 10)]);
    refused(&mut first, 11..13, MINUTE + 2 * SECOND);
    let end = first.last_words(&at(MINUTE + 3 * SECOND));
    assert_eq!(end.iter().map(|alert| (alert.status.as_str(), alert.count)).collect::<Vec<_>>(), [("closed", 12)]);
    let mut second = next(&first, MINUTE + 3 * SECOND, Arc::default());
    assert_eq!(run(&mut second, MINUTE + 4 * SECOND, MINUTE + 5 * SECOND), [], "nothing new has come");
    refused(&mut second, 13..14, MINUTE + 6 * SECOND);
    let alerts = run(&mut second, MINUTE + 6 * SECOND, 20 * MINUTE);
    assert_eq!(said(&alerts), [("update", 13), ("closed", 13)]);
    for (_, alert) in &alerts {
        assert_eq!((&alert.id, &alert.incident), (&opened[0].1.id, &opened[0].1.incident));
        assert_eq!((alert.first, alert.process.as_ref().map(|p| p.comm.as_str())), (opened[0].1.first, Some("nmap")));
        assert_eq!(alert.processes[0].contacts, 13);
        assert_eq!(alert.source, opened[0].1.source);
        assert_eq!(alert.evidence.as_ref().unwrap().failed, Some(13));
    }
}

#[test]
fn what_was_closed_at_the_end_of_a_run_is_not_closed_again() {
    let mut first = detector();
    refused(&mut first, 1..11, MINUTE);
    let id = run(&mut first, MINUTE, MINUTE + SECOND)[0].1.id.clone();
    first.last_words(&at(MINUTE + 2 * SECOND));
    let mut second = next(&first, MINUTE + 2 * SECOND, Arc::default());
    assert_eq!(run(&mut second, MINUTE + 3 * SECOND, 20 * MINUTE), []);
    assert_eq!(second.open_incidents(), 0);
    refused(&mut second, 1..11, 60 * MINUTE);
    let again = run(&mut second, 60 * MINUTE, 61 * MINUTE);
    assert_eq!((said(&again), &again[0].1.id, again[0].1.reopened), (vec![("open", 10)], &id, Some(1)));
    // And the run after that knows as well.
    let mut third = next(&second, 61 * MINUTE, Arc::default());
    assert_eq!(said(&run(&mut third, 62 * MINUTE, 80 * MINUTE)), [("closed", 10)], "a run that was killed has closed nothing");
    let mut fourth = next(&third, 80 * MINUTE, Arc::default());
    refused(&mut fourth, 1..11, 90 * MINUTE);
    let again = run(&mut fourth, 90 * MINUTE, 91 * MINUTE);
    assert_eq!((&again[0].1.id, again[0].1.reopened), (&id, Some(2)));
}

#[test]
fn a_scan_that_a_restart_divides_is_one_scan() {
    let mut first = detector();
    refused(&mut first, 1..4, MINUTE);
    assert_eq!(run(&mut first, MINUTE, MINUTE + SECOND), []);
    first.last_words(&at(MINUTE + 2 * SECOND));
    let mut second = next(&first, MINUTE + 2 * SECOND, Arc::default());
    refused(&mut second, 4..6, MINUTE + 5 * SECOND);
    assert_eq!(said(&run(&mut second, MINUTE + 5 * SECOND, MINUTE + 6 * SECOND)), [("open", 5)]);
    // What is older than a window does not count.
    let mut late = next(&first, 3 * MINUTE, Arc::default());
    refused(&mut late, 4..6, 3 * MINUTE);
    assert_eq!(run(&mut late, 3 * MINUTE, 4 * MINUTE), []);
}

#[test]
fn a_walk_over_declared_ports_goes_on_and_a_client_stays_one() {
    let declared = || files::snapshot_of(&super::client_tests::manifests());
    let mut first = knowing();
    for pod in 0..PODS {
        first.contact(&with(pod, 9100, Outcome::Denied, MINUTE));
    }
    let mut second = next(&first, MINUTE + SECOND, declared());
    assert_eq!(run(&mut second, MINUTE + SECOND, 2 * MINUTE), [], "they are no failed contacts of an undeclared port");
    let mut third = next(&first, MINUTE + SECOND, declared());
    for pod in 0..PODS {
        third.contact(&with(pod, 9100, Outcome::Denied, MINUTE + 15 * SECOND));
    }
    assert_eq!(run(&mut third, 2 * MINUTE, 10 * MINUTE), []);
    assert_eq!(said(&run(&mut second, 2 * MINUTE, 10 * MINUTE)), [("open", u64::from(PODS))]);
}

#[test]
fn a_spoofing_pod_and_its_session_go_on() {
    let mut first = detector();
    let spoof = |time| Contact { claimed: Some((party(None, "10.9.9.9"), [2; 6])), ..contact("10.0.0.2", 80, Outcome::Spoofed, time) };
    first.contact(&spoof(MINUTE));
    let opened = run(&mut first, MINUTE, MINUTE + SECOND);
    first.last_words(&at(MINUTE + 2 * SECOND));
    let mut second = next(&first, MINUTE + 2 * SECOND, Arc::default());
    second.contact(&spoof(MINUTE + 10 * SECOND));
    refused(&mut second, 1..6, MINUTE + 10 * SECOND);
    let alerts = run(&mut second, MINUTE + 10 * SECOND, MINUTE + 12 * SECOND);
    let mut rules: Vec<_> = alerts.iter().map(|(_, alert)| (alert.rule.as_str(), alert.status.as_str())).collect();
    rules.sort_unstable();
    assert_eq!(rules, [("scan.vertical", "open"), ("spoof.ip", "update")]);
    assert!(alerts.iter().all(|(_, alert)| alert.incident == opened[0].1.incident));
    assert_eq!(alerts.iter().find(|(_, alert)| alert.rule == "spoof.ip").unwrap().1.id, opened[0].1.id);
}

#[test]
fn what_is_handed_over_is_bounded() {
    let mut detector = detector();
    for net in 0..200u32 {
        let source = party(Some(&pod_identity(500 + net, &format!("s{net}"), &format!("w{net}"), "10.0.0.9")), "10.0.0.9");
        for port in 1..2000 {
            detector.contact(&Contact { source: source.clone(), ..contact("10.0.0.2", port, Outcome::Refused, MINUTE) });
        }
    }
    let text = serde_json::to_string(&detector.state(&at(MINUTE))).unwrap();
    assert!(text.len() < 8 << 20, "{} bytes", text.len());
    let open = detector.open_incidents();
    assert!(open >= 200);
    assert_eq!(next(&detector, MINUTE, Arc::default()).open_incidents(), open);
}
