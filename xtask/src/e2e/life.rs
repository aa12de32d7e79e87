//! Pods' lives: they come and go, their kubelets probe them, their addresses are used again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Stage;
use super::pods::{is_ready, server};
use super::probe::{PATIENCE, Protocol, SILENCE, answered_from};
use super::scenarios::{deny_all, policy};
use crate::cluster::node_name;

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
        for number in stage.plan.numbers().filter(|_| replicas > 0) {
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

/// An address allowed by its pod's label loses the permission with the pod, and the next owner has its own.
pub(super) fn a_reused_address_has_its_new_owner(stage: &Stage) -> Result<()> {
    stage.namespace("e2e-reuse")?;
    stage.make(&server("e2e-reuse", "db", Some("node-1"), &json!({"app": "db"})))?;
    let db = stage.ready_pod("e2e-reuse", "db")?;
    let allow = json!({
        "podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"may": "yes"}}}]}],
    });
    stage.api.put_policy(&policy("e2e-reuse", "db", &allow))?;
    let mut seen: Vec<String> = Vec::new();
    let mut reused = 0;
    // The address book of the CNI goes round: one pod after the other on the same few addresses.
    for round in 0..6 {
        let may = if round % 2 == 0 { "yes" } else { "no" };
        let name = format!("client-{round}");
        stage.make(&pinned(&name, may, &db.node))?;
        let client = stage.ready_pod("e2e-reuse", &name)?;
        let address = client.addresses[0].to_string();
        reused += u32::from(seen.contains(&address));
        seen.push(address);
        for address in &db.addresses {
            let answered = answered_from(&client.netns(), Protocol::Tcp, *address, 80, if round % 2 == 0 { PATIENCE } else { SILENCE })?;
            ensure!(answered == (round % 2 == 0), "round {round}: may={may}, from {} to {address}: {answered}", client.addresses[0]);
        }
        stage.remove("e2e-reuse", &name)?;
    }
    eprintln!("    {reused} addresses were used again");
    stage.forget(&["e2e-reuse"])
}

/// A client that asks the CNI for the same address every time.
fn pinned(name: &str, may: &str, node: &str) -> Value {
    server("e2e-reuse", name, Some(node), &json!({"may": may}))
}
