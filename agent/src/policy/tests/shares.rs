//! One namespace's policies take no more than their share of the kernel's tables, what is refused for it fails closed, and what
//! is within it takes little.

use super::{World, pod, policy};

/// A third of the room that [`super::compile`] gives.
const SHARE: usize = 1024 / 3;

fn networks(count: usize) -> String {
    (0..count).map(|n| format!("{{ipBlock: {{cidr: 9.{}.{}.0/24}}}}", n / 256, n % 256)).collect::<Vec<_>>().join(", ")
}

/// No two are neighbours, so each is a prefix of its own.
fn ports(count: usize) -> String {
    (0..count).map(|n| format!("{{port: {}}}", 1001 + 2 * n)).collect::<Vec<_>>().join(", ")
}

fn to_networks(count: usize) -> String {
    format!("{{podSelector: {{matchLabels: {{app: a}}}}, policyTypes: [Egress], egress: [{{to: [{}]}}]}}", networks(count))
}

fn at_ports(count: usize) -> String {
    format!("{{podSelector: {{matchLabels: {{app: a}}}}, ingress: [{{ports: [{}]}}]}}", ports(count))
}

fn world(policies: &[(&str, String)]) -> World {
    let pods = [
        pod("a", "10.0.0.1", "app: a", ""),
        pod("b", "10.0.0.2", "app: b", ""),
        pod("c-far", "10.0.1.1", "app: c", ""),
        pod("other/a", "10.0.0.3", "app: a", ""),
    ];
    let policies: String = policies.iter().map(|(name, spec)| policy(name, spec)).collect();
    World::of(&(pods.concat() + &policies))
}

/// Names of the policies that were refused for their size, in order.
fn refused(w: &World) -> Vec<String> {
    let warnings = w.compiled.warnings.iter().filter(|warning| warning.reason == "PolicyTooLarge");
    warnings.map(|warning| format!("{}/{}", warning.about.namespace, warning.about.name)).collect()
}

#[test]
fn a_policy_of_too_many_networks_isolates_and_allows_nothing() {
    let w = world(&[("big", to_networks(SHARE))]);
    assert_eq!(refused(&w), [""; 0]);
    assert!(w.egress("a", "9.0.7.1", "80/tcp"));

    let w = world(&[("big", to_networks(SHARE + 1)), ("other/small", to_networks(SHARE))]);
    assert_eq!(refused(&w), ["default/big"]);
    let (found, decision) = w.decide("a", sekisho_core::layout::EGRESS, "9.0.7.1", "80/tcp");
    assert!(found.isolated && !found.allowed);
    assert_eq!(decision.isolated_by.iter().map(|rule| &*rule.name).collect::<Vec<_>>(), ["big"], "it says who isolates");
    assert!(w.compiled.rules.values().all(|rule| &*rule.namespace == "other"), "no rule of it is left: {:?}", w.compiled.rules);
    assert!(w.compiled.tables.cidrs.len() <= SHARE + 1, "{}", w.compiled.tables.cidrs.len());
    assert!(w.egress("other/a", "9.0.7.1", "80/tcp") && !w.egress("other/a", "8.8.8.8", "80/tcp"), "others have their own share");
}

#[test]
fn exceptions_are_networks_as_well() {
    let except = (0..SHARE).map(|n| format!("9.{}.{}.0/24", n / 256, n % 256)).collect::<Vec<_>>().join(", ");
    let w = world(&[(
        "big",
        format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{cidr: 9.0.0.0/8, except: [{except}]}}}}]}}]}}"),
    )]);
    assert_eq!(refused(&w), ["default/big"]);
    assert!(!w.egress("a", "9.255.0.1", "80/tcp"));
}

#[test]
fn a_policy_of_too_many_ports_isolates_and_allows_nothing() {
    let w = world(&[("big", at_ports(SHARE))]);
    assert_eq!(refused(&w), [""; 0]);
    assert!(w.ingress("a", "10.0.0.2", "1001/tcp") && !w.ingress("a", "10.0.0.2", "1002/tcp"));

    let w = world(&[("big", at_ports(SHARE + 1))]);
    assert_eq!(refused(&w), ["default/big"]);
    assert!(!w.ingress("a", "10.0.0.2", "1001/tcp"), "not the first of its ports either");
    assert!(w.ingress("b", "10.0.0.1", "1001/tcp"), "whom it does not select is as free as before");
    assert_eq!(w.compiled.tables.ports.len(), 0);
}

/// Ranges are counted as what they take: neighbours are one range, whoever wrote them.
#[test]
fn neighbours_take_little() {
    let ports = (0..4 * SHARE).map(|n| format!("{{port: {}}}", 1024 + n)).collect::<Vec<_>>().join(", ");
    let w = world(&[("p", format!("{{podSelector: {{}}, ingress: [{{ports: [{ports}]}}]}}"))]);
    assert_eq!(refused(&w), [""; 0]);
    assert!(w.ingress("a", "10.0.0.2", "1025/tcp") && !w.ingress("a", "10.0.0.2", "80/tcp"));
}

/// Each network by a rule of its own, and everyone by a wide one: every pair of them has a table of ports.
#[test]
fn rules_that_overlap_count_together() {
    let rule = |cidr: String, port: usize| format!("{{to: [{{ipBlock: {{cidr: {cidr}}}}}], ports: [{{port: {port}}}]}}");
    let nested = |count: usize| {
        let narrow = (0..count).map(|n| rule(format!("9.{n}.0.0/16"), 1001 + 2 * n));
        let wide = rule("9.0.0.0/8".to_owned(), 80);
        format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{}]}}", narrow.chain([wide]).collect::<Vec<_>>().join(", "))
    };
    let w = world(&[("p", nested(100))]);
    assert_eq!(refused(&w), [""; 0]);
    assert!(w.egress("a", "9.7.0.1", "1015/tcp") && w.egress("a", "9.7.0.1", "80/tcp") && !w.egress("a", "9.7.0.1", "1017/tcp"));
    assert_eq!(refused(&world(&[("p", nested(200))])), ["default/p"]);
}

/// Wide rules over narrow networks: the compiler has a list of the rules for every network.
#[test]
fn wide_rules_over_narrow_networks_are_refused_before_they_cost_memory() {
    let each = |n: usize| format!("{{to: [{{ipBlock: {{cidr: 0.0.0.0/0, except: [9.{}.{}.0/24]}}}}]}}", n / 256, n % 256);
    let rules = |count: usize| (0..count).map(each).collect::<Vec<_>>().join(", ");
    let spec = |count| format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{}]}}", rules(count));
    let w = world(&[("p", spec(140))]);
    assert_eq!(refused(&w), [""; 0]);
    assert!(w.egress("a", "9.0.7.1", "80/tcp"), "only one rule of many excepts it");
    assert_eq!(refused(&world(&[("p", spec(160))])), ["default/p"]);
}

#[test]
fn of_several_the_largest_is_refused() {
    let api = "{podSelector: {matchLabels: {app: a}}, ingress: [{from: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: 80}]}]}";
    let w = world(&[("a-large", at_ports(SHARE - 10)), ("b-middle", at_ports(20)), ("c-small", api.to_owned())]);
    assert_eq!(refused(&w), ["default/a-large"]);
    assert!(w.ingress("a", "10.0.0.2", "80/tcp") && w.ingress("a", "10.0.0.2", "1039/tcp") && !w.ingress("a", "10.0.0.2", "1041/tcp"));
}

#[test]
fn networks_that_several_policies_name_count_once() {
    let w = world(&[("a", to_networks(SHARE)), ("b", to_networks(SHARE)), ("c", to_networks(SHARE - 1))]);
    assert_eq!(refused(&w), [""; 0]);
}

#[test]
fn what_selects_no_pod_of_this_node_takes_nothing() {
    let far = to_networks(SHARE + 1).replace("app: a", "app: c");
    let w = world(&[("far", far), ("near", to_networks(SHARE))]);
    assert_eq!(refused(&w), [""; 0]);
    assert!(w.egress("a", "9.0.7.1", "80/tcp"));
}

/// A rule of many networks, in the sets of several pods and beside a rule for everyone: rows do not multiply.
#[test]
fn networks_of_one_rule_are_one_class() {
    let for_all = "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: 53, protocol: UDP}]}]}";
    let of_b = "{podSelector: {matchLabels: {app: b}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 9.0.3.0/24}}]}]}";
    let w = world(&[("list", to_networks(300).replace("matchLabels: {app: a}", "")), ("all", for_all.to_owned()), ("b", of_b.to_owned())]);
    assert!(w.egress("a", "9.0.7.1", "80/tcp") && w.egress("b", "9.0.3.1", "80/tcp"));
    assert!(w.egress("a", "8.8.8.8", "53/udp") && !w.egress("a", "8.8.8.8", "80/tcp"));
    let tables = &w.compiled.tables;
    assert_eq!((tables.cidrs.len(), w.compiled.stats.classes), (300, 2), "the list, and the network that another rule has too");
    assert!(tables.rules.len() <= 6, "{}", tables.rules.len());
}

/// A peer stays apart from another where only the policy before knows the difference: endpoints still point at its sets.
#[test]
fn rules_of_the_policy_before_tell_selectors_apart() {
    use super::{Compiler, Numbers, UsedIds, ask, compile, snapshot_of};
    let yaml = |peers: &str| {
        pod("a", "10.0.0.1", "app: a", "") + &policy("p", &format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{peers}]}}"))
    };
    let one = "{to: [{ipBlock: {cidr: 9.0.0.0/24}}], ports: [{port: 80}]}, {to: [{ipBlock: {cidr: 9.0.1.0/24}}], ports: [{port: 81}]}";
    let two = "{to: [{ipBlock: {cidr: 9.0.0.0/24}}, {ipBlock: {cidr: 9.0.1.0/24}}], ports: [{port: 82}]}";
    let (mut compiler, numbers) = (Compiler::new(UsedIds::default()), Numbers::default());
    let old = compile(&mut compiler, &snapshot_of(&yaml(one)), &numbers).tables;
    let new = compile(&mut compiler, &snapshot_of(&yaml(two)), &numbers).tables;
    let mut half = new.clone();
    half.endpoints = old.endpoints;
    let asked = |tables, port| ["9.0.0.1", "9.0.1.1"].map(|to| ask(tables, "default/a", 0, to.parse().unwrap(), 6, Some(port)).allowed);
    assert_eq!((asked(&half, 80), asked(&half, 81), asked(&half, 82)), ([true, false], [false, true], [false, false]));
    assert_eq!((asked(&new, 80), asked(&new, 81), asked(&new, 82)), ([false, false], [false, false], [true, true]));
    let last = compile(&mut compiler, &snapshot_of(&yaml(two)), &numbers);
    assert_eq!(last.stats.classes, 1, "nothing tells them apart any more");
}
