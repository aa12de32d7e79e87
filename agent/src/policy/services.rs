//! Service ports and the backends that kube-proxy would pick for them on this node.
//!
//! An EndpointSlice is late, and may say anything. What counts is who has a backend's address now, whatever the slice calls it:
//! that is where packets go. Where nobody has it, and it can only be a pod's that is gone or not known yet, nobody is there.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::Input;
use super::ranges::Ranges;
use super::share::level;
use super::warning::Warning;
use crate::inventory::{EndpointSlice, Pod, Service, ServicePort, SliceEndpoint, Snapshot};

/// One address and port at which a Service is dialled.
pub(super) struct Dialled<'a> {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) service: &'a Service,
    pub(super) service_port: &'a ServicePort,
    /// `(address, port)` of the same family, ascending, distinct.
    pub(super) backends: Behind,
}

/// Backends of one address.
type Behind = Arc<[(IpAddr, u16)]>;

fn distinct(mut list: Vec<(IpAddr, u16)>) -> Behind {
    list.sort_unstable();
    list.dedup();
    list.into()
}

impl ServicePort {
    /// How records call it: its name, else its number.
    pub fn label(&self) -> String {
        self.name.as_deref().map_or_else(|| self.port.to_string(), str::to_owned)
    }
}

/// How many Service ports the table takes. What goes leaves after what comes is written, so not all of the room is used.
fn room(input: &Input<'_>) -> usize {
    input.room_for_services / 8 * 7
}

/// Addresses and ports of a Service, where node ports are open at `nodes` addresses.
fn doors(service: &Service, nodes: usize) -> usize {
    let node_ports = service.ports.iter().filter(|port| port.node_port.is_some()).count();
    service.ips.len() * service.ports.len() + nodes * node_ports
}

/// Whether all Service ports have room, those at the addresses of `nodes` nodes included.
pub(super) fn has_room(input: &Input<'_>, nodes: usize) -> bool {
    input.snapshot.services.values().map(|service| doors(service, nodes)).sum::<usize>() <= room(input)
}

/// Services that have no room, by namespace and name: the largest of the namespaces that have too many.
pub(super) fn left_out<'a>(input: &Input<'a>, nodes: usize, warnings: &mut Vec<Warning>) -> HashSet<(&'a str, &'a str)> {
    let mut wanted: BTreeMap<&'a Arc<str>, Vec<(usize, &'a Service)>> = BTreeMap::new();
    for service in input.snapshot.services.values() {
        wanted.entry(&service.namespace).or_default().push((doors(service, nodes), service));
    }
    let most = level(wanted.values().map(|services| services.iter().map(|(doors, _)| doors).sum()), room(input));
    let mut out = HashSet::new();
    for (namespace, mut services) in wanted {
        services.sort_by_key(|(doors, service)| (*doors, &service.name));
        let mut used = 0;
        let over = services.iter().position(|(doors, _)| {
            used += doors;
            used > most
        });
        let Some(over) = over else { continue };
        warnings.push(Warning::services_left_out(namespace, services.len() - over));
        out.extend(services[over..].iter().map(|(_, service)| (&**namespace, &*service.name)));
    }
    out
}

/// Every address and port of every Service; `nodes` are the addresses at which node ports are open.
pub(super) fn dialled<'a>(
    snapshot: &'a Snapshot,
    node: &str,
    nodes: &[IpAddr],
    present: &Present<'_>,
    left_out: &HashSet<(&str, &str)>,
) -> Vec<Dialled<'a>> {
    let mut slices: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
    for slice in snapshot.endpoint_slices.values() {
        if let Some(service) = &slice.service {
            slices.entry((&slice.namespace, service)).or_default().push(slice);
        }
    }
    let mut out = Vec::new();
    for service in snapshot.services.values().filter(|service| !left_out.contains(&(&*service.namespace, &*service.name))) {
        let slices = slices.get(&(&*service.namespace, &*service.name)).map_or(&[][..], Vec::as_slice);
        for service_port in &service.ports {
            let (ready, terminating) = backends(present, slices, service_port);
            // Thousands of nodes have one port, and behind it are the same.
            let mut known: HashMap<(bool, bool), Behind> = HashMap::new();
            let mut of = |address: IpAddr| {
                let (v4, local) = (address.is_ipv4(), service.node_local_ips.contains(&address));
                let fits = |(ip, _, on): &&Backend| ip.is_ipv4() == v4 && (!local || on.as_deref() == Some(node));
                let pick = |list: &[Backend]| list.iter().filter(fits).map(|(ip, port, _)| (*ip, *port)).collect::<Vec<_>>();
                let picked = || Some(pick(&ready)).filter(|list| !list.is_empty()).unwrap_or_else(|| pick(&terminating));
                known.entry((v4, local)).or_insert_with(|| distinct(picked())).clone()
            };
            let at_service = service.ips.iter().map(|ip| (*ip, service_port.port));
            let at_nodes = nodes.iter().filter_map(|ip| Some((*ip, service_port.node_port?)));
            for (address, port) in at_service.chain(at_nodes) {
                out.push(Dialled { address, port, service, service_port, backends: of(address) });
            }
        }
    }
    share(&mut out);
    out
}

/// Where Services claim one door (`externalIPs` may be anything), nobody knows which of them kube-proxy takes: behind it are the
/// backends of all.
fn share(dialled: &mut [Dialled<'_>]) {
    let mut doors: HashMap<(IpAddr, u16, u8), usize> = HashMap::with_capacity(dialled.len());
    for index in 0..dialled.len() {
        let Dialled { address, port, service_port, .. } = &dialled[index];
        let first = *doors.entry((*address, *port, service_port.protocol)).or_insert(index);
        if first != index {
            let all = distinct([&*dialled[first].backends, &*dialled[index].backends].concat());
            dialled[first].backends = all.clone();
            dialled[index].backends = all;
        }
    }
}

type Backend = (IpAddr, u16, Option<Arc<str>>);

/// The ready ones, and those that still serve while they terminate, which count where no one is ready.
fn backends(present: &Present<'_>, slices: &[&EndpointSlice], port: &ServicePort) -> (Vec<Backend>, Vec<Backend>) {
    let (mut ready, mut terminating) = (Vec::new(), Vec::new());
    for slice in slices {
        let ports = slice.ports.iter().filter(|(name, _, protocol)| *name == port.name && *protocol == port.protocol);
        for (_, number, _) in ports {
            let number = if *number == 0 { port.port } else { *number };
            for endpoint in &slice.endpoints {
                let list = match endpoint {
                    SliceEndpoint { ready: true, .. } => &mut ready,
                    SliceEndpoint { serving: true, terminating: true, .. } => &mut terminating,
                    _ => continue,
                };
                let ips = endpoint.ips.iter().filter(|ip| present.counts(endpoint, **ip));
                list.extend(ips.map(|ip| (*ip, number, endpoint.node.clone())));
            }
        }
    }
    (ready, terminating)
}

/// Who is there to answer at a backend's address.
pub(super) struct Present<'a> {
    owners: &'a HashMap<IpAddr, Arc<Pod>>,
    nodes: HashSet<IpAddr>,
    /// Addresses of pods that are over.
    gone: HashSet<IpAddr>,
    ranges: &'a Ranges,
}

impl<'a> Present<'a> {
    /// `owners`: pods by their addresses; `nodes`: addresses of all nodes.
    pub(super) fn of(snapshot: &Snapshot, owners: &'a HashMap<IpAddr, Arc<Pod>>, nodes: &[IpAddr], ranges: &'a Ranges) -> Self {
        let over = snapshot.pods.values().filter(|pod| pod.finished && !pod.host_network);
        let gone = over.flat_map(|pod| &pod.ips).copied().collect();
        Self { owners, nodes: nodes.iter().copied().collect(), gone, ranges }
    }

    /// Whether a backend's address counts. One outside the pods' ranges always does, or a slice that calls it a pod's would open it.
    fn counts(&self, endpoint: &SliceEndpoint, ip: IpAddr) -> bool {
        if self.owners.contains_key(&ip) || self.nodes.contains(&ip) {
            return true;
        }
        let absent = self.gone.contains(&ip) || self.ranges.are_pods(ip) || (endpoint.pod.is_some() && self.ranges.may_be_pods(ip));
        !absent
    }
}
