//! Clients that fail and scanners, told apart; and whom an alert names.

use std::sync::Arc;

use super::tests::{MINUTE, contact, detector, party, run};
use super::{Contact, Detector, Outcome};
use crate::flow::ProcessInfo;
use crate::flow::testing::{SECOND, pod_identity};
use crate::inventory::files;

/// How many pods there are to be scraped, one in each of three workloads in turn.
pub(super) const PODS: u32 = 20;

fn address(pod: u32) -> String {
    format!("10.0.1.{}", 10 + pod)
}

/// The pods: each declares 9100, those with an even number 5432 as well; the Service `web` lists 8080 of all.
pub(super) fn manifests() -> String {
    let mut documents = Vec::new();
    for pod in 0..PODS {
        let database = if pod % 2 == 0 { ", {containerPort: 5432}" } else { "" };
        documents.push(format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: t{pod}, namespace: shop, uid: uid-t{pod}}}\nspec: {{nodeName: n, containers: [{{name: c, \
             ports: [{{containerPort: 9100}}{database}]}}]}}\nstatus: {{phase: Running, podIP: {}}}",
            address(pod)
        ));
    }
    let endpoints: Vec<String> = (0..PODS).map(|pod| format!("{{addresses: [{}]}}", address(pod))).collect();
    documents.push(format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\n\
         addressType: IPv4\nports: [{{port: 8080}}]\nendpoints: [{}]",
        endpoints.join(", ")
    ));
    documents.push(
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\nspec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}"
            .to_owned(),
    );
    documents.join("\n---\n")
}

/// A detector that knows the pods.
pub(super) fn knowing() -> Detector {
    let snapshot = files::snapshot_of(&manifests());
    assert_eq!(snapshot.refused, Vec::<String>::new());
    let mut detector = detector();
    detector.set_snapshot(snapshot);
    detector
}

/// A contact with one of the pods.
pub(super) fn with(pod: u32, port: u16, outcome: Outcome, time: u64) -> Contact {
    let identity = pod_identity(100 + pod, &format!("t{pod}"), &format!("w{}", pod % 3), &address(pod));
    let flow = time ^ (u64::from(pod) << 40) ^ (u64::from(port) << 50);
    Contact { target: party(Some(&identity), &address(pod)), flow: Some(flow), ..contact("10.0.0.2", port, outcome, time) }
}

/// Lets a client contact `ports` of `pods` every `interval` until `until`; answers with the rules of what was said up to then and
/// 5 minutes longer.
fn rules(ports: &[u16], pods: u32, outcome: Outcome, interval: u64, until: u64) -> Vec<String> {
    let mut detector = knowing();
    let mut said = Vec::new();
    let mut time = MINUTE;
    while time <= until {
        for pod in 0..pods {
            for port in ports {
                // Both the record and the kernel's array tell of it, and a retry of the same attempt comes a second later.
                for contact in
                    [with(pod, *port, Outcome::Tried, time), with(pod, *port, outcome, time), with(pod, *port, outcome, time + SECOND)]
                {
                    detector.contact(&contact);
                }
            }
        }
        said.extend(run(&mut detector, time, time + interval - SECOND / 10));
        time += interval;
    }
    said.extend(run(&mut detector, time, time + 5 * MINUTE));
    said.into_iter().filter(|(_, alert)| alert.status == "open").map(|(_, alert)| alert.rule).collect()
}

#[test]
fn who_comes_back_to_declared_ports_is_a_client_and_who_passes_them_a_scanner() {
    let once = 10 * MINUTE;
    let cases: [(&str, &[u16], u32, Outcome, u64, u64, &[&str]); 11] = [
        ("a scraper whose 20 targets refuse, for ten minutes", &[9100], PODS, Outcome::Refused, 15 * SECOND, 11 * MINUTE, &[]),
        ("a scraper that policy shuts out of eight pods", &[9100], 8, Outcome::Denied, 15 * SECOND, 11 * MINUTE, &[]),
        ("a scraper that policy shuts out of all of them", &[9100], PODS, Outcome::Denied, 15 * SECOND, 11 * MINUTE, &[]),
        ("a scraper that asks once in two minutes", &[9100], PODS, Outcome::Silent, 120 * SECOND, 11 * MINUTE, &[]),
        ("a scraper of what an EndpointSlice lists", &[8080], PODS, Outcome::Refused, 30 * SECOND, 11 * MINUTE, &[]),
        ("a client of eight pods that starts once and ends", &[9100], 8, Outcome::Refused, once, MINUTE, &[]),
        ("a client of several ports that all pods declare", &[9100, 8080], PODS, Outcome::Denied, 15 * SECOND, 11 * MINUTE, &[]),
        ("a sweep of a database's port that half of the pods declare", &[5432], PODS, Outcome::Denied, once, MINUTE, &["scan.horizontal"]),
        ("a sweep of a port that nobody declares", &[6379], 8, Outcome::Refused, once, MINUTE, &["scan.horizontal"]),
        ("a sweep of a port that every pod declares", &[9100], PODS, Outcome::Denied, once, MINUTE, &["scan.horizontal"]),
        ("the ports of one pod", &[1, 2, 3, 4, 5, 9100], 1, Outcome::Refused, once, MINUTE, &["scan.vertical"]),
    ];
    for (what, ports, pods, outcome, interval, until, expected) in cases {
        assert_eq!(rules(ports, pods, outcome, interval, until), expected, "{what}");
    }
}

#[test]
fn a_scanner_that_hides_among_a_scrapers_ports_is_found_late_and_whole() {
    let mut detector = knowing();
    for pod in 0..PODS {
        detector.contact(&with(pod, 9100, Outcome::Denied, MINUTE + u64::from(pod)));
    }
    let said = run(&mut detector, MINUTE, 10 * MINUTE);
    assert_eq!(said.len(), 1);
    let (when, alert) = &said[0];
    assert!((150 * SECOND..152 * SECOND).contains(&(when - MINUTE)), "after the time in which a client would have come back: {when}");
    assert_eq!((alert.rule.as_str(), alert.target_count, alert.count), ("scan.horizontal", PODS, u64::from(PODS)));
    assert_eq!(alert.evidence.as_ref().unwrap().threshold, Some(10));
}

#[test]
fn targets_that_are_gone_are_an_old_list_and_no_walk() {
    let mut detector = knowing();
    for pod in 0..PODS {
        detector.contact(&with(pod, 9100, Outcome::Silent, MINUTE));
    }
    detector.set_snapshot(files::snapshot_of("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}"));
    assert_eq!(run(&mut detector, MINUTE, 10 * MINUTE), []);
}

fn named(comm: &str, pid: u32) -> Arc<ProcessInfo> {
    Arc::new(ProcessInfo { pid, comm: comm.into(), uid: Some(0), container_id: None, exe: None })
}

#[test]
fn an_alert_names_the_process_with_the_most_contacts_first() {
    let mut detector = detector();
    let try_port = |detector: &mut Detector, port: u16, process: Option<Arc<ProcessInfo>>| {
        let one = contact("10.0.0.2", port, Outcome::Refused, MINUTE + u64::from(port));
        // The kernel's array tells of it without a process, and the record may come twice.
        detector.contact(&one);
        detector.contact(&Contact { process: process.clone(), ..one.clone() });
        detector.contact(&Contact { process, ..one });
    };
    try_port(&mut detector, 80, Some(named("curl", 10)));
    for port in 1..=30 {
        // The shell's loop: a process for each port.
        let process = if port > 27 { named("nc", 100 + u32::from(port)) } else { named("nmap", 20) };
        try_port(&mut detector, port, Some(process));
    }
    let said = run(&mut detector, MINUTE, MINUTE + SECOND);
    let alert = &said[0].1;
    assert_eq!(alert.process.as_ref().map(|process| (process.comm.as_str(), process.pid)), Some(("nmap", 20)));
    let listed: Vec<_> = alert.processes.iter().map(|one| (one.process.as_ref().unwrap().comm.as_str(), one.contacts)).collect();
    assert_eq!(listed, [("nmap", 27), ("nc", 3), ("curl", 1)]);
}

#[test]
fn the_list_of_processes_is_bounded_and_keeps_the_busiest() {
    let mut detector = detector();
    for port in 1..=3000u16 {
        let process = if port % 2 == 0 { named("nmap", 20) } else { named(&format!("p{port}"), u32::from(port)) };
        detector.contact(&Contact { process: Some(process), ..contact("10.0.0.2", port, Outcome::Refused, MINUTE) });
    }
    let said = run(&mut detector, MINUTE, MINUTE + SECOND);
    let alert = &said[0].1;
    assert_eq!((alert.processes.len(), alert.process.as_ref().unwrap().comm.as_str()), (8, "nmap"));
    assert_eq!(alert.processes[0].contacts, 1500);
}
