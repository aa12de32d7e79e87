//! What the agent says of itself: status, and what it would decide.

use std::net::IpAddr;
use std::sync::Arc;

use sekisho_core::layout::{self, EGRESS, INGRESS, mode};
use sekisho_proto as proto;

use super::pump::Pump;
use crate::api::Refusal;
use crate::datapath::EndpointInfo;
use crate::flow;
use crate::inventory::Pod;
use crate::policy::{self, Decision, Mismatch, Question};

impl Pump {
    /// Why this node is not ready, one sentence each; empty when it is.
    pub(super) fn unready(&self) -> Vec<String> {
        let mut why: Vec<String> = self.refused.iter().cloned().collect();
        if !self.synced {
            let error = self.source.state().error.map(|e| format!(" ({e})")).unwrap_or_default();
            why.push(format!("the cluster has not been read whole yet{error}; what an earlier agent put in force stays"));
        }
        for pod in &self.local {
            match self.datapath.endpoints().find(|e| e.uid == pod.uid) {
                Some(endpoint) if endpoint.ready => {}
                found => {
                    let message = found.and_then(|e| e.message.clone());
                    let message = message.unwrap_or_else(|| "neither its control group nor its interface has been found yet".into());
                    why.push(format!("{}/{}: {message}", pod.namespace, pod.name));
                }
            }
        }
        why
    }

    /// Everything that `sekisho status` shows.
    pub(super) fn status(&mut self) -> proto::StatusResponse {
        let unready = self.unready();
        let ledger = self.ledger();
        let counters = self.datapath.counters();
        let named = sekisho_core::counters::NAMES.iter();
        let maps = self.datapath.maps().into_iter().map(|m| proto::MapStatus {
            name: m.name.to_owned(),
            entries: m.entries,
            max: m.max,
            bytes: m.bytes,
        });
        proto::StatusResponse {
            ready: unready.is_empty(),
            unready,
            node: self.args.node_name.clone(),
            run: self.header().run.to_string(),
            mode: mode::name(self.datapath.mode()).unwrap_or("unknown").to_owned(),
            epoch: self.datapath.epoch(),
            version: crate::version::VERSION.to_owned(),
            commit: crate::version::COMMIT.to_owned(),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            layout: format!("{:016x}", layout::LAYOUT),
            started: Some(flow::timestamp(self.started_ns)),
            tc_backend: self.datapath.backend_name().to_owned(),
            pin_dir: self.args.pin_dir.display().to_string(),
            endpoints: self.local.iter().map(|pod| self.endpoint_status(pod)).collect(),
            maps: maps.collect(),
            ledger: Some(ledger),
            refused: self.snapshot.refused.clone(),
            policy: Some(self.policy_status()),
            source: Some(self.source_status()),
            counters: named.map(|(slot, name)| ((*name).to_owned(), counters[*slot as usize])).collect(),
            suppressed: self.detector.suppressed().into_iter().map(|((kind, why), n)| (format!("{kind}.{why}"), n)).collect(),
            translations: self.translations(),
            events: self.source.notices().into_iter().map(|(outcome, n)| (outcome.to_owned(), n)).collect(),
        }
    }

    fn translations(&self) -> std::collections::BTreeMap<String, u64> {
        let tally = self.translator.as_ref().map(super::translate::Translator::tally).unwrap_or_default();
        let not_asked = self.engine.not_looked_up();
        let counts = [("found", tally.found), ("not_found", tally.not_found), ("failed", tally.failed), ("not_asked", not_asked)];
        counts.map(|(name, n)| (name.to_owned(), n)).into()
    }

    fn endpoint_status(&self, pod: &Pod) -> proto::EndpointStatus {
        let none = EndpointInfo::default();
        let endpoint = self.datapath.endpoints().find(|e| e.uid == pod.uid).unwrap_or(&none);
        let ips = if endpoint.addresses.is_empty() { &pod.ips } else { &endpoint.addresses };
        proto::EndpointStatus {
            pod: Some(self::pod(pod)),
            ips: ips.iter().map(IpAddr::to_string).collect(),
            interface: endpoint.interface.as_deref().map(str::to_owned),
            attach: endpoint.attach.name().to_owned(),
            set: endpoint.set,
            isolated_ingress: endpoint.isolated[usize::from(INGRESS)],
            isolated_egress: endpoint.isolated[usize::from(EGRESS)],
            coverage: endpoint.coverage.name().to_owned(),
            ready: endpoint.ready,
            message: endpoint.message.clone(),
            host_network: pod.host_network,
        }
    }

    fn source_status(&self) -> proto::SourceStatus {
        let state = self.source.state();
        let nanoseconds = |since: std::time::SystemTime| {
            since.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
        };
        proto::SourceStatus {
            name: state.name.to_owned(),
            synced: state.synced,
            stale_since: state.stale_since.map(|since| flow::timestamp(nanoseconds(since))),
            error: state.error,
        }
    }

    fn policy_status(&self) -> proto::PolicyStatus {
        let (stats, rules) = self.compiled.as_ref().map(|c| (c.stats, c.tables.rules.len())).unwrap_or_default();
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        proto::PolicyStatus {
            policies: small(self.snapshot.policies.len()),
            sets: small(stats.sets),
            classes: small(stats.classes),
            rules: rules as u64,
            applied: Some(flow::timestamp(self.applied_ns)),
            left_out: stats.left_out as u64,
        }
    }

    /// What would be decided at both ends, and why.
    pub(super) fn explain(&self, request: &proto::ExplainRequest) -> Result<proto::ExplainResponse, Refusal> {
        let protocol = protocol_number(&request.protocol)?;
        let port = u16::try_from(request.port).map_err(|_| Refusal::Invalid(format!("{} is no port: 1 to 65535", request.port)))?;
        let port = flow::has_ports(protocol).then_some(port);
        let from = self.find_end(&request.from)?;
        let to = self.find_end(&request.to)?;
        let decide = |end: &End, direction: u8, other: &End| -> Result<Option<proto::Decision>, Refusal> {
            let Some(pod) = end.pod.as_ref().filter(|p| self.local.iter().any(|l| l.uid == p.uid)) else { return Ok(None) };
            let Some(remote) = other.address_for(end) else {
                return Err(Refusal::NotFound(format!("{} has no address in common with the other end yet", other.text)));
            };
            let compiled = self.compiled.as_ref().ok_or_else(|| Refusal::Unavailable("no policy is in force yet".into()))?;
            let local = (pod.namespace.clone(), pod.name.clone());
            let question = Question { local, direction, remote, protocol, port };
            Ok(Some(self.decision(&compiled.explain(&question), direction)))
        };
        let egress = decide(&from, EGRESS, &to)?;
        let ingress = decide(&to, INGRESS, &from)?;
        if egress.is_none() && ingress.is_none() {
            let text = format!(
                "neither {} nor {} is a pod of node {}: another node's agent decides",
                request.from, request.to, self.args.node_name
            );
            return Err(Refusal::NotFound(text));
        }
        let worst = |v: proto::Verdict| [&egress, &ingress].into_iter().flatten().any(|d| d.verdict() == v);
        let verdict = [proto::Verdict::Denied, proto::Verdict::Audit].into_iter().find(|v| worst(*v)).unwrap_or(proto::Verdict::Allowed);
        Ok(proto::ExplainResponse {
            verdict: verdict.into(),
            source: Some(from.peer(None)),
            destination: Some(to.peer(port.map(u32::from))),
            egress,
            ingress,
            mode: mode::name(self.datapath.mode()).unwrap_or("unknown").to_owned(),
        })
    }

    /// An end of the question: `NAMESPACE/POD` or an address.
    fn find_end(&self, text: &str) -> Result<End, Refusal> {
        if let Ok(address) = text.parse::<IpAddr>() {
            let address = address.to_canonical();
            let pod = self.snapshot.pods.values().find(|p| !p.host_network && !p.finished && self.addresses(p).contains(&address));
            return Ok(End { text: text.to_owned(), addresses: vec![address], pod: pod.cloned() });
        }
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        let pod = self.snapshot.pods.get(&(Arc::from(namespace), Arc::from(name)));
        let pod = pod.ok_or_else(|| Refusal::NotFound(format!("pod {namespace}/{name} is not known; addresses are accepted too")))?;
        Ok(End { text: text.to_owned(), addresses: self.addresses(pod).to_vec(), pod: Some(pod.clone()) })
    }

    fn addresses<'a>(&'a self, pod: &'a Pod) -> &'a [IpAddr] {
        self.known.get(&pod.uid).map_or(&pod.ips, |found| found)
    }

    fn decision(&self, decision: &Decision, direction: u8) -> proto::Decision {
        let verdict = match (decision.allowed, self.datapath.mode()) {
            (true, _) | (_, mode::OBSERVE) => proto::Verdict::Allowed,
            (false, mode::AUDIT) => proto::Verdict::Audit,
            (false, _) => proto::Verdict::Denied,
        };
        let reason = if decision.allowed { proto::Reason::Unspecified } else { proto::Reason::DefaultDeny };
        proto::Decision {
            verdict: verdict.into(),
            reason: reason.into(),
            isolated: decision.isolated,
            policy: decision.rule.as_ref().map(flow::policy_rule),
            isolated_by: decision.isolated_by.iter().map(flow::policy_ref).collect(),
            nearest: decision.nearest.as_ref().map(flow::policy_rule),
            mismatch: decision.mismatch.iter().map(|m| mismatch(*m).into()).collect(),
            text: sentence(decision, direction),
        }
    }
}

/// One end of a question.
struct End {
    text: String,
    addresses: Vec<IpAddr>,
    pod: Option<Arc<Pod>>,
}

impl End {
    /// The address under which `other` would meet this end: of a family that both have.
    fn address_for(&self, other: &Self) -> Option<IpAddr> {
        let met = |a: &&IpAddr| other.addresses.is_empty() || other.addresses.iter().any(|o| o.is_ipv4() == a.is_ipv4());
        self.addresses.iter().find(met).copied()
    }

    fn peer(&self, port: Option<u32>) -> proto::Peer {
        let zone = if self.pod.is_some() { proto::Zone::Pod } else { proto::Zone::World };
        proto::Peer {
            ip: self.addresses.first().map(IpAddr::to_string).unwrap_or_default(),
            port,
            pod: self.pod.as_deref().map(pod),
            workload: self.pod.as_ref().map(|p| proto::Workload { kind: p.workload.kind.to_string(), name: p.workload.name.to_string() }),
            zone: zone.into(),
            ..proto::Peer::default()
        }
    }
}

fn sentence(decision: &Decision, direction: u8) -> String {
    let way = if direction == EGRESS { "egress" } else { "ingress" };
    let name = |rule: &policy::RuleRef| format!("{}/{}", rule.namespace, rule.name);
    let whole = |rule: &policy::RuleRef| format!("{} {way}[{}]", name(rule), rule.index);
    let mut text = match (&decision.rule, decision.isolated, decision.allowed) {
        (Some(rule), ..) => format!("allowed by {}", whole(rule)),
        (None, false, true) => format!("allowed: no policy isolates it for {way}"),
        (None, true, true) => "allowed".to_owned(),
        (None, _, false) => {
            let by: Vec<_> = decision.isolated_by.iter().map(name).collect();
            format!("denied: isolated for {way} by {}, and no rule allows it", by.join(", "))
        }
    };
    if let Some(nearest) = &decision.nearest {
        let wrong: Vec<_> = decision.mismatch.iter().map(|m| mismatch_name(*m)).collect();
        let verb = if wrong.len() == 1 { " does" } else { " do" };
        text.extend(["; nearest is ", &whole(nearest), ", where ", &wrong.join(" and "), verb, " not match"]);
    }
    if let Some(warning) = &decision.warning {
        text.extend([" (", warning, ")"]);
    }
    text
}

fn mismatch(mismatch: Mismatch) -> proto::Mismatch {
    match mismatch {
        Mismatch::Peer => proto::Mismatch::Peer,
        Mismatch::Port => proto::Mismatch::Port,
        Mismatch::Protocol => proto::Mismatch::Protocol,
    }
}

fn mismatch_name(mismatch: Mismatch) -> &'static str {
    match mismatch {
        Mismatch::Peer => "the peer",
        Mismatch::Port => "the port",
        Mismatch::Protocol => "the protocol",
    }
}

fn protocol_number(name: &str) -> Result<u8, Refusal> {
    match name.to_ascii_uppercase().as_str() {
        "TCP" | "" => Ok(6),
        "UDP" => Ok(17),
        "SCTP" => Ok(132),
        "ICMP" | "ICMPV4" => Ok(1),
        "ICMPV6" => Ok(58),
        other => other.parse().map_err(|_| Refusal::Invalid(format!("{name} is no protocol: TCP, UDP, SCTP, ICMP or a number"))),
    }
}

/// A pod as records name it.
pub(super) fn pod(pod: &Pod) -> proto::Pod {
    proto::Pod {
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        labels: pod.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
    }
}
