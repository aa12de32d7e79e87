//! Kinds of pods and moments of their lives: init containers, restarts, static pods, hostNetwork pods, pods that are told to
//! end and take their time, pods that have ended. As long as one has its address it is judged and named as itself.

use std::fs;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Stage;
use super::pods::{Pod, is_ready, server};
use super::probe::{PATIENCE, Protocol, SILENCE, answered_from};
use super::scenarios::policy;
use crate::cluster::{PROBE, processes_of_pod, root};

const NAMESPACE: &str = "e2e-kinds";
const SOON: Duration = Duration::from_secs(30);

pub(super) fn every_kind_of_pod_keeps_its_address_to_its_end(stage: &Stage) -> Result<()> {
    stage.namespace(NAMESPACE)?;
    // Every pod may be dialled by the friend alone, and dials nobody but the friend.
    let friend = json!([{"podSelector": {"matchLabels": {"app": "friend"}}}]);
    let spec = json!({
        "podSelector": {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["friend", "stranger"]}]},
        "policyTypes": ["Ingress", "Egress"], "ingress": [{"from": friend}], "egress": [{"to": friend}],
    });
    stage.api.put_policy(&policy(NAMESPACE, "friends", &spec))?;
    for name in ["friend", "stranger"] {
        stage.make(&server(NAMESPACE, name, Some("node-1"), &json!({"app": name})))?;
    }
    let (friend, stranger) = (stage.ready_pod(NAMESPACE, "friend")?, stage.ready_pod(NAMESPACE, "stranger")?);
    let ends = (&friend, &stranger);
    init_containers(stage, ends)?;
    restarts(stage, ends)?;
    static_pods(stage, ends)?;
    host_network(stage, ends)?;
    terminating(stage, ends)?;
    stage.covered(SOON)?;
    stage.forget(&[NAMESPACE])
}

/// The pod is judged as itself: the friend reaches it, the stranger does not.
fn judged(addresses: &[IpAddr], (friend, stranger): (&Pod, &Pod), what: &str) -> Result<()> {
    for address in addresses {
        ensure!(answered_from(&friend.netns(), Protocol::Tcp, *address, 80, PATIENCE)?, "{what}: the friend does not reach {address}");
        ensure!(!answered_from(&stranger.netns(), Protocol::Tcp, *address, 80, SILENCE)?, "{what}: the stranger reaches {address}");
    }
    Ok(())
}

/// Words of a container that sends datagrams to a pod.
fn knock(pod: &Pod) -> Value {
    json!(["knock", format!("{}:80", pod.addresses[0]), "20", "50"])
}

/// Records of node-1 after `book` of flows that a pod opened towards another.
fn recorded(stage: &Stage, book: u64, uid: &str, to: &Pod) -> Result<Vec<Value>> {
    let to = to.addresses[0].to_string();
    let all = stage.records("node-1")?.into_iter().filter(|record| record["seq"].as_u64() > Some(book) && record["kind"] == "start");
    Ok(all
        .filter(|record| {
            record["source"]["pod"]["uid"] == uid && record["direction"] == "egress" && record["destination"]["ip"] == to.as_str()
        })
        .collect())
}

/// What an init container sends is the pod's, judged from its first packet.
fn init_containers(stage: &Stage, ends: (&Pod, &Pod)) -> Result<()> {
    let book = stage.last_record("node-1")?;
    let mut pod = server(NAMESPACE, "init", Some("node-1"), &json!({"app": "init"}));
    let init = |name: &str, to: &Pod| json!({"name": name, "image": PROBE, "imagePullPolicy": "Never", "args": knock(to)});
    pod["spec"]["initContainers"] = json!([init("allowed", ends.0), init("denied", ends.1)]);
    stage.make(&pod)?;
    let pod = stage.ready_pod(NAMESPACE, "init")?;
    judged(&pod.addresses, ends, "after its init containers")?;
    for (to, verdict) in [(ends.0, "allowed"), (ends.1, "denied")] {
        let records = recorded(stage, book, &pod.uid, to)?;
        // A pod that is held is denied for a moment; never the other way round.
        let right = records.iter().filter(|record| record["verdict"] == verdict).count();
        let wrong = records.iter().any(|record| record["verdict"] != verdict && record["reason"] != "not_ready");
        let others: Vec<_> = records.iter().filter(|record| record["verdict"] != verdict).collect();
        ensure!(
            right > 0 && !wrong,
            "of the init container's flows to {} {right} of {} are {verdict}, but: {others:#?}",
            to.name,
            records.len()
        );
    }
    Ok(())
}

/// A container that is started anew is in the same pod.
fn restarts(stage: &Stage, ends: (&Pod, &Pod)) -> Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/init");
    let pod = stage.ready_pod(NAMESPACE, "init")?;
    for pid in processes_of_pod("node-1", &pod.uid)? {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        if command.contains("serve") {
            sekisho_lab::kill(pid, 9).context("cannot end the container")?;
        }
    }
    stage.client.wait(SOON, "the container is started anew", |_| {
        let pod = stage.api.must("GET", &path, None)?.body;
        Ok(pod["status"]["containerStatuses"][0]["restartCount"] == 1 && is_ready(&pod))
    })?;
    judged(&pod.addresses, ends, "after a restart")
}

/// A pod that the kubelet runs from a file; its control group is named otherwise.
fn static_pods(stage: &Stage, ends: (&Pod, &Pod)) -> Result<()> {
    let file = root().join("node-1/static/e2e-kinds.json");
    let mut pod = server(NAMESPACE, "static", None, &json!({"app": "static"}));
    pod["kind"] = "Pod".into();
    fs::write(&file, pod.to_string()).context("cannot write the static pod's file")?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/static-node-1");
    let outcome = (|| {
        let mut pod = Value::Null;
        stage.client.wait(Duration::from_secs(60), "the static pod is ready", |_| {
            pod = stage.api.ask("GET", &path, None)?.body;
            Ok(is_ready(&pod))
        })?;
        let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
        let addresses: Vec<IpAddr> = addresses.filter_map(|ip| ip["ip"].as_str()?.parse().ok()).collect();
        judged(&addresses, ends, "a static pod")
    })();
    fs::remove_file(&file)?;
    stage.client.wait(SOON, "the static pod is gone", |_| Ok(stage.api.ask("GET", &path, None)?.status == 404))?;
    outcome
}

/// A pod on the node's network is recorded under its own name, and not judged by a policy that selects it.
fn host_network(stage: &Stage, ends: (&Pod, &Pod)) -> Result<()> {
    let book = stage.last_record("node-1")?;
    let mut pod = server(NAMESPACE, "host", Some("node-1"), &json!({"app": "host"}));
    pod["spec"]["hostNetwork"] = true.into();
    pod["spec"]["restartPolicy"] = "Never".into();
    let container = &mut pod["spec"]["containers"][0];
    (container["ports"], container["readinessProbe"]) = (json!([]), Value::Null);
    // Found before it speaks: a control group is the only place at which it can be told from the node.
    container["args"] = json!(["knock", format!("{}:80", ends.1.addresses[0]), "100", "20"]);
    stage.make(&pod)?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/host");
    let mut uid = String::new();
    stage.client.wait(SOON, "the pod has ended", |_| {
        let pod = stage.api.must("GET", &path, None)?.body;
        pod["metadata"]["uid"].as_str().unwrap_or_default().clone_into(&mut uid);
        Ok(pod["status"]["phase"] == "Succeeded")
    })?;
    std::thread::sleep(Duration::from_millis(300));
    let records = recorded(stage, book, &uid, ends.1)?;
    ensure!(!records.is_empty(), "nothing of a hostNetwork pod is recorded");
    let other = records.iter().find(|record| record["verdict"] != "allowed" || record["attach"] != "cgroup");
    ensure!(other.is_none(), "{other:#?}");
    stage.remove(NAMESPACE, "host")
}

/// Told to end, a pod may take its time; until then it is who it was.
fn terminating(stage: &Stage, ends: (&Pod, &Pod)) -> Result<()> {
    let mut pod = server(NAMESPACE, "slow", Some("node-1"), &json!({"app": "slow"}));
    pod["spec"]["terminationGracePeriodSeconds"] = 10.into();
    pod["spec"]["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 5}}});
    stage.make(&pod)?;
    let pod = stage.ready_pod(NAMESPACE, "slow")?;
    judged(&pod.addresses, ends, "before its end")?;
    let book = stage.last_record("node-1")?;
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/slow");
    stage.api.must("DELETE", &path, None)?;
    std::thread::sleep(Duration::from_secs(2));
    judged(&pod.addresses, ends, "while it ends")?;
    ensure!(stage.api.must("GET", &path, None)?.body["metadata"]["deletionTimestamp"].is_string(), "it has ended too early to be seen");
    let to_it = stage.records("node-1")?.into_iter().filter(|record| {
        record["seq"].as_u64() > Some(book) && record["kind"] == "start" && record["destination"]["ip"] == pod.addresses[0].to_string()
    });
    for record in to_it {
        ensure!(record["destination"]["pod"]["uid"] == pod.uid.as_str(), "{record:#}");
    }
    stage.client.wait(SOON, "the pod is gone", |_| Ok(stage.api.ask("GET", &path, None)?.status == 404))
}
