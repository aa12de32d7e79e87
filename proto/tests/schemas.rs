//! The schemas in `docs/schemas` are what the protocol says, and what is written as JSON obeys them.
#![allow(clippy::needless_update, reason = "a new field of a message is no reason to touch every value of it")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use jsonschema::Validator;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use sekisho_proto::record::Body;
use sekisho_proto::{
    Alert, AlertPeer, Counts, Coverage, Decision, Delta, Direction, EndReason, EndpointStatus, Evidence, ExplainResponse, Flow, Icmp, Kind,
    Ledger, MapStatus, Mismatch, ModeResponse, Peer, Pod, PolicyChange, PolicyRef, PolicyRule, PolicyStatus, PreviousRun, Process, Reason,
    Record, ServiceRef, SourceStatus, StatusResponse, Summary, Tcp, TcpFlags, Translated, Verdict, Workload, Zone, from_nanoseconds, json,
    ledger, schema, to_json,
};
use serde_json::Value;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/schemas")
}

fn validator(file: &str) -> Validator {
    let text = std::fs::read_to_string(folder().join(file)).expect("the schema is there");
    let schema: Value = serde_json::from_str(&text).expect("JSON");
    assert!(jsonschema::meta::is_valid(&schema), "{file} is no schema");
    jsonschema::options().should_validate_formats(true).build(&schema).expect("a schema of a known draft")
}

/// Fails unless the message's JSON is valid, and no longer is once a field is added that nobody knows.
fn check(validator: &Validator, message: &dyn json::Message) -> Value {
    let mut value: Value = serde_json::from_str(&to_json(message)).expect("JSON");
    let wrong: Vec<String> = validator.iter_errors(&value).map(|e| format!("{}: {e}", e.instance_path())).collect();
    assert!(wrong.is_empty(), "{wrong:#?}\n{value:#}");
    let good = value.clone();
    value["unheard_of"] = 1.into();
    assert!(!validator.is_valid(&value), "a field that is not in the schema passes");
    good
}

#[test]
fn the_schemas_are_those_of_the_protocol() {
    for (name, schema) in schema::all().expect("schemas") {
        let wanted = serde_json::to_string_pretty(&schema).expect("JSON") + "\n";
        let there = std::fs::read_to_string(folder().join(&name)).unwrap_or_default();
        assert!(there == wanted, "docs/schemas/{name} is not what the protocol says: run `cargo xtask gen`");
    }
}

/// Those who ask over gRPC and print JSON, such as grpcurl, see the names that the command line prints.
#[test]
fn what_leaves_the_agent_has_the_same_names_over_grpc() {
    let set = FileDescriptorSet::decode(sekisho_proto::DESCRIPTORS).expect("descriptors");
    let files = set.file.iter().filter(|file| file.package() == "sekisho.v1");
    let messages = files.flat_map(|file| &file.message_type).filter(|m| !m.name().ends_with("Request") && m.name() != "Filter");
    let mut wrong = Vec::new();
    for message in messages {
        let nested = message.nested_type.iter().filter(|m| !m.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry));
        for (name, field) in nested.chain([message]).flat_map(|m| m.field.iter().map(|field| (m.name(), field))) {
            if field.json_name() != field.name() {
                wrong.push(format!("{name}.{field} needs [json_name = \"{field}\"]", field = field.name()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

fn pod() -> Pod {
    Pod { namespace: "shop".into(), name: "web".into(), uid: "u1".into(), labels: BTreeMap::from([("app".into(), "web".into())]) }
}

fn rule() -> PolicyRule {
    PolicyRule {
        kind: "NetworkPolicy".into(),
        namespace: "shop".into(),
        name: "web".into(),
        uid: Some("p1".into()),
        rule: "ingress[0]".into(),
    }
}

fn policy() -> PolicyRef {
    PolicyRef { kind: "NetworkPolicy".into(), namespace: "shop".into(), name: "web".into(), uid: Some("p1".into()) }
}

fn workload() -> Workload {
    Workload { kind: "Deployment".into(), name: "web".into() }
}

fn process() -> Process {
    Process { pid: 7, comm: "nginx".into(), uid: Some(0), container_id: Some("c1".into()), exe: Some("/nginx".into()) }
}

fn counts() -> Counts {
    Counts { forward: u64::MAX, reply: 1, delta: Some(Delta { forward: 1, reply: 0 }) }
}

fn peer() -> Peer {
    Peer {
        ip: "10.0.0.1".into(),
        port: Some(80),
        pod: Some(pod()),
        workload: Some(workload()),
        service_account: Some("web".into()),
        node: Some("node-1".into()),
        service: Some(ServiceRef { namespace: "shop".into(), name: "web".into(), port: Some("http".into()) }),
        names: vec!["web.shop.svc".into()],
        identity: Some(u64::MAX),
        zone: Zone::Service as i32,
        client: Some("hidden_by_snat".into()),
        late_identity: Some(true),
        translated: Some(Translated { ip: "10.0.0.2".into(), port: Some(8080), pod: Some(pod()) }),
        ..Peer::default()
    }
}

fn flow() -> Flow {
    let time = Some(from_nanoseconds(1_795_262_400_000_000_001));
    Flow {
        flow_id: "00c0ffee00c0ffee".into(),
        community_id: Some("1:abc=".into()),
        start: time,
        last: time,
        end_reason: EndReason::Fin as i32,
        direction: Direction::Egress as i32,
        adopted: Some(true),
        verdict: Verdict::Audit as i32,
        reason: Reason::DefaultDeny as i32,
        policy: Some(rule()),
        isolated: Some(true),
        isolated_by: vec![policy()],
        nearest: Some(rule()),
        mismatch: vec![Mismatch::Peer as i32],
        epoch: Some(3),
        source: Some(peer()),
        destination: Some(peer()),
        community_id_translated: Some("1:def=".into()),
        protocol: "TCP".into(),
        icmp: Some(Icmp { r#type: 8, code: 0 }),
        tcp: Some(Tcp {
            flags: Some(TcpFlags { forward: "S".into(), reply: "SA".into() }),
            state: Some("established".into()),
            conn_state: Some("SF".into()),
            rtt_us: Some(7),
        }),
        packets: Some(counts()),
        bytes: Some(counts()),
        process: Some(process()),
        listener: Some(process()),
        interface: Some("veth1".into()),
        attach: "tc".into(),
        mac: Some("02:00:00:00:00:01".into()),
        audit: Some(policy()),
        ..Flow::default()
    }
}

fn alert() -> Alert {
    let time = Some(from_nanoseconds(1_795_262_400_000_000_001));
    let peer = || AlertPeer {
        namespace: Some("shop".into()),
        pod: Some("web".into()),
        uid: Some("u1".into()),
        workload: Some(workload()),
        node: Some("node-1".into()),
        ip: Some("10.0.0.1".into()),
        port: Some(80),
        zone: Zone::Pod as i32,
        ..AlertPeer::default()
    };
    Alert {
        id: "01J".into(),
        rule: "scan.vertical".into(),
        version: 1,
        title: "a scan".into(),
        severity: "high".into(),
        confidence: 90,
        status: "open".into(),
        source: Some(peer()),
        targets: vec![peer()],
        target_count: 1,
        evidence: Some(Evidence {
            ports: vec![22],
            port_count: Some(1),
            open_ports: vec![22],
            failed: Some(1),
            refused: Some(1),
            denied: Some(1),
            silent: Some(1),
            answered: Some(1),
            window_s: Some(60),
            threshold: Some(20),
            first_flags: vec!["S".into()],
            protocol: Some("TCP".into()),
            claimed_ip: Some("10.0.0.9".into()),
            claimed_owner: Some(peer()),
            mac: Some("02:00:00:00:00:01".into()),
            ..Evidence::default()
        }),
        attack: vec!["T1046".into()],
        attack_version: "17".into(),
        first: time,
        last: time,
        count: 5,
        process: Some(process()),
        flows: vec!["00c0ffee00c0ffee".into()],
        incident: Some("01K".into()),
        reopened: Some(1),
        ..Alert::default()
    }
}

fn ledger() -> Ledger {
    let lost = BTreeMap::from([("slow".to_owned(), 1)]);
    Ledger {
        kernel: Some(ledger::Kernel { created: 2, start_sent: 1, lost: lost.clone(), ..ledger::Kernel::default() }),
        flows: Some(ledger::Flows { created: 2, ended: 1, open: 1, evicted_unseen: 0 }),
        sinks: vec![ledger::Sink { name: "grpc:1".into(), made: 1, lost, ..ledger::Sink::default() }],
    }
}

fn record(kind: Kind, body: Body) -> Record {
    Record {
        kind: kind as i32,
        seq: 7,
        run: "6f1c".into(),
        previous: Some(PreviousRun { run: "5e0b".into(), seq: 99 }),
        time: Some(from_nanoseconds(1_795_262_400_123_456_789)),
        node: "node-1".into(),
        cluster: Some("prod".into()),
        body: Some(body),
    }
}

#[test]
fn every_kind_of_record_obeys_its_schema() {
    let validator = validator("record.schema.json");
    let coverage = Coverage {
        event: "one_way".into(),
        pod: Some(pod()),
        interface: Some("veth1".into()),
        attach: "tc".into(),
        message: "seen in one direction".into(),
        ..Coverage::default()
    };
    let change = PolicyChange {
        action: "refused".into(),
        epoch: 2,
        mode: Some("enforce".into()),
        error: Some("wrong".into()),
        ..PolicyChange::default()
    };
    for (kind, body) in [
        (Kind::Start, Body::Flow(flow())),
        (Kind::Update, Body::Flow(flow())),
        (Kind::End, Body::Flow(flow())),
        (Kind::Alert, Body::Alert(alert())),
        (Kind::Ledger, Body::Ledger(ledger())),
        (Kind::Policy, Body::PolicyChange(change)),
        (Kind::Coverage, Body::Coverage(coverage)),
        (Kind::Summarised, Body::Summary(Summary { pod: Some(pod()), flows: 7, ..Summary::default() })),
    ] {
        let value = check(&validator, &record(kind, body));
        if kind == Kind::Start {
            assert_eq!(value["source"]["identity"], u64::MAX.to_string(), "no reader of JSON rounds it");
        }
    }
}

#[test]
fn answers_obey_their_schemas() {
    let endpoint = EndpointStatus {
        pod: Some(pod()),
        ips: vec!["10.0.0.1".into()],
        interface: Some("veth1".into()),
        attach: "tcx".into(),
        coverage: "full".into(),
        message: Some("held".into()),
        ..EndpointStatus::default()
    };
    let time = Some(from_nanoseconds(1_795_262_400_000_000_000));
    let status = StatusResponse {
        unready: vec!["no".into()],
        node: "node-1".into(),
        commit: "unknown".into(),
        started: time,
        endpoints: vec![endpoint],
        maps: vec![MapStatus { name: "RULES".into(), entries: 1, max: 2, bytes: 3 }],
        ledger: Some(ledger()),
        refused: vec!["a/b".into()],
        policy: Some(PolicyStatus { policies: 1, applied: time, ..PolicyStatus::default() }),
        counters: BTreeMap::from([("dropped".into(), 7)]),
        source: Some(SourceStatus { name: "kube".into(), stale_since: time, error: Some("gone".into()), ..SourceStatus::default() }),
        ..StatusResponse::default()
    };
    check(&validator("status.schema.json"), &status);
    let decision = Decision {
        verdict: Verdict::Denied as i32,
        reason: Reason::DefaultDeny as i32,
        policy: Some(rule()),
        isolated_by: vec![policy()],
        nearest: Some(rule()),
        mismatch: vec![Mismatch::Port as i32],
        text: "denied".into(),
        ..Decision::default()
    };
    let explained = ExplainResponse {
        verdict: Verdict::Denied as i32,
        source: Some(peer()),
        destination: Some(peer()),
        egress: Some(decision.clone()),
        ingress: Some(decision),
        mode: "enforce".into(),
        ..ExplainResponse::default()
    };
    check(&validator("explain.schema.json"), &explained);
    check(&validator("mode.schema.json"), &ModeResponse { mode: "audit".into(), epoch: 4, node: "node-1".into() });
}
