//! What the API server lets through although nobody should write it: ten thousand ports, thousands of labels, policies that
//! select everything, namespaces deleted under load. No agent may fall over, and no policy may be half in force.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Map, Value, json};

use super::pods::{Pod, server};
use super::probe::{PATIENCE, Protocol, SILENCE, answered, answered_from};
use super::scenarios::policy;
use super::{NAMESPACE as AGENTS, Stage};

const NAMESPACE: &str = "e2e-odd";
const DOOMED: &str = "e2e-odd-doomed";

pub(super) fn objects_that_the_server_lets_through_do_no_harm(stage: &Stage) -> Result<()> {
    let before = restarts(stage)?;
    stage.namespace(NAMESPACE)?;
    stage.namespace(DOOMED)?;
    stage.make(&server(NAMESPACE, "server", Some("node-1"), &json!({"app": "server"})))?;
    stage.make(&server(NAMESPACE, "stranger", Some("node-1"), &json!({"app": "stranger"})))?;
    let mut labels: Map<String, Value> = (0..3000).map(|n| (format!("label-{n:04}"), "x".repeat(60).into())).collect();
    labels.insert("app".to_owned(), "labelled".into());
    stage.make(&server(NAMESPACE, "labelled", Some("node-1"), &labels.into()))?;
    let pods = stage.ready(NAMESPACE, 3)?;
    let [labelled, target, stranger] = pods.as_slice() else { anyhow::bail!("three pods were made") };

    ten_thousand_ports(stage, target, labelled, stranger)?;
    everything(stage, target, stranger)?;
    deleted_under_load(stage, target, stranger)?;

    let after = restarts(stage)?;
    ensure!(before == after, "agents fell over: {before:?}, then {after:?}");
    stage.covered(Duration::from_secs(30))?;
    stage.forget(&[NAMESPACE])
}

/// A policy of ten thousand ports, for a pod that is known by one of three thousand labels; and another ten thousand instead.
fn ten_thousand_ports(stage: &Stage, target: &Pod, labelled: &Pod, stranger: &Pod) -> Result<()> {
    let put = |first: u32, last: u32| -> Result<()> {
        let ports: Vec<Value> = (1..=10_000).map(|n| json!({"port": first + n * 2})).chain([json!({"port": last})]).collect();
        let from = json!([{"podSelector": {"matchLabels": {"label-2999": "x".repeat(60)}}}]);
        let selected = json!({"matchLabels": {"app": "server"}});
        let spec = json!({"podSelector": selected, "policyTypes": ["Ingress"], "ingress": [{"from": from, "ports": ports}]});
        stage.api.put_policy(&policy(NAMESPACE, "ports", &spec)).map(drop)
    };
    let closed = |who: &Pod| Ok(!answered_from(&who.netns(), Protocol::Tcp, target.addresses[0], 80, SILENCE)?);
    put(20_000, 80)?;
    stage.client.wait(Duration::from_secs(20), "the policy is in force", |_| closed(stranger))?;
    for address in &target.addresses {
        ensure!(answered_from(&labelled.netns(), Protocol::Tcp, *address, 80, PATIENCE)?, "80 is one of ten thousand ports, at {address}");
        ensure!(!answered_from(&labelled.netns(), Protocol::Tcp, *address, 81, SILENCE)?, "81 is none of them, at {address}");
        ensure!(!answered_from(&stranger.netns(), Protocol::Tcp, *address, 80, SILENCE)?, "a stranger, at {address}");
    }
    // Both have room beside each other while one takes the other's place.
    put(20_001, 81)?;
    stage.client.wait(Duration::from_secs(20), "its ports are others", |_| closed(labelled))?;
    stage.api.drop_policies(NAMESPACE)
}

/// A policy for every pod, whose rules name every pod of every namespace and every address, many times.
fn everything(stage: &Stage, target: &Pod, stranger: &Pod) -> Result<()> {
    let all =
        json!({"from": [{"namespaceSelector": {}, "podSelector": {}}, {"ipBlock": {"cidr": "0.0.0.0/0"}}, {"ipBlock": {"cidr": "::/0"}}]});
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": vec![all; 500]});
    stage.api.put_policy(&policy(NAMESPACE, "everything", &spec))?;
    std::thread::sleep(Duration::from_secs(1));
    for address in &target.addresses {
        ensure!(answered_from(&stranger.netns(), Protocol::Tcp, *address, 80, PATIENCE)?, "everybody may, at {address}");
    }
    stage.api.drop_policies(NAMESPACE)
}

/// A whole namespace goes while its pods speak: what its label allowed ends with it, and nobody else gets in meanwhile.
fn deleted_under_load(stage: &Stage, target: &Pod, stranger: &Pod) -> Result<()> {
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"namespaceSelector": {"matchLabels": {"ns": DOOMED}}}]}],
    });
    stage.api.put_policy(&policy(NAMESPACE, "doomed", &spec))?;
    for number in 0..6 {
        stage.make(&server(DOOMED, &format!("client-{number}"), Some("node-1"), &json!({"app": "client"})))?;
        stage.api.put_policy(&policy(DOOMED, &format!("p{number}"), &json!({"podSelector": {}, "policyTypes": ["Ingress"]})))?;
    }
    let clients = stage.ready(DOOMED, 6)?;
    ensure!(answered_from(&stranger.netns(), Protocol::Tcp, target.addresses[0], 80, SILENCE)?.eq(&false), "the stranger may not");
    let (stop, leaked, spoken) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| -> Result<()> {
        let (stop, leaked, spoken) = (&stop, &leaked, &spoken);
        let speak = |pod: &Pod, count: &'_ AtomicU64| {
            let (netns, to): (_, IpAddr) = (pod.netns(), target.addresses[0]);
            // A namespace that is gone ends its speaker.
            let _gone = netns.within(|| {
                while !stop.load(Ordering::Relaxed) {
                    count.fetch_add(u64::from(answered(Protocol::Udp, to, 80, Duration::from_millis(50))), Ordering::Relaxed);
                }
                Ok(())
            });
        };
        for client in &clients {
            scope.spawn(move || speak(client, spoken));
        }
        scope.spawn(move || speak(stranger, leaked));
        std::thread::sleep(Duration::from_secs(1));
        let path = format!("/api/v1/namespaces/{DOOMED}");
        let outcome = stage.api.must("DELETE", &path, None).and_then(|_| {
            stage.client.wait(Duration::from_secs(90), "the namespace is gone", |_| Ok(stage.api.ask("GET", &path, None)?.status == 404))
        });
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    let (leaked, spoken) = (leaked.into_inner(), spoken.into_inner());
    ensure!(leaked == 0, "a stranger was answered {leaked} times while a namespace went");
    ensure!(spoken > 100, "its pods spoke only {spoken} times");
    eprintln!("    a namespace of six pods went after {spoken} exchanges; nobody else got in");
    stage.api.drop_policies(NAMESPACE)
}

/// How often the agents' containers were started anew.
fn restarts(stage: &Stage) -> Result<Vec<(Value, Value)>> {
    let pods = stage.api.list(&format!("/api/v1/namespaces/{AGENTS}/pods?labelSelector=app.kubernetes.io/name=sekisho"))?;
    Ok(pods.iter().map(|pod| (pod["metadata"]["uid"].clone(), pod["status"]["containerStatuses"][0]["restartCount"].clone())).collect())
}
