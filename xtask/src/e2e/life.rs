//! Pods' lives: they come and go, their kubelets probe them, their addresses are used again.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Stage;
use super::pods::{Pod, is_ready, server};
use super::probe::{PATIENCE, Protocol, SILENCE, answered_from};
use super::scenarios::{deny_all, policy};
use crate::cluster::{give_next, node_name};

pub(super) fn pods_come_and_go_on_both_nodes(stage: &Stage) -> Result<()> {
    stage.namespace("e2e-life")?;
    let mut deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "e2e-life"},
        "spec": {
            "replicas": 8,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": server("e2e-life", "web", None, &json!({}))["spec"].clone(),
            },
        },
    });
    deployment["spec"]["template"]["spec"]["topologySpreadConstraints"] = json!([{
        "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
        "labelSelector": {"matchLabels": {"app": "web"}},
    }]);
    stage.api.must("POST", "/apis/apps/v1/namespaces/e2e-life/deployments", Some(&deployment))?;
    let path = "/apis/apps/v1/namespaces/e2e-life/deployments/web/scale";
    for replicas in [8, 2, 10, 0] {
        stage.api.must("PATCH", path, Some(&json!({"spec": {"replicas": replicas}})))?;
        let pods = stage.ready("e2e-life", replicas)?;
        // Taking pods away pays no heed to where they are.
        for number in stage.plan.numbers().filter(|_| replicas >= 8) {
            ensure!(pods.iter().any(|pod| pod.node == node_name(number)), "no pod is on {}", node_name(number));
        }
        stage.covered(Duration::from_secs(20)).with_context(|| format!("with {replicas} replicas"))?;
    }
    stage.forget(&["e2e-life"])
}

/// A kubelet on the pod's own node may always reach it, and nobody else may.
pub(super) fn kubelet_probes_of_an_isolated_pod_keep_passing(stage: &Stage) -> Result<()> {
    stage.namespace("e2e-probes")?;
    stage.api.put_policy(&deny_all("e2e-probes", "Ingress"))?;
    for (name, probe) in [("a", json!({"tcpSocket": {"port": 81}})), ("b", json!({"tcpSocket": {"port": 80}}))] {
        let mut pod = server("e2e-probes", name, None, &json!({}));
        let container = &mut pod["spec"]["containers"][0];
        for kind in ["readinessProbe", "livenessProbe", "startupProbe"] {
            container[kind] = probe.clone();
            container[kind]["periodSeconds"] = 1.into();
            container[kind]["failureThreshold"] = if kind == "startupProbe" { 20 } else { 1 }.into();
        }
        stage.make(&pod)?;
    }
    let pods = stage.ready("e2e-probes", 2)?;
    ensure!(!answered_from(&pods[0].netns(), Protocol::Tcp, pods[1].addresses[0], 80, SILENCE)?, "the pod is not isolated at all");
    let until = Instant::now() + Duration::from_secs(12);
    while Instant::now() < until {
        for pod in stage.api.list("/api/v1/namespaces/e2e-probes/pods")? {
            ensure!(is_ready(&pod), "a probe failed: {}", pod["status"]);
            ensure!(pod["status"]["containerStatuses"][0]["restartCount"] == 0, "a liveness probe failed: {}", pod["status"]);
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    stage.forget(&["e2e-probes"])
}

/// An address allowed by its pod's label loses the permission with the pod, and the next owner has its own: in the
/// verdicts from the first connection on, and in the records.
pub(super) fn a_reused_address_has_its_new_owner(stage: &Stage) -> Result<()> {
    const ROUNDS: u32 = 12;
    stage.namespace("e2e-reuse")?;
    stage.make(&server("e2e-reuse", "db", Some("node-1"), &json!({"app": "db"})))?;
    let db = stage.ready_pod("e2e-reuse", "db")?;
    let allow = json!({
        "podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"may": "yes"}}}]}],
    });
    stage.api.put_policy(&policy("e2e-reuse", "db", &allow))?;
    let mut first: Option<Vec<IpAddr>> = None;
    let mut book = stage.last_record("node-1")?;
    for round in 0..ROUNDS {
        let may = round % 2 == 0;
        let name = format!("client-{round}");
        if let Some(addresses) = &first {
            give_next("node-1", addresses)?;
        }
        stage.make(&server("e2e-reuse", &name, Some("node-1"), &json!({"may": if may { "yes" } else { "no" }})))?;
        let client = stage.ready_pod("e2e-reuse", &name)?;
        let wanted = first.get_or_insert_with(|| client.addresses.clone());
        ensure!(client.addresses == *wanted, "the CNI gave {:?}, not {wanted:?} again", client.addresses);
        for address in &db.addresses {
            let answered = answered_from(&client.netns(), Protocol::Tcp, *address, 80, if may { PATIENCE } else { SILENCE })?;
            ensure!(answered == may, "round {round}: may={may}, to {address}: answered={answered}");
        }
        std::thread::sleep(Duration::from_millis(300));
        book = names_of_source(stage, &client, book)?;
        stage.remove("e2e-reuse", &name)?;
    }
    eprintln!("    {ROUNDS} owners, one after the other");
    stage.forget(&["e2e-reuse"])
}

/// Fails unless every record after `book` from the client's addresses names the client, and there is one of each
/// family; returns how far the book was read.
fn names_of_source(stage: &Stage, client: &Pod, book: u64) -> Result<u64> {
    let mut last = book;
    let mut families = [0; 2];
    for record in stage.records(&client.node)? {
        let seq = record["seq"].as_u64().unwrap_or_default();
        last = last.max(seq);
        let source = &record["source"];
        let Some(at) = client.addresses.iter().position(|address| source["ip"] == address.to_string()) else { continue };
        if seq > book && record["kind"] == "start" {
            ensure!(source["pod"]["uid"] == client.uid.as_str(), "{} is recorded as {}: {record:#}", client.name, source["pod"]);
            families[at] += 1;
        }
    }
    ensure!(families.iter().all(|count| *count > 0), "of {} there are {families:?} records", client.name);
    Ok(last)
}
