//! A record as it leaves the agent: every field that is known, and none that is not.
//!
//! Done when a reader takes a record, not when the record is made.

use std::sync::Arc;

use prost_types::Timestamp;
use sekisho_core::layout::{self, Flow, flow_flags};
use sekisho_proto as proto;

use super::attribution::{address, destination_port, has_ports};
use super::community::community_id;
use super::conn_state::{conn_state, letters, state_name};
use super::record::{Body, Explanation, FlowRecord, Identity, Moment, Owner, ProcessInfo, Record};
use super::waiting::Translated;
use crate::policy::{Mismatch, RuleRef};

const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// What all records of a run have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// UUID of this run.
    pub run: Arc<str>,
    /// This node's name.
    pub node: Arc<str>,
    /// The cluster's name.
    pub cluster: Option<Arc<str>>,
    /// The run before and the last sequence number that it is known to have used.
    pub previous: Option<(Arc<str>, u64)>,
}

/// Nanoseconds since 1970 as a timestamp.
pub fn timestamp(ns: u64) -> Timestamp {
    sekisho_proto::from_nanoseconds(ns)
}

/// The record as it leaves the agent.
pub fn project(record: &Record, header: &Header) -> proto::Record {
    use proto::record::Body as Out;
    let (kind, body) = match &record.body {
        Body::Flow(flow) => {
            let kind = match flow.moment {
                Moment::Start => proto::Kind::Start,
                Moment::Update => proto::Kind::Update,
                Moment::End(_) => proto::Kind::End,
            };
            (kind, Out::Flow(project_flow(flow)))
        }
        Body::Alert(alert) => (proto::Kind::Alert, Out::Alert((**alert).clone())),
        Body::Ledger(ledger) => (proto::Kind::Ledger, Out::Ledger((**ledger).clone())),
        Body::Policy(change) => (proto::Kind::Policy, Out::PolicyChange((**change).clone())),
        Body::Coverage(coverage) => (proto::Kind::Coverage, Out::Coverage((**coverage).clone())),
        Body::Summary(summary) => (proto::Kind::Summarised, Out::Summary((**summary).clone())),
    };
    let previous = header.previous.as_ref().filter(|_| record.seq == 1);
    proto::Record {
        kind: kind.into(),
        seq: record.seq,
        run: header.run.to_string(),
        previous: previous.map(|(run, seq)| proto::PreviousRun { run: run.to_string(), seq: *seq }),
        time: Some(timestamp(record.time_ns)),
        node: header.node.to_string(),
        cluster: header.cluster.as_ref().map(ToString::to_string),
        body: Some(body),
    }
}

fn project_flow(record: &FlowRecord) -> proto::Flow {
    let flow = &record.flow;
    let explanation = record.decision.as_deref();
    let audited = flow.verdict == layout::verdict::AUDIT;
    let (source, destination) = peers(record);
    proto::Flow {
        flow_id: flow_id_text(record.flow_id),
        community_id: community(record),
        start: Some(timestamp(record.start_ns)),
        last: Some(timestamp(record.last_ns)),
        end_reason: match record.moment {
            Moment::End(reason) => i32::from(if reason == layout::end_reason::REPLACED { layout::end_reason::FIN } else { reason }),
            _ => 0,
        },
        direction: direction(flow).into(),
        adopted: (flow.opened == layout::UNKNOWN || flow.flags & flow_flags::ADOPTED != 0).then_some(true),
        verdict: verdict(flow).into(),
        reason: if verdict(flow) == proto::Verdict::Allowed { 0 } else { i32::from(flow.reason) },
        policy: explanation.and_then(|e| e.rule.as_ref()).map(policy_rule),
        isolated: (flow.flags & flow_flags::UNJUDGED == 0).then_some(flow.flags & flow_flags::ISOLATED != 0),
        isolated_by: explanation.map(isolated_by).unwrap_or_default(),
        nearest: explanation.and_then(|e| e.nearest.as_ref()).map(policy_rule),
        mismatch: explanation.map(|e| e.mismatch.iter().map(|m| mismatch(*m).into()).collect()).unwrap_or_default(),
        epoch: Some(flow.epoch),
        source: Some(source),
        destination: Some(destination),
        community_id_translated: record
            .translated
            .as_ref()
            .map(|behind| community_id(record.key.protocol, behind.source, behind.destination)),
        protocol: protocol_name(record.key.protocol),
        icmp: matches!(record.key.protocol, ICMP | ICMPV6).then(|| proto::Icmp { r#type: flow.icmp[0].into(), code: flow.icmp[1].into() }),
        tcp: (record.key.protocol == TCP).then(|| tcp(flow)),
        packets: Some(counts(flow.packets, record.delta.map(|d| d[0]))),
        bytes: Some(counts(flow.bytes, record.delta.map(|d| d[1]))),
        process: record.process.as_deref().map(process),
        listener: record.listener.as_deref().map(process),
        interface: record.interface.as_ref().map(ToString::to_string),
        attach: if record.key.endpoint & layout::CGROUP_ENDPOINT == 0 { "tc" } else { "cgroup" }.to_owned(),
        mac: (flow.mac != [0; 6]).then(|| mac_text(flow.mac)),
        audit: explanation.filter(|_| audited).and_then(audit),
    }
}

/// A flow id as records show it.
pub fn flow_id_text(id: u64) -> String {
    format!("{id:016x}")
}

/// A MAC address as records show it.
pub fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// The protocol as records name it.
pub fn protocol_name(protocol: u8) -> String {
    match protocol {
        ICMP => "ICMPv4".to_owned(),
        TCP => "TCP".to_owned(),
        17 => "UDP".to_owned(),
        ICMPV6 => "ICMPv6".to_owned(),
        132 => "SCTP".to_owned(),
        other => other.to_string(),
    }
}

pub(super) fn direction(flow: &Flow) -> proto::Direction {
    match flow.opened {
        layout::EGRESS => proto::Direction::Egress,
        layout::INGRESS => proto::Direction::Ingress,
        _ => proto::Direction::Unknown,
    }
}

pub(super) fn verdict(flow: &Flow) -> proto::Verdict {
    match flow.verdict {
        layout::verdict::ALLOWED => proto::Verdict::Allowed,
        layout::verdict::DENIED => proto::Verdict::Denied,
        layout::verdict::AUDIT => proto::Verdict::Audit,
        _ => proto::Verdict::Unspecified,
    }
}

fn mismatch(mismatch: Mismatch) -> proto::Mismatch {
    match mismatch {
        Mismatch::Peer => proto::Mismatch::Peer,
        Mismatch::Port => proto::Mismatch::Port,
        Mismatch::Protocol => proto::Mismatch::Protocol,
    }
}

/// A rule as records name it.
pub fn policy_rule(rule: &RuleRef) -> proto::PolicyRule {
    let direction = if rule.direction == layout::INGRESS { "ingress" } else { "egress" };
    proto::PolicyRule {
        kind: rule.kind.to_owned(),
        namespace: rule.namespace.to_string(),
        name: rule.name.to_string(),
        uid: rule.uid.as_ref().map(ToString::to_string),
        rule: format!("{direction}[{}]", rule.index),
    }
}

/// A policy as records name it.
pub fn policy_ref(rule: &RuleRef) -> proto::PolicyRef {
    proto::PolicyRef {
        kind: rule.kind.to_owned(),
        namespace: rule.namespace.to_string(),
        name: rule.name.to_string(),
        uid: rule.uid.as_ref().map(ToString::to_string),
    }
}

fn isolated_by(explanation: &Explanation) -> Vec<proto::PolicyRef> {
    explanation.isolated_by.iter().map(policy_ref).collect()
}

/// The policy that would have denied: the deciding one, or the first of those that isolate.
fn audit(explanation: &Explanation) -> Option<proto::PolicyRef> {
    explanation.rule.as_ref().or(explanation.isolated_by.first()).map(policy_ref)
}

fn tcp(flow: &Flow) -> proto::Tcp {
    proto::Tcp {
        flags: Some(proto::TcpFlags { forward: letters(flow.tcp_flags[0]), reply: letters(flow.tcp_flags[1]) }),
        state: Some(state_name(flow.tcp_flags).to_owned()),
        conn_state: Some(conn_state(flow.tcp_flags, flow.first_flags).to_owned()),
        rtt_us: (flow.rtt_us != 0).then_some(flow.rtt_us),
    }
}

fn counts(total: [u64; 2], delta: Option<[u64; 2]>) -> proto::Counts {
    let delta = delta.map(|[forward, reply]| proto::Delta { forward, reply });
    proto::Counts { forward: total[0], reply: total[1], delta }
}

/// A process as records show it.
pub fn process(info: &ProcessInfo) -> proto::Process {
    proto::Process {
        pid: info.pid,
        comm: info.comm.to_string(),
        uid: info.uid,
        container_id: info.container_id.as_ref().map(ToString::to_string),
        exe: info.exe.as_ref().map(ToString::to_string),
    }
}

/// Source and destination, by who opened the flow; where that is not known, the endpoint comes first.
fn peers(record: &FlowRecord) -> (proto::Peer, proto::Peer) {
    let key = &record.key;
    let known = has_ports(key.protocol) && (key.local_port, key.remote_port) != (0, 0);
    let port = |port: u16| known.then_some(u32::from(port));
    let ip = address(&record.flow.local).to_string();
    let mut local = proto::Peer { ip, port: port(key.local_port), zone: proto::Zone::Pod.into(), ..proto::Peer::default() };
    if let Some(identity) = &record.local {
        name(&mut local, identity);
    }
    let ip = address(&key.remote).to_string();
    let mut remote = proto::Peer { ip, port: port(key.remote_port), zone: proto::Zone::World.into(), ..proto::Peer::default() };
    if let Some(identity) = &record.remote {
        name(&mut remote, identity);
    }
    remote.late_identity = record.late_identity.then_some(true);
    if record.flow.flags & flow_flags::HIDDEN_BY_SNAT != 0 {
        remote.client = Some("hidden_by_snat".to_owned());
        remote.zone = proto::Zone::Node.into();
    }
    remote.translated = record.translated.as_deref().map(translated);
    if record.flow.opened == layout::INGRESS { (remote, local) } else { (local, remote) }
}

/// What stands behind a Service's address.
fn translated(behind: &Translated) -> proto::Translated {
    let (ip, port) = behind.destination;
    proto::Translated { ip: ip.to_string(), port: Some(port.into()), pod: behind.owner.as_deref().and_then(pod) }
}

/// Writes what is known of an owner into a peer.
fn name(peer: &mut proto::Peer, identity: &Identity) {
    peer.identity = identity.number;
    match &identity.owner {
        Owner::Pod { workload, service_account, node, .. } => {
            peer.pod = pod(identity);
            peer.workload = Some(proto::Workload { kind: workload.kind.to_string(), name: workload.name.to_string() });
            peer.service_account = service_account.as_ref().map(ToString::to_string);
            peer.node = node.as_ref().map(ToString::to_string);
            peer.zone = proto::Zone::Pod.into();
        }
        Owner::Service { namespace, name, port } => {
            peer.service =
                Some(proto::ServiceRef { namespace: namespace.to_string(), name: name.to_string(), port: Some(port.to_string()) });
            peer.zone = proto::Zone::Service.into();
        }
        Owner::Node { name } => {
            peer.node = Some(name.to_string());
            peer.zone = proto::Zone::Node.into();
        }
    }
}

/// The pod of an identity that is one.
pub fn pod(identity: &Identity) -> Option<proto::Pod> {
    let Owner::Pod { namespace, name, uid, labels, .. } = &identity.owner else { return None };
    Some(proto::Pod {
        namespace: namespace.to_string(),
        name: name.to_string(),
        uid: uid.to_string(),
        labels: labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
    })
}

/// The Community ID; absent where ports could not be read.
fn community(record: &FlowRecord) -> Option<String> {
    let key = &record.key;
    let (local, remote) = (address(&record.flow.local), address(&key.remote));
    let inbound = record.flow.opened == layout::INGRESS;
    let (source, destination) = if inbound { (remote, local) } else { (local, remote) };
    if matches!(key.protocol, ICMP | ICMPV6) {
        let [kind, code] = record.flow.icmp;
        return Some(community_id(key.protocol, (source, kind.into()), (destination, code.into())));
    }
    if !has_ports(key.protocol) {
        return Some(community_id(key.protocol, (source, 0), (destination, 0)));
    }
    let destination_port = destination_port(key, record.flow.opened)?;
    let source_port = if inbound { key.remote_port } else { key.local_port };
    Some(community_id(key.protocol, (source, source_port), (destination, destination_port)))
}
