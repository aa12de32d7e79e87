//! The ends of flows and alerts, and what a filter wants of them.

use std::net::IpAddr;

use ipnet::IpNet;
use sekisho_proto::{self as proto, AlertPeer, WorkloadName};

use super::FilterError;
use super::pattern::{any_or_empty, each};
use crate::flow::{FlowRecord, Identity, Owner, has_ports};
use crate::inventory::Selector;

/// A name in a namespace, or in any; it may be given in part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct NamePattern {
    namespace: Option<String>,
    name: String,
}

impl NamePattern {
    /// `NAMESPACE/NAME`; `NAMESPACE/` is everything in it, `/NAME` is in any namespace, `NAME` in namespace `default`.
    pub(super) fn new(text: &str) -> Option<Self> {
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        if (namespace.is_empty() && name.is_empty()) || name.contains('/') {
            return None;
        }
        Some(Self { namespace: Some(namespace.to_owned()).filter(|namespace| !namespace.is_empty()), name: name.to_owned() })
    }

    fn holds(&self, namespace: &str) -> bool {
        self.namespace.as_ref().is_none_or(|wanted| wanted == namespace)
    }

    /// Whether it is this name, whole.
    pub(super) fn is(&self, namespace: &str, name: &str) -> bool {
        self.holds(namespace) && (self.name.is_empty() || self.name == name)
    }

    fn begins(&self, namespace: &str, name: &str) -> bool {
        self.holds(namespace) && name.starts_with(&self.name)
    }
}

/// What is known of one end.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Party<'a> {
    namespace: Option<&'a str>,
    pod: Option<&'a str>,
    /// Kind and name.
    workload: Option<(&'a str, &'a str)>,
    service: Option<&'a str>,
    labels: Labels<'a>,
    ip: Option<IpAddr>,
    port: Option<u16>,
}

/// Labels as an identity has them, or as a message has them.
#[derive(Clone, Copy, Debug, Default)]
enum Labels<'a> {
    #[default]
    None,
    Of(&'a Identity),
    In(&'a proto::Pod),
}

impl<'a> Party<'a> {
    pub(super) fn local(record: &'a FlowRecord) -> Self {
        Self::of_flow(record, record.local.as_deref(), record.flow.local, record.key.local_port)
    }

    pub(super) fn remote(record: &'a FlowRecord) -> Self {
        Self::of_flow(record, record.remote.as_deref(), record.key.remote, record.key.remote_port)
    }

    /// What stands behind the address of a Service.
    pub(super) fn behind(record: &'a FlowRecord) -> Option<Self> {
        let translated = record.translated.as_deref()?;
        let (ip, port) = translated.destination;
        let known = translated.owner.as_deref().map(Self::named).unwrap_or_default();
        Some(Self { ip: Some(ip), port: Some(port), ..known })
    }

    fn of_flow(record: &FlowRecord, identity: Option<&'a Identity>, ip: [u8; 16], port: u16) -> Self {
        let known = identity.map(Self::named).unwrap_or_default();
        Self { ip: Some(IpAddr::from(ip).to_canonical()), port: has_ports(record.key.protocol).then_some(port), ..known }
    }

    fn named(identity: &'a Identity) -> Self {
        match &identity.owner {
            Owner::Pod { namespace, name, workload, .. } => Self {
                namespace: Some(namespace),
                pod: Some(name),
                workload: Some((&workload.kind, &workload.name)),
                labels: Labels::Of(identity),
                ..Self::default()
            },
            Owner::Service { namespace, name, .. } => Self { namespace: Some(namespace), service: Some(name), ..Self::default() },
            Owner::Node { .. } => Self::default(),
        }
    }

    pub(super) fn of_alert(peer: &'a AlertPeer) -> Self {
        Self {
            namespace: peer.namespace.as_deref(),
            pod: peer.pod.as_deref(),
            workload: peer.workload.as_ref().map(|workload| (workload.kind.as_str(), workload.name.as_str())),
            ip: peer.ip.as_ref().and_then(|ip| ip.parse().ok()),
            port: peer.port.and_then(|port| u16::try_from(port).ok()),
            ..Self::default()
        }
    }

    pub(super) fn of_pod(pod: &'a proto::Pod) -> Self {
        Self { namespace: Some(&pod.namespace), pod: Some(&pod.name), labels: Labels::In(pod), ..Self::default() }
    }

    /// Of which only a port is known.
    pub(super) fn port(port: u16) -> Self {
        Self { port: Some(port), ..Self::default() }
    }

    fn is_pod(&self, wanted: &NamePattern) -> bool {
        let (Some(namespace), Some(pod)) = (self.namespace, self.pod) else { return false };
        wanted.begins(namespace, pod)
            || self.workload.is_some_and(|(_, workload)| !wanted.name.is_empty() && wanted.is(namespace, workload))
    }

    fn is_of(&self, wanted: &WorkloadName) -> bool {
        let Some((kind, name)) = self.workload else { return false };
        name == wanted.name
            && wanted.kind.as_ref().is_none_or(|wanted| wanted.eq_ignore_ascii_case(kind))
            && wanted.namespace.as_ref().is_none_or(|wanted| self.namespace == Some(wanted))
    }

    fn is_service(&self, wanted: &NamePattern) -> bool {
        self.namespace.zip(self.service).is_some_and(|(namespace, service)| wanted.begins(namespace, service))
    }

    fn has_labels(&self, wanted: &Selector) -> bool {
        match self.labels {
            Labels::None => false,
            Labels::Of(identity) => matches!(&identity.owner, Owner::Pod { labels, .. } if wanted.matches(labels)),
            Labels::In(pod) => wanted.matches(&pod.labels),
        }
    }
}

/// What a filter wants of an end, or of either. Lists that are empty ask for nothing; each asks for itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct EndPattern {
    namespaces: Vec<String>,
    pods: Vec<NamePattern>,
    workloads: Vec<WorkloadName>,
    services: Vec<NamePattern>,
    selectors: Vec<Selector>,
    networks: Vec<IpNet>,
    ports: Vec<u16>,
}

impl EndPattern {
    pub(super) fn new(
        namespaces: &[String],
        pods: &[String],
        workloads: &[WorkloadName],
        services: &[String],
        selectors: &[String],
        ips: &[String],
        ports: &[u32],
    ) -> Result<Self, FilterError> {
        Ok(Self {
            namespaces: namespaces.to_vec(),
            pods: each(pods, |text| NamePattern::new(text).ok_or_else(|| FilterError::Pod(text.clone())))?,
            workloads: each(workloads, |name| if name.name.is_empty() { Err(FilterError::Workload) } else { Ok(name.clone()) })?,
            services: each(services, |text| NamePattern::new(text).ok_or_else(|| FilterError::Name(text.clone())))?,
            selectors: each(selectors, |text| Ok(text.parse()?))?,
            networks: each(ips, |text| network(text))?,
            ports: each(ports, |port| u16::try_from(*port).map_err(|_| FilterError::Port(*port)))?,
        })
    }

    /// Whether these ends, one or both, have all that is wanted; each thing may be another's.
    pub(super) fn matches(&self, ends: [&[Party<'_>]; 2]) -> bool {
        let any = |test: &dyn Fn(&Party<'_>) -> bool| ends.iter().copied().flatten().any(test);
        any_or_empty(&self.namespaces, |wanted| any(&|party| party.namespace == Some(wanted)))
            && any_or_empty(&self.pods, |wanted| any(&|party| party.is_pod(wanted)))
            && any_or_empty(&self.workloads, |wanted| any(&|party| party.is_of(wanted)))
            && any_or_empty(&self.services, |wanted| any(&|party| party.is_service(wanted)))
            && any_or_empty(&self.selectors, |wanted| any(&|party| party.has_labels(wanted)))
            && any_or_empty(&self.networks, |wanted| any(&|party| party.ip.is_some_and(|ip| wanted.contains(&ip))))
            && any_or_empty(&self.ports, |wanted| any(&|party| party.port == Some(*wanted)))
    }
}

fn network(text: &str) -> Result<IpNet, FilterError> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| FilterError::Network(text.to_owned()))
}
