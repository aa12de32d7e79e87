//! Which ports a target declares. A client of a declared port that fails is no scanner: its target is down, or a policy is in the way.
//!
//! A port counts as declared only where this very target declares it: in its pod's containers, probes or the annotation
//! `prometheus.io/port`, in an EndpointSlice that lists the address, or as a Service's port, node ports included. It does not count that
//! other pods declare the same port: a sweep of port 5432 over many pods meets mostly pods that have no database.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::contact::Contact;
use crate::flow::Owner;
use crate::inventory::Snapshot;

/// `(port, protocol)`.
type Port = (u16, u8);

/// See the module.
#[derive(Default)]
pub(super) struct Declared {
    snapshot: Arc<Snapshot>,
    /// Made when a contact first asks for it.
    others: OnceCell<Others>,
}

/// What is declared elsewhere than in a pod's own spec.
#[derive(Default)]
struct Others {
    by_address: HashMap<IpAddr, Vec<Port>>,
    node_ports: HashSet<Port>,
}

impl Declared {
    pub(super) fn set(&mut self, snapshot: Arc<Snapshot>) {
        let same = Arc::ptr_eq(&self.snapshot.pods, &snapshot.pods)
            && Arc::ptr_eq(&self.snapshot.services, &snapshot.services)
            && Arc::ptr_eq(&self.snapshot.endpoint_slices, &snapshot.endpoint_slices);
        if !same {
            self.others = OnceCell::new();
        }
        self.snapshot = snapshot;
    }

    /// Whether the contact's target declares the port that was tried.
    pub(super) fn has(&self, contact: &Contact) -> bool {
        let port = (contact.port, contact.protocol);
        let owner = contact.target.identity.as_deref().map(|identity| &identity.owner);
        if let Some(Owner::Pod { namespace, name, .. }) = owner
            && let Some(pod) = self.snapshot.pods.get(&(namespace.clone(), name.clone()))
            && pod.serves.binary_search(&port).is_ok()
        {
            return true;
        }
        let others = self.others.get_or_init(|| Others::of(&self.snapshot));
        let at_node = matches!(owner, Some(Owner::Node { .. })) && others.node_ports.contains(&port);
        at_node || others.by_address.get(&contact.target.ip).is_some_and(|ports| ports.contains(&port))
    }

    /// Whether the contact's target is gone: who still tries it has a list that is out of date.
    pub(super) fn is_gone(&self, contact: &Contact) -> bool {
        match contact.target.identity.as_deref().map(|identity| &identity.owner) {
            Some(Owner::Pod { namespace, name, uid, .. }) => {
                !self.snapshot.pods.get(&(namespace.clone(), name.clone())).is_some_and(|pod| pod.uid == *uid && !pod.finished)
            }
            _ => false,
        }
    }
}

impl Others {
    fn of(snapshot: &Snapshot) -> Self {
        let mut all = Self::default();
        for slice in snapshot.endpoint_slices.values() {
            // Port 0 stands for all: that declares none.
            let ports = || slice.ports.iter().filter(|(_, port, _)| *port != 0).map(|(_, port, protocol)| (*port, *protocol));
            for ip in slice.endpoints.iter().flat_map(|endpoint| &endpoint.ips) {
                all.by_address.entry(*ip).or_default().extend(ports());
            }
        }
        for service in snapshot.services.values() {
            for ip in &service.ips {
                all.by_address.entry(*ip).or_default().extend(service.ports.iter().map(|port| (port.port, port.protocol)));
            }
            all.node_ports.extend(service.ports.iter().filter_map(|port| Some((port.node_port?, port.protocol))));
        }
        // Pods on their node's network are met at the node's addresses.
        for pod in snapshot.pods.values().filter(|pod| pod.host_network && !pod.finished) {
            for ip in &pod.ips {
                all.by_address.entry(*ip).or_default().extend(&pod.serves);
            }
        }
        all
    }
}
