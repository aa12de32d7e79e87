//! A pod's workload has the same name, whichever source tells of it.

use super::resource::{Kind, arrived};
use super::store::{Event, Store};
use crate::inventory::{Snapshot, files};

/// The same objects through either source name the same workloads: `(owner references of the pod, workload)`.
#[test]
fn both_sources_name_the_same_workloads() {
    let controller = |kind: &str, name: &str| format!(r#"{{"kind": "{kind}", "name": "{name}", "controller": true}}"#);
    let config_map = r#"{"kind": "ConfigMap", "name": "settings"}"#;
    let named: [(String, &str); 12] = [
        (controller("ReplicaSet", "web-1"), "Deployment/web"),
        (controller("ReplicaSet", "canary-1"), "Rollout/canary"),
        (controller("ReplicaSet", "odd-1"), "ReplicaSet/odd-1"),
        (controller("ReplicaSet", "held-1"), "ReplicaSet/held-1"),
        (controller("Job", "nightly-1"), "CronJob/nightly"),
        (controller("Job", "train-0"), "Job/train-0"),
        (controller("StatefulSet", "db"), "StatefulSet/db"),
        (controller("DaemonSet", "log"), "DaemonSet/log"),
        (controller("Deployment", "web"), "Deployment/web"),
        (controller("PostgresCluster", "pg"), "PostgresCluster/pg"),
        (config_map.to_owned(), "Pod/p10"),
        (format!("{config_map}, {}", controller("StatefulSet", "db")), "StatefulSet/db"),
    ];
    let owner = |group: &str, kind: &str, name: &str, above: &str| {
        format!(
            r#"{{"apiVersion": "{group}/v1", "kind": "{kind}", "metadata": {{"name": "{name}", "namespace": "shop", "ownerReferences": [{above}]}}}}"#
        )
    };
    let owners = [
        (Kind::ReplicaSet, owner("apps", "ReplicaSet", "web-1", &controller("Deployment", "web"))),
        (Kind::ReplicaSet, owner("apps", "ReplicaSet", "canary-1", &controller("Rollout", "canary"))),
        (Kind::ReplicaSet, owner("apps", "ReplicaSet", "odd-1", &controller("Widget", "odd"))),
        (Kind::ReplicaSet, owner("apps", "ReplicaSet", "held-1", config_map)),
        (Kind::Job, owner("batch", "Job", "nightly-1", &controller("CronJob", "nightly"))),
        (Kind::Job, owner("batch", "Job", "train-0", &controller("JobSet", "train"))),
    ];
    // What the API server is not asked for; a folder may hold it.
    let above = [
        owner("apps", "Deployment", "web", &controller("App", "suite")),
        owner("apps", "StatefulSet", "db", &controller("Postgres", "pg")),
        owner("apps", "DaemonSet", "log", &controller("Logging", "all")),
    ];
    let pod = |number: usize, above: &str| {
        format!(
            r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "p{number}", "namespace": "shop", "uid": "u{number}", "ownerReferences": [{above}]}}}}"#
        )
    };
    let pods: Vec<String> = named.iter().enumerate().map(|(number, (above, _))| pod(number, above)).collect();
    let texts: Vec<&str> = owners.iter().map(|(_, text)| text).chain(&above).chain(&pods).map(String::as_str).collect();
    let from_files = files::snapshot_of(&texts.join("\n---\n"));
    let mut store = Store::default();
    for kind in Kind::ALL {
        let of_kind = owners.iter().filter(|(k, _)| *k == kind).map(|(_, text)| text);
        let texts: Vec<&String> = if kind == Kind::Pod { pods.iter().collect() } else { of_kind.collect() };
        store.take(kind, Event::Init);
        for text in texts {
            store.take(kind, Event::InitApply(arrived(kind, text)));
        }
        store.take(kind, Event::InitDone);
    }
    let from_server = store.snapshot().expect("everything is listed");
    for (number, (_, wanted)) in named.iter().enumerate() {
        let of = |snapshot: &Snapshot| {
            let workload = &snapshot.pods[&("shop".into(), format!("p{number}").into())].workload;
            format!("{}/{}", workload.kind, workload.name)
        };
        assert_eq!((of(&from_files).as_str(), of(&from_server).as_str()), (*wanted, *wanted), "pod {number}");
    }
}
