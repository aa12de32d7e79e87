//! What a person sees, compared word by word.

use std::collections::BTreeMap;

use sekisho_proto::{
    Alert, AlertPeer, Counts, Coverage, Decision, Direction, EndReason, EndpointStatus, Evidence, ExplainRequest, ExplainResponse, Flow,
    Ledger, MapStatus, Mismatch, Outcome, Peer, Pod, PolicyRef, PolicyRule, Process, Reason, ServiceRef, StatusResponse, Tcp, Translated,
    Verdict, Workload, from_nanoseconds, ledger, to_json_line,
};

use super::*;

const NOON: u64 = 1_795_262_400_000_000_000;
const PLAIN: Paint = Paint::new(false);
const WIDE: View = View { paint: PLAIN, width: None };

fn header(kind: Kind, body: Body) -> Record {
    Record { kind: kind as i32, seq: 1, time: Some(from_nanoseconds(NOON + 5_000_000)), body: Some(body), ..Record::default() }
}

fn line(kind: Kind, body: Body) -> String {
    record(&header(kind, body), 0, WIDE)
}

fn pod(name: &str) -> Pod {
    Pod { namespace: "shop".into(), name: name.into(), uid: "u".into(), labels: BTreeMap::new() }
}

fn end_of(name: &str, port: u32) -> Peer {
    Peer {
        ip: "10.1.0.2".into(),
        port: Some(port),
        pod: Some(pod(name)),
        workload: Some(Workload { kind: "Deployment".into(), name: name.split('-').next().unwrap_or(name).into() }),
        ..Peer::default()
    }
}

fn rule(index: u32) -> PolicyRule {
    PolicyRule { kind: "NetworkPolicy".into(), namespace: "shop".into(), name: "db".into(), uid: None, rule: format!("ingress[{index}]") }
}

fn denied() -> Flow {
    Flow {
        direction: Direction::Ingress as i32,
        verdict: Verdict::Denied as i32,
        reason: Reason::DefaultDeny as i32,
        isolated_by: vec![PolicyRef { kind: "NetworkPolicy".into(), namespace: "shop".into(), name: "db".into(), uid: None }],
        nearest: Some(rule(0)),
        mismatch: vec![Mismatch::Peer as i32, Mismatch::Port as i32],
        source: Some(end_of("web-1", 40_000)),
        destination: Some(end_of("db-0", 22)),
        protocol: "TCP".into(),
        listener: Some(Process { pid: 42, comm: "sshd".into(), ..Process::default() }),
        packets: Some(Counts { forward: 1, reply: 0, delta: None }),
        bytes: Some(Counts { forward: 60, reply: 0, delta: None }),
        ..Flow::default()
    }
}

#[test]
fn a_denied_flow_says_why() {
    assert_eq!(
        line(Kind::Start, Body::Flow(denied())),
        "12:00:00.005 start  DENIED  ingress shop/web-1(web):40000 -> shop/db-0(db):22 TCP \
         [default_deny; isolated by shop/db; nearest shop/db ingress[0]: wrong peer and port] to sshd[42] 1/0 packets 60 B/0 B"
    );
}

#[test]
fn an_allowed_end_says_who_what_and_how_long() {
    let flow = Flow {
        direction: Direction::Egress as i32,
        verdict: Verdict::Allowed as i32,
        reason: 0,
        isolated_by: Vec::new(),
        nearest: None,
        mismatch: Vec::new(),
        policy: Some(rule(1)),
        destination: Some(Peer {
            ip: "10.96.0.1".into(),
            port: Some(80),
            service: Some(ServiceRef { namespace: "shop".into(), name: "api".into(), port: None }),
            translated: Some(Translated { ip: "10.1.0.3".into(), port: Some(8080), pod: Some(pod("api-1")) }),
            ..Peer::default()
        }),
        tcp: Some(Tcp { conn_state: Some("SF".into()), ..Tcp::default() }),
        listener: None,
        process: Some(Process { pid: 7, comm: "curl".into(), ..Process::default() }),
        packets: Some(Counts { forward: 5, reply: 4, delta: None }),
        bytes: Some(Counts { forward: 400, reply: 2048, delta: None }),
        start: Some(from_nanoseconds(NOON)),
        last: Some(from_nanoseconds(NOON + 1_250_000_000)),
        end_reason: EndReason::Fin as i32,
        ..denied()
    };
    assert_eq!(
        line(Kind::End, Body::Flow(flow)),
        "12:00:00.005 end    ALLOWED egress  shop/web-1(web):40000 -> service shop/api:80 => shop/api-1:8080 TCP SF \
         [rule shop/db ingress[1]] by curl[7] 5/4 packets 400 B/2.0 KiB fin after 1.250s"
    );
}

#[test]
fn strangers_are_shown_by_address() {
    let peer = |ip: &str| Peer { ip: ip.into(), port: Some(443), ..Peer::default() };
    assert_eq!(super::peer::peer(&peer("192.0.2.1")), "192.0.2.1:443");
    assert_eq!(super::peer::peer(&peer("2001:db8::1")), "[2001:db8::1]:443");
    let node = Peer { node: Some("node-1".into()), client: Some("hidden_by_snat".into()), ..peer("2001:db8::1") };
    assert_eq!(super::peer::peer(&node), "node node-1:443 (client hidden by SNAT)");
}

#[test]
fn colours_only_where_wanted() {
    let record = header(Kind::Start, Body::Flow(denied()));
    assert!(!super::record(&record, 0, WIDE).contains('\x1b'));
    for width in [None, Some(100)] {
        let line = super::record(&record, 0, View { paint: Paint::new(true), width });
        assert!(line.contains("\x1b[1m\x1b[31mDENIED"), "{line:?}");
    }
}

#[test]
fn an_alert_names_source_targets_ports_and_technique() {
    let alert = Alert {
        id: "a1".into(),
        rule: "scan.vertical".into(),
        severity: "medium".into(),
        status: "open".into(),
        source: Some(AlertPeer { namespace: Some("shop".into()), pod: Some("stranger".into()), ..AlertPeer::default() }),
        targets: vec![AlertPeer { ip: Some("10.1.0.3".into()), ..AlertPeer::default() }],
        target_count: 1,
        evidence: Some(Evidence { ports: (1..=10).collect(), port_count: Some(100), ..Evidence::default() }),
        attack: vec!["T1046".into()],
        count: 100,
        ..Alert::default()
    };
    assert_eq!(
        line(Kind::Alert, Body::Alert(alert)),
        "12:00:00.005 ALERT  medium scan.vertical open from shop/stranger to 10.1.0.3 ports 1,2,3,4,5,6,7,8 and 92 more \
         ATT&CK T1046 count 100 id a1"
    );
}

#[test]
fn siblings_have_their_line() {
    let sink =
        ledger::Sink { name: "jsonl".into(), made: 9, delivered: 7, lost: BTreeMap::from([("slow".to_owned(), 2)]), ..Default::default() };
    let kernel = ledger::Kernel { created: 3, start_sent: 3, ..Default::default() };
    let ledger = Ledger { kernel: Some(kernel), flows: None, sinks: vec![sink] };
    assert_eq!(
        line(Kind::Ledger, Body::Ledger(ledger)),
        "12:00:00.005 ledger kernel 3 created, 3 sent, 0 summarised, none lost; flows 0 open of 0; sinks jsonl 7/9 lost 2"
    );
    let coverage = Coverage { event: "one_way".into(), pod: Some(pod("web")), interface: Some("veth1".into()), ..Coverage::default() };
    assert_eq!(line(Kind::Coverage, Body::Coverage(coverage)), "12:00:00.005 coverage one_way shop/web veth1");
}

#[test]
fn dict_shows_every_field_in_order_and_aligned() {
    let text = dict(&to_json_line(&header(Kind::Start, Body::Flow(denied()))));
    let lines: Vec<&str> = text.lines().collect();
    let width = lines[0].find(": ").expect("a key");
    assert!(lines.iter().all(|line| line[width..].starts_with(": ")), "{text}");
    assert!(lines[0].trim_start().starts_with("kind: start"));
    assert!(text.contains("isolated_by[0].name: db") && text.contains("mismatch: peer, port") && text.contains("source.pod.name: web-1"));
}

#[test]
fn a_status_is_a_page() {
    let status = StatusResponse {
        ready: false,
        unready: vec!["shop/web has no interface yet".into()],
        node: "node-1".into(),
        mode: "enforce".into(),
        endpoints: vec![EndpointStatus {
            pod: Some(pod("web")),
            attach: "none".into(),
            isolated_ingress: true,
            message: Some("no process yet".into()),
            ..EndpointStatus::default()
        }],
        maps: vec![MapStatus { name: "RULES".into(), entries: 1, max: 4, bytes: 1024 }],
        refused: vec!["bad.yaml: document 2: spec.ingres: unknown field".into()],
        ..StatusResponse::default()
    };
    let text = super::status(&status, PLAIN);
    for expected in
        ["Ready    no", "shop/web has no interface yet", "no process yet", "RULES  1        4        25%   1.0 KiB", "bad.yaml: document 2"]
    {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
}

#[test]
fn an_explanation_shows_both_ends() {
    let asked = ExplainRequest { from: "shop/web-1".into(), to: "shop/db-0".into(), port: 22, protocol: "TCP".into() };
    let answer = ExplainResponse {
        verdict: Outcome::Denied as i32,
        enforced: Outcome::Denied as i32,
        source: Some(end_of("web-1", 0)),
        destination: Some(end_of("db-0", 22)),
        egress: Some(Decision { verdict: Outcome::Allowed as i32, enforced: Outcome::Allowed as i32, ..Decision::default() }),
        ingress: Some(Decision {
            verdict: Outcome::Denied as i32,
            enforced: Outcome::Denied as i32,
            reason: Reason::DefaultDeny as i32,
            isolated: true,
            nearest: Some(rule(0)),
            mismatch: vec![Mismatch::Port as i32],
            ..Decision::default()
        }),
        mode: "enforce".into(),
        ..ExplainResponse::default()
    };
    assert_eq!(
        explanation(&asked, &answer, PLAIN),
        "DENIED shop/web-1(web) -> shop/db-0(db) 22/TCP (mode enforce)\n  \
         egress  shop/web-1(web): allowed [nothing isolates it]\n  \
         ingress shop/db-0(db): denied [default_deny; nearest shop/db ingress[0]: wrong port]"
    );
    let mut observed = answer.clone();
    observed.mode = "observe".into();
    observed.verdict = Outcome::Allowed as i32;
    observed.ingress.as_mut().expect("an end").verdict = Outcome::Allowed as i32;
    let text = explanation(&asked, &observed, PLAIN);
    assert!(text.starts_with("WOULD BE DENIED shop/web-1"), "{text}");
    assert!(text.contains("ingress shop/db-0(db): would be denied [default_deny"), "{text}");
    let elsewhere = ExplainResponse {
        verdict: Outcome::Undetermined as i32,
        enforced: Outcome::Undetermined as i32,
        ingress: None,
        ingress_elsewhere: Some("the agent of node b".into()),
        ..answer
    };
    let text = explanation(&asked, &elsewhere, PLAIN);
    assert!(text.starts_with("UNDETERMINED HERE shop/web-1"), "{text}");
    assert!(text.ends_with("ingress shop/db-0(db): judged by the agent of node b, which is not asked here"), "{text}");
}

#[test]
fn what_a_pod_makes_up_does_not_steer_the_terminal() {
    let process = Process { pid: 7, comm: "a\n\x1b]0;b\x07\u{9b}2J".into(), ..Process::default() };
    let text = harmless(&Paint::new(true).bad(&peer::process(&process))).into_owned();
    assert_eq!(text, "\x1b[1m\x1b[31ma \\u001b]0;b\\u0007\\u009b2J[7]\x1b[0m");
    assert!(matches!(harmless("plain\ntext"), Cow::Borrowed(_)));
    let json = sekisho_proto::to_json(&sekisho_proto::ModeResponse { mode: "\x1b[2J\u{9b}\u{7f}".into(), ..Default::default() });
    let json: serde_json::Value = serde_json::from_str(&harmless(&json)).expect("still JSON");
    assert_eq!(json["mode"], "\x1b[2J\u{9b}\u{7f}");
}

/// The line of a record in so many columns.
fn short(flow: Flow, kind: Kind, width: usize) -> String {
    let line = record(&header(kind, Body::Flow(flow)), 0, View { paint: PLAIN, width: Some(width) });
    assert!(line.chars().count() <= width, "{} columns: {line}", line.chars().count());
    line
}

/// A denial between pods with the long names that Deployments give.
fn generated() -> Flow {
    let end = |name: &str, workload: &str, port| Peer {
        workload: Some(Workload { kind: "Deployment".into(), name: workload.into() }),
        ..end_of(&format!("{name}-5d9f7c6b8-q7k2m"), port)
    };
    Flow {
        source: Some(end("frontend-of-the-shop", "frontend-of-the-shop", 35_232)),
        destination: Some(end("database", "database", 5432)),
        process: Some(Process { pid: 2366, comm: "curious".into(), ..Process::default() }),
        ..denied()
    }
}

#[test]
fn a_short_line_fits_and_says_the_most_that_it_can() {
    assert_eq!(
        short(denied(), Kind::Start, 100),
        "12:00:00.005 DENIED  shop/web-1 -> shop/db-0:22 TCP shop/db wrong peer and port to sshd[42]"
    );
    assert_eq!(
        short(denied(), Kind::Start, 160),
        "12:00:00.005 DENIED  shop/web-1 -> shop/db-0:22 TCP ingress default_deny shop/db wrong peer and port to sshd[42]"
    );
    assert_eq!(
        short(generated(), Kind::Start, 100),
        "12:00:00.005 DENIED  shop/frontend-of-the-shop-…q7k2m -> shop/database-…q7k2m:5432 TCP shop/db"
    );
    assert_eq!(
        short(generated(), Kind::Start, 160),
        "12:00:00.005 DENIED  shop/frontend-of-the-shop-…q7k2m -> shop/database-…q7k2m:5432 TCP shop/db wrong peer and port by curious[2366] \
         to sshd[42]"
    );
}

#[test]
fn a_short_line_says_how_a_flow_ended() {
    let flow = Flow {
        verdict: Verdict::Allowed as i32,
        reason: 0,
        isolated_by: Vec::new(),
        nearest: None,
        mismatch: Vec::new(),
        policy: Some(rule(1)),
        tcp: Some(Tcp { conn_state: Some("SF".into()), ..Tcp::default() }),
        bytes: Some(Counts { forward: 400, reply: 2048, delta: None }),
        start: Some(from_nanoseconds(NOON)),
        last: Some(from_nanoseconds(NOON + 1_250_000_000)),
        end_reason: EndReason::Fin as i32,
        listener: None,
        ..denied()
    };
    assert_eq!(
        short(flow.clone(), Kind::End, 110),
        "12:00:00.005 ALLOWED shop/web-1 -> shop/db-0:22 TCP shop/db ingress[1] SF 400 B/2.0 KiB fin after 1.250s"
    );
    let open = Flow { end_reason: 0, ..flow };
    assert_eq!(short(open, Kind::Update, 80), "12:00:00.005 ALLOWED shop/web-1 -> shop/db-0:22 TCP SF open after 1.250s");
}

#[test]
fn a_short_line_names_what_stands_behind_a_service() {
    let destination = Peer {
        ip: "10.96.0.1".into(),
        port: Some(80),
        service: Some(ServiceRef { namespace: "shop".into(), name: "api".into(), port: None }),
        translated: Some(Translated { ip: "10.1.0.3".into(), port: Some(8080), pod: Some(pod("api-1")) }),
        ..Peer::default()
    };
    let flow =
        Flow { verdict: Verdict::Allowed as i32, reason: 0, protocol: "TCP".into(), source: Some(end_of("web-1", 1)), ..Flow::default() };
    let through = Flow { destination: Some(destination.clone()), ..flow.clone() };
    assert_eq!(short(through, Kind::Start, 100), "12:00:00.005 ALLOWED shop/web-1 -> shop/api-1:8080 TCP by service shop/api:80");
    let plain = Flow { destination: Some(Peer { translated: None, ..destination }), ..flow.clone() };
    assert_eq!(short(plain, Kind::Start, 100), "12:00:00.005 ALLOWED shop/web-1 -> service shop/api:80 TCP");
    let world = Flow { destination: Some(Peer { ip: "2001:db8::1".into(), port: Some(443), ..Peer::default() }), ..flow };
    assert_eq!(short(world, Kind::Start, 100), "12:00:00.005 ALLOWED shop/web-1 -> [2001:db8::1]:443 TCP");
}

#[test]
fn no_line_is_wider_than_the_terminal() {
    let long = Flow {
        source: Some(end_of(&"x".repeat(63), 1)),
        destination: Some(end_of(&"y".repeat(63), 2)),
        isolated_by: vec![PolicyRef { namespace: "n".repeat(40), name: "p".repeat(60), ..PolicyRef::default() }; 3],
        process: Some(Process { pid: u32::MAX, comm: "\u{1b}[31mevil\u{7}".into(), ..Process::default() }),
        ..denied()
    };
    for width in [60, 80, 100, 160, 240] {
        for kind in [Kind::Start, Kind::Update, Kind::End] {
            let line = short(long.clone(), kind, width);
            assert!(harmless(&line) == line && line.contains(" -> ") && line.contains("DENIED"), "{line:?}");
        }
        let sinks = (0..9).map(|n| ledger::Sink { name: format!("sink-{n}"), ..Default::default() }).collect();
        let ledger = header(Kind::Ledger, Body::Ledger(Ledger { kernel: None, flows: None, sinks }));
        let line = record(&ledger, 10, View { paint: PLAIN, width: Some(width) });
        assert!(line.chars().count() <= width, "{line}");
    }
}
