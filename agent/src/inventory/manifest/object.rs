//! Values to objects: one small decoder per kind. Only what policy and records need is read, and of that a wrong type is
//! refused; unknown fields are tolerated (not so for NetworkPolicy, see [`network_policy`](super::network_policy)).

use std::net::IpAddr;
use std::sync::Arc;

use super::metadata::{Metadata, address, addresses, checked, port, protocol, push};
use super::serves::serves;
use super::value::{At, FieldError, Value};
use super::{names, network_policy};
use crate::inventory::{EndpointSlice, Namespace, NetworkPolicy, Node, Pod, Service, ServicePort, SliceEndpoint, Workload};

/// Kind, namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::inventory) struct Key {
    pub(in crate::inventory) kind: &'static str,
    pub(in crate::inventory) namespace: Arc<str>,
    pub(in crate::inventory) name: Arc<str>,
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{} {}", self.kind, self.name)
        } else {
            write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// One object of a manifest.
#[derive(Clone, Debug)]
pub(in crate::inventory) enum Object {
    Namespace(Arc<Namespace>),
    Node(Arc<Node>),
    /// `workload` is the controller itself yet.
    Pod(Arc<Pod>),
    /// Anything that owns pods, and who controls it: `(kind, name)`.
    Owner(Option<(Arc<str>, Arc<str>)>),
    Service(Arc<Service>),
    EndpointSlice(Arc<EndpointSlice>),
    NetworkPolicy(Arc<NetworkPolicy>),
}

const LIST_DEPTH: usize = 4;

/// Reads one document.
pub(in crate::inventory) fn decode(document: &Value, ignored: &mut dyn FnMut(String)) -> Result<Vec<(Key, Object)>, FieldError> {
    let mut objects = Vec::new();
    walk(&At::root(document), None, LIST_DEPTH, &mut objects, ignored)?;
    Ok(objects)
}

/// `inherited`: what a typed list says its items are.
fn walk(
    at: &At<'_>,
    inherited: Option<(&str, &str)>,
    depth: usize,
    objects: &mut Vec<(Key, Object)>,
    ignored: &mut dyn FnMut(String),
) -> Result<(), FieldError> {
    if !matches!(at.value(), Value::Map(_)) {
        return Err(at.expected("an object (a mapping with apiVersion and kind)"));
    }
    let (version_at, kind_at) = (at.field("apiVersion"), at.field("kind"));
    let version = version_at.text()?.or_else(|| inherited.map(|(version, _)| version.into()));
    let kind = kind_at.text()?.or_else(|| inherited.map(|(_, kind)| kind.into()));
    let kind = kind.ok_or_else(|| kind_at.error("required"))?;
    let version = version.ok_or_else(|| version_at.error("required"))?;
    let items = at.field("items");
    if let (Some(item_kind), true) = (kind.strip_suffix("List"), items.present() || &*kind == "List") {
        if depth == 0 {
            return Err(at.error("lists in lists in lists"));
        }
        let typed = (!item_kind.is_empty()).then_some((&*version, item_kind));
        return items.items()?.try_for_each(|item| walk(&item, typed, depth - 1, objects, ignored));
    }
    match object(at, &version, &kind)? {
        Some(object) => objects.push(object),
        None => ignored(format!("{version} {kind}")),
    }
    Ok(())
}

/// Reads one object whose version and kind are known; `None` for kinds that are not used here.
pub(in crate::inventory) fn object(at: &At<'_>, version: &str, kind: &str) -> Result<Option<(Key, Object)>, FieldError> {
    let group = version.split_once('/').map_or("", |(group, _)| group);
    let found = match (group, kind) {
        ("", "Namespace") => {
            let metadata = Metadata::of(at)?;
            checked(&at.field("metadata").field("name"), &metadata.name, names::dns_label)?;
            let key = cluster("Namespace", &metadata);
            (key, Object::Namespace(Arc::new(namespace(metadata))))
        }
        ("", "Node") => {
            let metadata = Metadata::of(at)?;
            (cluster("Node", &metadata), Object::Node(Arc::new(node(at, metadata)?)))
        }
        ("", "Pod") => {
            let metadata = Metadata::of(at)?;
            (namespaced("Pod", &metadata), Object::Pod(Arc::new(pod(at, metadata)?)))
        }
        ("", "Service") => {
            let metadata = Metadata::of(at)?;
            (namespaced("Service", &metadata), Object::Service(Arc::new(service(at, metadata)?)))
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            let metadata = Metadata::of(at)?;
            (namespaced("EndpointSlice", &metadata), Object::EndpointSlice(Arc::new(endpoint_slice(at, metadata)?)))
        }
        ("networking.k8s.io" | "extensions", "NetworkPolicy") => {
            if version != "networking.k8s.io/v1" {
                return Err(at.field("apiVersion").expected("networking.k8s.io/v1"));
            }
            let policy = network_policy::decode(at)?;
            let key = Key { kind: "NetworkPolicy", namespace: policy.namespace.clone(), name: policy.name.clone() };
            (key, Object::NetworkPolicy(Arc::new(policy)))
        }
        _ => match owner_kind(group, kind) {
            Some(kind) => {
                let metadata = Metadata::of(at)?;
                (namespaced(kind, &metadata), Object::Owner(metadata.owner))
            }
            None => return Ok(None),
        },
    };
    Ok(Some(found))
}

fn owner_kind(group: &str, kind: &str) -> Option<&'static str> {
    let known: &[&'static str] = match group {
        "apps" => &["ReplicaSet", "Deployment", "StatefulSet", "DaemonSet"],
        "batch" => &["Job", "CronJob"],
        _ => &[],
    };
    known.iter().find(|k| **k == kind).copied()
}

fn cluster(kind: &'static str, metadata: &Metadata) -> Key {
    Key { kind, namespace: Arc::default(), name: metadata.name.clone() }
}

fn namespaced(kind: &'static str, metadata: &Metadata) -> Key {
    Key { kind, namespace: metadata.namespace.clone(), name: metadata.name.clone() }
}

/// The API server gives every namespace its name as a label.
pub(in crate::inventory) fn namespace(metadata: Metadata) -> Namespace {
    let mut labels = (*metadata.labels).clone();
    labels.insert("kubernetes.io/metadata.name".into(), metadata.name.clone());
    Namespace { name: metadata.name, labels: Arc::new(labels) }
}

fn node(at: &At<'_>, metadata: Metadata) -> Result<Node, FieldError> {
    let mut ips = Vec::new();
    for item in at.field("status").field("addresses").items()? {
        if matches!(item.field("type").text()?.as_deref(), Some("InternalIP" | "ExternalIP")) {
            push(&mut ips, address(&item.field("address"))?);
        }
    }
    let spec = at.field("spec");
    let (all, one) = (spec.field("podCIDRs"), spec.field("podCIDR"));
    let mut pod_networks = Vec::new();
    for item in all.items()?.chain([one]) {
        let Some(text) = item.text()? else { continue };
        let network = text.parse::<ipnet::IpNet>().map_err(|_| item.expected("a CIDR"))?.trunc();
        if !pod_networks.contains(&network) {
            pod_networks.push(network);
        }
    }
    Ok(Node { name: metadata.name, ips, pod_networks, labels: metadata.labels })
}

fn pod(at: &At<'_>, metadata: Metadata) -> Result<Pod, FieldError> {
    let (spec, status, annotations) = (at.field("spec"), at.field("status"), at.field("metadata"));
    let annotations = annotations.field("annotations");
    spec.mapping()?;
    status.mapping()?;
    let mut ips = Vec::new();
    for item in status.field("podIPs").items()? {
        push(&mut ips, address(&item.field("ip"))?);
    }
    push(&mut ips, address(&status.field("podIP"))?);
    let host_network = spec.field("hostNetwork").bool()?.unwrap_or(false);
    let node = spec.field("nodeName").text()?;
    let announced = if ips.is_empty() && !host_network && node.is_some() { announced(&annotations)? } else { Box::default() };
    let hash = annotations.field("kubernetes.io/config.hash").text()?;
    let mirrors = annotations.field("kubernetes.io/config.mirror").text()?.is_some();
    let config_hash = hash.filter(|hash| mirrors && is_of_node(&metadata, node.as_deref()) && hash.bytes().all(|b| b.is_ascii_hexdigit()));
    let workload = match metadata.owner {
        // A mirror pod belongs to its node, which runs nothing.
        Some((kind, name)) if &*kind != "Node" => Workload { kind, name },
        _ => Workload { kind: "Pod".into(), name: metadata.name.clone() },
    };
    Ok(Pod {
        // Only the cgroup of a local pod needs the real one.
        uid: metadata.uid.unwrap_or_else(|| format!("{}/{}", metadata.namespace, metadata.name).into()),
        namespace: metadata.namespace,
        name: metadata.name,
        labels: metadata.labels,
        node,
        ips,
        announced,
        host_network,
        finished: matches!(status.field("phase").text()?.as_deref(), Some("Succeeded" | "Failed")),
        service_account: spec.field("serviceAccountName").text()?,
        workload,
        ports: container_ports(&spec)?,
        serves: serves(&spec, &annotations)?,
        config_hash,
        allow_sources: allow_sources(&annotations.field("sekisho.dev/allow-sources"))?,
        runtime_class: spec.field("runtimeClassName").text()?,
    })
}

/// Whether it belongs to its node, as what stands for a pod that the kubelet runs from a file does. Anyone may write that, and the
/// annotations, and must not thereby be taken for another pod: that one's UID has dashes, a file's hash has none. Nor must a pod that
/// runs hide behind another's hash: the kubelet runs nothing that bears the annotation of a mirror.
fn is_of_node(metadata: &Metadata, node: Option<&str>) -> bool {
    metadata.owner.as_ref().is_some_and(|(kind, name)| &**kind == "Node" && Some(&**name) == node)
}

/// Annotations by which CNIs say a pod's addresses before the kubelet does.
const ANNOUNCED: [&str; 3] = ["cni.projectcalico.org/podIPs", "cni.projectcalico.org/podIP", "vpc.amazonaws.com/pod-ips"];

/// Addresses that the CNI has announced: `10.0.0.7/32,fd00::7/128`. What is no address there is nobody's error but the CNI's.
fn announced(annotations: &At<'_>) -> Result<Box<[IpAddr]>, FieldError> {
    let mut ips = Vec::new();
    for name in ANNOUNCED {
        let at = annotations.field(name);
        for part in at.text()?.iter().flat_map(|text| text.split(',')) {
            let part = part.trim();
            let bare = part.split_once('/').map_or(part, |(address, _)| address);
            push(&mut ips, bare.parse::<IpAddr>().ok().map(|a| a.to_canonical()));
        }
    }
    Ok(ips.into())
}

/// Containers and restartable init containers (sidecars), as the API server resolves named ports.
fn container_ports(spec: &At<'_>) -> Result<Vec<(Arc<str>, u16, u8)>, FieldError> {
    let mut ports = Vec::new();
    for list in ["containers", "initContainers"] {
        for container in spec.field(list).items()? {
            container.mapping()?;
            let sidecar = container.field("restartPolicy").text()?.as_deref() == Some("Always");
            for item in container.field("ports").items()? {
                item.mapping()?;
                let number_at = item.field("containerPort");
                let number = port(&number_at)?.ok_or_else(|| number_at.error("required"))?;
                let (name_at, protocol) = (item.field("name"), protocol(&item.field("protocol"))?);
                let Some(name) = name_at.text()? else { continue };
                checked(&name_at, &name, names::port_name)?;
                if list == "containers" || sidecar {
                    ports.push((name, number, protocol));
                }
            }
        }
    }
    Ok(ports)
}

fn allow_sources(at: &At<'_>) -> Result<Vec<ipnet::IpNet>, FieldError> {
    let Some(text) = at.text()? else { return Ok(Vec::new()) };
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(|part| {
            let net = part.parse::<ipnet::IpNet>().or_else(|_| part.parse::<std::net::IpAddr>().map(Into::into));
            net.map_err(|_| at.expected("addresses or CIDRs with commas between"))
        })
        .collect()
}

fn service(at: &At<'_>, metadata: Metadata) -> Result<Service, FieldError> {
    let spec = at.field("spec");
    spec.mapping()?;
    let (mut ips, mut node_local_ips) = (Vec::new(), Vec::new());
    if spec.field("type").text()?.as_deref() != Some("ExternalName") {
        let (one, all) = (spec.field("clusterIP"), spec.field("clusterIPs"));
        let headless = |at: &At<'_>| matches!(at.value(), Value::Text(text) if &**text == "None");
        if !headless(&one) {
            push(&mut ips, address(&one)?);
        }
        for item in all.items()?.filter(|item| !headless(item)) {
            push(&mut ips, address(&item)?);
        }
        if spec.field("internalTrafficPolicy").text()?.as_deref() == Some("Local") {
            node_local_ips.clone_from(&ips);
        }
        addresses(&spec.field("externalIPs"), &mut ips)?;
        for item in at.field("status").field("loadBalancer").field("ingress").items()? {
            let ip = address(&item.field("ip"))?;
            // Such a load balancer sees the connection itself: nothing on the node takes its address for the Service.
            if item.field("ipMode").text()?.as_deref() != Some("Proxy") {
                push(&mut ips, ip);
            }
        }
    }
    let ports = spec
        .field("ports")
        .items()?
        .map(|item| {
            let number_at = item.field("port");
            let number = port(&number_at)?.ok_or_else(|| number_at.error("required"))?;
            let node_port = item.field("nodePort");
            // 0 is how "none" is written by some clients.
            let node_port = if node_port.value() == &Value::Int(0) { None } else { port(&node_port)? };
            Ok(ServicePort { name: item.field("name").text()?, port: number, protocol: protocol(&item.field("protocol"))?, node_port })
        })
        .collect::<Result<_, _>>()?;
    Ok(Service { namespace: metadata.namespace, name: metadata.name, ips, node_local_ips, ports })
}

fn endpoint_slice(at: &At<'_>, metadata: Metadata) -> Result<EndpointSlice, FieldError> {
    let ports = at
        .field("ports")
        .items()?
        .map(|item| {
            let number = port(&item.field("port"))?.unwrap_or(0);
            Ok((item.field("name").text()?, number, protocol(&item.field("protocol"))?))
        })
        .collect::<Result<_, _>>()?;
    let fqdn = at.field("addressType").text()?.as_deref() == Some("FQDN");
    let endpoints =
        at.field("endpoints").items()?.filter(|_| !fqdn).map(|item| slice_endpoint(&item, &metadata)).collect::<Result<_, _>>()?;
    let service = metadata.labels.get("kubernetes.io/service-name").cloned();
    Ok(EndpointSlice { namespace: metadata.namespace, name: metadata.name, service, ports, endpoints })
}

fn slice_endpoint(at: &At<'_>, metadata: &Metadata) -> Result<SliceEndpoint, FieldError> {
    let mut ips = Vec::new();
    addresses(&at.field("addresses"), &mut ips)?;
    let conditions = at.field("conditions");
    let ready = conditions.field("ready").bool()?.unwrap_or(true);
    let target = at.field("targetRef");
    let pod = match (target.field("kind").text()?.as_deref(), target.field("name").text()?) {
        (Some("Pod"), Some(name)) => {
            let namespace = target.field("namespace").text()?.unwrap_or_else(|| metadata.namespace.clone());
            Some((namespace, name))
        }
        _ => None,
    };
    Ok(SliceEndpoint {
        ips,
        ready,
        serving: conditions.field("serving").bool()?.unwrap_or(ready),
        terminating: conditions.field("terminating").bool()?.unwrap_or(false),
        pod,
        node: at.field("nodeName").text()?,
    })
}
