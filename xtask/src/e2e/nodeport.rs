//! NodePort Services of isolated pods. Who comes through a NodePort wears a node's address; that address may
//! reach a pod only if the connection begins in the pod's own node.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::Stage;
use super::pods::server;
use super::probe::{PATIENCE, Protocol, SILENCE, answered_from};
use super::scenarios::deny_all;
use crate::cluster::{control_plane_netns, node_addresses, node_netns};

const PORT: u16 = 30_081;

pub(super) fn outsiders_do_not_pass_isolation(stage: &Stage) -> Result<()> {
    stage.namespace("e2e-nodeport")?;
    stage.make(&server("e2e-nodeport", "backend", Some("node-1"), &json!({"app": "backend"})))?;
    stage.make(&server("e2e-nodeport", "neighbour", Some("node-1"), &json!({"app": "neighbour"})))?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "backend", "namespace": "e2e-nodeport"},
        "spec": {
            "type": "NodePort", "selector": {"app": "backend"}, "ipFamilyPolicy": "RequireDualStack",
            "ports": [{"port": 80, "targetPort": 80, "nodePort": PORT}],
        },
    });
    stage.api.must("POST", "/api/v1/namespaces/e2e-nodeport/services", Some(&service))?;
    let pods = stage.ready("e2e-nodeport", 2)?;
    let (outside, neighbour) = (control_plane_netns(), pods[1].netns());
    let other = stage.plan.numbers().nth(1).map(node_netns);
    // kube-proxy's nftables mode takes NodePorts on the node's first family alone.
    let address = node_addresses(1)[0];
    let ready = || answered_from(&outside, Protocol::Tcp, address, PORT, Duration::from_secs(1));
    stage.client.wait(Duration::from_secs(20), "the NodePort answers", |_| ready()).context("before any policy")?;
    ensure!(answered_from(&neighbour, Protocol::Tcp, address, PORT, PATIENCE)?, "a neighbour does not reach the NodePort");
    stage.api.put_policy(&deny_all("e2e-nodeport", "Ingress"))?;
    std::thread::sleep(Duration::from_millis(500));
    ensure!(!answered_from(&outside, Protocol::Tcp, address, PORT, SILENCE)?, "an outsider passes a NodePort to an isolated pod");
    ensure!(!answered_from(&neighbour, Protocol::Tcp, address, PORT, SILENCE)?, "a neighbour passes a NodePort to an isolated pod");
    if let Some(other) = other {
        ensure!(!answered_from(&other, Protocol::Tcp, address, PORT, SILENCE)?, "another node passes a NodePort to an isolated pod");
        let through_other = node_addresses(2)[0];
        ensure!(!answered_from(&outside, Protocol::Tcp, through_other, PORT, SILENCE)?, "an outsider passes the other node's NodePort");
    }
    stage.forget(&["e2e-nodeport"])
}
