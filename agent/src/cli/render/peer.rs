//! Ends, policies and processes by the names that a person knows.

use sekisho_proto::{AlertPeer, Peer, Pod, PolicyRef, PolicyRule, Process, Translated, Workload};

/// `namespace/pod(workload):port`, `service namespace/name:port`, `node name`, or the address.
pub(super) fn peer(peer: &Peer) -> String {
    let mut text = with_port(owner(peer), peer.port, peer.ip.contains(':') && is_address(peer));
    if let Some(translated) = &peer.translated {
        text.push_str(" => ");
        text.push_str(&behind(translated));
    }
    if peer.client.is_some() {
        text.push_str(" (client hidden by SNAT)");
    }
    text
}

fn is_address(peer: &Peer) -> bool {
    peer.pod.is_none() && peer.service.is_none() && peer.node.is_none()
}

fn owner(peer: &Peer) -> String {
    if let Some(pod) = &peer.pod {
        return pod_of(pod, peer.workload.as_ref());
    }
    if let Some(service) = &peer.service {
        return format!("service {}/{}", service.namespace, service.name);
    }
    match &peer.node {
        Some(node) => format!("node {node}"),
        None => peer.ip.clone(),
    }
}

fn behind(translated: &Translated) -> String {
    match &translated.pod {
        Some(pod) => with_port(pod_name(pod), translated.port, false),
        None => with_port(translated.ip.clone(), translated.port, translated.ip.contains(':')),
    }
}

fn with_port(text: String, port: Option<u32>, brackets: bool) -> String {
    match port {
        Some(port) if brackets => format!("[{text}]:{port}"),
        Some(port) => format!("{text}:{port}"),
        None => text,
    }
}

/// `namespace/pod`.
pub(super) fn pod_name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}

fn pod_of(pod: &Pod, workload: Option<&Workload>) -> String {
    let name = pod_name(pod);
    match workload {
        Some(workload) if workload.kind != "Pod" => format!("{name}({})", workload.name),
        _ => name,
    }
}

/// An end of an alert.
pub(super) fn alert_peer(peer: &AlertPeer) -> String {
    let name = match (&peer.namespace, &peer.pod) {
        (Some(namespace), Some(pod)) => {
            let pod = Pod { namespace: namespace.clone(), name: pod.clone(), ..Pod::default() };
            pod_of(&pod, peer.workload.as_ref())
        }
        _ => peer.node.as_ref().map(|node| format!("node {node}")).or_else(|| peer.ip.clone()).unwrap_or_else(|| "unknown".to_owned()),
    };
    with_port(name, peer.port, false)
}

/// `namespace/policy ingress[0]`.
pub(super) fn rule(rule: &PolicyRule) -> String {
    format!("{}/{} {}", rule.namespace, rule.name, rule.rule).trim_end().to_owned()
}

/// `namespace/policy, namespace/policy`.
pub(super) fn policies(policies: &[PolicyRef]) -> String {
    let names: Vec<String> = policies.iter().map(|policy| format!("{}/{}", policy.namespace, policy.name)).collect();
    names.join(", ")
}

/// `comm[pid]`. A process may call itself anything: it stays on its line.
pub(super) fn process(process: &Process) -> String {
    format!("{}[{}]", process.comm.replace('\n', " "), process.pid)
}
