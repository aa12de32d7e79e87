//! What a person should know of a compile: what cannot be honoured as it is written, and what two objects disagree about.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use super::Input;
use super::compiler::{ByNamespace, local_pods};
use crate::inventory::{About, NetworkPolicy, Pod};

/// What a person should know of a compile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// The object that it is about.
    pub about: About,
    /// One word in camel case.
    pub reason: &'static str,
    /// One sentence.
    pub text: String,
}

impl Warning {
    /// Two pods have one address.
    pub(super) fn address_taken(first: &Pod, second: &Pod, address: IpAddr) -> Self {
        let text = format!("pods {} and {} both have the address {address}", full_name(first), full_name(second));
        Self { about: about_pod(second), reason: "AddressTaken", text }
    }

    /// An annotation, or what a pod made of its interface, says that it has a node's address.
    pub(super) fn address_of_node(pod: &Pod, address: IpAddr) -> Self {
        let text = format!("pod {} is said to have the address {address}, which is a node's", full_name(pod));
        Self { about: about_pod(pod), reason: "AddressTaken", text }
    }

    /// An annotation says that a pod has an address where no pods are.
    pub(super) fn address_out_of_range(pod: &Pod, address: IpAddr) -> Self {
        let text = format!(
            "an annotation of pod {} says that it has the address {address}, where pods of this cluster have none: it does not count until the \
             pod's status says so",
            full_name(pod)
        );
        Self { about: about_pod(pod), reason: "AddressIgnored", text }
    }

    /// A pod asks for sources by annotation, and the agent's configuration does not name it.
    pub(super) fn not_lent(pod: &Pod) -> Self {
        let text = format!(
            "pod {} asks for {} in its annotation sekisho.dev/allow-sources, but the agent's configuration does not name it: it may send from \
             its own addresses only. --allow-sources-from (chart: allowSourcesFrom) names the namespaces and pods whose annotation counts",
            full_name(pod),
            listed(&pod.allow_sources),
        );
        Self { about: about_pod(pod), reason: "SourcesNotAllowed", text }
    }

    /// Some pods may use one part of a Service's backends.
    pub(super) fn backends_differ(namespace: Arc<str>, name: Arc<str>, port: &str) -> Self {
        let text = format!(
            "Service {namespace}/{name} port {port}: policy allows some of its backends and denies others to some pods of this node; \
             those may not use it at all"
        );
        Self { about: About { kind: "Service", namespace, name, uid: None }, reason: "BackendsDiffer", text }
    }

    /// A policy goes beyond its namespace's share of the kernel's tables.
    pub(super) fn too_large(policy: &NetworkPolicy) -> Self {
        let NetworkPolicy { namespace, name, .. } = policy;
        let text = format!(
            "NetworkPolicy {namespace}/{name} is too large: with it the policies of its namespace would take more than one namespace may of \
             this node's tables of networks, of ports, or of rules for distinct pods and peers; it isolates the pods that it selects and \
             allows nothing. Name fewer networks, ports, peers or rules, or raise --memory-budget"
        );
        Self { about: about_policy(policy), reason: "PolicyTooLarge", text }
    }

    /// Services of a namespace are more than the kernel's table has room for.
    pub(super) fn services_left_out(namespace: &Arc<str>, count: usize) -> Self {
        let text = format!(
            "namespace {namespace} has more Service addresses and ports than one namespace may of this node's tables: {count} of its \
             Services are not known there, and restricted pods cannot use them. Have fewer, or raise --memory-budget"
        );
        let (name, uid) = (namespace.clone(), None);
        Self { about: About { kind: "Namespace", namespace: Arc::default(), name, uid }, reason: "ServicesTooMany", text }
    }

    /// Something about this node.
    pub(super) fn of_node(node: &str, reason: &'static str, text: String) -> Self {
        // As events of nodes bear it.
        let name: Arc<str> = node.into();
        Self { about: About { kind: "Node", namespace: Arc::default(), name: name.clone(), uid: Some(name) }, reason, text }
    }
}

/// Says of policies that they select pods of this node which NetworkPolicy does not cover.
pub(super) fn unjudged(input: &Input<'_>, by_namespace: &ByNamespace, warnings: &mut Vec<Warning>) {
    let mut said = BTreeSet::new();
    for pod in local_pods(input).filter(|pod| pod.host_network) {
        let policies = by_namespace.get(&pod.namespace).into_iter().flatten();
        for policy in policies.filter(|policy| policy.pod_selector.matches(&pod.labels)) {
            if said.insert(Arc::as_ptr(policy)) {
                let NetworkPolicy { namespace, name, .. } = &**policy;
                warnings.push(Warning {
                    about: about_policy(policy),
                    reason: "PodsNotCovered",
                    text: format!(
                        "NetworkPolicy {namespace}/{name} selects {}, which uses the node's network: its flows are recorded, not judged",
                        full_name(pod)
                    ),
                });
            }
        }
    }
}

fn about_policy(policy: &NetworkPolicy) -> About {
    let NetworkPolicy { namespace, name, uid, .. } = policy;
    About { kind: "NetworkPolicy", namespace: namespace.clone(), name: name.clone(), uid: uid.clone() }
}

fn about_pod(pod: &Pod) -> About {
    About { kind: "Pod", namespace: pod.namespace.clone(), name: pod.name.clone(), uid: Some(pod.uid.clone()) }
}

/// The first few, and how many more.
fn listed(networks: &[ipnet::IpNet]) -> String {
    const MOST: usize = 4;
    let first: Vec<String> = networks.iter().take(MOST).map(ToString::to_string).collect();
    let more = networks.len().saturating_sub(MOST);
    if more == 0 { first.join(", ") } else { format!("{} and {more} more", first.join(", ")) }
}

fn full_name(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace, pod.name)
}
