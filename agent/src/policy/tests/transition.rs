//! From one compile to the next: numbers keep their meaning, and no moment of the writing shows half a policy.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::property::{cluster, pods, policies, questions};
use super::{Compiler, Numbers, Tables, UsedIds, ask, compile, pod, policy, snapshot_of};

/// The kernel after the rules, addresses and so on are written and before the endpoints are: old sets, new classes.
fn half_way(old: &Tables, new: &Tables) -> Tables {
    let mut half = new.clone();
    half.rules.extend(old.rules.clone());
    half.ports.extend(old.ports.clone());
    half.endpoints = old.endpoints.clone();
    half
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn half_way_is_the_old_policy(pods in pods(), versions in proptest::collection::vec((policies(), any::<bool>()), 2..6)) {
        let (mut compiler, numbers) = (Compiler::new(UsedIds::default()), Numbers::default());
        let mut before: Option<Tables> = None;
        for (policies, fits) in versions {
            let snapshot = cluster(pods.clone(), policies);
            let now = compile(&mut compiler, &snapshot, &numbers).tables;
            if let Some(old) = before.as_ref() {
                let half = half_way(old, &now);
                for (pod, direction, remote, protocol, port) in questions(&snapshot) {
                    let was = ask(old, &pod.uid, direction, remote, protocol, port);
                    let is = ask(&half, &pod.uid, direction, remote, protocol, port);
                    prop_assert_eq!(was, is, "{} {} {} {} {:?}", &pod.name, direction, remote, protocol, port);
                }
                for (key, rules) in &old.rules {
                    prop_assert!(now.rules.get(key).is_none_or(|r| r == rules), "a row changed its meaning");
                }
                for (key, rule) in &old.ports {
                    prop_assert!(now.ports.get(key).is_none_or(|r| r == rule), "a port table changed its meaning");
                }
            }
            if fits {
                before = Some(now);
            } else {
                compiler.take_back();
            }
        }
    }
}

#[test]
fn numbers_begin_above_those_in_use() {
    let yaml =
        pod("a", "10.0.0.1", "app: a", "") + &policy("p", "{ingress: [{from: [{podSelector: {}}], ports: [{port: 80, endPort: 90}]}]}");
    let used = UsedIds { set: 10, class: 20, table: 30, rule: 40, instance: 0 };
    let compiled = compile(&mut Compiler::new(used), &snapshot_of(&yaml), &Numbers::default());
    let (key, rules) = compiled.tables.rules.iter().next().unwrap();
    assert!(key.set > 10 && key.class > 20 && rules.ports > 30);
    assert!(compiled.rules.keys().all(|id| *id > 40) && !compiled.rules.is_empty());
}

#[test]
fn two_single_ports_stand_in_the_row_and_the_rest_in_a_table() {
    let yaml = pod("a", "10.0.0.1", "app: a", "")
        + &policy("p", "{ingress: [{ports: [{port: 80}, {port: 443}, {port: 5432}, {port: 8000, endPort: 8003}]}]}");
    let tables = compile(&mut Compiler::new(UsedIds::default()), &snapshot_of(&yaml), &Numbers::default()).tables;
    let rules = tables.rules.values().next().unwrap();
    assert!(rules.ports != 0 && rules.rule.iter().all(|rule| *rule != 0) && rules.port[0] != rules.port[1]);
    assert_eq!(tables.ports.len(), 2, "one single port and one prefix are left");
}

#[test]
fn a_rule_keeps_its_number_over_a_restart() {
    let yaml = pod("a", "10.0.0.1", "app: a", "") + &policy("p", "{ingress: [{ports: [{port: 80}]}, {ports: [{port: 81}]}]}");
    let snapshot = snapshot_of(&yaml);
    let numbers = Numbers::default();
    let before = compile(&mut Compiler::new(UsedIds::default()), &snapshot, &numbers);
    let used = UsedIds { set: 7, class: 7, table: 7, rule: 1, instance: 0 };
    let mut compiler = Compiler::new(used).knowing(before.rules.clone());
    for _ in 0..3 {
        assert_eq!(compile(&mut compiler, &snapshot, &numbers).rules, before.rules);
    }
    let more = snapshot_of(&(yaml + &policy("q", "{ingress: [{ports: [{port: 90}]}]}")));
    let after = compile(&mut compiler, &more, &numbers).rules;
    assert_eq!(after.len(), 3);
    assert!(before.rules.iter().all(|(id, rule)| after[id] == *rule));
}

#[test]
fn the_same_again_is_the_same() {
    let yaml = pod("a", "10.0.0.1", "app: a", "")
        + &policy("p", "{ingress: [{from: [{podSelector: {}}, {ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 80}]}]}");
    let (mut compiler, numbers) = (Compiler::new(UsedIds::default()), Numbers::default());
    let first = compile(&mut compiler, &snapshot_of(&yaml), &numbers).tables;
    for _ in 0..4 {
        assert_eq!(compile(&mut compiler, &snapshot_of(&yaml), &numbers).tables, first);
    }
}

#[test]
fn what_is_gone_is_forgotten_and_never_comes_back_as_something_else() {
    let base = pod("a", "10.0.0.1", "app: a", "");
    let rule = |port: u16| policy("p", &format!("{{ingress: [{{ports: [{{port: {port}}}]}}]}}"));
    let (mut compiler, numbers) = (Compiler::new(UsedIds::default()), Numbers::default());
    let mut sets = BTreeSet::new();
    for port in 1..50 {
        let compiled = compile(&mut compiler, &snapshot_of(&(base.clone() + &rule(port))), &numbers);
        assert!(sets.insert(compiled.tables.endpoints["default/a"].set), "a set's number came back");
        assert!(compiled.tables.rules.len() <= 2 && compiled.rules.len() <= 2, "old sets pile up");
    }
    let compiled = compile(&mut compiler, &snapshot_of(&(base + &rule(1))), &numbers);
    assert!(sets.insert(compiled.tables.endpoints["default/a"].set));
}
