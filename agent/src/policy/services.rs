//! Service ports and the backends that kube-proxy would pick for them on this node.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::Input;
use crate::inventory::{EndpointSlice, Service, ServicePort, SliceEndpoint, Snapshot};

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

/// Whether all Service ports have room, those at the addresses of `nodes` nodes included. What goes leaves after what comes is
/// written, so not all of the room is used.
pub(super) fn has_room(input: &Input<'_>, nodes: usize) -> bool {
    let doors = input.snapshot.services.values().map(|service| {
        let node_ports = service.ports.iter().filter(|port| port.node_port.is_some()).count();
        service.ips.len() * service.ports.len() + nodes * node_ports
    });
    doors.sum::<usize>() <= input.room_for_services / 8 * 7
}

/// Every address and port of every Service; `nodes` are the addresses at which node ports are open.
pub(super) fn dialled<'a>(snapshot: &'a Snapshot, node: &str, nodes: &[IpAddr]) -> Vec<Dialled<'a>> {
    let mut slices: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
    for slice in snapshot.endpoint_slices.values() {
        if let Some(service) = &slice.service {
            slices.entry((&slice.namespace, service)).or_default().push(slice);
        }
    }
    let mut out = Vec::new();
    for service in snapshot.services.values() {
        let slices = slices.get(&(&*service.namespace, &*service.name)).map_or(&[][..], Vec::as_slice);
        for service_port in &service.ports {
            let (ready, terminating) = backends(snapshot, slices, service_port);
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
fn backends(snapshot: &Snapshot, slices: &[&EndpointSlice], port: &ServicePort) -> (Vec<Backend>, Vec<Backend>) {
    let (mut ready, mut terminating) = (Vec::new(), Vec::new());
    for slice in slices {
        let ports = slice.ports.iter().filter(|(name, _, protocol)| *name == port.name && *protocol == port.protocol);
        for (_, number, _) in ports {
            let number = if *number == 0 { port.port } else { *number };
            for endpoint in slice.endpoints.iter().filter(|e| is_known(snapshot, e)) {
                let list = match endpoint {
                    SliceEndpoint { ready: true, .. } => &mut ready,
                    SliceEndpoint { serving: true, terminating: true, .. } => &mut terminating,
                    _ => continue,
                };
                list.extend(endpoint.ips.iter().map(|ip| (*ip, number, endpoint.node.clone())));
            }
        }
    }
    (ready, terminating)
}

/// A backend whose pod is not known yet is left out.
fn is_known(snapshot: &Snapshot, endpoint: &SliceEndpoint) -> bool {
    endpoint.pod.as_ref().is_none_or(|pod| snapshot.pods.contains_key(pod))
}
