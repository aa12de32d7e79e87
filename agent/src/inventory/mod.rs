//! Who is who: what the cluster says exists, as one immutable value.
//!
//! A [`Source`] (a folder of manifests, or the API server) builds a [`Snapshot`] and swaps it whole. Nobody
//! downstream sees half an update. Objects keep only what policy, records and detections read.

pub mod files;
pub mod kube;
mod manifest;
mod notice;
mod published;
mod selector;
mod source;

pub use notice::{About, Notice};
pub use published::OnNews;
pub use selector::{Labels, Requirement, Selector, SelectorError};
pub use source::{Source, SourceState};

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

/// `(namespace, name)`.
pub type ObjectName = (Arc<str>, Arc<str>);

/// What is in force of an object whose newest version is refused.
fn in_force(before: bool) -> &'static str {
    if before { "its previous version stays in force" } else { "never applied: nothing of it is in force" }
}

/// Everything known about the cluster at one moment. Immutable; each kind is shared with the snapshot before if nothing of it
/// changed.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// +1 with every change.
    pub generation: u64,
    /// By name. A namespace that only objects mention is here too, with its `kubernetes.io/metadata.name` label.
    pub namespaces: Arc<BTreeMap<Arc<str>, Arc<Namespace>>>,
    /// By namespace and name.
    pub pods: Arc<BTreeMap<ObjectName, Arc<Pod>>>,
    /// By name.
    pub nodes: Arc<BTreeMap<Arc<str>, Arc<Node>>>,
    /// By namespace and name.
    pub services: Arc<BTreeMap<ObjectName, Arc<Service>>>,
    /// By namespace and name.
    pub endpoint_slices: Arc<BTreeMap<ObjectName, Arc<EndpointSlice>>>,
    /// By namespace and name; already defaulted and valid.
    pub policies: Arc<BTreeMap<ObjectName, Arc<NetworkPolicy>>>,
    /// What is refused now: file, document, field or value, and whether a previous version of it is in force.
    pub refused: Vec<String>,
}

/// A namespace and its labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Name.
    pub name: Arc<str>,
    /// Labels, `kubernetes.io/metadata.name` always among them.
    pub labels: Labels,
}

impl Namespace {
    /// A namespace of which nothing but its name is known.
    pub fn bare(name: Arc<str>) -> Self {
        let label = (Arc::from("kubernetes.io/metadata.name"), name.clone());
        Self { name, labels: Arc::new([label].into()) }
    }
}

/// A pod as far as policy and records need it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// Labels.
    pub labels: Labels,
    /// `spec.nodeName`.
    pub node: Option<Arc<str>>,
    /// `status.podIPs` (and `status.podIP`); of hostNetwork pods the node's.
    pub ips: Vec<IpAddr>,
    /// What its CNI has announced in annotations, where the status has no address yet. Whoever may annotate a pod can have written
    /// it: it takes no address from anyone, and finds no pod of this node.
    pub announced: Box<[IpAddr]>,
    /// Shares the node's network namespace: neither subject nor selector peer of a policy.
    pub host_network: bool,
    /// Succeeded or Failed: its addresses are free for others.
    pub finished: bool,
    /// `spec.serviceAccountName`.
    pub service_account: Option<Arc<str>>,
    /// Its controller, named through a ReplicaSet or Job; the pod itself where nothing controls it.
    pub workload: Workload,
    /// Container ports, for named ports: `(name, port, protocol number)`.
    pub ports: Vec<(Arc<str>, u16, u8)>,
    /// Ports that it declares, named or not, those of its probes included: `(port, protocol number)`, sorted. For detections.
    pub serves: Box<[(u16, u8)]>,
    /// The cgroup's name for static pods: annotation `kubernetes.io/config.hash` of a mirror pod that belongs to its node.
    pub config_hash: Option<Arc<str>>,
    /// Annotation `sekisho.dev/allow-sources`: foreign sources that the pod may use.
    pub allow_sources: Vec<ipnet::IpNet>,
    /// `spec.runtimeClassName`: its sandbox may have a network stack of its own.
    pub runtime_class: Option<Arc<str>>,
}

impl Pod {
    /// Its addresses as far as the cluster knows them.
    pub fn addresses(&self) -> &[IpAddr] {
        if self.ips.is_empty() { &self.announced } else { &self.ips }
    }
}

/// What runs a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Workload {
    /// `Deployment`, `StatefulSet`, `DaemonSet`, `Job`, `CronJob`, `ReplicaSet`, `Pod`, ...
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: Arc<str>,
    /// `status.addresses` that are addresses.
    pub ips: Vec<IpAddr>,
    /// `spec.podCIDRs` (and `spec.podCIDR`): where its pods' addresses come from, where the cluster says so.
    pub pod_networks: Vec<ipnet::IpNet>,
    /// Labels.
    pub labels: Labels,
}

/// A Service's addresses and ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// `clusterIPs` without `None`, `externalIPs`, `status.loadBalancer.ingress[].ip` that are not of `ipMode: Proxy`.
    pub ips: Vec<IpAddr>,
    /// Of these, the ones with backends on this node only: ClusterIPs with `internalTrafficPolicy: Local`.
    pub node_local_ips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; absent where the Service has one port without a name.
    pub name: Option<Arc<str>>,
    /// Port at the Service's addresses.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Port at every node's addresses.
    pub node_port: Option<u16>,
}

/// Backends of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Label `kubernetes.io/service-name`.
    pub service: Option<Arc<str>>,
    /// `(name, port, protocol number)`; `port` 0 = all.
    pub ports: Vec<(Option<Arc<str>>, u16, u8)>,
    /// Backends.
    pub endpoints: Vec<SliceEndpoint>,
}

/// One backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// `conditions.ready`; absent counts as ready.
    pub ready: bool,
    /// `conditions.serving`.
    pub serving: bool,
    /// `conditions.terminating`.
    pub terminating: bool,
    /// `targetRef` where it is a pod.
    pub pod: Option<ObjectName>,
    /// `nodeName`.
    pub node: Option<Arc<str>>,
}

/// A NetworkPolicy (networking.k8s.io/v1), defaulted as the API server does and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// `metadata.uid`.
    pub uid: Option<Arc<str>>,
    /// `spec.podSelector`.
    pub pod_selector: Selector,
    /// `Some` where policyTypes has Ingress.
    pub ingress: Option<Vec<PolicyRule>>,
    /// `Some` where policyTypes has Egress.
    pub egress: Option<Vec<PolicyRule>>,
}

/// One ingress or egress rule. Empty `peers` = every address; empty `ports` = every protocol and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyRule {
    /// `from` or `to`.
    pub peers: Vec<PolicyPeer>,
    /// `ports`.
    pub ports: Vec<PolicyPort>,
}

/// One peer of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PolicyPeer {
    /// Pods, never hostNetwork ones.
    Pods {
        /// `None` = the policy's own namespace.
        namespaces: Option<Selector>,
        /// `None` = all pods of those namespaces.
        pods: Option<Selector>,
    },
    /// `ipBlock`.
    Block {
        /// `cidr`.
        cidr: ipnet::IpNet,
        /// `except`; narrows this peer only.
        except: Vec<ipnet::IpNet>,
    },
}

/// One entry of a rule's `ports`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PolicyPort {
    /// IP protocol number; TCP where the manifest says nothing.
    pub protocol: u8,
    /// Which ports.
    pub port: PortMatch,
}

/// Ports of one entry.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortMatch {
    /// `port` absent.
    All,
    /// `port` and `endPort` (equal where absent), inclusive.
    Range(u16, u16),
    /// Named: resolved on the destination pod.
    Named(Arc<str>),
}
