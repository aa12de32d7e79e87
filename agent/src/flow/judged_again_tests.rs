//! After a change of policy, records name what allows a flow now, not the rule that its first packet met.

use std::collections::HashMap;
use std::sync::Arc;

use sekisho_core::layout::{Flow, FlowKey6, end_reason, event, flow_flags, reason, verdict};

use super::testing::{Bench, SECOND, flow, jiffies, pod_identity};
use super::{Directory, Explainer, FlowRecord, Header, Record, Table, project};
use crate::policy::{Decision, Question, RuleRef};

const MINUTE: u64 = 60 * SECOND;

fn rule(name: &str) -> RuleRef {
    RuleRef { kind: "NetworkPolicy", namespace: "shop".into(), name: name.into(), uid: None, direction: 0, index: 0 }
}

/// A policy that always decides the same.
struct Always(Decision);

impl Explainer for Always {
    fn explain(&self, question: &Question) -> Decision {
        assert_eq!((&*question.local.1, question.port), ("web-1", Some(80)));
        self.0.clone()
    }
}

fn allows(name: Option<&str>) -> Arc<Always> {
    let rule = name.map(rule);
    Arc::new(Always(Decision {
        allowed: true,
        isolated: rule.is_some(),
        rule,
        isolated_by: Vec::new(),
        nearest: None,
        mismatch: Vec::new(),
        warning: None,
    }))
}

fn denies(name: &str) -> Arc<Always> {
    let decision = Decision { allowed: false, isolated_by: vec![rule(name)], rule: None, ..allows(Some(name)).0.clone() };
    Arc::new(Always(decision))
}

/// A bench whose kernel numbers the rule of `first` as 7, with `first` in force since a minute.
fn bench() -> Bench {
    let mut bench = Bench::new(SECOND);
    let mut directory = Directory::default();
    for identity in [pod_identity(1, "web-1", "web", "10.0.0.1"), pod_identity(2, "db-1", "db", "10.0.0.2")] {
        directory.identities.insert(identity.instance, identity);
    }
    directory.rules.insert(7, Arc::new(rule("first")));
    bench.engine.set_directory(Arc::new(directory));
    bench.engine.set_policy(1, allows(Some("first")), true, MINUTE);
    bench
}

fn open(start: u64) -> (FlowKey6, Flow) {
    let (key, flow) = flow(start, 80);
    let flow =
        Flow { rule: 7, epoch: 1, flags: flow_flags::ISOLATED, verdict: verdict::ALLOWED, packets: [5, 5], tcp_flags: [2, 18], ..flow };
    (key, flow)
}

/// Rule or isolating policy, and `isolated`, as the record leaves the agent.
fn shown(record: &Arc<FlowRecord>) -> (Option<String>, Option<bool>) {
    let record = Record { seq: 1, time_ns: 0, body: super::Body::Flow(record.clone()) };
    let Some(sekisho_proto::record::Body::Flow(flow)) = project(&record, &Header::default()).body else { panic!("a flow") };
    (flow.policy.map(|policy| policy.name).or(flow.isolated_by.first().map(|policy| policy.name.clone())), flow.isolated)
}

#[test]
fn updates_and_ends_name_what_allows_a_flow_now() {
    let mut bench = bench();
    let (key, mut flow) = open(2 * MINUTE);
    bench.start(key, flow);
    let mut table = HashMap::from([(key, (Table::Established, flow))]);
    let mut step = |bench: &mut Bench, now: u64, epoch: u32| {
        (flow.epoch, flow.last) = (epoch, jiffies(now));
        flow.packets[0] += 1;
        table.insert(key, (Table::Established, flow));
        bench.sweep(now, 1, &mut table);
        flow
    };
    step(&mut bench, 2 * MINUTE + 6 * SECOND, 1);
    bench.engine.set_policy(2, allows(Some("second")), true, 3 * MINUTE);
    // No packet has been judged by the second one yet.
    step(&mut bench, 3 * MINUTE + SECOND, 1);
    step(&mut bench, 4 * MINUTE, 2);
    step(&mut bench, 5 * MINUTE, 2);
    bench.engine.set_policy(3, allows(None), true, 6 * MINUTE);
    step(&mut bench, 7 * MINUTE, 3);
    step(&mut bench, 8 * MINUTE, 3);
    bench.engine.set_policy(4, allows(None), false, 9 * MINUTE);
    step(&mut bench, 10 * MINUTE, 4);
    bench.engine.set_policy(5, allows(Some("third")), true, 11 * MINUTE);
    let mut last = step(&mut bench, 12 * MINUTE, 5);
    last.tcp_flags = [3, 19];
    bench.event(event::END, end_reason::FIN, key, last, 13 * MINUTE);
    let all: Vec<_> = bench.records().iter().map(shown).collect();
    let named = |name: &str| (Some(name.to_owned()), Some(true));
    let free = (None, Some(false));
    let expected = [
        named("first"),
        named("first"),
        named("first"),
        named("second"),
        named("second"),
        free.clone(),
        free,
        (None, None),
        named("third"),
        named("third"),
    ];
    assert_eq!(all, expected);
}

#[test]
fn a_flow_that_was_never_told_of_names_it_in_its_first_record_after_the_change() {
    let mut bench = bench();
    let (key, flow) = open(2 * MINUTE);
    bench.start(key, flow);
    bench.engine.set_policy(2, allows(Some("second")), true, 2 * MINUTE + SECOND);
    bench.event(event::END, end_reason::FIN, key, Flow { epoch: 2, tcp_flags: [3, 19], ..flow }, 2 * MINUTE + 2 * SECOND);
    let (key, flow) = open(3 * MINUTE);
    bench.start(key, Flow { epoch: 2, ..flow });
    let all: Vec<_> = bench.records().iter().map(|record| shown(record).0.unwrap_or_default()).collect();
    // The last one was judged by the second policy from its first packet on: what the kernel names is right.
    assert_eq!(all, ["first", "second", "first"]);
}

#[test]
fn what_the_new_policy_would_not_allow_keeps_what_the_kernel_says() {
    let mut bench = bench();
    let (key, flow) = open(2 * MINUTE);
    bench.start(key, flow);
    bench.engine.set_policy(2, denies("second"), true, 2 * MINUTE + SECOND);
    bench.event(event::END, end_reason::FIN, key, Flow { epoch: 2, tcp_flags: [3, 19], ..flow }, 2 * MINUTE + 2 * SECOND);
    assert_eq!(bench.records().iter().map(|record| shown(record).0.unwrap_or_default()).collect::<Vec<_>>(), ["first", "first"]);
}

#[test]
fn a_denied_flow_names_who_isolates_its_pod_now() {
    let mut bench = bench();
    bench.engine.set_policy(2, denies("second"), true, 2 * MINUTE);
    let (key, flow) = flow(3 * MINUTE, 80);
    let mut flow = Flow { epoch: 2, verdict: verdict::DENIED, reason: reason::DEFAULT_DENY, packets: [2, 0], ..flow };
    bench.start(key, flow);
    let mut table = HashMap::from([(key, (Table::Embryonic, flow))]);
    bench.sweep(3 * MINUTE + 6 * SECOND, 1, &mut table);
    bench.engine.set_policy(3, denies("third"), true, 4 * MINUTE);
    (flow.epoch, flow.packets[0], flow.last) = (3, 3, jiffies(4 * MINUTE + SECOND));
    table.insert(key, (Table::Embryonic, flow));
    bench.sweep(4 * MINUTE + SECOND, 1, &mut table);
    let all: Vec<_> = bench.records().iter().map(|record| shown(record).0.unwrap_or_default()).collect();
    assert_eq!(all.first().map(String::as_str), Some("second"));
    assert_eq!(all.last().map(String::as_str), Some("third"), "{all:?}");
}
