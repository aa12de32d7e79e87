//! Objects as the API server sends them, trimmed while they are read.
//!
//! Reading never fails for what an object holds: an object that cannot be understood is a refusal of that object, not of the
//! list it came in. The rules are the manifests' own, see [`manifest`](crate::inventory::manifest).

use std::borrow::Cow;
use std::marker::PhantomData;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer};

use crate::inventory::ObjectName;
use crate::inventory::manifest::json::{Keep, trimmed};
use crate::inventory::manifest::object::{self, Object};
use crate::inventory::manifest::value::{At, Value};

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Namespace,
    Pod,
    Node,
    Service,
    EndpointSlice,
    NetworkPolicy,
    ReplicaSet,
    Job,
}

impl Kind {
    pub(super) const ALL: [Self; 8] =
        [Self::Namespace, Self::Pod, Self::Node, Self::Service, Self::EndpointSlice, Self::NetworkPolicy, Self::ReplicaSet, Self::Job];

    /// As manifests name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Pod => "Pod",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::NetworkPolicy => "NetworkPolicy",
            Self::ReplicaSet => "ReplicaSet",
            Self::Job => "Job",
        }
    }

    /// As the API's paths name it.
    pub(super) fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::Pod => "pods",
            Self::Node => "nodes",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::NetworkPolicy => "networkpolicies",
            Self::ReplicaSet => "replicasets",
            Self::Job => "jobs",
        }
    }

    /// Whether nothing but the names of workloads comes from it: no verdict needs it.
    pub(super) fn only_names(self) -> bool {
        matches!(self, Self::ReplicaSet | Self::Job)
    }

    /// The API group; empty for the core's.
    pub(super) fn group(self) -> &'static str {
        self.version().split_once('/').map_or("", |(group, _)| group)
    }

    fn version(self) -> &'static str {
        match self {
            Self::EndpointSlice => "discovery.k8s.io/v1",
            Self::NetworkPolicy => "networking.k8s.io/v1",
            Self::ReplicaSet => "apps/v1",
            Self::Job => "batch/v1",
            _ => "v1",
        }
    }
}

/// A kind of object that is watched, and what is kept of it.
pub(super) trait Watched: Resource<DynamicType = ()> {
    const KIND: Kind;
    const KEEP: &'static Keep;
    /// Whether the metadata is all that is asked for.
    const METADATA_ONLY: bool = false;
}

use Keep::{All, Fields};

const METADATA: Keep = Fields(&[
    ("name", All),
    ("namespace", All),
    ("uid", All),
    ("resourceVersion", All),
    ("labels", All),
    (
        "annotations",
        Fields(&[
            ("kubernetes.io/config.hash", All),
            ("kubernetes.io/config.mirror", All),
            ("sekisho.dev/allow-sources", All),
            ("prometheus.io/port", All),
            ("cni.projectcalico.org/podIPs", All),
            ("cni.projectcalico.org/podIP", All),
            ("vpc.amazonaws.com/pod-ips", All),
        ]),
    ),
    ("ownerReferences", Fields(&[("kind", All), ("name", All), ("controller", All)])),
]);
const PROBE: Keep =
    Fields(&[("httpGet", Fields(&[("port", All)])), ("tcpSocket", Fields(&[("port", All)])), ("grpc", Fields(&[("port", All)]))]);
const CONTAINERS: Keep =
    Fields(&[("restartPolicy", All), ("ports", All), ("livenessProbe", PROBE), ("readinessProbe", PROBE), ("startupProbe", PROBE)]);
const OWNER: &Keep = &Fields(&[("metadata", METADATA)]);

macro_rules! watched {
    ($($kind:ident: $keep:expr $(, $only:ident)?;)*) => {$(
        impl Watched for $kind {
            const KIND: Kind = Kind::$kind;
            const KEEP: &'static Keep = $keep;
            $(const $only: bool = true;)?
        }
    )*};
}

watched! {
    Namespace: OWNER;
    Pod: &Fields(&[
        ("metadata", METADATA),
        ("spec", Fields(&[
            ("nodeName", All),
            ("hostNetwork", All),
            ("serviceAccountName", All),
            ("containers", CONTAINERS),
            ("initContainers", CONTAINERS),
        ])),
        ("status", Fields(&[("phase", All), ("podIP", All), ("podIPs", All)])),
    ]);
    Node: &Fields(&[("metadata", METADATA), ("spec", Fields(&[("podCIDR", All), ("podCIDRs", All)])), ("status", Fields(&[("addresses", All)]))]);
    Service: &Fields(&[
        ("metadata", METADATA),
        ("spec", All),
        ("status", Fields(&[("loadBalancer", All)])),
    ]);
    EndpointSlice: &Fields(&[("metadata", METADATA), ("addressType", All), ("ports", All), ("endpoints", All)]);
    // A field that is not known here may change what the policy means: it must be seen to be refused.
    NetworkPolicy: &Fields(&[("metadata", METADATA), ("spec", All)]);
    ReplicaSet: OWNER, METADATA_ONLY;
    Job: OWNER, METADATA_ONLY;
}

/// An object with its version and, if it can be understood, what it says.
#[derive(Clone, Debug)]
pub(super) struct Arrived {
    /// Namespace (empty for cluster-scoped kinds) and name.
    pub(super) name: ObjectName,
    /// `metadata.resourceVersion`; 0 where it is no number. Of two versions of a kind, the higher is the newer.
    pub(super) version: u64,
    /// `metadata.uid`.
    pub(super) uid: Option<Arc<str>>,
    /// What it says, or what is wrong with it.
    pub(super) object: Result<Object, String>,
    /// What is passed over in it.
    pub(super) ignored: Option<String>,
}

/// An [`Arrived`] as kube's watcher takes it.
#[derive(Clone, Debug)]
pub(super) struct Sent<K> {
    /// Only what the watcher itself asks for.
    metadata: ObjectMeta,
    pub(super) arrived: Arrived,
    kind: PhantomData<fn() -> K>,
}

impl<'de, K: Watched> Deserialize<'de> for Sent<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = trimmed(deserializer, K::KEEP)?;
        let (arrived, resource_version) = read(K::KIND, &value);
        let metadata = ObjectMeta { resource_version, ..ObjectMeta::default() };
        Ok(Self { metadata, arrived, kind: PhantomData })
    }
}

/// Reads an object; the second is its version as the server writes it.
fn read(kind: Kind, value: &Value) -> (Arrived, Option<String>) {
    let root = At::root(value);
    let metadata = root.field("metadata");
    let text = |field: &'static str| metadata.field(field).text().ok().flatten();
    let written = text("resourceVersion");
    let version = written.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
    let bare = (text("namespace").unwrap_or_default(), text("name").unwrap_or_default());
    let (uid, mut ignored) = (text("uid"), None);
    let mut outcome = object::object(&root, kind.version(), kind.name());
    if let Err(e) = &outcome
        && e.path.contains(OURS)
    {
        // Whoever may annotate a pod must not be able to hide it.
        ignored = Some(e.to_string());
        outcome = object::object(&At::root(&without_ours(value)), kind.version(), kind.name());
    }
    let (name, object) = match outcome {
        Ok(Some((key, object))) => ((key.namespace, key.name), Ok(object)),
        Ok(None) => (bare, Err("this kind is not read".to_owned())),
        Err(e) => (bare, Err(e.to_string())),
    };
    (Arrived { name, version, uid, object, ignored }, written.map(|v| String::from(&*v)))
}

/// How annotations that are for us begin.
const OURS: &str = "sekisho.dev/";

/// The object without annotations that are for us: the API server lets any text through in them.
fn without_ours(value: &Value) -> Value {
    let mut value = value.clone();
    if let Some(Value::Map(annotations)) = inside(&mut value, "metadata").and_then(|metadata| inside(metadata, "annotations")) {
        annotations.retain(|(name, _)| !name.starts_with(OURS));
    }
    value
}

fn inside<'a>(value: &'a mut Value, field: &str) -> Option<&'a mut Value> {
    let Value::Map(fields) = value else { return None };
    fields.iter_mut().find(|(name, _)| **name == *field).map(|(_, value)| value)
}

impl<K: Watched> Resource for Sent<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind(dt: &()) -> Cow<'_, str> {
        K::kind(dt)
    }
    fn group(dt: &()) -> Cow<'_, str> {
        K::group(dt)
    }
    fn version(dt: &()) -> Cow<'_, str> {
        K::version(dt)
    }
    fn plural(dt: &()) -> Cow<'_, str> {
        K::plural(dt)
    }
    fn metadata_api() -> bool {
        K::METADATA_ONLY
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What one JSON object of a kind says: for tests without a server.
#[cfg(test)]
pub(super) fn arrived(kind: Kind, json: &str) -> Arrived {
    use crate::inventory::manifest::json::Json;
    let Json(value) = serde_json::from_str(json).expect("JSON");
    read(kind, &value).0
}

/// The namespace's and name's part of a message.
pub(super) fn label(kind: Kind, name: &ObjectName) -> String {
    let empty: &Arc<str> = &name.0;
    if empty.is_empty() { format!("{} {}", kind.name(), name.1) } else { format!("{} {}/{}", kind.name(), name.0, name.1) }
}
