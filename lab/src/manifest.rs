//! Kubernetes objects as a kubelet and an API server would have written them.

use std::fmt::Write;
use std::net::IpAddr;

use serde_json::{Value, json};

use crate::pod::PodSpec;

/// A Node.
pub(crate) fn node(name: &str, addresses: &[IpAddr]) -> Value {
    let addresses: Vec<_> = addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
    json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}, "status": {"addresses": addresses}})
}

/// A running Pod on `node` and, where a Deployment owns it, the ReplicaSet between them.
pub(crate) fn pod(spec: &PodSpec, uid: &str, addresses: &[IpAddr], node: &str) -> Value {
    let mut metadata = json!({"namespace": spec.namespace, "name": spec.name, "uid": uid, "labels": spec.labels});
    if !spec.annotations.is_empty() {
        metadata["annotations"] = json!(spec.annotations);
    }
    let mut items = Vec::new();
    if let Some((kind, owner)) = &spec.owner {
        let (kind, owner) = match kind.as_str() {
            "Deployment" => {
                let set = format!("{owner}-5d9f7c6b8");
                items.push(json!({
                    "apiVersion": "apps/v1", "kind": "ReplicaSet",
                    "metadata": {"namespace": spec.namespace, "name": set, "uid": identifier(&format!("{uid}/replicaset")),
                        "ownerReferences": [reference("Deployment", owner)]},
                    "spec": {"replicas": 1, "selector": {"matchLabels": spec.labels}},
                }));
                ("ReplicaSet".to_owned(), set)
            }
            _ => (kind.clone(), owner.clone()),
        };
        metadata["ownerReferences"] = json!([reference(&kind, &owner)]);
    }
    let ips: Vec<_> = addresses.iter().map(|ip| json!({"ip": ip})).collect();
    let mut body = json!({"nodeName": node, "containers": [{"name": "main", "image": "sekisho-lab"}]});
    if spec.host_network {
        body["hostNetwork"] = json!(true);
    }
    if let Some(account) = &spec.service_account {
        body["serviceAccountName"] = json!(account);
    }
    let mut status = json!({"phase": "Running", "podIPs": ips});
    if let Some(first) = addresses.first() {
        status["podIP"] = json!(first);
    }
    items.push(json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": body, "status": status}));
    json!({"apiVersion": "v1", "kind": "List", "items": items})
}

fn reference(kind: &str, name: &str) -> Value {
    let version = match kind {
        "Job" | "CronJob" => "batch/v1",
        _ => "apps/v1",
    };
    json!({"apiVersion": version, "kind": kind, "name": name, "uid": identifier(&format!("{kind}/{name}")), "controller": true, "blockOwnerDeletion": true})
}

/// A UUID-shaped identifier that depends on `text` alone.
pub(crate) fn identifier(text: &str) -> String {
    let digits = hex(text, 32);
    format!("{}-{}-4{}-8{}-{}", &digits[..8], &digits[8..12], &digits[13..16], &digits[17..20], &digits[20..32])
}

/// `len` hexadecimal digits that depend on `text` alone (FNV-1a, continued over a counter).
pub(crate) fn hex(text: &str, len: usize) -> String {
    let mut digits = String::new();
    let mut state = 0xcbf2_9ce4_8422_2325_u64;
    let mut round = 0u8;
    while digits.len() < len {
        for byte in text.bytes().chain([round]) {
            state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        write!(digits, "{:016x}", state ^ (state >> 29)).expect("a string takes everything");
        round += 1;
    }
    digits.truncate(len);
    digits
}
