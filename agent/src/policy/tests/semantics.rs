//! The traps that implementations fall into, one by one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Compiler, NODE, Numbers, Tables, UsedIds, World, input, namespace, pod, policy, snapshot_of};

/// web and db in `default`, others in `x` and `z`; `far` ones on another node.
fn pods() -> String {
    [
        namespace("x", "team: a"),
        namespace("z", "team: b"),
        pod(
            "web",
            "10.0.0.1",
            "app: web",
            "containers: [{ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]}]",
        ),
        pod("web2", "10.0.0.2", "app: web", "containers: [{ports: [{name: http, containerPort: 8000}]}]"),
        pod("db", "10.0.0.3", "app: db, tier: back", ""),
        pod("x/web", "10.0.1.1", "app: web", ""),
        pod("x/db-far", "10.0.1.2", "app: db", "containers: [{ports: [{name: http, containerPort: 9000}]}]"),
        pod("z/web-far", "10.0.2.1", "app: web", ""),
        pod("z/bare", "10.0.2.2", "", ""),
        pod("host", "192.168.0.1", "app: web", "hostNetwork: true"),
        pod("host-far", "192.168.0.2", "app: web", "hostNetwork: true"),
        pod("six", "fd00::1", "app: web", ""),
    ]
    .concat()
}

fn world(policies: &[(&str, &str)]) -> World {
    let policies: String = policies.iter().map(|(name, spec)| policy(name, spec)).collect();
    World::of(&(pods() + &policies))
}

#[test]
fn a_policy_isolates_its_namespace_alone() {
    let w = world(&[("p", "{podSelector: {}}")]);
    assert!(!w.ingress("db", "web", "80/tcp"));
    assert!(w.egress("db", "web", "80/tcp"));
    assert!(w.ingress("x/web", "web", "80/tcp"));
    assert!(!w.decide("x/web", 1, "web", "80/tcp").0.isolated);
}

#[test]
fn empty_lists_and_types() {
    let w = world(&[("p", "{podSelector: {matchLabels: {app: db}}, policyTypes: [Egress]}")]);
    assert!(!w.egress("db", "web", "80/tcp") && !w.egress("db", "8.8.8.8", "53/udp") && w.ingress("db", "web", "80/tcp"));
    for spec in ["{podSelector: {}, policyTypes: [Ingress], ingress: []}", "{podSelector: {}, policyTypes: [Ingress]}", "{}"] {
        let w = world(&[("p", spec)]);
        assert!(!w.ingress("db", "web", "80/tcp") && w.egress("db", "web", "80/tcp"), "{spec}");
    }
    let w = world(&[("p", "{podSelector: {}, egress: [{}]}")]);
    assert!(!w.ingress("db", "web", "80/tcp") && w.egress("db", "8.8.8.8", "80/tcp"));
}

#[test]
fn an_empty_rule_allows_everything() {
    let w = world(&[("p", "{podSelector: {}, ingress: [{}]}")]);
    for asked in ["80/tcp", "1/udp", "5/sctp", "icmp", "icmp6"] {
        assert!(w.ingress("db", "8.8.8.8", asked) && w.ingress("db", "web", asked) && w.ingress("db", NODE, asked), "{asked}");
    }
}

#[test]
fn from_nobody_in_particular_and_from_pods() {
    let w = world(&[("p", "{podSelector: {}, ingress: [{from: []}]}")]);
    assert!(w.ingress("db", "8.8.8.8", "80/tcp"));
    let w = world(&[("p", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}")]);
    assert!(w.ingress("db", "web", "80/tcp") && w.ingress("db", "web", "icmp"));
    assert!(!w.ingress("db", "x/web", "80/tcp") && !w.ingress("db", "8.8.8.8", "80/tcp"));
    let w = world(&[("p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}")]);
    assert!(w.ingress("db", "x/web", "80/tcp") && w.ingress("db", "z/bare", "80/tcp") && w.ingress("db", "web", "80/tcp"));
    assert!(!w.ingress("db", "8.8.8.8", "80/tcp") && !w.ingress("db", NODE, "80/tcp") && !w.ingress("db", "192.168.0.2", "80/tcp"));
}

#[test]
fn both_selectors_in_one_peer_are_and_in_two_are_or() {
    let both = world(&[(
        "p",
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: db}}}]}]}",
    )]);
    let two = world(&[(
        "p",
        "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: a}}}, {podSelector: {matchLabels: {app: db}}}]}]}",
    )]);
    for (peer, and, or) in
        [("x/db-far", true, true), ("x/web", false, true), ("db", false, true), ("z/web-far", false, false), ("web", false, false)]
    {
        assert_eq!((both.ingress("web2", peer, "80/tcp"), two.ingress("web2", peer, "80/tcp")), (and, or), "{peer}");
    }
}

#[test]
fn operators_treat_absent_keys_as_the_api_does() {
    for (expression, matching) in [
        ("{key: app, operator: In, values: [web, db]}", vec!["web", "db"]),
        ("{key: tier, operator: NotIn, values: [back]}", vec!["web"]),
        ("{key: tier, operator: Exists}", vec!["db"]),
        ("{key: tier, operator: DoesNotExist}", vec!["web"]),
        ("{key: kubernetes.io/none, operator: NotIn, values: [a]}", vec!["web", "db"]),
    ] {
        let w = world(&[("p", &format!("{{podSelector: {{matchExpressions: [{expression}]}}}}"))]);
        let isolated: Vec<_> = ["web", "db"].into_iter().filter(|p| w.decide(p, 1, "8.8.8.8", "1/tcp").0.isolated).collect();
        assert_eq!(isolated, matching, "as subject: {expression}");
        let w = world(&[("p", &format!("{{ingress: [{{from: [{{podSelector: {{matchExpressions: [{expression}]}}}}]}}]}}"))]);
        let allowed: Vec<_> = ["web", "db"].into_iter().filter(|p| w.ingress("web2", p, "1/tcp")).collect();
        assert_eq!(allowed, matching, "as peer: {expression}");
    }
}

#[test]
fn namespaces_are_selected_by_name_too() {
    let w = world(&[("p", "{ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: z}}}]}]}")]);
    assert!(w.ingress("db", "z/web-far", "80/tcp") && !w.ingress("db", "x/web", "80/tcp"));
}

#[test]
fn except_narrows_its_own_peer_only() {
    let w = world(&[(
        "a",
        "{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}]}, {to: [{ipBlock: {cidr: 0.0.0.0/0}}], ports: [{port: 443}]}]}",
    )]);
    assert!(w.egress("db", "10.1.2.3", "443/tcp") && !w.egress("db", "10.1.2.3", "80/tcp"));
    assert!(w.egress("db", "10.2.2.3", "80/tcp") && w.egress("db", "8.8.8.8", "443/tcp") && !w.egress("db", "8.8.8.8", "80/tcp"));
    let w = world(&[(
        "a",
        "{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}, {ipBlock: {cidr: 10.0.0.0/8}}]}]}",
    )]);
    assert!(w.egress("db", "10.1.2.3", "80/tcp"));
    let w = world(&[(
        "a",
        "{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16, 10.1.1.0/24]}}, {ipBlock: {cidr: 10.1.1.128/25}}]}]}",
    )]);
    assert!(!w.egress("db", "10.1.1.1", "80/tcp") && w.egress("db", "10.1.1.200", "80/tcp") && w.egress("db", "10.2.0.0", "80/tcp"));
}

#[test]
fn blocks_are_unions_whatever_their_length() {
    let w = world(&[(
        "a",
        "{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.161.0.0/8}}], ports: [{port: 443}]}, {to: [{ipBlock: {cidr: 10.9.9.9/32}}], ports: [{port: 80}]}]}",
    )]);
    assert!(w.egress("db", "10.9.9.9", "443/tcp") && w.egress("db", "10.9.9.9", "80/tcp"));
    assert!(w.egress("db", "10.9.9.8", "443/tcp") && !w.egress("db", "10.9.9.8", "80/tcp"));
    let ports: Vec<String> = (1..=40).map(|n| format!("{{port: {}}}", n * 100)).collect();
    let w = world(&[(
        "a",
        &format!("{{policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: 10.0.0.0/8}}}}], ports: [{}]}}]}}", ports.join(",")),
    )]);
    assert!(w.egress("db", "10.9.9.9", "4000/tcp") && !w.egress("db", "10.9.9.9", "4001/tcp"));
}

#[test]
fn blocks_match_pods_and_nodes_like_any_address() {
    let w = world(&[("a", "{ingress: [{from: [{ipBlock: {cidr: 10.0.1.0/24}}, {ipBlock: {cidr: 192.168.0.2/32}}]}]}")]);
    assert!(w.ingress("db", "x/web", "80/tcp") && w.ingress("db", "192.168.0.2", "80/tcp"));
    assert!(!w.ingress("db", "z/web-far", "80/tcp") && !w.ingress("db", "192.168.0.1", "80/tcp"));
}

#[test]
fn policies_unite_and_one_left_still_isolates() {
    let a = ("a", "{ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}");
    let b = ("b", "{ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}]}");
    for both in [[a, b], [b, a]] {
        let w = world(&both);
        assert!(w.ingress("web2", "web", "80/tcp") && w.ingress("web2", "db", "80/tcp"));
    }
    let w = world(&[b]);
    assert!(!w.ingress("web2", "web", "80/tcp"));
}

#[test]
fn protocol_and_port_ranges() {
    let w = world(&[(
        "a",
        "{ingress: [{ports: [{port: 80, endPort: 82}, {port: 53, endPort: 53, protocol: UDP}, {port: 7, endPort: 9, protocol: SCTP}]}]}",
    )]);
    for (asked, allowed) in [
        ("79/tcp", false),
        ("80/tcp", true),
        ("81/tcp", true),
        ("82/tcp", true),
        ("83/tcp", false),
        ("80/udp", false),
        ("53/udp", true),
        ("53/tcp", false),
        ("6/sctp", false),
        ("7/sctp", true),
        ("9/sctp", true),
        ("10/sctp", false),
        ("7/tcp", false),
        ("icmp", false),
        ("icmp6", false),
    ] {
        assert_eq!(w.ingress("db", "web", asked), allowed, "{asked}");
    }
    let w = world(&[("a", "{ingress: [{ports: [{protocol: UDP}]}]}")]);
    assert!(w.ingress("db", "web", "0/udp") && w.ingress("db", "web", "65535/udp") && !w.ingress("db", "web", "1/tcp"));
    let w = world(&[("a", "{ingress: [{ports: [{port: 1, endPort: 65535}]}]}")]);
    assert!(!w.ingress("db", "web", "0/tcp") && w.ingress("db", "web", "1/tcp") && w.ingress("db", "web", "65535/tcp"));
}

#[test]
fn named_ports_resolve_on_the_destination() {
    let w = world(&[("a", "{ingress: [{ports: [{port: http}, {port: dns}]}]}")]);
    assert!(w.ingress("web", "db", "8080/tcp") && !w.ingress("web", "db", "8000/tcp"));
    assert!(w.ingress("web2", "db", "8000/tcp") && !w.ingress("web2", "web", "8080/tcp"));
    // A container port of another protocol is no match, and a name that nobody has allows nothing.
    assert!(!w.ingress("web", "db", "53/tcp") && !w.ingress("web", "db", "53/udp"));
    assert!(!w.ingress("db", "web", "8080/tcp") && w.decide("db", 1, "web", "8080/tcp").0.isolated);

    let w = world(&[("a", "{policyTypes: [Egress], egress: [{ports: [{port: http}]}]}")]);
    assert!(w.egress("db", "web", "8080/tcp") && !w.egress("db", "web", "8000/tcp"));
    assert!(w.egress("db", "web2", "8000/tcp") && !w.egress("db", "web2", "8080/tcp"));
    assert!(w.egress("db", "x/db-far", "9000/tcp") && !w.egress("db", "x/web", "8080/tcp") && !w.egress("db", "8.8.8.8", "8080/tcp"));
    let w = world(&[("a", "{policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: http}]}]}")]);
    assert!(w.egress("db", "web2", "8000/tcp") && !w.egress("db", "x/db-far", "9000/tcp"));
}

#[test]
fn host_network_pods_are_neither_subject_nor_peer() {
    let w = world(&[("a", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}")]);
    assert!(!w.decide("host", 1, "db", "80/tcp").0.isolated);
    let [said] = &w.compiled.warnings[..] else { panic!("{:?}", w.compiled.warnings) };
    assert_eq!((said.about.kind, &*said.about.name, said.reason), ("NetworkPolicy", "a", "PodsNotCovered"));
    assert!(said.text.contains("default/host"), "{said:?}");
    assert!(!w.ingress("web", "192.168.0.1", "80/tcp") && !w.ingress("web", "192.168.0.2", "80/tcp") && w.ingress("web", "web2", "80/tcp"));
}

#[test]
fn finished_pods_give_their_address_away() {
    let finished = pod("old", "10.0.0.77", "app: web", "").replace("podIPs", "phase: Succeeded, podIPs");
    let yaml = pods()
        + &finished
        + &pod("zz-new", "10.0.0.77", "app: db", "")
        + &policy("p", "{ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}");
    let w = World::of(&yaml);
    assert!(!w.ingress("db", "10.0.0.77", "80/tcp"));
    assert!(!w.compiled.tables.endpoints.contains_key("default/old"));
    let alone = World::of(&(pods() + &finished + &policy("p", "{ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}")));
    assert!(!alone.ingress("db", "10.0.0.77", "80/tcp"));
}

/// Whoever may annotate a pod can announce anything.
#[test]
fn what_is_announced_takes_no_address_from_anyone() {
    let announcing = |name: &str, address: &str, labels: &str| {
        pod(name, "", labels, "")
            .replace("labels:", &format!("annotations: {{cni.projectcalico.org/podIPs: '{address}'}}, labels:"))
            .replace("podIPs: [{ip: ''}]", "phase: Pending")
    };
    let free = "10.0.2.77";
    let yaml = pods()
        + &announcing("x/zz-far", "10.0.0.3", "app: web")
        + &announcing("x/zzz-far", "192.168.0.1,192.168.0.2", "app: web")
        + &announcing("x/zzzz-far", free, "app: web")
        + &announcing("zz-here", "10.0.2.78", "app: web")
        + &policy("p", "{ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {app: web}}}]}]}");
    let w = World::of(&yaml);
    assert!(!w.ingress("web", "db", "80/tcp") && !w.ingress("db", NODE, "80/tcp") && !w.ingress("db", "192.168.0.2", "80/tcp"));
    assert!(w.ingress("db", free, "80/tcp"), "known before its status is");
    assert!(!w.ingress("db", "10.0.2.78", "80/tcp"), "this node's pods are found, not announced");
    let node = w.compiled.tables.addresses[&super::mapped(NODE.parse().unwrap())];
    assert_eq!(node.flags, sekisho_core::layout::address_flags::NODE);
    let taken = w.compiled.warnings.iter().filter(|warning| warning.reason == "AddressTaken");
    assert_eq!(taken.map(|warning| &*warning.about.name).collect::<Vec<_>>(), ["zz-far", "zzz-far", "zzz-far"]);
}

/// Who may change its network can give itself any address.
#[test]
fn a_found_pod_takes_no_address_of_its_node() {
    let yaml = pods() + &policy("p", "{ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}");
    let snapshot = snapshot_of(&yaml);
    let web = &snapshot.pods[&(Arc::from("default"), Arc::from("web"))];
    let numbers = Numbers::default();
    let found = HashMap::from([(web.uid.clone(), vec![web.ips[0], NODE.parse().unwrap()])]);
    let compiled = Compiler::new(UsedIds::default()).compile(&input(&snapshot, &numbers, 1024, &found, &Tables::default()));
    let flags = |address: IpAddr| compiled.tables.addresses[&super::mapped(address)].flags;
    assert_eq!(flags(NODE.parse().unwrap()), sekisho_core::layout::address_flags::NODE);
    assert_eq!(flags(web.ips[0]), sekisho_core::layout::address_flags::POD);
    assert_eq!(compiled.warnings.iter().filter(|warning| warning.reason == "AddressTaken").count(), 1);
}

#[test]
fn a_pod_reaches_itself() {
    let w = world(&[("a", "{policyTypes: [Ingress, Egress]}")]);
    assert!(w.egress("db", "db", "80/tcp") && w.ingress("db", "db", "80/tcp"));
}

#[test]
fn families_do_not_leak_into_each_other() {
    let w = world(&[("a", "{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: '::/0'}}]}]}")]);
    assert!(w.egress("db", "2001:db8::1", "80/tcp") && w.egress("db", "fd00::1", "80/tcp"));
    assert!(!w.egress("db", "8.8.8.8", "80/tcp") && !w.egress("db", "web", "80/tcp"));
    let w = world(&[("a", "{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}")]);
    assert!(!w.egress("db", "2001:db8::1", "80/tcp") && w.egress("db", "8.8.8.8", "80/tcp"));
    let w = world(&[("a", "{policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: '::ffff:8.8.8.0/120'}}]}]}")]);
    assert!(w.egress("db", "8.8.8.8", "80/tcp") && !w.egress("db", "8.8.9.8", "80/tcp"));
}

#[test]
fn equal_names_in_two_namespaces_share_nothing() {
    let w = world(&[("p", "{podSelector: {matchLabels: {app: web}}}"), ("x/p", "{podSelector: {matchLabels: {app: db}}}")]);
    assert!(!w.ingress("web", "db", "80/tcp") && w.ingress("x/web", "db", "80/tcp"));
}

#[test]
fn the_first_rule_by_name_is_named() {
    let w = world(&[
        ("b", "{ingress: [{ports: [{port: 80}]}]}"),
        ("a", "{ingress: [{ports: [{port: 1, endPort: 100}]}, {ports: [{port: 80}]}]}"),
        ("c", "{ingress: [{ports: [{port: 80, endPort: 90}]}]}"),
    ]);
    let rule = w.decide("db", 1, "web", "80/tcp").1.rule.unwrap();
    assert_eq!((&*rule.name, rule.index, rule.direction), ("a", 0, 1));
    let w = world(&[("b", "{ingress: [{}]}"), ("a", "{ingress: [{ports: [{port: 80}]}, {}]}")]);
    let rule = w.decide("db", 1, "web", "80/tcp").1.rule.unwrap();
    assert_eq!((&*rule.name, rule.index), ("a", 1));
}

#[test]
fn equal_pods_share_a_set() {
    let w = world(&[("p", "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{podSelector: {}}]}]}")]);
    let set = |uid: &str| w.compiled.tables.endpoints[uid].set;
    assert_eq!(set("default/web"), set("default/web2"));
    assert_eq!((set("default/db"), set("default/host")), (0, 0));
    assert_ne!(set("default/web"), 0);
}
