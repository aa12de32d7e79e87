//! The store without a server: any order of events that a server may produce leads to what the same manifests on disk give.

use std::sync::Arc;

use proptest::prelude::*;

use super::resource::{Arrived, Kind, arrived};
use super::store::{Event, Store};
use crate::inventory::{Snapshot, files};

const CLUSTER: [(Kind, &str); 10] = [
    (Kind::Namespace, r#"{"metadata": {"name": "shop", "labels": {"team": "a"}, "resourceVersion": "5", "managedFields": [{"x": 1}]}}"#),
    (
        Kind::Pod,
        r#"{"metadata": {"name": "web-7d-abc", "namespace": "shop", "uid": "u1", "resourceVersion": "20",
            "labels": {"app": "web", "pod-template-hash": "7d"},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "web-7d", "controller": true}]},
            "spec": {"nodeName": "n1", "serviceAccountName": "web", "volumes": [{"name": "v"}],
            "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 8080}]}]},
            "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]}}"#,
    ),
    (
        Kind::Pod,
        r#"{"metadata": {"name": "report-1-x", "namespace": "jobs", "uid": "u2", "resourceVersion": "21",
            "ownerReferences": [{"kind": "Job", "name": "report-1", "controller": true}]},
            "spec": {"nodeName": "n2"}, "status": {"phase": "Succeeded", "podIP": "10.0.1.9"}}"#,
    ),
    (
        Kind::ReplicaSet,
        r#"{"metadata": {"name": "web-7d", "namespace": "shop", "resourceVersion": "19",
            "ownerReferences": [{"kind": "Deployment", "name": "web", "controller": true}]}}"#,
    ),
    (
        Kind::Job,
        r#"{"metadata": {"name": "report-1", "namespace": "jobs", "resourceVersion": "18",
            "ownerReferences": [{"kind": "CronJob", "name": "report", "controller": true}]}}"#,
    ),
    (
        Kind::Node,
        r#"{"metadata": {"name": "n1", "resourceVersion": "7"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.1"}], "images": [{"names": ["x"]}]}}"#,
    ),
    (
        Kind::Service,
        r#"{"metadata": {"name": "web", "namespace": "shop", "resourceVersion": "9"},
            "spec": {"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "ports": [{"port": 80, "targetPort": "http"}]}}"#,
    ),
    (
        Kind::EndpointSlice,
        r#"{"metadata": {"name": "web-x1", "namespace": "shop", "resourceVersion": "22", "labels": {"kubernetes.io/service-name": "web"}},
            "addressType": "IPv4", "ports": [{"port": 8080}],
            "endpoints": [{"addresses": ["10.0.0.7"], "nodeName": "n1", "targetRef": {"kind": "Pod", "name": "web-7d-abc"}}]}"#,
    ),
    (
        Kind::NetworkPolicy,
        r#"{"metadata": {"name": "deny", "namespace": "shop", "uid": "p1", "resourceVersion": "30"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}, "policyTypes": ["Ingress"]}}"#,
    ),
    (
        Kind::NetworkPolicy,
        r#"{"metadata": {"name": "egress", "namespace": "other", "resourceVersion": "31"},
            "spec": {"podSelector": {}, "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}]}]}}"#,
    ),
];

/// The same as one manifest file.
fn manifests() -> String {
    let version = |kind| match kind {
        Kind::EndpointSlice => "discovery.k8s.io/v1",
        Kind::NetworkPolicy => "networking.k8s.io/v1",
        Kind::ReplicaSet => "apps/v1",
        Kind::Job => "batch/v1",
        _ => "v1",
    };
    let typed = |(kind, json): &(Kind, &str)| {
        json.replacen('{', &format!(r#"{{"apiVersion": "{}", "kind": "{}", "#, version(*kind), kind.name()), 1)
    };
    CLUSTER.iter().map(typed).collect::<Vec<_>>().join("\n---\n")
}

fn object(index: usize) -> (Kind, Arrived) {
    let (kind, json) = CLUSTER[index];
    (kind, arrived(kind, json))
}

/// A store that has listed every kind and found nothing.
fn empty() -> Store {
    let mut store = Store::default();
    for kind in Kind::ALL {
        store.take(kind, Event::Init);
        assert!(store.snapshot().is_none(), "{kind:?} has not been listed");
        store.take(kind, Event::InitDone);
    }
    store.snapshot().expect("the first");
    store
}

fn same(a: &Snapshot, b: &Snapshot) {
    assert_eq!(a.namespaces, b.namespaces);
    assert_eq!(a.pods, b.pods);
    assert_eq!(a.nodes, b.nodes);
    assert_eq!(a.services, b.services);
    assert_eq!(a.endpoint_slices, b.endpoint_slices);
    assert_eq!(a.policies, b.policies);
}

fn listed() -> (Store, Arc<Snapshot>) {
    let mut store = Store::default();
    for kind in Kind::ALL {
        list(&mut store, kind, (0..CLUSTER.len()).map(object).filter(|(k, _)| *k == kind).map(|(_, a)| a).collect());
    }
    let snapshot = store.snapshot().expect("everything is listed");
    (store, snapshot)
}

fn list(store: &mut Store, kind: Kind, objects: Vec<Arrived>) {
    store.take(kind, Event::Init);
    for object in objects {
        store.take(kind, Event::InitApply(object));
    }
    store.take(kind, Event::InitDone);
}

#[test]
fn a_list_gives_what_the_same_manifests_give() {
    let from_files = files::snapshot_of(&manifests());
    assert_eq!(from_files.refused, Vec::<String>::new());
    let (_, snapshot) = listed();
    assert_eq!(snapshot.refused, Vec::<String>::new());
    same(&snapshot, &from_files);
    let pod = &snapshot.pods[&("shop".into(), "web-7d-abc".into())];
    assert_eq!((&*pod.workload.kind, &*pod.workload.name), ("Deployment", "web"));
    assert_eq!(snapshot.namespaces.len(), 3, "shop, and jobs and other, of which only objects are known");
}

proptest! {
    /// Events in any order between kinds, each object any number of times, older versions between.
    #[test]
    fn the_order_of_events_does_not_matter(order in proptest::collection::vec((0..CLUSTER.len(), any::<bool>()), 0..60)) {
        let mut store = empty();
        for (index, look) in order.into_iter().chain((0..CLUSTER.len()).map(|i| (i, false))) {
            let (kind, object) = object(index);
            store.take(kind, Event::Apply(object.clone()));
            // What is older than what is known changes nothing.
            let old = Arrived { version: object.version - 1, object: Err("an old one".into()), ..object.clone() };
            store.take(kind, Event::Apply(old.clone()));
            store.take(kind, Event::Delete(old));
            if look {
                store.snapshot();
            }
        }
        store.snapshot();
        let (kind, object) = object(8);
        store.take(kind, Event::Delete(Arrived { version: 90, ..object.clone() }));
        store.take(kind, Event::Apply(Arrived { version: 91, ..object }));
        store.take(kind, Event::Apply(arrived(kind, CLUSTER[8].1)));
        let last = store.snapshot();
        let last = last.expect("changed: the policy went and came between two snapshots, as another object");
        same(&last, &files::snapshot_of(&manifests()));
    }
}

#[test]
fn what_only_gives_names_is_not_waited_for_where_it_may_not_be_seen() {
    let mut store = Store::default();
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Job) {
        store.take(kind, Event::Denied);
        assert!(store.snapshot().is_none(), "{kind:?}: verdicts need most kinds");
        list(&mut store, kind, (0..CLUSTER.len()).map(object).filter(|(k, _)| *k == kind).map(|(_, a)| a).collect());
        assert!(store.snapshot().is_none(), "{kind:?}: it may still come");
    }
    store.take(Kind::Job, Event::Denied);
    let workload = |snapshot: &Snapshot| snapshot.pods[&("jobs".into(), "report-1-x".into())].workload.kind.to_string();
    assert_eq!(workload(&store.snapshot().expect("it is not waited for")), "Job");
    list(&mut store, Kind::Job, vec![object(4).1]);
    assert_eq!(workload(&store.snapshot().expect("it came")), "CronJob");
}

#[test]
fn nothing_new_is_no_snapshot() {
    let (mut store, before) = listed();
    let (kind, again) = object(1);
    store.take(kind, Event::Apply(Arrived { version: 99, ..again }));
    assert!(store.snapshot().is_none(), "a new version that says the same");
    let (kind, policy) = object(8);
    store.take(kind, Event::Delete(Arrived { version: 99, ..policy }));
    let after = store.snapshot().expect("changed");
    assert_eq!((after.policies.len(), after.generation), (1, before.generation + 1));
    assert!(Arc::ptr_eq(&before.pods, &after.pods), "what did not change is shared");
}

#[test]
fn a_relist_takes_the_place_of_what_was() {
    let (mut store, before) = listed();
    list(&mut store, Kind::Pod, vec![object(2).1]);
    let after = store.snapshot().expect("a pod less");
    assert_eq!(after.pods.keys().map(|(_, name)| &**name).collect::<Vec<_>>(), ["report-1-x"]);
    assert!(Arc::ptr_eq(&after.pods[&("jobs".into(), "report-1-x".into())], &before.pods[&("jobs".into(), "report-1-x".into())]));
    // A list that breaks off changes nothing.
    store.take(Kind::Pod, Event::Init);
    assert!(store.snapshot().is_none());
    list(&mut store, Kind::Pod, vec![object(1).1, object(2).1]);
    same(&store.snapshot().expect("back"), &before);
}

#[test]
fn a_bad_object_keeps_its_previous_version_until_a_good_one_comes() {
    let (mut store, before) = listed();
    let bad = r#"{"metadata": {"name": "deny", "namespace": "shop", "resourceVersion": "40"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"sector": {}}]}]}}"#;
    store.take(Kind::NetworkPolicy, Event::Apply(arrived(Kind::NetworkPolicy, bad)));
    let refusing = store.snapshot().expect("the refusal is told");
    assert_eq!(
        refusing.refused,
        ["NetworkPolicy shop/deny, spec.ingress[0].from[0].sector: unknown field; its previous version stays in force"]
    );
    same(&refusing, &before);
    // A relist with the same bad object is the same state.
    list(&mut store, Kind::NetworkPolicy, vec![arrived(Kind::NetworkPolicy, bad), object(9).1]);
    assert!(store.snapshot().is_none());
    let good = Arrived { version: 41, ..object(8).1 };
    store.take(Kind::NetworkPolicy, Event::Apply(good.clone()));
    assert_eq!(store.snapshot().expect("well again").refused, Vec::<String>::new());
    // One that was never good is refused and not in force; when it goes, so does the refusal.
    let new = bad.replace("\"deny\"", "\"new\"");
    store.take(Kind::NetworkPolicy, Event::Apply(arrived(Kind::NetworkPolicy, &new)));
    let snapshot = store.snapshot().expect("refused");
    assert_eq!((snapshot.policies.len(), snapshot.refused.len()), (2, 1));
    assert!(snapshot.refused[0].ends_with("; never applied: nothing of it is in force"), "{:?}", snapshot.refused);
    store.take(Kind::NetworkPolicy, Event::Delete(Arrived { version: 50, ..arrived(Kind::NetworkPolicy, &new) }));
    assert_eq!(store.snapshot().expect("gone").refused, Vec::<String>::new());
}

#[test]
fn half_filled_objects_do_no_harm() {
    let mut store = empty();
    let objects = [
        (Kind::Pod, r#"{"metadata": {"name": "p", "namespace": "a", "resourceVersion": "1"}}"#),
        (Kind::Pod, r#"{"metadata": {"name": "q", "namespace": "a"}, "spec": null, "status": {}}"#),
        (Kind::Service, r#"{"metadata": {"name": "s", "namespace": "a"}, "spec": {}}"#),
        (Kind::EndpointSlice, r#"{"metadata": {"name": "e", "namespace": "a"}, "endpoints": [{"addresses": []}]}"#),
        (Kind::Node, r#"{"metadata": {"name": "n"}}"#),
        (Kind::NetworkPolicy, r#"{"metadata": {"name": "x", "namespace": "a"}}"#),
    ];
    for (kind, json) in objects {
        store.take(kind, Event::Apply(arrived(kind, json)));
    }
    let nonsense = ["{}", "[]", "7", r#"{"metadata": 7}"#, r#"{"metadata": {"name": {}}, "spec": []}"#];
    for kind in Kind::ALL {
        for json in nonsense {
            store.take(kind, Event::Apply(arrived(kind, json)));
            store.take(kind, Event::Delete(arrived(kind, json)));
        }
    }
    let snapshot = store.snapshot().expect("changed");
    assert_eq!((snapshot.pods.len(), snapshot.services.len(), snapshot.nodes.len(), snapshot.policies.len()), (2, 1, 1, 1));
    assert_eq!(snapshot.refused, Vec::<String>::new());
}

#[test]
fn addresses_come_from_the_cni_where_the_status_has_none_yet() {
    let pod = |annotations: &str, status: &str| {
        let json = format!(
            r#"{{"metadata": {{"name": "p", "namespace": "a", "annotations": {annotations}}}, "spec": {{"nodeName": "n1"}}, "status": {status}}}"#
        );
        let mut store = empty();
        store.take(Kind::Pod, Event::Apply(arrived(Kind::Pod, &json)));
        let snapshot = store.snapshot().expect("a pod");
        let pod = snapshot.pods.values().next().expect("it");
        assert!(pod.ips.is_empty() || pod.announced.is_empty(), "the status counts where there is one");
        pod.addresses().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(pod(r#"{"cni.projectcalico.org/podIPs": "10.1.0.4/32,fd00::4/128"}"#, "{}"), ["10.1.0.4", "fd00::4"]);
    assert_eq!(pod(r#"{"vpc.amazonaws.com/pod-ips": "10.1.0.5"}"#, "{}"), ["10.1.0.5"]);
    assert_eq!(pod(r#"{"cni.projectcalico.org/podIPs": "10.1.0.4/32"}"#, r#"{"podIP": "10.1.0.9"}"#), ["10.1.0.9"]);
    assert_eq!(pod(r#"{"cni.projectcalico.org/podIPs": "", "vpc.amazonaws.com/pod-ips": "soon"}"#, "{}"), Vec::<String>::new());
}

#[test]
fn a_pods_workload_follows_owners_that_come_later_or_go() {
    let mut store = empty();
    let orphan = CLUSTER[1].1.replace(r#""pod-template-hash": "7d""#, r#""x": "y""#);
    store.take(Kind::Pod, Event::Apply(arrived(Kind::Pod, &orphan)));
    let workload = |store: &mut Store| {
        let snapshot = store.snapshot().expect("changed");
        let pod = &snapshot.pods[&("shop".into(), "web-7d-abc".into())];
        format!("{} {}", pod.workload.kind, pod.workload.name)
    };
    assert_eq!(workload(&mut store), "ReplicaSet web-7d");
    store.take(Kind::ReplicaSet, Event::Apply(object(3).1));
    assert_eq!(workload(&mut store), "Deployment web");
    list(&mut store, Kind::ReplicaSet, Vec::new());
    assert_eq!(workload(&mut store), "ReplicaSet web-7d");
    store.take(Kind::ReplicaSet, Event::Apply(Arrived { version: 60, ..object(3).1 }));
    assert_eq!(workload(&mut store), "Deployment web");
    store.take(Kind::ReplicaSet, Event::Delete(Arrived { version: 61, ..object(3).1 }));
    assert_eq!(workload(&mut store), "ReplicaSet web-7d");
}

#[test]
fn what_is_refused_is_noticed_once_at_its_object() {
    let (mut store, _) = listed();
    let bad = r#"{"metadata": {"name": "deny", "namespace": "shop", "uid": "p1", "resourceVersion": "40"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [{"sector": {}}]}]}}"#;
    store.take(Kind::NetworkPolicy, Event::Apply(arrived(Kind::NetworkPolicy, bad)));
    let notices = store.notices();
    assert_eq!(notices.len(), 1);
    let about = &notices[0].about;
    assert_eq!((about.kind, &*about.namespace, &*about.name, about.uid.as_deref()), ("NetworkPolicy", "shop", "deny", Some("p1")));
    assert!(notices[0].shared && notices[0].text.contains("spec.ingress[0].from[0].sector"), "{notices:?}");
    list(&mut store, Kind::NetworkPolicy, vec![arrived(Kind::NetworkPolicy, bad), object(9).1]);
    assert_eq!(store.notices(), [], "the same once more is no news");
}

#[test]
fn a_pod_cannot_hide_behind_its_annotations() {
    let mut store = empty();
    let odd = |version: u32, phase: &str| {
        let json = CLUSTER[1]
            .1
            .replace(r#""labels""#, r#""annotations": {"sekisho.dev/allow-sources": "all of them"}, "labels""#)
            .replace(r#""resourceVersion": "20""#, &format!(r#""resourceVersion": "{version}""#))
            .replace("Running", phase);
        arrived(Kind::Pod, &json)
    };
    store.take(Kind::Pod, Event::Apply(odd(50, "Running")));
    let snapshot = store.snapshot().expect("a pod");
    let pod = &snapshot.pods[&("shop".into(), "web-7d-abc".into())];
    assert!(pod.allow_sources.is_empty() && !pod.ips.is_empty());
    assert!(snapshot.refused[0].contains("Pod shop/web-7d-abc, metadata.annotations[sekisho.dev/allow-sources]"), "{:?}", snapshot.refused);
    let notices = store.notices();
    assert_eq!((notices.len(), &*notices[0].reason, notices[0].about.kind), (1, "AnnotationIgnored", "Pod"));
    // Its later versions and relists say nothing new; without the annotation, or without the pod, nothing is left of it.
    store.take(Kind::Pod, Event::Apply(odd(51, "Failed")));
    assert!(store.snapshot().expect("finished").pods.values().all(|pod| pod.finished));
    list(&mut store, Kind::Pod, vec![odd(52, "Failed")]);
    assert_eq!(store.notices(), []);
    assert!(store.snapshot().is_none_or(|s| s.refused.len() == 1));
    store.take(Kind::Pod, Event::Apply(Arrived { version: 53, ..object(1).1 }));
    assert_eq!(store.snapshot().expect("well").refused, Vec::<String>::new());
}

#[test]
fn a_pod_keeps_its_addresses_to_its_end() {
    let mut store = empty();
    let mut version = 100;
    let mut last: Arc<std::collections::BTreeMap<_, Arc<crate::inventory::Pod>>> = Arc::default();
    let mut seen = |store: &mut Store, change: &dyn Fn(&str) -> String| {
        version += 1;
        let json = change(CLUSTER[1].1).replace(r#""resourceVersion": "20""#, &format!(r#""resourceVersion": "{version}""#));
        store.take(Kind::Pod, Event::Apply(arrived(Kind::Pod, &json)));
        let newer = store.snapshot();
        let pods = newer.map_or_else(|| last.clone(), |snapshot| snapshot.pods.clone());
        last.clone_from(&pods);
        let pod = pods.values().next().expect("the pod").clone();
        (pod.addresses().len(), pod.finished, pod.host_network)
    };
    // Init containers at work, restarting, terminating: all the same.
    assert_eq!(seen(&mut store, &|json| json.replace("Running", "Pending")), (2, false, false));
    assert_eq!(seen(&mut store, &|json| json.to_owned()), (2, false, false));
    assert_eq!(
        seen(&mut store, &|json| json.replace(r#""uid""#, r#""deletionTimestamp": "2026-01-01T00:00:00Z", "uid""#)),
        (2, false, false)
    );
    assert_eq!(seen(&mut store, &|json| json.replace("Running", "Unknown")), (2, false, false));
    for phase in ["Succeeded", "Failed"] {
        assert_eq!(seen(&mut store, &|json| json.replace("Running", phase)), (2, true, false));
    }
    // The node's addresses, not announced ones.
    let host = |json: &str| {
        json.replace(r#""nodeName""#, r#""hostNetwork": true, "nodeName""#)
            .replace(r#""labels""#, r#""annotations": {"cni.projectcalico.org/podIPs": "10.9.9.9/32"}, "labels""#)
            .replace(r#""podIPs": [{"ip": "10.0.0.7"}, {"ip": "fd00::7"}]"#, r#""podIPs": []"#)
    };
    assert_eq!(seen(&mut store, &host), (0, false, true));
}
