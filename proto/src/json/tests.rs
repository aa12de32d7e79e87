//! Compared with literal JSON: these lines are the contract.

use std::collections::BTreeMap;

use super::*;
use crate::record::Body;
use crate::*;

fn header(kind: Kind, body: Body) -> Record {
    Record {
        kind: kind as i32,
        seq: 7,
        run: "6f1c".into(),
        previous: None,
        time: Some(from_nanoseconds(1_795_262_400_123_456_789)),
        node: "node-1".into(),
        cluster: None,
        body: Some(body),
    }
}

fn pod(name: &str) -> Pod {
    Pod {
        namespace: "shop".into(),
        name: name.into(),
        uid: format!("uid-{name}"),
        labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
    }
}

fn rule(name: &str, rule: &str) -> PolicyRule {
    PolicyRule { kind: "NetworkPolicy".into(), namespace: "shop".into(), name: name.into(), uid: None, rule: rule.into() }
}

fn denied() -> Flow {
    Flow {
        flow_id: "00c0ffee00c0ffee".into(),
        community_id: Some("1:abc=".into()),
        start: Some(from_nanoseconds(1_795_262_400_000_000_000)),
        last: Some(from_nanoseconds(1_795_262_400_000_000_001)),
        direction: Direction::Ingress as i32,
        verdict: Verdict::Denied as i32,
        reason: Reason::DefaultDeny as i32,
        isolated: Some(true),
        isolated_by: vec![PolicyRef { kind: "NetworkPolicy".into(), namespace: "shop".into(), name: "api".into(), uid: Some("p1".into()) }],
        nearest: Some(rule("api", "ingress[0]")),
        mismatch: vec![Mismatch::Peer as i32, Mismatch::Port as i32],
        epoch: Some(3),
        source: Some(Peer {
            ip: "10.1.0.2".into(),
            port: Some(40_000),
            pod: Some(pod("web")),
            workload: Some(Workload { kind: "Deployment".into(), name: "web".into() }),
            identity: Some(u64::MAX),
            zone: Zone::Pod as i32,
            ..Peer::default()
        }),
        destination: Some(Peer { ip: "10.1.0.3".into(), port: Some(80), zone: Zone::World as i32, ..Peer::default() }),
        protocol: "TCP".into(),
        tcp: Some(Tcp {
            flags: Some(TcpFlags { forward: "S".into(), reply: String::new() }),
            conn_state: Some("S0".into()),
            ..Tcp::default()
        }),
        packets: Some(Counts { forward: 1, reply: 0, delta: Some(Delta { forward: 1, reply: 0 }) }),
        bytes: Some(Counts { forward: 60, reply: 0, delta: None }),
        listener: Some(Process { pid: 42, comm: "ng\"inx".into(), uid: Some(0), ..Process::default() }),
        interface: Some("veth1".into()),
        attach: "tc".into(),
        ..Flow::default()
    }
}

#[test]
fn a_denied_flow() {
    let line = to_json_line(&header(Kind::Start, Body::Flow(denied())));
    let expected = concat!(
        r#"{"kind":"start","seq":7,"run":"6f1c","time":"2026-11-21T12:00:00.123456789Z","node":"node-1","#,
        r#""flow_id":"00c0ffee00c0ffee","community_id":"1:abc=","#,
        r#""start":"2026-11-21T12:00:00.000000000Z","last":"2026-11-21T12:00:00.000000001Z","#,
        r#""direction":"ingress","verdict":"denied","reason":"default_deny","isolated":true,"#,
        r#""isolated_by":[{"kind":"NetworkPolicy","namespace":"shop","name":"api","uid":"p1"}],"#,
        r#""nearest":{"kind":"NetworkPolicy","namespace":"shop","name":"api","rule":"ingress[0]"},"mismatch":["peer","port"],"epoch":3,"#,
        r#""source":{"ip":"10.1.0.2","port":40000,"pod":{"namespace":"shop","name":"web","uid":"uid-web","labels":{"app":"web"}},"#,
        r#""workload":{"kind":"Deployment","name":"web"},"identity":"18446744073709551615","zone":"pod"},"#,
        r#""destination":{"ip":"10.1.0.3","port":80,"zone":"world"},"protocol":"TCP","#,
        r#""tcp":{"flags":{"forward":"S"},"conn_state":"S0"},"#,
        r#""packets":{"forward":1,"reply":0,"delta":{"forward":1,"reply":0}},"bytes":{"forward":60,"reply":0},"#,
        r#""listener":{"pid":42,"comm":"ng\"inx","uid":0},"interface":"veth1","attach":"tc"}"#
    );
    assert_eq!(line, expected);
}

#[test]
fn an_end_names_its_reason_and_a_first_record_the_run_before() {
    let flow = Flow { flow_id: "1".into(), end_reason: EndReason::VerdictChanged as i32, adopted: Some(true), ..Flow::default() };
    let mut record = header(Kind::End, Body::Flow(flow));
    record.previous = Some(PreviousRun { run: "5e0b".into(), seq: 99 });
    record.cluster = Some("prod".into());
    assert_eq!(
        to_json_line(&record),
        concat!(
            r#"{"kind":"end","seq":7,"run":"6f1c","previous":{"run":"5e0b","seq":99},"time":"2026-11-21T12:00:00.123456789Z","#,
            r#""node":"node-1","cluster":"prod","flow_id":"1","end_reason":"verdict_changed","adopted":true}"#
        )
    );
}

#[test]
fn icmp_code_zero_is_known() {
    let flow = Flow { protocol: "ICMPv4".into(), icmp: Some(Icmp { r#type: 8, code: 0 }), ..Flow::default() };
    let line = to_json_line(&header(Kind::Start, Body::Flow(flow)));
    assert!(line.ends_with(r#""protocol":"ICMPv4","icmp":{"type":8,"code":0}}"#), "{line}");
}

#[test]
fn an_alert_has_plain_source_and_attack_ids() {
    let alert = Alert {
        id: "01J".into(),
        rule: "scan.vertical".into(),
        version: 1,
        severity: "medium".into(),
        confidence: 90,
        status: "open".into(),
        source: Some(AlertPeer {
            namespace: Some("shop".into()),
            pod: Some("stranger".into()),
            uid: Some("uid-stranger".into()),
            ip: Some("10.1.0.9".into()),
            zone: Zone::Pod as i32,
            ..AlertPeer::default()
        }),
        targets: vec![AlertPeer { pod: Some("db".into()), port: Some(22), ..AlertPeer::default() }],
        target_count: 1,
        evidence: Some(Evidence { ports: vec![22, 23], port_count: Some(2), failed: Some(5), ..Evidence::default() }),
        attack: vec!["T1046".into()],
        first: Some(from_nanoseconds(1_795_262_400_000_000_000)),
        last: Some(from_nanoseconds(1_795_262_400_000_000_000)),
        count: 5,
        ..Alert::default()
    };
    assert_eq!(
        to_json_line(&header(Kind::Alert, Body::Alert(alert))),
        concat!(
            r#"{"kind":"alert","seq":7,"run":"6f1c","time":"2026-11-21T12:00:00.123456789Z","node":"node-1","#,
            r#""rule":"scan.vertical","id":"01J","version":1,"severity":"medium","confidence":90,"status":"open","#,
            r#""source":{"namespace":"shop","pod":"stranger","uid":"uid-stranger","ip":"10.1.0.9","zone":"pod"},"#,
            r#""targets":[{"pod":"db","port":22}],"target_count":1,"#,
            r#""evidence":{"ports":[22,23],"port_count":2,"failed":5},"attack":["T1046"],"#,
            r#""first":"2026-11-21T12:00:00.000000000Z","last":"2026-11-21T12:00:00.000000000Z","count":5}"#
        )
    );
}

#[test]
fn a_ledger_has_its_lost_maps_even_when_nothing_is_lost() {
    let ledger = Ledger {
        kernel: Some(ledger::Kernel {
            created: 3,
            start_sent: 2,
            lost: BTreeMap::from([("ring_full".to_owned(), 1)]),
            ..ledger::Kernel::default()
        }),
        flows: Some(ledger::Flows { created: 3, ended: 1, open: 2, evicted_unseen: 0 }),
        sinks: vec![ledger::Sink { name: "grpc:1".into(), made: 4, delivered: 4, ..ledger::Sink::default() }],
    };
    assert_eq!(
        to_json_line(&header(Kind::Ledger, Body::Ledger(ledger))),
        concat!(
            r#"{"kind":"ledger","seq":7,"run":"6f1c","time":"2026-11-21T12:00:00.123456789Z","node":"node-1","#,
            r#""kernel":{"created":3,"start_sent":2,"summarised":0,"lost":{"ring_full":1},"stateless":0},"#,
            r#""flows":{"created":3,"ended":1,"open":2,"evicted_unseen":0},"#,
            r#""sinks":[{"name":"grpc:1","made":4,"delivered":4,"filtered":0,"lost":{},"queued":0}]}"#
        )
    );
}

#[test]
fn the_other_siblings() {
    let coverage = Coverage {
        event: "one_way".into(),
        pod: Some(Pod { labels: BTreeMap::new(), ..pod("web") }),
        interface: Some("veth1".into()),
        attach: "tc".into(),
        message: "replies bypass veth1".into(),
    };
    let line = to_json_line(&header(Kind::Coverage, Body::Coverage(coverage)));
    let tail = r#""event":"one_way","pod":{"namespace":"shop","name":"web","uid":"uid-web"},"interface":"veth1","attach":"tc","message":"replies bypass veth1"}"#;
    assert!(line.ends_with(tail), "{line}");

    let change = PolicyChange { action: "applied".into(), epoch: 2, mode: Some("enforce".into()), error: None, policies: 0 };
    let line = to_json_line(&header(Kind::Policy, Body::PolicyChange(change)));
    assert!(
        line.starts_with(r#"{"kind":"policy","#) && line.ends_with(r#""action":"applied","epoch":2,"mode":"enforce","policies":0}"#),
        "{line}"
    );

    let line = to_json_line(&header(Kind::Summarised, Body::Summary(Summary { pod: None, flows: 12 })));
    assert!(line.starts_with(r#"{"kind":"summarised","#) && line.ends_with(r#""flows":12}"#), "{line}");
}

#[test]
fn status_keeps_empty_lists() {
    let status = StatusResponse {
        ready: true,
        node: "node-1".into(),
        mode: "enforce".into(),
        epoch: 1,
        endpoints: vec![EndpointStatus {
            pod: Some(Pod { labels: BTreeMap::new(), ..pod("web") }),
            ips: vec!["10.1.0.2".into()],
            interface: Some("veth1".into()),
            attach: "tcx".into(),
            isolated_ingress: true,
            coverage: "full".into(),
            ready: true,
            ..EndpointStatus::default()
        }],
        maps: vec![MapStatus { name: "ESTABLISHED4".into(), entries: 1, max: 2, bytes: 3 }],
        ..StatusResponse::default()
    };
    assert_eq!(
        to_json(&status),
        concat!(
            r#"{"ready":true,"unready":[],"node":"node-1","mode":"enforce","epoch":1,"#,
            r#""endpoints":[{"pod":{"namespace":"shop","name":"web","uid":"uid-web"},"ips":["10.1.0.2"],"interface":"veth1","attach":"tcx","#,
            r#""set":0,"isolated_ingress":true,"isolated_egress":false,"coverage":"full","ready":true,"host_network":false}],"#,
            r#""maps":[{"name":"ESTABLISHED4","entries":1,"max":2,"bytes":3}],"refused":[],"warnings":[],"counters":{},"suppressed":{},"translations":{},"events":{}}"#
        )
    );
}

#[test]
fn explanation_and_mode() {
    let explained = ExplainResponse {
        verdict: Verdict::Denied as i32,
        source: Some(Peer { ip: "10.1.0.2".into(), zone: Zone::Pod as i32, ..Peer::default() }),
        destination: Some(Peer { ip: "10.1.0.3".into(), port: Some(80), zone: Zone::Pod as i32, ..Peer::default() }),
        egress: None,
        ingress: Some(Decision {
            verdict: Verdict::Denied as i32,
            reason: Reason::DefaultDeny as i32,
            isolated: true,
            nearest: Some(rule("api", "ingress[0]")),
            mismatch: vec![Mismatch::Peer as i32],
            text: "no rule".into(),
            ..Decision::default()
        }),
        mode: "enforce".into(),
        ..ExplainResponse::default()
    };
    assert_eq!(
        to_json(&explained),
        concat!(
            r#"{"verdict":"denied","source":{"ip":"10.1.0.2","zone":"pod"},"destination":{"ip":"10.1.0.3","port":80,"zone":"pod"},"#,
            r#""ingress":{"verdict":"denied","reason":"default_deny","isolated":true,"#,
            r#""nearest":{"kind":"NetworkPolicy","namespace":"shop","name":"api","rule":"ingress[0]"},"mismatch":["peer"],"text":"no rule"},"#,
            r#""mode":"enforce"}"#
        )
    );
    assert_eq!(to_json(&ModeResponse { mode: "observe".into(), epoch: 4, node: "n".into() }), r#"{"node":"n","mode":"observe","epoch":4}"#);
}

#[test]
fn every_line_is_json_whatever_the_text() {
    let nasty: String = (0..0x100_u32).filter_map(char::from_u32).collect();
    let mut flow = denied();
    flow.listener = Some(Process { comm: nasty.clone(), ..Process::default() });
    flow.source.as_mut().and_then(|peer| peer.pod.as_mut()).expect("a pod").labels.insert(nasty.clone(), nasty.clone());
    let line = to_json_line(&header(Kind::Start, Body::Flow(flow)));
    assert!(!line.contains('\n'));
    let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
    assert_eq!(value["listener"]["comm"], nasty.as_str());
    assert_eq!(value["source"]["pod"]["labels"][nasty.as_str()], nasty.as_str());
}
