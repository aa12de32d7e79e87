//! What leaves the agent: every field that is known, and none that is not.

use std::sync::Arc;

use sekisho_core::layout::{self, Flow, FlowKey6, flow_flags, reason, verdict};
use sekisho_proto as proto;

use super::testing::{SECOND, at, flow, ip, pod_identity};
use super::{Body, Explanation, FlowRecord, Header, Moment, ProcessInfo, Record, project};
use crate::policy::{Mismatch, RuleRef};

fn rule(name: &str, direction: u8, index: u32) -> RuleRef {
    RuleRef { kind: "NetworkPolicy", namespace: "shop".into(), name: name.into(), uid: None, direction, index }
}

fn record(moment: Moment, change: impl FnOnce(&mut FlowKey6, &mut Flow, &mut FlowRecord)) -> proto::Flow {
    let (key, flow) = flow(2 * SECOND, 5432);
    let mut record = FlowRecord {
        moment,
        flow_id: 0xabc,
        key,
        family: 4,
        flow,
        start_ns: at(flow.start_ns).wall_ns,
        last_ns: at(flow.start_ns).wall_ns,
        delta: None,
        local: Some(pod_identity(1, "web-1", "web", "10.0.0.1")),
        remote: Some(pod_identity(2, "db-1", "db", "10.0.0.2")),
        late_identity: false,
        translated: None,
        decision: None,
        process: None,
        listener: None,
        interface: Some("veth1".into()),
    };
    let (mut key, mut flow) = (record.key, record.flow);
    change(&mut key, &mut flow, &mut record);
    (record.key, record.flow) = (key, flow);
    let record = Record { seq: 2, time_ns: 5, body: Body::Flow(Arc::new(record)) };
    match project(&record, &Header::default()).body {
        Some(proto::record::Body::Flow(flow)) => flow,
        other => panic!("not a flow: {other:?}"),
    }
}

#[test]
fn an_allowed_flow_names_rule_process_and_both_ends() {
    let out = record(Moment::End(layout::end_reason::FIN), |_, flow, record| {
        (flow.flags, flow.tcp_flags, flow.rtt_us) = (flow_flags::ISOLATED, [0x1b, 0x1b], 85);
        record.delta = Some([[5, 4], [500, 400]]);
        record.decision = Some(Arc::new(Explanation { rule: Some(rule("web", 0, 2)), ..Explanation::default() }));
        let info = ProcessInfo { pid: 7, comm: "curl".into(), uid: Some(0), container_id: None, exe: None };
        record.process = Some(Arc::new(info));
    });
    assert_eq!(
        (out.flow_id.as_str(), out.direction(), out.verdict()),
        ("0000000000000abc", proto::Direction::Egress, proto::Verdict::Allowed)
    );
    assert_eq!((out.end_reason(), out.isolated, out.reason()), (proto::EndReason::Fin, Some(true), proto::Reason::Unspecified));
    assert_eq!(out.policy.unwrap().rule, "egress[2]");
    let (source, destination) = (out.source.unwrap(), out.destination.unwrap());
    assert_eq!((source.ip.as_str(), source.port, source.workload.unwrap().name.as_str()), ("10.0.0.1", Some(40_000), "web"));
    assert_eq!((destination.ip.as_str(), destination.port, destination.pod.unwrap().uid.as_str()), ("10.0.0.2", Some(5432), "uid-db-1"));
    let tcp = out.tcp.unwrap();
    assert_eq!((tcp.conn_state.as_deref(), tcp.rtt_us), (Some("SF"), Some(85)));
    assert_eq!(tcp.flags.unwrap().forward, "FSPA");
    assert_eq!(out.packets.unwrap().delta, Some(proto::Delta { forward: 5, reply: 4 }));
    assert_eq!((out.process.unwrap().comm.as_str(), out.attach.as_str(), out.mac), ("curl", "tc", None));
    assert!(out.community_id.is_some_and(|id| id.starts_with("1:")));
}

#[test]
fn a_default_deny_says_who_isolates_and_what_came_nearest() {
    let out = record(Moment::Start, |key, flow, record| {
        (flow.verdict, flow.reason, flow.flags) = (verdict::DENIED, reason::DEFAULT_DENY, flow_flags::ISOLATED);
        flow.opened = layout::INGRESS;
        (key.local_port, key.remote_port) = (5432, 40_000);
        record.decision = Some(Arc::new(Explanation {
            isolated_by: vec![rule("deny", 1, 0)],
            nearest: Some(rule("db", 1, 0)),
            mismatch: vec![Mismatch::Peer],
            ..Explanation::default()
        }));
    });
    assert_eq!(
        (out.verdict(), out.reason(), out.direction()),
        (proto::Verdict::Denied, proto::Reason::DefaultDeny, proto::Direction::Ingress)
    );
    assert_eq!((out.policy, out.isolated_by[0].name.as_str()), (None, "deny"));
    assert_eq!((out.nearest.unwrap().rule.as_str(), out.mismatch.len()), ("ingress[0]", 1));
    let (source, destination) = (out.source.unwrap(), out.destination.unwrap());
    assert_eq!((source.ip.as_str(), source.port), ("10.0.0.2", Some(40_000)), "who opened it is the source");
    assert_eq!((destination.ip.as_str(), destination.port), ("10.0.0.1", Some(5432)));
    assert_eq!(out.end_reason, 0);
}

#[test]
fn unknown_is_absent() {
    let out = record(Moment::Start, |key, flow, record| {
        (key.protocol, key.local_port, key.remote_port, flow.icmp) = (1, 77, 0, [8, 0]);
        (record.remote, key.endpoint) = (None, layout::CGROUP_ENDPOINT | 3);
        record.interface = None;
        key.remote = ip("192.0.2.1");
    });
    let (source, destination) = (out.source.unwrap(), out.destination.unwrap());
    assert_eq!((source.port, destination.port), (None, None), "an echo id is no port");
    assert_eq!((destination.zone(), destination.pod, destination.identity), (proto::Zone::World, None, None));
    assert_eq!((out.protocol.as_str(), out.icmp.unwrap().r#type, out.tcp), ("ICMPv4", 8, None));
    assert_eq!((out.interface, out.attach.as_str(), out.isolated, out.policy), (None, "cgroup", Some(false), None));
    let observed = record(Moment::Start, |_, flow, _| flow.flags = flow_flags::UNJUDGED);
    assert_eq!(observed.isolated, None, "nothing was judged");
}

#[test]
fn a_hidden_client_and_a_spoofed_source_say_so() {
    let out = record(Moment::Start, |_, flow, record| {
        (flow.opened, flow.flags, record.remote) = (layout::INGRESS, flow_flags::HIDDEN_BY_SNAT, None);
    });
    let source = out.source.unwrap();
    assert_eq!((source.client.as_deref(), source.zone()), (Some("hidden_by_snat"), proto::Zone::Node));
    let out = record(Moment::Start, |_, flow, _| {
        (flow.verdict, flow.reason, flow.mac) = (verdict::AUDIT, reason::SPOOFED_SOURCE, [2, 0, 0, 0, 0, 1]);
    });
    assert_eq!((out.verdict(), out.mac.as_deref()), (proto::Verdict::Audit, Some("02:00:00:00:00:01")));
}
