use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::testing::{MemoryStore, SECOND};
use super::{Journal, Owner, RunState, TOMBSTONE_NS};
use crate::inventory::{Node, Pod, Service, ServicePort, Snapshot, Workload};
use crate::policy::{Instances, RuleRef};

fn pod(name: &str, uid: &str, address: &str) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: name.into(),
        uid: uid.into(),
        labels: Arc::new(BTreeMap::from([("app".into(), name.into())])),
        node: Some("node-1".into()),
        ips: vec![address.parse().unwrap()],
        announced: Box::default(),
        host_network: false,
        finished: false,
        service_account: Some("default".into()),
        workload: Workload { kind: "Deployment".into(), name: "web".into() },
        ports: Vec::new(),
        serves: Box::default(),
        config_hash: None,
        allow_sources: Vec::new(),
        runtime_class: None,
    }
}

fn snapshot(pods: &[Pod]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for pod in pods {
        Arc::make_mut(&mut snapshot.pods).insert((pod.namespace.clone(), pod.name.clone()), Arc::new(pod.clone()));
    }
    let node = Node { name: "node-1".into(), ips: vec!["10.0.0.254".parse().unwrap()], pod_networks: Vec::new(), labels: Arc::default() };
    Arc::make_mut(&mut snapshot.nodes).insert("node-1".into(), Arc::new(node));
    let port = ServicePort { name: None, port: 80, protocol: 6, node_port: None };
    let service = Service {
        namespace: "shop".into(),
        name: "web".into(),
        ips: vec!["10.96.0.1".parse().unwrap()],
        node_local_ips: Vec::new(),
        ports: vec![port],
    };
    Arc::make_mut(&mut snapshot.services).insert(("shop".into(), "web".into()), Arc::new(service));
    snapshot
}

fn refresh(journal: &Journal, pods: &[Pod], boot_ns: u64) -> Arc<super::Directory> {
    journal.refresh(&snapshot(pods), &HashMap::new(), &HashMap::new(), boot_ns)
}

fn name(directory: &super::Directory, instance: u32, boot_ns: u64) -> Option<String> {
    match &directory.identity(instance, boot_ns)?.owner {
        Owner::Pod { name, .. } | Owner::Node { name } => Some(name.to_string()),
        Owner::Service { name, port, .. } => Some(format!("{name}:{port}")),
    }
}

#[test]
fn numbers_and_names_survive_a_restart() {
    let store = MemoryStore::default();
    let journal = Journal::open(Box::new(store.clone()), 40);
    let web = journal.pod("uid-1");
    let service = journal.service(&("shop".into(), "web".into()), "80");
    let node = journal.node("node-1");
    assert!(web > 40 && service > web && node > service, "above what the kernel uses");
    refresh(&journal, &[pod("web-1", "uid-1", "10.0.0.1")], SECOND);
    journal.keep(&[web, service, node]);
    drop(journal);

    let journal = Journal::open(Box::new(store), 0);
    let directory = journal.directory(2 * SECOND);
    assert_eq!(name(&directory, web, SECOND).as_deref(), Some("web-1"));
    assert_eq!(name(&directory, service, SECOND).as_deref(), Some("web:80"));
    assert_eq!(name(&directory, node, SECOND).as_deref(), Some("node-1"));
    assert_eq!((journal.pod("uid-1"), journal.node("node-1")), (web, node));
    assert!(journal.pod("uid-2") > node, "no number is given twice");
}

#[test]
fn a_cluster_is_remembered_by_number_and_whom_flows_bear_by_name() {
    let store = MemoryStore::default();
    let journal = Journal::open(Box::new(store.clone()), 0);
    let many: Vec<Pod> = (0..1000).map(|i| pod(&format!("p{i}"), &format!("uid-{i}"), &format!("10.1.{}.{}", i / 250, i % 250))).collect();
    refresh(&journal, &many, SECOND);
    let numbers: Vec<u32> = many.iter().map(|pod| journal.pod(&pod.uid)).collect();
    journal.keep(&[numbers[3], numbers[500]]);
    let written = store.0.lock().unwrap().len();
    assert!(written < 1000 / 20, "{written} values");
    drop(journal);

    // Half of them left while nobody looked.
    let journal = Journal::open(Box::new(store.clone()), 0);
    assert_eq!(name(&journal.directory(SECOND), numbers[3], SECOND).as_deref(), Some("p3"));
    let directory = refresh(&journal, &many[500..], 2 * SECOND);
    assert!(many[500..].iter().zip(&numbers[500..]).all(|(pod, number)| journal.pod(&pod.uid) == *number));
    assert_eq!(name(&directory, numbers[700], SECOND).as_deref(), Some("p700"), "the cluster says the name again");
    assert_eq!(name(&directory, numbers[3], SECOND).as_deref(), Some("p3"), "who left is known if a flow bore it");
    assert_eq!(name(&directory, numbers[4], SECOND), None);

    // Their places are taken by others, their numbers never.
    drop(directory);
    drop(journal.expire(3 * SECOND + TOMBSTONE_NS));
    let before = store.0.lock().unwrap().len();
    let new: Vec<Pod> = (0..400).map(|i| pod(&format!("n{i}"), &format!("new-{i}"), &format!("10.2.{}.{}", i / 250, i % 250))).collect();
    refresh(&journal, &[&many[500..], &new].concat(), 4 * SECOND + TOMBSTONE_NS);
    assert!(new.iter().all(|pod| journal.pod(&pod.uid) > numbers[999]));
    assert_eq!(store.0.lock().unwrap().len(), before);
}

#[test]
fn a_reused_address_never_wears_the_old_name() {
    let journal = Journal::open(Box::new(MemoryStore::default()), 0);
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    refresh(&journal, &[pod("old", "uid-1", "10.0.0.1")], 100 * SECOND);
    refresh(&journal, &[], 200 * SECOND);
    let directory = refresh(&journal, &[pod("new", "uid-2", "10.0.0.1")], 260 * SECOND);
    let at = |time| directory.late(address, time).map(|i| i.instance);
    let (old, new) = (journal.pod("uid-1"), journal.pod("uid-2"));
    assert_eq!(at(150 * SECOND), Some(old));
    assert_eq!(at(230 * SECOND), None, "between the two it is not known whose a new flow is");
    assert_eq!(directory.former(address, 230 * SECOND).map(|i| i.instance), Some(old), "late packets of one that left");
    assert_eq!(at(270 * SECOND), Some(new));
    assert_eq!(directory.holder(address).map(|i| i.instance), Some(new));
    let directory = refresh(&journal, &[pod("new", "uid-2", "10.0.0.1")], 200 * SECOND + TOMBSTONE_NS);
    assert_eq!(directory.late(address, 150 * SECOND), None, "and never the later owner");
    assert_eq!(directory.late(address, 255 * SECOND).map(|i| i.instance), Some(new), "a name that came a little late");
}

#[test]
fn what_is_announced_names_addresses_that_nobody_has() {
    let journal = Journal::open(Box::new(MemoryStore::default()), 0);
    let announcing = |name: &str, address: &str| {
        let pod = pod(name, name, address);
        Pod { announced: pod.ips.clone().into(), ips: Vec::new(), ..pod }
    };
    let pods = [announcing("a", "10.0.0.1"), announcing("b", "10.0.0.254"), announcing("c", "10.0.0.3"), pod("web", "uid-1", "10.0.0.1")];
    let directory = refresh(&journal, &pods, SECOND);
    let holder = |address: &str| match &directory.holder(address.parse().unwrap()).unwrap().owner {
        Owner::Pod { name, .. } | Owner::Node { name } => name.to_string(),
        Owner::Service { .. } => String::new(),
    };
    assert_eq!((&*holder("10.0.0.1"), &*holder("10.0.0.254"), &*holder("10.0.0.3")), ("web", "node-1", "c"));
}

#[test]
fn labels_are_those_of_the_first_packet() {
    let journal = Journal::open(Box::new(MemoryStore::default()), 0);
    refresh(&journal, &[pod("web-1", "uid-1", "10.0.0.1")], 100 * SECOND);
    let mut relabelled = pod("web-1", "uid-1", "10.0.0.1");
    relabelled.labels = Arc::new(BTreeMap::from([("app".into(), "canary".into())]));
    let directory = refresh(&journal, &[relabelled], 200 * SECOND);
    let label = |time| match &directory.identity(journal.pod("uid-1"), time).unwrap().owner {
        Owner::Pod { labels, .. } => labels["app"].to_string(),
        _ => String::new(),
    };
    assert_eq!((label(150 * SECOND).as_str(), label(250 * SECOND).as_str()), ("web-1", "canary"));
}

#[test]
fn entries_go_ten_minutes_after_their_pod_but_not_while_someone_refers_to_them() {
    let store = MemoryStore::default();
    let journal = Journal::open(Box::new(store.clone()), 0);
    let directory = refresh(&journal, &[pod("web-1", "uid-1", "10.0.0.1")], 0);
    let number = journal.pod("uid-1");
    let held = directory.identity(number, 0).unwrap().clone();
    drop(directory);
    journal.keep(&[number]);
    let kept = || store.0.lock().unwrap().values().any(|v| v.windows(5).any(|w| w == b"uid-1"));
    refresh(&journal, &[], SECOND);
    drop(journal.expire(TOMBSTONE_NS));
    assert!(kept());
    let directory = journal.expire(2 * TOMBSTONE_NS);
    assert!(kept(), "an open flow refers to it");
    assert!(directory.identity(number, 0).is_none(), "but nothing new may");
    drop(held);
    journal.expire(2 * TOMBSTONE_NS + 1);
    assert!(!kept());
    assert_ne!(journal.pod("uid-1"), number, "a number is never given twice");
}

#[test]
fn rules_keep_their_names_over_restarts_and_for_idle_flows() {
    let store = MemoryStore::default();
    let journal = Journal::open(Box::new(store.clone()), 0);
    let rule = RuleRef {
        kind: "NetworkPolicy",
        namespace: "shop".into(),
        name: "n".repeat(253).into(),
        uid: Some("3c4c6d9e-0000-4000-8000-000000000000".into()),
        direction: 1,
        index: 3,
    };
    journal.refresh(&Snapshot::default(), &HashMap::new(), &HashMap::from([(9, rule.clone())]), 0);
    let journal = Journal::open(Box::new(store), 0);
    let directory = journal.refresh(&Snapshot::default(), &HashMap::new(), &HashMap::new(), SECOND);
    assert_eq!(*directory.rules[&9], rule);
    assert!(!journal.expire(7200 * SECOND).rules.is_empty());
    assert!(journal.expire(9000 * SECOND).rules.is_empty());
}

#[test]
fn the_longest_names_fit() {
    let journal = Journal::open(Box::new(MemoryStore::default()), 0);
    let long: Arc<str> = "x".repeat(253).into();
    let mut pod = pod("web-1", "0f1e2d3c-0000-4000-8000-000000000001", "10.0.0.1");
    (pod.name, pod.namespace) = (long.clone(), "y".repeat(63).into());
    (pod.node, pod.service_account) = (Some(long.clone()), Some(long.clone()));
    pod.workload.name = long.clone();
    pod.labels = Arc::new((0..64).map(|n| (format!("label-{n}").into(), long.clone())).collect());
    // The store asserts the size.
    refresh(&journal, &[pod], 0);
}

#[test]
fn a_full_store_keeps_numbers_rules_and_this_nodes_pods() {
    let store = MemoryStore(Arc::default(), Some(30));
    let journal = Journal::open(Box::new(store.clone()), 0);
    let far: Vec<Pod> = (0..200).map(|i| pod(&format!("far-{i}"), &format!("far-{i}"), &format!("10.1.0.{i}"))).collect();
    refresh(&journal, &far, SECOND);
    journal.keep(&far.iter().map(|pod| journal.pod(&pod.uid)).collect::<Vec<_>>());
    journal.note_run(&RunState::default());
    assert_eq!(store.0.lock().unwrap().len(), 30, "full");

    let near: Vec<Pod> = (0..15).map(|i| pod(&format!("near-{i}"), &format!("near-{i}"), &format!("10.2.0.{i}"))).collect();
    let found = near.iter().map(|pod| (pod.uid.clone(), pod.ips.clone())).collect();
    let rule = RuleRef { kind: "NetworkPolicy", namespace: "shop".into(), name: "n".into(), uid: None, direction: 1, index: 3 };
    journal.refresh(&snapshot(&[far, near.clone()].concat()), &found, &HashMap::from([(9, rule.clone())]), 2 * SECOND);
    let numbers: Vec<u32> = near.iter().map(|pod| journal.pod(&pod.uid)).collect();

    let journal = Journal::open(Box::new(store), 0);
    let directory = journal.directory(3 * SECOND);
    for (pod, number) in near.iter().zip(numbers) {
        assert_eq!((name(&directory, number, 3 * SECOND).as_deref(), journal.pod(&pod.uid)), (Some(&*pod.name), number));
    }
    assert_eq!(*directory.rules[&9], rule);
    assert_eq!(journal.previous_run(), Some(RunState::default()));
}

#[test]
fn what_found_no_room_is_written_when_there_is_some() {
    let store = MemoryStore(Arc::default(), Some(3));
    let journal = Journal::open(Box::new(store.clone()), 0);
    let pods: Vec<Pod> = (0..60).map(|i| pod(&format!("p{i}"), &format!("uid-{i}"), &format!("10.1.0.{i}"))).collect();
    refresh(&journal, &pods, SECOND);
    // Another value goes.
    store.0.lock().unwrap().remove(&0);
    let numbers: Vec<u32> = pods.iter().map(|pod| journal.pod(&pod.uid)).collect();
    refresh(&journal, &pods, 2 * SECOND);
    let journal = Journal::open(Box::new(store), numbers[59]);
    assert!(pods.iter().zip(numbers).all(|(pod, number)| journal.pod(&pod.uid) == number));
}

/// The directory knows of a lost address before the kernel's tables do.
#[test]
fn a_verdict_on_a_lost_address_is_not_its_former_owners() {
    let journal = Journal::open(Box::new(MemoryStore::default()), 0);
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    let web = journal.pod("uid-1");
    let lost = |directory: &super::Directory, time| directory.had_lost(web, address, time);
    let directory = refresh(&journal, &[pod("web-1", "uid-1", "10.0.0.1")], 100 * SECOND);
    assert!(!lost(&directory, 150 * SECOND));
    let directory = refresh(&journal, &[pod("web-2", "uid-2", "10.0.0.1")], 200 * SECOND);
    assert!(!lost(&directory, 199 * SECOND) && lost(&directory, 200 * SECOND));
    assert!(!directory.had_lost(journal.pod("uid-2"), address, 250 * SECOND));
    let directory = refresh(&journal, &[pod("web-1", "uid-1", "10.0.0.1")], 300 * SECOND);
    assert!(!lost(&directory, 350 * SECOND), "it has it again");
}

#[test]
fn a_run_leaves_its_place_for_the_next() {
    let store = MemoryStore::default();
    let state = RunState { run: "b2a6c0de-0000-4000-8000-000000000001".to_owned(), seq: 77, counters: (0..25).collect() };
    let journal = Journal::open(Box::new(store.clone()), 0);
    assert_eq!(journal.previous_run(), None);
    journal.note_run(&state);
    assert_eq!(Journal::open(Box::new(store), 0).previous_run(), Some(state));
}
