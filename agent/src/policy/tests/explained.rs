use sekisho_core::layout::INGRESS;

use super::{NODE, World, pod, policy};
use crate::policy::Mismatch::{self, Peer, Port, Protocol};

fn world(policies: &[(&str, &str)]) -> World {
    let pods =
        [pod("web", "10.0.0.1", "app: web", ""), pod("db", "10.0.0.3", "app: db", ""), pod("api", "10.0.0.2", "app: api", "")].concat();
    let policies: String = policies.iter().map(|(name, spec)| policy(name, spec)).collect();
    World::of(&(pods + &policies))
}

fn near(w: &World, remote: &str, asked: &str) -> (Option<(String, u32)>, Vec<Mismatch>) {
    let (_, decision) = w.decide("db", INGRESS, remote, asked);
    assert!(!decision.allowed && decision.rule.is_none());
    (decision.nearest.map(|r| (r.name.to_string(), r.index)), decision.mismatch)
}

#[test]
fn the_nearest_rule_and_what_failed_in_it() {
    let w = world(&[
        (
            "a",
            "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 5432}]}]}",
        ),
        ("b", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 9.9.9.9/32}}], ports: [{port: 53, protocol: UDP}]}]}"),
    ]);
    let a = Some(("a".to_owned(), 0));
    assert_eq!(near(&w, "web", "5432/tcp"), (a.clone(), vec![Peer]));
    assert_eq!(near(&w, "api", "5433/tcp"), (a.clone(), vec![Port]));
    assert_eq!(near(&w, "api", "5432/udp"), (a.clone(), vec![Protocol]));
    assert_eq!(near(&w, "web", "5433/tcp"), (a.clone(), vec![Peer, Port]));
    assert_eq!(near(&w, "api", "icmp"), (a, vec![Protocol]));
    assert_eq!(near(&w, "9.9.9.9", "54/udp"), (Some(("b".to_owned(), 0)), vec![Port]));
    let (_, decision) = w.decide("db", INGRESS, "web", "1/tcp");
    let by: Vec<_> = decision.isolated_by.iter().map(|r| &*r.name).collect();
    assert_eq!(by, ["a", "b"]);
}

#[test]
fn without_rules_nothing_is_near() {
    let w = world(&[("deny", "{}")]);
    assert_eq!(near(&w, "web", "80/tcp"), (None, vec![]));
    let (_, decision) = w.decide("db", INGRESS, NODE, "80/tcp");
    assert!(decision.warning.is_some_and(|w| w.contains("own processes")));
}

#[test]
fn what_nothing_isolates_names_no_policy() {
    let w = world(&[("a", "{podSelector: {matchLabels: {app: db}}}")]);
    let (_, decision) = w.decide("web", INGRESS, "db", "80/tcp");
    assert!(decision.allowed && !decision.isolated && decision.rule.is_none() && decision.isolated_by.is_empty());
}
