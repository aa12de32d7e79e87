//! From the cluster to the kernel's tables.
//!
//! A compile looks at everything anew; only numbers are remembered. The tables also answer for the sets of the compile before:
//! while the datapath writes the difference, endpoints still point at those, and addresses are already of the new classes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use sekisho_core::layout::{AddressEntry, Vip, VipKey, address_flags};

use super::alike::Alike;
use super::blocks::{Blocks, List};
use super::explain::Explainer;
use super::interner::Interner;
use super::lending::not_lent;
use super::peers::{Groups, Peer};
use super::ports::Table;
use super::rows::{Class, NamedPorts, View};
use super::services::{Dialled, dialled, has_room};
use super::sets::{Numbered, Numbers, Ports, Set, named, set};
use super::share::within_shares;
use super::warning::{Warning, unjudged};
use super::{EndpointPolicy, Input, RuleRef, Tables, UsedIds, mapped};
use crate::inventory::{Labels, NetworkPolicy, Node, Pod, Snapshot};

/// Compiles snapshots, one after the other.
pub struct Compiler {
    numbers: Numbers,
    sets: Interner<Set>,
    classes: Interner<Class>,
    tables: Interner<Table>,
    /// Sets of the last compile, those that endpoints point at.
    before: BTreeMap<u32, Arc<Set>>,
    /// Sets of the one before that.
    former: BTreeMap<u32, Arc<Set>>,
}

/// How large a compile came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Policies that select a pod of this node.
    pub policies: usize,
    /// Distinct peers that they name.
    pub selectors: usize,
    /// Sets in use.
    pub sets: usize,
    /// Classes in use.
    pub classes: usize,
    /// Addresses that were left out for want of room.
    pub left_out: usize,
}

/// One compile's outcome.
pub struct Compiled {
    /// For the kernel.
    pub tables: Tables,
    /// What rule numbers mean, those of the last compile included.
    pub rules: HashMap<u32, RuleRef>,
    /// What a person should know.
    pub warnings: Vec<Warning>,
    /// Sizes.
    pub stats: Stats,
    pub(super) explainer: Explainer,
}

/// What is worth saying once, not ten thousand times.
const MAX_WARNINGS: usize = 100;

impl Compiler {
    /// `used`: the highest numbers that the kernel's maps hold already.
    pub fn new(used: UsedIds) -> Self {
        Self {
            numbers: Numbers {
                selectors: Interner::above(0),
                rules: Interner::above(used.rule),
                active: HashMap::new(),
                names: HashMap::new(),
            },
            sets: Interner::above(used.set),
            classes: Interner::above(used.class),
            tables: Interner::above(used.table),
            before: BTreeMap::new(),
            former: BTreeMap::new(),
        }
    }

    /// The same compiler, with the rule numbers that an earlier run gave: flows in the kernel speak of them, and keep
    /// their meaning. To be called before the first compile.
    #[must_use]
    pub fn knowing(mut self, rules: impl IntoIterator<Item = (u32, RuleRef)>) -> Self {
        for (number, rule) in rules {
            self.numbers.rules.know(number, rule);
        }
        self
    }

    /// Compiles what `input` says.
    pub fn compile(&mut self, input: &Input<'_>) -> Compiled {
        self.begin();
        let mut out = Tables::default();
        let mut warnings = Vec::new();
        let mut by_namespace = policies_by_namespace(input.snapshot);
        within_shares(input, &mut by_namespace, &mut warnings);
        let (sets, selecting, policies) = self.endpoints(input, &by_namespace, &mut out);
        unjudged(input, &by_namespace, &mut warnings);
        not_lent(input, &mut warnings);
        let live = self.live_sets(&sets);
        let mut work = Addresses::of(input, &live, &self.numbers);
        work.pods(&mut self.classes, &mut out, &mut warnings);
        work.nodes(&mut self.classes, &mut out);
        work.cidrs(&mut self.classes, &mut out);
        let services = work.services(&mut self.classes, &mut out, &mut warnings);
        let Addresses { owners, classes, .. } = work;
        self.rows(&live, &sets, &classes, &services, &mut out, &mut warnings);
        let stats = Stats { policies, selectors: self.numbers.active.len(), sets: sets.len(), classes: classes.len(), left_out: 0 };
        self.former = std::mem::replace(&mut self.before, sets);
        warnings.truncate(MAX_WARNINGS);
        Compiled {
            tables: out,
            rules: self.numbers.names.clone(),
            warnings,
            stats,
            explainer: Explainer::new(input, owners, selecting, by_namespace, &services),
        }
    }

    /// The last compile did not come into force: endpoints still point at the sets of the one before.
    pub fn take_back(&mut self) {
        self.before = std::mem::take(&mut self.former);
    }

    fn begin(&mut self) {
        self.numbers.selectors.begin();
        self.numbers.rules.begin();
        self.sets.begin();
        self.classes.begin();
        self.tables.begin();
        // What the last compile's sets speak of stays in use once more, with its number.
        let spoken: BTreeSet<u32> =
            self.before.values().flat_map(|s| s.rules.iter().flatten()).flat_map(|r| r.peers.iter().flatten()).copied().collect();
        self.numbers.active.retain(|id, _| spoken.contains(id));
        for peer in self.numbers.active.values() {
            self.numbers.selectors.touch(peer);
        }
        let rules: BTreeSet<u32> = self.before.values().flat_map(|s| s.rules.iter().flatten()).map(|r| r.id).collect();
        self.numbers.names.retain(|id, _| rules.contains(id));
        for name in self.numbers.names.values() {
            self.numbers.rules.number(name.clone());
        }
    }

    /// Endpoints of local pods and their sets; which policies select which pods; how many policies that are.
    fn endpoints(
        &mut self,
        input: &Input<'_>,
        by_namespace: &ByNamespace,
        out: &mut Tables,
    ) -> (BTreeMap<u32, Arc<Set>>, Selecting, usize) {
        let mut sets = BTreeMap::new();
        let mut selecting = Selecting::new();
        let mut numbered: HashMap<*const NetworkPolicy, Numbered> = HashMap::new();
        for pod in local_pods(input) {
            let instance = input.instances.pod(&pod.uid);
            if pod.host_network {
                out.endpoints.insert(pod.uid.clone(), EndpointPolicy { instance, host_network: true, ..EndpointPolicy::default() });
                continue;
            }
            let policies = selecting.entry((pod.namespace.clone(), pod.labels.clone())).or_insert_with(|| {
                let all = by_namespace.get(&pod.namespace).map_or(&[][..], Vec::as_slice);
                all.iter().filter(|policy| policy.pod_selector.matches(&pod.labels)).cloned().collect()
            });
            for policy in policies.iter() {
                numbered.entry(Arc::as_ptr(policy)).or_insert_with(|| self.numbers.number(policy));
            }
            let content = set(policies.iter().map(|policy| &numbered[&Arc::as_ptr(policy)]), pod);
            let isolated = content.isolated;
            let number = if isolated == [false, false] {
                0
            } else {
                let (number, kept) = self.sets.intern(content);
                sets.insert(number, kept);
                number
            };
            out.endpoints.insert(pod.uid.clone(), EndpointPolicy { set: number, instance, isolated, host_network: false });
        }
        (sets, selecting, numbered.len())
    }

    /// The sets of this compile and of the last one.
    fn live_sets(&mut self, sets: &BTreeMap<u32, Arc<Set>>) -> BTreeMap<u32, Arc<Set>> {
        for set in self.before.values() {
            self.sets.touch(set);
        }
        self.before.iter().chain(sets).map(|(number, set)| (*number, set.clone())).collect()
    }

    fn rows(
        &mut self,
        live: &BTreeMap<u32, Arc<Set>>,
        now: &BTreeMap<u32, Arc<Set>>,
        classes: &HashMap<u32, Arc<Class>>,
        services: &[(Dialled<'_>, u32)],
        out: &mut Tables,
        warnings: &mut Vec<Warning>,
    ) {
        let mut said = BTreeSet::new();
        for (number, set) in live {
            for direction in 0..2 {
                let mut view = View::of(*number, set, direction);
                if view.is_empty() {
                    continue;
                }
                let nobody = view.row(&[], &NamedPorts::new());
                view.write(0, &nobody, &mut self.tables, out);
                let mut mixed = BTreeSet::new();
                for (class, content) in classes {
                    let row = match &**content {
                        Class::Address { selectors, named } => view.row(selectors, named),
                        Class::Service(_) if direction != 0 => continue,
                        Class::Service(backends) => {
                            let (rule, differ) = view.service(backends, classes);
                            if differ && view.isolated() && now.contains_key(number) {
                                mixed.insert(*class);
                            }
                            Arc::new(super::rows::Row { any: rule.unwrap_or(0), table: Table::new() })
                        }
                    };
                    view.write(*class, &row, &mut self.tables, out);
                }
                said.extend(services.iter().enumerate().filter(|(_, (_, class))| mixed.contains(class)).map(|(index, _)| index));
            }
        }
        let mut names = BTreeSet::new();
        names.extend(said.into_iter().map(|index| {
            let service = &services[index].0;
            (service.service.namespace.clone(), service.service.name.clone(), service.service_port.label())
        }));
        warnings.extend(names.into_iter().map(|(namespace, name, port)| Warning::backends_differ(namespace, name, &port)));
    }
}

/// Policies of a namespace, by name.
pub(super) type ByNamespace = BTreeMap<Arc<str>, Vec<Arc<NetworkPolicy>>>;
/// Policies that select pods with a namespace and labels.
pub(super) type Selecting = HashMap<(Arc<str>, Labels), Arc<[Arc<NetworkPolicy>]>>;

fn policies_by_namespace(snapshot: &Snapshot) -> ByNamespace {
    let mut by_namespace = ByNamespace::new();
    for policy in snapshot.policies.values() {
        by_namespace.entry(policy.namespace.clone()).or_default().push(policy.clone());
    }
    by_namespace
}

pub(super) fn local_pods<'a>(input: &Input<'a>) -> impl Iterator<Item = &'a Arc<Pod>> {
    let node = input.node;
    input.snapshot.pods.values().filter(move |pod| !pod.finished && pod.node.as_deref() == Some(node))
}

/// Addresses that a pod's packets bear: what its namespace shows, else its status; of other nodes' pods, else what is announced.
fn pod_addresses<'a>(input: &Input<'a>, pod: &'a Pod) -> &'a [IpAddr] {
    if pod.node.as_deref() == Some(input.node) {
        return input.found.get(&pod.uid).filter(|found| !found.is_empty()).unwrap_or(&pod.ips);
    }
    pod.addresses()
}

/// One compile's view of who has which address.
struct Addresses<'i, 'a> {
    input: &'i Input<'a>,
    blocks: Blocks,
    /// Peers, each with the selector that stands for it.
    active: Vec<(u32, Arc<Peer>)>,
    /// `(name, protocol)` that egress rules ask for.
    names: BTreeSet<(Arc<str>, u8)>,
    owners: HashMap<IpAddr, Arc<Pod>>,
    /// Class numbers in use, 0 left out.
    classes: HashMap<u32, Arc<Class>>,
    of_address: HashMap<IpAddr, u32>,
}

impl<'i, 'a> Addresses<'i, 'a> {
    fn of(input: &'i Input<'a>, live: &BTreeMap<u32, Arc<Set>>, numbers: &Numbers) -> Self {
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

    fn pods(&mut self, classes: &mut Interner<Class>, out: &mut Tables, warnings: &mut Vec<Warning>) {
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
    fn nodes(&mut self, classes: &mut Interner<Class>, out: &mut Tables) {
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

    fn cidrs(&mut self, classes: &mut Interner<Class>, out: &mut Tables) {
        let lists: Vec<(IpNet, List)> = self.blocks.prefixes().map(|(prefix, list)| (*prefix, list.clone())).collect();
        for (prefix, selectors) in lists {
            let class = self.class(classes, Class::Address { selectors, named: NamedPorts::new() });
            let length = prefix.prefix_len() + if prefix.addr().is_ipv4() { 96 } else { 0 };
            out.cidrs.insert((mapped(prefix.addr()), length), class);
        }
    }

    /// Service ports with their classes.
    fn services(&mut self, classes: &mut Interner<Class>, out: &mut Tables, warnings: &mut Vec<Warning>) -> Vec<(Dialled<'a>, u32)> {
        let input = self.input;
        let mut nodes = node_addresses(input);
        if !has_room(input, nodes.len()) {
            nodes = input.node_addresses.iter().map(IpAddr::to_canonical).collect();
            let text = "the cluster has more nodes and node ports than the kernel's table has room for: node ports of other nodes are judged \
                        as those nodes' addresses, not as the Services behind them; raise --memory-budget to have them all";
            warnings.push(Warning::of_node(input.node, "ServiceTableSmall", text.to_owned()));
        }
        let mut list = Vec::new();
        for dialled in dialled(input.snapshot, input.node, &nodes) {
            let class = self.backends(classes, &dialled);
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
        list
    }

    fn backends(&mut self, classes: &mut Interner<Class>, dialled: &Dialled<'_>) -> u32 {
        let protocol = dialled.service_port.protocol;
        let mut backends = Vec::with_capacity(dialled.backends.len());
        for (address, port) in dialled.backends.iter() {
            let known = self.of_address.get(address).copied();
            let class = known.unwrap_or_else(|| self.plain(classes, *address));
            backends.push((class, *port, protocol));
        }
        backends.sort_unstable();
        backends.dedup();
        match backends[..] {
            // Rules see the port that is dialled; where it is the backends' own, so is the class.
            [(class, port, _)] if port == dialled.port => class,
            _ => self.class(classes, Class::Service(backends)),
        }
    }
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
