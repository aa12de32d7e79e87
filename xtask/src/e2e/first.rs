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
const DATAGRAMS: u64 = 200;
const RATE: u32 = 100;

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
    let mut counts: Vec<u64> = allowed.iter().map(|(_, packets)| *packets).collect();
    counts.sort_unstable();
    let (least, median) = (counts[0], counts[counts.len() / 2]);
    eprintln!(
        "    {SENDERS} denied senders: nothing arrived; {SENDERS} allowed ones: of {DATAGRAMS} each at least {least} arrived, median {median}"
    );
    // All of them start at once, and the agent shares two processors with the runtimes that start them.
    ensure!(
        median + u64::from(RATE) / 4 >= DATAGRAMS && least + u64::from(RATE) >= DATAGRAMS,
        "allowed senders were held for long: {allowed:?}"
    );
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
