//! One namespace's policies take no more than their share of the kernel's tables, and what is refused for it fails closed.

use super::{World, pod, policy};

/// A quarter of the room that [`super::compile`] gives, roughly.
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
