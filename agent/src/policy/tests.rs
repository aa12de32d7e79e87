//! The tables are asked as the kernel asks them (address, class, row, port prefix) and must say what the text of the policies
//! says, whoever reads it: the table of known traps, a naive reader, and the explainer.

mod explained;
mod property;
mod room;
mod scale;
mod semantics;
mod services;
mod shares;
mod transition;

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use sekisho_core::layout::{EGRESS, HAIRPIN, INGRESS, PortKey, RuleKey, VipKey, address_flags};

use super::{Compiled, Compiler, Decision, Input, Instances, Question, Tables, UsedIds, mapped};
use crate::inventory::files::snapshot_of;
use crate::inventory::{ObjectName, Pod, Snapshot};

#[derive(Default)]
struct Numbers(RefCell<HashMap<String, u32>>);

impl Numbers {
    fn of(&self, name: String) -> u32 {
        let mut known = self.0.borrow_mut();
        let next = u32::try_from(known.len()).unwrap() + 1;
        *known.entry(name).or_insert(next)
    }
}

impl Instances for Numbers {
    fn pod(&self, uid: &str) -> u32 {
        self.of(format!("pod {uid}"))
    }
    fn service(&self, service: &ObjectName, port: &str) -> u32 {
        self.of(format!("service {service:?} {port}"))
    }
    fn node(&self, name: &str) -> u32 {
        self.of(format!("node {name}"))
    }
}

/// What the kernel would find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    allowed: bool,
    isolated: bool,
    rule: u32,
}

/// The kernel's two look-ups, in user space. `port` is the destination's.
fn ask(tables: &Tables, uid: &str, direction: u8, remote: IpAddr, protocol: u8, port: Option<u16>) -> Found {
    let endpoint = &tables.endpoints[uid];
    let isolated = endpoint.isolated[usize::from(direction)];
    let open = Found { allowed: true, isolated, rule: 0 };
    if !isolated || endpoint.host_network {
        return open;
    }
    let address = mapped(remote);
    let entry = tables.addresses.get(&address);
    if entry.is_some_and(|e| e.instance == endpoint.instance) {
        return open;
    }
    let mut class = entry.map_or_else(|| cidr_class(tables, address), |e| e.class);
    if direction == EGRESS && entry.is_some_and(|e| e.flags & address_flags::SERVICE != 0) {
        let key = VipKey { address, port: port.unwrap_or(0), protocol, pad: 0 };
        class = tables.vips.get(&key).map_or(class, |vip| vip.class);
        let own = RuleKey { set: endpoint.instance, class, direction: u32::from(HAIRPIN) };
        let through_own = tables.vips.contains_key(&key).then(|| tables.rules.get(&own)).flatten();
        let usual = RuleKey { set: endpoint.set, class, direction: u32::from(direction) };
        if let (0, Some(own)) = (rule(tables, usual, protocol, port), through_own) {
            return Found { rule: own.any, ..open };
        }
    }
    let rule = rule(tables, RuleKey { set: endpoint.set, class, direction: u32::from(direction) }, protocol, port);
    Found { allowed: rule != 0, isolated, rule }
}

fn cidr_class(tables: &Tables, address: [u8; 16]) -> u32 {
    let value = u128::from_be_bytes(address);
    (0..=128u8)
        .rev()
        .find_map(|length| {
            let network = if length == 0 { 0 } else { value >> (128 - u32::from(length)) << (128 - u32::from(length)) };
            tables.cidrs.get(&(network.to_be_bytes(), length)).copied()
        })
        .unwrap_or(0)
}

fn rule(tables: &Tables, key: RuleKey, protocol: u8, port: Option<u16>) -> u32 {
    let Some(rules) = tables.rules.get(&key).or_else(|| tables.rules.get(&RuleKey { class: 0, ..key })) else { return 0 };
    if rules.any != 0 {
        return rules.any;
    }
    let Some(port) = port else { return 0 };
    let near = rules.near(protocol, port);
    if near != 0 || rules.ports == 0 {
        return near;
    }
    (0..=16u8)
        .rev()
        .find_map(|bits| {
            let network = if bits == 0 { 0 } else { port >> (16 - u32::from(bits)) << (16 - u32::from(bits)) };
            let key = PortKey { table: rules.ports.to_be_bytes(), protocol, port: network.to_be_bytes() };
            tables.ports.get(&(key, 40 + bits)).copied()
        })
        .unwrap_or(0)
}

/// A compiled cluster that can be asked by name. Pods on node `n1` are local.
struct World {
    snapshot: Arc<Snapshot>,
    compiled: Compiled,
}

const NODE: &str = "192.168.0.1";

impl World {
    fn of(yaml: &str) -> Self {
        let snapshot = snapshot_of(yaml);
        assert_eq!(snapshot.refused, Vec::<String>::new());
        let compiled = compile(&mut Compiler::new(UsedIds::default()), &snapshot, &Numbers::default());
        Self { snapshot, compiled }
    }

    fn pod(&self, name: &str) -> ObjectName {
        let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
        let name = (Arc::from(namespace), Arc::from(name));
        assert!(self.snapshot.pods.contains_key(&name), "{name:?}");
        name
    }

    /// An address: itself, or a pod's first.
    fn address(&self, end: &str) -> IpAddr {
        end.parse().unwrap_or_else(|_| self.snapshot.pods[&self.pod(end)].ips[0])
    }

    fn decide(&self, local: &str, direction: u8, remote: &str, asked: &str) -> (Found, Decision) {
        let (protocol, port) = match asked.split_once('/') {
            Some((port, protocol)) => (
                match protocol {
                    "tcp" => 6,
                    "udp" => 17,
                    _ => 132,
                },
                Some(port.parse().unwrap()),
            ),
            None => (
                match asked {
                    "icmp" => 1,
                    _ => 58,
                },
                None,
            ),
        };
        let (local, remote) = (self.pod(local), self.address(remote));
        let uid = &self.snapshot.pods[&local].uid;
        let found = ask(&self.compiled.tables, uid, direction, remote, protocol, port);
        let decision = self.compiled.explain(&Question { local, direction, remote, protocol, port });
        assert_eq!((found.allowed, found.isolated), (decision.allowed, decision.isolated), "{asked} {decision:?}");
        assert_eq!(self.compiled.rules.get(&found.rule), decision.rule.as_ref(), "{asked}");
        (found, decision)
    }

    fn egress(&self, local: &str, remote: &str, asked: &str) -> bool {
        self.decide(local, EGRESS, remote, asked).0.allowed
    }

    fn ingress(&self, local: &str, remote: &str, asked: &str) -> bool {
        self.decide(local, INGRESS, remote, asked).0.allowed
    }
}

fn compile(compiler: &mut Compiler, snapshot: &Snapshot, numbers: &Numbers) -> Compiled {
    compile_with(compiler, snapshot, numbers, 1024)
}

/// Into tables of a size.
fn compile_with(compiler: &mut Compiler, snapshot: &Snapshot, numbers: &Numbers, room_for_services: usize) -> Compiled {
    compiler.compile(&input(snapshot, numbers, room_for_services, &HashMap::new(), &Tables::default()))
}

/// What the compiler is given on `n1`.
fn input<'a>(
    snapshot: &'a Snapshot,
    numbers: &'a Numbers,
    room: usize,
    found: &'a HashMap<Arc<str>, Vec<IpAddr>>,
    in_kernel: &'a Tables,
) -> Input<'a> {
    const NODES: [IpAddr; 1] = [IpAddr::V4(Ipv4Addr::new(192, 168, 0, 1))];
    Input {
        snapshot,
        node: "n1",
        node_addresses: &NODES,
        found,
        in_kernel,
        room_for_addresses: 2 * room,
        room_for_rules: 2 * room,
        room_for_services: room,
        room_for_networks: room,
        lending: &[],
        instances: numbers,
    }
}

/// The pod of a snapshot that has only one.
pub(super) fn one_pod(yaml: &str) -> Pod {
    (**snapshot_of(yaml).pods.values().next().unwrap()).clone()
}

/// A pod on `n1` (`n2` where the name ends in `far`); `rest` continues the document.
pub(super) fn pod(name: &str, address: &str, labels: &str, rest: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    let node = if name.ends_with("far") { "n2" } else { "n1" };
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{namespace: {namespace}, name: {name}, labels: {{{labels}}}}}\nspec:\n  nodeName: {node}\n  {rest}\nstatus: {{podIPs: [{{ip: '{address}'}}]}}\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    let (namespace, name) = name.split_once('/').unwrap_or(("default", name));
    format!(
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {spec}\n"
    )
}

pub(super) fn namespace(name: &str, labels: &str) -> String {
    format!("---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}, labels: {{{labels}}}}}\n")
}
