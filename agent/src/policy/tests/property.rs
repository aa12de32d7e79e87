//! Random clusters: the tables, the explainer and a naive reader of the policies must agree on every question.

use std::collections::BTreeMap;
use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use sekisho_core::layout::{EGRESS, INGRESS};

use super::{Compiler, Numbers, Question, Snapshot, UsedIds, ask, compile, mapped};
use crate::inventory::{
    Labels, Namespace, NetworkPolicy, Pod, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Requirement, Selector, Workload,
};

fn text(s: &str) -> Arc<str> {
    s.into()
}

fn labels() -> impl Strategy<Value = Labels> {
    let one = |key: &'static str| (Just(text(key)), select(vec!["1", "2"]).prop_map(text));
    (proptest::option::of(one("a")), proptest::option::of(one("b")))
        .prop_map(|(a, b)| Arc::new(a.into_iter().chain(b).collect::<BTreeMap<_, _>>()))
}

fn selector() -> impl Strategy<Value = Selector> {
    let key = || select(vec!["a", "b"]).prop_map(text);
    let values = || subsequence(vec![text("1"), text("2")], 1..=2);
    let requirement = prop_oneof![
        3 => (key(), values()).prop_map(|(k, v)| Requirement::In(k, v)),
        1 => (key(), values()).prop_map(|(k, v)| Requirement::NotIn(k, v)),
        1 => key().prop_map(Requirement::Exists),
        1 => key().prop_map(Requirement::DoesNotExist),
    ];
    proptest::collection::vec(requirement, 0..3).prop_map(|requirements| Selector { requirements })
}

const CIDRS: [&str; 8] = ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/30", "10.0.0.2/32", "10.0.0.4/31", "192.168.0.0/24", "::/0", "fd00::/126"];
const INNER: [&str; 6] = ["10.0.0.0/31", "10.0.0.2/32", "10.0.0.0/29", "192.168.0.1/32", "fd00::1/128", "8.0.0.0/8"];

fn block() -> impl Strategy<Value = PolicyPeer> {
    (select(CIDRS.to_vec()), subsequence(INNER.to_vec(), 0..3)).prop_map(|(cidr, inner)| {
        let cidr: ipnet::IpNet = cidr.parse().unwrap();
        let inner = inner.into_iter().map(|i| i.parse::<ipnet::IpNet>().unwrap());
        PolicyPeer::Block { cidr, except: inner.filter(|i| cidr.contains(i) && *i != cidr).collect() }
    })
}

fn peer() -> impl Strategy<Value = PolicyPeer> {
    prop_oneof![
        2 => (proptest::option::of(selector()), proptest::option::of(selector()))
            .prop_filter("a peer says something", |(n, p)| n.is_some() || p.is_some())
            .prop_map(|(namespaces, pods)| PolicyPeer::Pods { namespaces, pods }),
        1 => block(),
    ]
}

fn port() -> impl Strategy<Value = PolicyPort> {
    let matched = prop_oneof![
        Just(PortMatch::All),
        (1u16..12, 0u16..6).prop_map(|(first, more)| PortMatch::Range(first, first + more)),
        select(vec!["one", "two"]).prop_map(|name| PortMatch::Named(text(name))),
    ];
    (select(vec![6u8, 17]), matched).prop_map(|(protocol, port)| PolicyPort { protocol, port })
}

fn rules() -> impl Strategy<Value = Option<Vec<PolicyRule>>> {
    let rule = (proptest::collection::vec(peer(), 0..3), proptest::collection::vec(port(), 0..3))
        .prop_map(|(peers, ports)| PolicyRule { peers, ports });
    proptest::option::of(proptest::collection::vec(rule, 0..3))
}

pub(super) fn policies() -> impl Strategy<Value = Vec<NetworkPolicy>> {
    let policy = (select(vec!["x", "y"]), selector(), rules(), rules()).prop_map(|(namespace, pod_selector, ingress, egress)| {
        NetworkPolicy { namespace: text(namespace), name: text(""), uid: None, pod_selector, ingress, egress }
    });
    proptest::collection::vec(policy, 0..5)
}

fn pod() -> impl Strategy<Value = Pod> {
    let ports = subsequence(vec![(text("one"), 3, 6), (text("one"), 5, 6), (text("one"), 3, 17), (text("two"), 4, 6)], 0..3);
    (select(vec!["x", "y"]), labels(), any::<bool>(), ports, 0u8..10).prop_map(|(namespace, labels, local, ports, state)| Pod {
        namespace: text(namespace),
        name: text(""),
        uid: text(""),
        labels,
        node: Some(text(if local { "n1" } else { "n2" })),
        ips: Vec::new(),
        announced: Box::default(),
        host_network: state == 0,
        finished: state == 1,
        service_account: None,
        workload: Workload { kind: text("Pod"), name: text("") },
        ports,
        serves: Box::default(),
        config_hash: None,
        allow_sources: Vec::new(),
        runtime_class: None,
    })
}

pub(super) fn pods() -> impl Strategy<Value = Vec<Pod>> {
    proptest::collection::vec(pod(), 1..8)
}

pub(super) fn cluster(pods: Vec<Pod>, policies: Vec<NetworkPolicy>) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let labelled = |name: &str, value: &str| Namespace { name: text(name), labels: Arc::new([(text("a"), text(value))].into()) };
    Arc::make_mut(&mut snapshot.namespaces).insert(text("x"), Arc::new(labelled("x", "1")));
    Arc::make_mut(&mut snapshot.namespaces).insert(text("y"), Arc::new(labelled("y", "2")));
    for (i, pod) in pods.into_iter().enumerate() {
        let name = text(&format!("p{i}"));
        let ips = if pod.host_network {
            vec!["192.168.0.1".parse().unwrap()]
        } else {
            vec![format!("10.0.0.{i}").parse().unwrap(), format!("fd00::{i}").parse().unwrap()]
        };
        let pod = Pod { uid: name.clone(), name: name.clone(), ips, ..pod };
        Arc::make_mut(&mut snapshot.pods).insert((pod.namespace.clone(), name), Arc::new(pod));
    }
    for (i, policy) in policies.into_iter().enumerate() {
        let name = text(&format!("n{i}"));
        let policy = NetworkPolicy { name: name.clone(), ..policy };
        Arc::make_mut(&mut snapshot.policies).insert((policy.namespace.clone(), name), Arc::new(policy));
    }
    snapshot
}

/// Every address worth asking about.
pub(super) fn addresses() -> Vec<IpAddr> {
    let far = ["8.8.8.8", "10.0.0.200", "192.168.0.1", "192.168.0.9", "2001:db8::1", "fd00::77", "::ffff:0:1"];
    let pods = (0..8).flat_map(|i| [format!("10.0.0.{i}"), format!("fd00::{i}")]);
    far.into_iter().map(str::to_owned).chain(pods).map(|a| a.parse().unwrap()).collect()
}

pub(super) const ASKED: [(u8, Option<u16>); 10] = [
    (6, Some(3)),
    (6, Some(4)),
    (6, Some(5)),
    (6, Some(11)),
    (6, Some(40_000)),
    (17, Some(3)),
    (17, Some(4)),
    (132, Some(3)),
    (1, None),
    (58, None),
];

/// Reads the policies as a person would. `None` = nothing isolates it.
fn naive(snapshot: &Snapshot, local: &Pod, direction: u8, remote: IpAddr, protocol: u8, port: Option<u16>) -> Option<bool> {
    // A v4-mapped address is the IPv4 address.
    let remote = remote.to_canonical();
    let other = snapshot.pods.values().find(|p| !p.finished && !p.host_network && p.ips.contains(&remote));
    let mut isolated = None;
    for policy in snapshot.policies.values() {
        if policy.namespace != local.namespace || !policy.pod_selector.matches(&local.labels) || local.host_network {
            continue;
        }
        let rules = if direction == INGRESS { &policy.ingress } else { &policy.egress };
        let Some(rules) = rules else { continue };
        isolated.get_or_insert(false);
        for rule in rules {
            let peer = rule.peers.is_empty()
                || rule.peers.iter().any(|peer| match (peer, other) {
                    (PolicyPeer::Block { cidr, except }, _) => cidr.contains(&remote) && except.iter().all(|e| !e.contains(&remote)),
                    (PolicyPeer::Pods { namespaces, pods }, Some(other)) => {
                        let namespace = match namespaces {
                            Some(wanted) => wanted.matches(&snapshot.namespaces[&other.namespace].labels),
                            None => other.namespace == policy.namespace,
                        };
                        namespace && pods.as_ref().is_none_or(|wanted| wanted.matches(&other.labels))
                    }
                    (PolicyPeer::Pods { .. }, None) => false,
                });
            let destination = if direction == INGRESS { Some(local) } else { other.map(|o| &**o) };
            let ports = rule.ports.is_empty()
                || rule.ports.iter().any(|entry| {
                    entry.protocol == protocol
                        && port.is_some_and(|port| match &entry.port {
                            PortMatch::All => true,
                            PortMatch::Range(first, last) => *first <= port && port <= *last,
                            PortMatch::Named(name) => destination.is_some_and(|d| d.ports.contains(&(name.clone(), port, protocol))),
                        })
                });
            if peer && ports {
                return Some(true);
            }
        }
    }
    isolated
}

fn local_pods(snapshot: &Snapshot) -> impl Iterator<Item = &Arc<Pod>> {
    snapshot.pods.values().filter(|pod| !pod.finished && pod.node.as_deref() == Some("n1"))
}

/// Every question: `(pod, direction, remote, protocol, port)`.
pub(super) fn questions(snapshot: &Snapshot) -> Vec<(Arc<Pod>, u8, IpAddr, u8, Option<u16>)> {
    let mut all = Vec::new();
    for pod in local_pods(snapshot) {
        for remote in addresses().into_iter().filter(|a| !pod.ips.contains(a)) {
            for direction in [EGRESS, INGRESS] {
                all.extend(ASKED.map(|(protocol, port)| (pod.clone(), direction, remote, protocol, port)));
            }
        }
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn tables_explainer_and_text_agree(pods in pods(), policies in policies()) {
        let snapshot = cluster(pods, policies);
        let compiled = compile(&mut Compiler::new(UsedIds::default()), &snapshot, &Numbers::default());
        for (pod, direction, remote, protocol, port) in questions(&snapshot) {
            let expected = naive(&snapshot, &pod, direction, remote, protocol, port);
            let found = ask(&compiled.tables, &pod.uid, direction, remote, protocol, port);
            let local = (pod.namespace.clone(), pod.name.clone());
            let decision = compiled.explain(&Question { local, direction, remote, protocol, port });
            let asked = format!("{} {direction} {remote} {protocol} {port:?}", pod.name);
            prop_assert_eq!(found.isolated, expected.is_some(), "isolated: {}", &asked);
            prop_assert_eq!(found.allowed, expected.unwrap_or(true), "tables: {}", &asked);
            prop_assert_eq!((decision.isolated, decision.allowed), (found.isolated, found.allowed), "explainer: {}", &asked);
            prop_assert_eq!(decision.rule.as_ref(), compiled.rules.get(&found.rule), "rule: {}", &asked);
            prop_assert_eq!(decision.allowed, decision.isolated_by.is_empty(), "{}", &asked);
            prop_assert_eq!(decision.nearest.is_some(), !decision.mismatch.is_empty(), "{}", &asked);
        }
    }

    #[test]
    fn verdicts_need_no_names(pods in pods(), policies in policies()) {
        let snapshot = cluster(pods, policies);
        let compiled = compile(&mut Compiler::new(UsedIds::default()), &snapshot, &Numbers::default());
        let mut small = compile(&mut Compiler::new(UsedIds::default()), &snapshot, &Numbers::default());
        let near: HashSet<_> = snapshot.pods.values().filter(|pod| pod.node.as_deref() == Some("n1")).flat_map(|pod| &pod.ips).map(|ip| mapped(*ip)).collect();
        small.fit(0, "n1", |address| near.contains(address));
        for (pod, direction, remote, protocol, port) in questions(&snapshot) {
            let whole = ask(&compiled.tables, &pod.uid, direction, remote, protocol, port);
            let found = ask(&small.tables, &pod.uid, direction, remote, protocol, port);
            prop_assert_eq!(found, whole, "{} {} {} {} {:?}", pod.name, direction, remote, protocol, port);
        }
        let gone: Vec<_> = compiled.tables.addresses.keys().filter(|address| !small.tables.addresses.contains_key(*address)).collect();
        prop_assert_eq!(gone.len(), small.stats.left_out);
        prop_assert!(gone.iter().all(|address| !near.contains(*address)));
        let stay = compiled.tables.addresses.len();
        let mut fits = compile(&mut Compiler::new(UsedIds::default()), &snapshot, &Numbers::default());
        fits.fit(stay, "n1", |_| false);
        prop_assert_eq!(fits.stats.left_out, 0, "where there is room nobody goes");
    }
}
