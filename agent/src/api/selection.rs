//! A client's filter, checked once and then applied to every record before it is projected.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sekisho_core::layout::{INGRESS, verdict};
use sekisho_proto::{self as proto, AlertPeer, Kind, Name as _, Verdict};

use crate::flow::{self, Body, FlowRecord, Identity, Moment, Owner, Record, has_ports};

/// A filter that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Neither address nor CIDR.
    #[error("`{0}` is neither an address nor a CIDR")]
    Network(String),
    /// No pod's name.
    #[error("`{0}` is not NAMESPACE/POD")]
    Pod(String),
    /// No port.
    #[error("{0} is not a port")]
    Port(u32),
    /// No protocol.
    #[error("`{0}` is not a protocol: give TCP, UDP, SCTP, ICMP, ICMPv4, ICMPv6 or a number")]
    Protocol(String),
    /// A number without meaning.
    #[error("{0} is not a kind of record or verdict")]
    Unknown(i32),
}

/// A filter, ready for use. Lists that are empty ask for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    kinds: Vec<Kind>,
    verdicts: Vec<u8>,
    namespaces: Vec<String>,
    pods: Vec<PodName>,
    from_pods: Vec<PodName>,
    to_pods: Vec<PodName>,
    networks: Vec<IpNet>,
    ports: Vec<u16>,
    protocols: Vec<u8>,
}

/// Namespace and name.
type PodName = (String, String);

impl Selection {
    /// Alerts alone.
    pub fn alerts() -> Self {
        Self { kinds: vec![Kind::Alert], ..Self::default() }
    }

    /// Checks a filter.
    pub fn new(filter: &proto::Filter) -> Result<Self, FilterError> {
        Ok(Self {
            kinds: each(&filter.kinds, |kind| {
                Kind::try_from(*kind).ok().filter(|kind| kind.name().is_some()).ok_or(FilterError::Unknown(*kind))
            })?,
            verdicts: each(&filter.verdicts, |verdict| verdict_number(*verdict))?,
            namespaces: filter.namespaces.clone(),
            pods: each(&filter.pods, |pod| pod_name(pod))?,
            from_pods: each(&filter.from_pods, |pod| pod_name(pod))?,
            to_pods: each(&filter.to_pods, |pod| pod_name(pod))?,
            networks: each(&filter.ips, |text| network(text))?,
            ports: each(&filter.ports, |port| u16::try_from(*port).map_err(|_| FilterError::Port(*port)))?,
            protocols: each(&filter.protocols, |text| protocol_numbers(text))?.concat(),
        })
    }

    /// The filter as the book takes it; `None` where everything passes.
    pub fn filter(self) -> Option<flow::Filter> {
        if self == Self::default() { None } else { Some(Arc::new(move |record| self.passes(record))) }
    }

    /// Whether a record passes. What is not a flow passes a filter on flows only if its kind is asked for.
    pub fn passes(&self, record: &Record) -> bool {
        let kind_asked = self.kinds.contains(&kind(record));
        if !self.kinds.is_empty() && !kind_asked {
            return false;
        }
        match &record.body {
            Body::Flow(flow) => self.passes_flow(flow),
            _ if !kind_asked => *self == Self::default(),
            Body::Alert(alert) => self.passes_alert(alert),
            Body::Coverage(coverage) => self.passes_pod(coverage.pod.as_ref()),
            Body::Summary(summary) => self.passes_pod(summary.pod.as_ref()),
            Body::Ledger(_) | Body::Policy(_) => true,
        }
    }

    fn passes_flow(&self, record: &FlowRecord) -> bool {
        let key = &record.key;
        let (local, remote) = (record.local.as_deref(), record.remote.as_deref());
        let (source, destination) = if record.flow.opened == INGRESS { (remote, local) } else { (local, remote) };
        any_or_empty(&self.verdicts, |verdict| *verdict == record.flow.verdict)
            && any_or_empty(&self.protocols, |protocol| *protocol == key.protocol)
            && any_or_empty(&self.ports, |port| has_ports(key.protocol) && (*port == key.local_port || *port == key.remote_port))
            && any_or_empty(&self.namespaces, |wanted| [local, remote].into_iter().flatten().any(|end| in_namespace(end, wanted)))
            && any_or_empty(&self.pods, |wanted| is_pod(local, wanted) || is_pod(remote, wanted))
            && any_or_empty(&self.from_pods, |wanted| is_pod(source, wanted))
            && any_or_empty(&self.to_pods, |wanted| is_pod(destination, wanted))
            && self.passes_addresses([record.flow.local, key.remote])
    }

    fn passes_addresses(&self, ends: [[u8; 16]; 2]) -> bool {
        any_or_empty(&self.networks, |network| ends.iter().any(|end| network.contains(&IpAddr::from(*end).to_canonical())))
    }

    /// An alert has ends as a flow has; verdict and protocol it has not.
    fn passes_alert(&self, alert: &proto::Alert) -> bool {
        let source = alert.source.as_slice();
        let targets = alert.targets.as_slice();
        let either = |test: &dyn Fn(&AlertPeer) -> bool| source.iter().chain(targets).any(test);
        let ports = alert.evidence.as_ref().map_or(&[][..], |evidence| &evidence.ports);
        any_or_empty(&self.namespaces, |wanted| either(&|peer| peer.namespace.as_ref() == Some(wanted)))
            && any_or_empty(&self.pods, |wanted| either(&|peer| is_peer(peer, wanted)))
            && any_or_empty(&self.from_pods, |wanted| source.iter().any(|peer| is_peer(peer, wanted)))
            && any_or_empty(&self.to_pods, |wanted| targets.iter().any(|peer| is_peer(peer, wanted)))
            && any_or_empty(&self.networks, |network| either(&|peer| peer_in(peer, network)))
            && any_or_empty(&self.ports, |port| ports.contains(&u32::from(*port)) || either(&|peer| peer.port == Some(u32::from(*port))))
    }

    fn passes_pod(&self, pod: Option<&proto::Pod>) -> bool {
        let is = |(namespace, name): &PodName| pod.is_some_and(|pod| pod.namespace == *namespace && pod.name == *name);
        any_or_empty(&self.namespaces, |wanted| pod.is_some_and(|pod| pod.namespace == *wanted))
            && any_or_empty(&self.pods, is)
            && any_or_empty(&self.from_pods, is)
            && any_or_empty(&self.to_pods, is)
    }
}

/// What a record is.
fn kind(record: &Record) -> Kind {
    match &record.body {
        Body::Flow(flow) => match flow.moment {
            Moment::Start => Kind::Start,
            Moment::Update => Kind::Update,
            Moment::End(_) => Kind::End,
        },
        Body::Alert(_) => Kind::Alert,
        Body::Ledger(_) => Kind::Ledger,
        Body::Policy(_) => Kind::Policy,
        Body::Coverage(_) => Kind::Coverage,
        Body::Summary(_) => Kind::Summarised,
    }
}

fn each<T, U>(values: &[T], check: impl Fn(&T) -> Result<U, FilterError>) -> Result<Vec<U>, FilterError> {
    values.iter().map(check).collect()
}

fn any_or_empty<T>(wanted: &[T], test: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(test)
}

fn is_pod(end: Option<&Identity>, wanted: &PodName) -> bool {
    matches!(end.map(|end| &end.owner), Some(Owner::Pod { namespace, name, .. }) if **namespace == *wanted.0 && **name == *wanted.1)
}

fn in_namespace(end: &Identity, wanted: &str) -> bool {
    match &end.owner {
        Owner::Pod { namespace, .. } | Owner::Service { namespace, .. } => **namespace == *wanted,
        Owner::Node { .. } => false,
    }
}

fn is_peer(peer: &AlertPeer, wanted: &PodName) -> bool {
    peer.namespace.as_ref() == Some(&wanted.0) && peer.pod.as_ref() == Some(&wanted.1)
}

fn peer_in(peer: &AlertPeer, network: &IpNet) -> bool {
    peer.ip.as_ref().and_then(|ip| ip.parse::<IpAddr>().ok()).is_some_and(|ip| network.contains(&ip))
}

fn verdict_number(number: i32) -> Result<u8, FilterError> {
    match Verdict::try_from(number) {
        Ok(Verdict::Allowed) => Ok(verdict::ALLOWED),
        Ok(Verdict::Denied) => Ok(verdict::DENIED),
        Ok(Verdict::Audit) => Ok(verdict::AUDIT),
        _ => Err(FilterError::Unknown(number)),
    }
}

fn pod_name(text: &str) -> Result<PodName, FilterError> {
    let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
    if namespace.is_empty() || name.is_empty() || name.contains('/') {
        return Err(FilterError::Pod(text.to_owned()));
    }
    Ok((namespace.to_owned(), name.to_owned()))
}

fn network(text: &str) -> Result<IpNet, FilterError> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| FilterError::Network(text.to_owned()))
}

fn protocol_numbers(text: &str) -> Result<Vec<u8>, FilterError> {
    Ok(match text.to_ascii_uppercase().as_str() {
        "TCP" => vec![6],
        "UDP" => vec![17],
        "SCTP" => vec![132],
        "ICMP" => vec![1, 58],
        "ICMPV4" => vec![1],
        "ICMPV6" => vec![58],
        number => vec![number.parse().map_err(|_| FilterError::Protocol(text.to_owned()))?],
    })
}
