//! A pod's first packets. Its only act is to send, from its first moment on; what arrives is counted on the wire in
//! front of the server, not told by anybody.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sekisho_lab::{Heading, Sniffer};
use serde_json::{Value, json};

use super::Stage;
use super::pods::{Pod, server};
use super::scenarios::policy;
use crate::cluster::{PROBE, node_name};

const NAMESPACE: &str = "e2e-first";
/// Senders of each kind.
const SENDERS: u8 = 50;
/// What each one sends, and how many a second.
const DATAGRAMS: u64 = 500;
const RATE: u32 = 500;

pub(super) fn a_pods_first_packets_are_judged(stage: &Stage) -> Result<()> {
    stage.namespace(NAMESPACE)?;
    stage.make(&server(NAMESPACE, "server", Some("node-1"), &json!({"app": "server"})))?;
    let target = stage.ready_pod(NAMESPACE, "server")?;
    let to_server = json!([{"to": [{"podSelector": {"matchLabels": {"app": "server"}}}]}]);
    for (kind, egress) in [("denied", json!([])), ("allowed", to_server)] {
        let spec = json!({"podSelector": {"matchLabels": {"kind": kind}}, "policyTypes": ["Egress"], "egress": egress});
        stage.api.put_policy(&policy(NAMESPACE, kind, &spec))?;
    }
    let denied = arrived(stage, &target, "denied")?;
    ensure!(denied.iter().all(|(_, packets)| *packets == 0), "of senders that may not send, packets arrived: {denied:?}");
    let allowed = arrived(stage, &target, "allowed")?;
    let mut held: Vec<u64> = allowed.iter().map(|(_, packets)| DATAGRAMS.saturating_sub(*packets) * 1000 / u64::from(RATE)).collect();
    held.sort_unstable();
    let at = |percent: usize| held[(held.len() - 1) * percent / 100];
    let text = format!("{SENDERS} allowed senders were held {} ms (p50), {} ms (p99), {} ms (worst)", at(50), at(99), at(100));
    eprintln!("    of {SENDERS} denied senders nothing arrived; {text}");
    // All of them start at once, and the agent shares two processors with the runtimes that start them.
    ensure!(at(50) <= 20 && at(100) <= 1000, "{text}");
    stage.forget(&[NAMESPACE])
}

/// Lets senders of a kind live their short lives, on all nodes; returns what of each one arrived.
fn arrived(stage: &Stage, target: &Pod, kind: &str) -> Result<Vec<(IpAddr, u64)>> {
    let sniffer = Sniffer::start(&target.netns(), "eth0").context("cannot count at the server")?;
    for number in 0..SENDERS {
        stage.make(&sender(kind, number, target.addresses[0], &node_name(number % stage.plan.nodes + 1)))?;
    }
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=kind={kind}");
    let mut pods = Vec::new();
    stage.client.wait(Duration::from_secs(120), "every sender has ended", |_| {
        pods = stage.api.list(&path)?;
        Ok(pods.iter().all(|pod| pod["status"]["phase"] == "Succeeded" || pod["status"]["phase"] == "Failed"))
    })?;
    let seen = sniffer.stop()?;
    pods.iter()
        .map(|pod| {
            let name = &pod["metadata"]["name"];
            ensure!(pod["status"]["phase"] == "Succeeded", "{name} could not send: {}", pod["status"]);
            let address: IpAddr = pod["status"]["podIP"].as_str().unwrap_or_default().parse().context("a sender's address")?;
            let from_it = seen.iter().filter(|(flow, _)| flow.heading == Heading::In && flow.protocol == 17 && flow.source.0 == address);
            Ok((address, from_it.map(|(_, count)| count.packets).sum()))
        })
        .collect()
}

fn sender(kind: &str, number: u8, to: IpAddr, node: &str) -> Value {
    let words = ["knock", &format!("{to}:80"), &DATAGRAMS.to_string(), &RATE.to_string()];
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("{kind}-{number}"), "namespace": NAMESPACE, "labels": {"kind": kind}},
        "spec": {
            "nodeName": node, "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false, "enableServiceLinks": false,
            "containers": [{
                "name": "sender", "image": PROBE, "imagePullPolicy": "Never", "args": words,
            }],
        },
    })
}
