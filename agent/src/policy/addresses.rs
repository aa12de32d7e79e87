//! One compile's view of who has which address, and of which class each is.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sekisho_core::layout::{AddressEntry, EGRESS, Vip, VipKey, address_flags};

use super::alike::Alike;
use super::blocks::{Blocks, List};
use super::interner::Interner;
use super::peers::{Groups, Peer};
use super::ranges::Ranges;
use super::rows::{Backend, Class, NamedPorts, View};
use super::services::{Dialled, Present, dialled, has_room, left_out};
use super::sets::{Numbers, Ports, Set, named};
use super::warning::Warning;
use super::{Input, Tables, mapped};
use crate::inventory::{Node, Pod, Snapshot};

/// Addresses that a pod's packets bear: what its namespace shows, else its status; of other nodes' pods, else what is announced.
fn pod_addresses<'a>(input: &Input<'a>, pod: &'a Pod) -> &'a [IpAddr] {
    if pod.node.as_deref() == Some(input.node) {
        return input.found.get(&pod.uid).filter(|found| !found.is_empty()).unwrap_or(&pod.ips);
    }
    pod.addresses()
}

/// See the module.
pub(super) struct Addresses<'i, 'a> {
    input: &'i Input<'a>,
    ranges: Ranges,
    blocks: Blocks,
    /// Peers, each with the selector that stands for it.
    active: Vec<(u32, Arc<Peer>)>,
    /// `(name, protocol)` that egress rules ask for.
    names: BTreeSet<(Arc<str>, u8)>,
    pub(super) owners: HashMap<IpAddr, Arc<Pod>>,
    /// Class numbers in use, 0 left out.
    pub(super) classes: HashMap<u32, Arc<Class>>,
    of_address: HashMap<IpAddr, u32>,
}

impl<'i, 'a> Addresses<'i, 'a> {
    pub(super) fn of(input: &'i Input<'a>, live: &BTreeMap<u32, Arc<Set>>, numbers: &Numbers) -> Self {
        let alike = Alike::of(live);
        let active: Vec<(u32, Arc<Peer>)> = numbers.active.iter().filter_map(|(id, peer)| Some((alike.one(*id)?, peer.clone()))).collect();
        let blocks = active.iter().filter_map(|(id, peer)| match &**peer {
            Peer::Block(cidr, except) => Some((*id, cidr, &**except)),
            _ => None,
        });
        let rules = live.values().flat_map(|set| &set.rules[0]);
        let names = rules.flat_map(|rule| rule.ports.iter().flatten()).filter_map(|port| match port {
            Ports::Named(name, protocol) => Some((name.clone(), *protocol)),
            Ports::Range(_) => None,
        });
        Self {
            input,
            ranges: Ranges::of(input.snapshot),
            blocks: Blocks::of(blocks),
            names: names.collect(),
            active,
            owners: HashMap::new(),
            classes: HashMap::new(),
            of_address: HashMap::new(),
        }
    }

    fn class(&mut self, classes: &mut Interner<Class>, content: Class) -> u32 {
        if matches!(&content, Class::Address { selectors, named } if selectors.is_empty() && named.is_empty()) {
            return 0;
        }
        let (number, kept) = classes.intern(content);
        self.classes.insert(number, kept);
        number
    }

    fn plain(&mut self, classes: &mut Interner<Class>, address: IpAddr) -> u32 {
        let selectors = self.blocks.of_address(address).clone();
        self.class(classes, Class::Address { selectors, named: NamedPorts::new() })
    }

    pub(super) fn pods(&mut self, classes: &mut Interner<Class>, out: &mut Tables, warnings: &mut Vec<Warning>) {
        let snapshot = self.input.snapshot;
        let mut groups = Groups::default();
        let mut pods: Vec<(&Arc<Pod>, usize)> = snapshot
            .pods
            .values()
            .filter(|pod| !pod.finished && !pod.host_network)
            .map(|pod| (pod, groups.of(&pod.namespace, &pod.labels)))
            .collect();
        for (id, peer) in &self.active {
            groups.select(*id, peer, &snapshot.namespaces);
        }
        groups.sort();
        // What is only announced comes last, and takes no address from anyone.
        let is_announced = |pod: &Pod| pod.ips.is_empty() && !pod.announced.is_empty();
        pods.sort_by_key(|(pod, _)| is_announced(pod));
        let nodes = if pods.last().is_some_and(|(pod, _)| is_announced(pod)) { node_addresses(self.input) } else { Vec::new() };
        for (pod, group) in pods {
            let announced = is_announced(pod);
            let named = self.named_ports(pod);
            let instance = self.input.instances.pod(&pod.uid);
            let found = self.input.found.contains_key(&pod.uid);
            for address in pod_addresses(self.input, pod) {
                if let Some(other) = self.owners.get(address) {
                    warnings.push(Warning::address_taken(other, pod, *address));
                    // What is seen in a pod's namespace is true; a status may be late.
                    if !found && (announced || self.input.found.contains_key(&other.uid)) {
                        continue;
                    }
                }
                let of_node =
                    if found { self.input.node_addresses.contains(address) } else { announced && nodes.binary_search(address).is_ok() };
                if of_node {
                    warnings.push(Warning::address_of_node(pod, *address));
                    continue;
                }
                if announced && !self.ranges.may_be_pods(*address) {
                    warnings.push(Warning::address_out_of_range(pod, *address));
                    continue;
                }
                let mut selectors = groups.selectors(group).to_vec();
                selectors.extend_from_slice(self.blocks.of_address(*address));
                selectors.sort_unstable();
                selectors.dedup();
                let class = self.class(classes, Class::Address { selectors: selectors.into(), named: named.clone() });
                self.of_address.insert(*address, class);
                self.owners.insert(*address, pod.clone());
                out.addresses.insert(mapped(*address), AddressEntry { class, instance, flags: address_flags::POD });
            }
        }
    }

    fn named_ports(&self, pod: &Pod) -> NamedPorts {
        let mut ports = NamedPorts::new();
        for (name, protocol) in &self.names {
            let mut numbers: Vec<u16> = named(pod, name, *protocol).collect();
            numbers.sort_unstable();
            numbers.dedup();
            if !numbers.is_empty() {
                ports.push(((name.clone(), *protocol), numbers));
            }
        }
        ports
    }

    /// Nodes, and hostNetwork pods through them: plain addresses to every rule.
    pub(super) fn nodes(&mut self, classes: &mut Interner<Class>, out: &mut Tables) {
        let input = self.input;
        for (address, node) in other_nodes(input.snapshot) {
            self.node(classes, out, address, node, 0);
        }
        for address in input.node_addresses {
            self.node(classes, out, *address, input.node, address_flags::NODE);
        }
    }

    fn node(&mut self, classes: &mut Interner<Class>, out: &mut Tables, address: IpAddr, node: &str, flags: u32) {
        let address = address.to_canonical();
        if self.owners.contains_key(&address) {
            return;
        }
        let class = self.plain(classes, address);
        self.of_address.insert(address, class);
        let instance = self.input.instances.node(node);
        out.addresses.insert(mapped(address), AddressEntry { class, instance, flags });
    }

    pub(super) fn cidrs(&mut self, classes: &mut Interner<Class>, out: &mut Tables) {
        let lists: Vec<(IpNet, List)> = self.blocks.prefixes().map(|(prefix, list)| (*prefix, list.clone())).collect();
        for (prefix, selectors) in lists {
            let class = self.class(classes, Class::Address { selectors, named: NamedPorts::new() });
            out.cidrs.insert(prefix_key(&prefix), class);
        }
    }

    /// Networks that only rules of the last compile name: once no endpoint points at those, their addresses are of no other class
    /// to any rule than what lies around them.
    pub(super) fn passing(&self, sets: &BTreeMap<u32, Arc<Set>>, numbers: &Numbers) -> HashSet<(sekisho_core::layout::Address, u8)> {
        let spoken: BTreeSet<u32> =
            sets.values().flat_map(|set| set.rules.iter().flatten()).flat_map(|rule| rule.peers.iter().flatten()).copied().collect();
        let mut stay: HashSet<IpNet> = HashSet::new();
        for peer in spoken.iter().filter_map(|id| numbers.active.get(id)) {
            if let Peer::Block(cidr, except) = &**peer {
                stay.extend(except.iter().chain([cidr]));
            }
        }
        let goes = |prefix: &&IpNet| prefix.prefix_len() > 0 && !stay.contains(prefix);
        self.blocks.prefixes().map(|(prefix, _)| prefix).filter(goes).map(prefix_key).collect()
    }

    /// Service ports with their classes, and the pods of this node that may meet themselves there.
    pub(super) fn services(
        &mut self,
        classes: &mut Interner<Class>,
        sets: &BTreeMap<u32, Arc<Set>>,
        out: &mut Tables,
        warnings: &mut Vec<Warning>,
    ) -> (Vec<(Dialled<'a>, u32)>, BTreeSet<Own>) {
        let input = self.input;
        let mut nodes = node_addresses(input);
        let owners = std::mem::take(&mut self.owners);
        let present = Present::of(input.snapshot, &owners, &nodes, &self.ranges);
        if !has_room(input, nodes.len()) {
            nodes = input.node_addresses.iter().map(IpAddr::to_canonical).collect();
            let text = "the cluster has more nodes and node ports than the kernel's table has room for: node ports of other nodes are judged \
                        as those nodes' addresses, not as the Services behind them; raise --memory-budget to have them all";
            warnings.push(Warning::of_node(input.node, "ServiceTableSmall", text.to_owned()));
        }
        let left_out = left_out(input, nodes.len(), warnings);
        let doors = dialled(input.snapshot, input.node, &nodes, &present, &left_out);
        let mut selves = Selves::of(&owners, sets, out);
        self.owners = owners;
        let mut list = Vec::with_capacity(doors.len());
        for dialled in doors {
            let class = self.backends(classes, &mut selves, &dialled);
            let service = (dialled.service.namespace.clone(), dialled.service.name.clone());
            let instance = input.instances.service(&service, &dialled.service_port.label());
            let address = mapped(dialled.address);
            let entry = out.addresses.entry(address);
            let entry = entry.or_insert_with(|| AddressEntry { class: self.plain(classes, dialled.address), instance: 0, flags: 0 });
            entry.flags |= address_flags::SERVICE;
            let key = VipKey { address, port: dialled.port, protocol: dialled.service_port.protocol, pad: 0 };
            out.vips.insert(key, Vip { class, instance });
            list.push((dialled, class));
        }
        self.unknown(&left_out, out);
        (list, selves.met)
    }

    /// Addresses of Services that are left out: what stands behind them is not known, so only who may go anywhere may go there.
    fn unknown(&self, left_out: &HashSet<(&str, &str)>, out: &mut Tables) {
        let room = self.input.room_for_addresses / 16 * 15;
        let services = self.input.snapshot.services.values();
        for service in services.filter(|service| left_out.contains(&(&*service.namespace, &*service.name))) {
            for address in service.ips.iter().take(room.saturating_sub(out.addresses.len())) {
                out.addresses.entry(mapped(*address)).or_insert(AddressEntry { class: 0, instance: 0, flags: 0 });
            }
        }
    }

    fn backends(&mut self, classes: &mut Interner<Class>, selves: &mut Selves<'_>, dialled: &Dialled<'_>) -> u32 {
        let protocol = dialled.service_port.protocol;
        let mut backends: Vec<Backend> = Vec::with_capacity(dialled.backends.len());
        let mut met = Vec::new();
        for (address, port) in dialled.backends.iter() {
            let known = self.of_address.get(address).copied();
            let class = known.unwrap_or_else(|| self.plain(classes, *address));
            let own = selves.denied_to_itself(*address, self.classes.get(&class).map(|c| &**c), protocol, *port);
            met.extend(own);
            backends.push(Backend { class, port: *port, protocol, own: own.map_or(0, |(instance, _)| instance) });
        }
        backends.sort_unstable();
        backends.dedup();
        let class = match backends[..] {
            // Rules see the port that is dialled; where it is the backends' own, so is the class.
            [Backend { class, port, own: 0, .. }] if port == dialled.port => class,
            _ => self.class(classes, Class::Service(backends)),
        };
        selves.met.extend(met.into_iter().map(|(instance, set)| Own { instance, set, class }));
        class
    }
}

/// A pod of this node that is a backend of a Service, and may not reach itself as any other pod might.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Own {
    pub(super) instance: u32,
    pub(super) set: u32,
    /// Class of the Service's port.
    pub(super) class: u32,
}

/// Pods of this node whose egress is judged, as destinations.
struct Selves<'s> {
    /// Instance and set.
    by_address: HashMap<IpAddr, (u32, u32)>,
    views: HashMap<u32, View<'s>>,
    sets: &'s BTreeMap<u32, Arc<Set>>,
    met: BTreeSet<Own>,
}

impl<'s> Selves<'s> {
    fn of(owners: &HashMap<IpAddr, Arc<Pod>>, sets: &'s BTreeMap<u32, Arc<Set>>, out: &Tables) -> Self {
        let by_address = owners.iter().filter_map(|(address, pod)| {
            let endpoint = out.endpoints.get(&pod.uid).filter(|endpoint| endpoint.isolated[usize::from(EGRESS)])?;
            Some((*address, (endpoint.instance, endpoint.set)))
        });
        Self { by_address: by_address.collect(), views: HashMap::new(), sets, met: BTreeSet::new() }
    }

    /// The pod of this node that has an address, where its own rules do not let it go there.
    fn denied_to_itself(&mut self, address: IpAddr, class: Option<&Class>, protocol: u8, port: u16) -> Option<(u32, u32)> {
        let (instance, set) = *self.by_address.get(&address)?;
        let content = self.sets.get(&set)?;
        let view = self.views.entry(set).or_insert_with(|| View::of(set, content, usize::from(EGRESS)));
        view.class_row(class).allows(protocol, port).is_none().then_some((instance, set))
    }
}

fn prefix_key(prefix: &IpNet) -> (sekisho_core::layout::Address, u8) {
    (mapped(prefix.addr()), prefix.prefix_len() + if prefix.addr().is_ipv4() { 96 } else { 0 })
}

/// Addresses of all nodes, ascending.
fn node_addresses(input: &Input<'_>) -> Vec<IpAddr> {
    let others = other_nodes(input.snapshot).map(|(address, _)| address);
    let mut nodes: Vec<IpAddr> = others.chain(input.node_addresses.iter().map(IpAddr::to_canonical)).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// Addresses of the other nodes, and of hostNetwork pods where no Node says them.
fn other_nodes(snapshot: &Snapshot) -> impl Iterator<Item = (IpAddr, &str)> {
    let pods = snapshot.pods.values().filter(|pod| pod.host_network && !pod.finished);
    let of_pods = pods.filter_map(|pod| Some((&pod.ips, pod.node.as_deref()?)));
    let of_nodes = snapshot.nodes.values().map(|node: &Arc<Node>| (&node.ips, &*node.name));
    of_pods.chain(of_nodes).flat_map(|(ips, node)| ips.iter().map(move |ip| (*ip, node)))
}
