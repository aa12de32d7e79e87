//! What would be decided at both ends of a connection, and why; and what this agent cannot know.
//!
//! Policy judges a connection twice: the node of the pod that opens it judges egress, the node of the pod that it goes to judges ingress.
//! An agent answers for its own pods. Where another agent has a say, the outcome of both is known only if one of them denies.

use std::net::IpAddr;
use std::sync::Arc;

use sekisho_core::layout::{EGRESS, INGRESS, mode};
use sekisho_proto::{self as proto, Outcome};

use super::pump::Pump;
use super::status::pod;
use crate::api::Refusal;
use crate::flow;
use crate::inventory::Pod;
use crate::policy::{self, Decision, Mismatch, Question};

/// Protocol and, where it has ports, the port of the destination.
#[derive(Clone, Copy)]
struct Dialled {
    protocol: u8,
    port: Option<u16>,
}

/// What there is to say of an end.
#[expect(clippy::large_enum_variant, reason = "a question has two")]
enum Said {
    /// It is judged here.
    Here(proto::Decision),
    /// Somebody else judges it.
    Elsewhere(String),
    /// Nobody does: it is no pod.
    Nobody,
}

impl Pump {
    /// What would be decided at both ends, and why.
    pub(super) fn explain(&self, request: &proto::ExplainRequest) -> Result<proto::ExplainResponse, Refusal> {
        let protocol = protocol_number(&request.protocol)?;
        let port = u16::try_from(request.port).map_err(|_| Refusal::Invalid(format!("{} is no port: 1 to 65535", request.port)))?;
        let dialled = Dialled { protocol, port: flow::has_ports(protocol).then_some(port) };
        let from = self.find_end(&request.from)?;
        let to = self.find_end(&request.to)?;
        let egress = self.said(&from, EGRESS, &to, dialled)?;
        let ingress = match self.backends(&to, dialled) {
            Some((service, backends)) => self.behind(&from, &service, &backends, dialled)?,
            None => self.said(&to, INGRESS, &from, dialled)?,
        };
        if !matches!(egress, Said::Here(_)) && !matches!(ingress, Said::Here(_)) {
            let text = format!(
                "neither {} nor {} is a pod of node {}: another node's agent decides",
                request.from, request.to, self.args.node_name
            );
            return Err(Refusal::NotFound(text));
        }
        let mut answer = proto::ExplainResponse {
            source: Some(from.peer(None)),
            destination: Some(to.peer(dialled.port.map(u32::from))),
            mode: mode::name(self.datapath.mode()).unwrap_or("unknown").to_owned(),
            ..proto::ExplainResponse::default()
        };
        (answer.egress, answer.egress_elsewhere) = egress.parts();
        (answer.ingress, answer.ingress_elsewhere) = ingress.parts();
        answer.conclude();
        Ok(answer)
    }

    /// What is to be said of `end`, which the connection leaves or enters.
    fn said(&self, end: &End, direction: u8, other: &End, dialled: Dialled) -> Result<Said, Refusal> {
        let Some(pod) = &end.pod else { return Ok(Said::Nobody) };
        if !self.is_local(pod) {
            return Ok(match &pod.node {
                _ if pod.host_network => Said::Nobody,
                Some(node) => Said::Elsewhere(format!("the agent of node {node}")),
                None => Said::Elsewhere("the agent of the node that it will run on".to_owned()),
            });
        }
        let Some(remote) = other.address_for(end) else {
            return Err(Refusal::NotFound(format!("{} has no address in common with the other end yet", other.text)));
        };
        let compiled = self.compiled.as_ref().ok_or_else(|| Refusal::Unavailable("no policy is in force yet".into()))?;
        let local = (pod.namespace.clone(), pod.name.clone());
        let question = Question { local, direction, remote, protocol: dialled.protocol, port: dialled.port };
        let decision = compiled.explain(&question);
        if direction == INGRESS && !pod.host_network {
            if other.pod.as_ref().is_some_and(|other| other.host_network && self.is_local(other)) {
                return Ok(Said::Here(self.own_node(&decision)));
            }
            if other.pod.is_none() && !decision.allowed && self.node_addresses.contains(&remote) {
                return Ok(Said::Here(self.node_or_forwarded(&decision)));
            }
        }
        Ok(Said::Here(self.decision(&decision, direction)))
    }

    fn is_local(&self, pod: &Pod) -> bool {
        self.local.iter().any(|local| local.uid == pod.uid)
    }

    /// The Service at the destination with its backends, if it is one's address.
    fn backends(&self, to: &End, dialled: Dialled) -> Option<(String, Vec<(IpAddr, u16)>)> {
        if to.pod.is_some() {
            return None;
        }
        let (service, backends) = self.compiled.as_ref()?.behind(*to.addresses.first()?, dialled.port?, dialled.protocol)?;
        Some((service.to_owned(), backends.to_vec()))
    }

    /// The ingress of what stands behind a Service. Which backend is chosen is not known here: only what holds for all is.
    fn behind(&self, from: &End, service: &str, backends: &[(IpAddr, u16)], dialled: Dialled) -> Result<Said, Refusal> {
        let elsewhere = || Said::Elsewhere(format!("whichever backend of {service} is chosen"));
        let mut agreed: Option<proto::Decision> = None;
        let mut pods = 0;
        for (address, port) in backends {
            let backend = self.end_of(&address.to_string(), *address);
            let dialled = Dialled { port: Some(*port), ..dialled };
            if backend.pod.is_none() {
                continue;
            }
            pods += 1;
            let Said::Here(decision) = self.said(&backend, INGRESS, from, dialled)? else { return Ok(elsewhere()) };
            match &agreed {
                Some(before) if before.enforced != decision.enforced => return Ok(elsewhere()),
                Some(_) => {}
                None => agreed = Some(decision),
            }
        }
        Ok(match agreed {
            // Such as the API server: nobody judges what comes in there.
            None if !backends.is_empty() => Said::Nobody,
            Some(decision) if pods == backends.len() || decision.enforced() == Outcome::Allowed => Said::Here(decision),
            _ => elsewhere(),
        })
    }

    /// An end of the question: `NAMESPACE/POD` or an address.
    fn find_end(&self, text: &str) -> Result<End, Refusal> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(self.end_of(text, address));
        }
        let (namespace, name) = text.split_once('/').unwrap_or(("default", text));
        let pod = self.snapshot.pods.get(&(Arc::from(namespace), Arc::from(name)));
        let pod = pod.ok_or_else(|| Refusal::NotFound(format!("pod {namespace}/{name} is not known; addresses are accepted too")))?;
        Ok(End { text: text.to_owned(), addresses: self.addresses(pod).to_vec(), pod: Some(pod.clone()) })
    }

    fn end_of(&self, text: &str, address: IpAddr) -> End {
        let address = address.to_canonical();
        let pod = self.snapshot.pods.values().find(|p| !p.host_network && !p.finished && self.addresses(p).contains(&address));
        End { text: text.to_owned(), addresses: vec![address], pod: pod.cloned() }
    }

    fn addresses<'a>(&'a self, pod: &'a Pod) -> &'a [IpAddr] {
        self.known.get(&pod.uid).map_or(&pod.ips, |found| found)
    }

    fn decision(&self, decision: &Decision, direction: u8) -> proto::Decision {
        let mode = self.datapath.mode();
        let verdict = match (decision.allowed, mode) {
            (true, _) | (_, mode::OBSERVE) => Outcome::Allowed,
            (false, mode::AUDIT) => Outcome::Audit,
            (false, _) => Outcome::Denied,
        };
        let enforced = if decision.allowed { Outcome::Allowed } else { Outcome::Denied };
        let reason = if decision.allowed { proto::Reason::Unspecified } else { proto::Reason::DefaultDeny };
        proto::Decision {
            verdict: verdict.into(),
            enforced: enforced.into(),
            reason: reason.into(),
            isolated: decision.isolated,
            policy: decision.rule.as_ref().map(flow::policy_rule),
            isolated_by: decision.isolated_by.iter().map(flow::policy_ref).collect(),
            nearest: decision.nearest.as_ref().map(flow::policy_rule),
            mismatch: decision.mismatch.iter().map(|m| mismatch(*m).into()).collect(),
            text: sentence(decision, direction, verdict),
        }
    }

    /// What a hostNetwork pod of this node sends to a pod here.
    fn own_node(&self, decision: &Decision) -> proto::Decision {
        let rule = decision.rule.clone().filter(|_| decision.allowed);
        let allowed = Decision { allowed: true, rule, isolated_by: Vec::new(), nearest: None, mismatch: Vec::new(), ..decision.clone() };
        let text = "allowed: a hostNetwork pod of this node is the node to others, and a node always reaches its own pods".to_owned();
        proto::Decision { text, ..self.decision(&allowed, INGRESS) }
    }

    /// What comes from an address of this node, and no rule allows.
    fn node_or_forwarded(&self, decision: &Decision) -> proto::Decision {
        let text = format!(
            "an address of this node: its own processes, hostNetwork pods among them, always reach the pod; what the node only forwards \
             under its address is {}",
            sentence(decision, INGRESS, Outcome::Denied)
        );
        let undetermined = Outcome::Undetermined.into();
        let reason = proto::Reason::Unspecified.into();
        proto::Decision { verdict: undetermined, enforced: undetermined, reason, text, ..self.decision(decision, INGRESS) }
    }
}

impl Said {
    fn parts(self) -> (Option<proto::Decision>, Option<String>) {
        match self {
            Self::Here(decision) => (Some(decision), None),
            Self::Elsewhere(who) => (None, Some(who)),
            Self::Nobody => (None, None),
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

fn sentence(decision: &Decision, direction: u8, verdict: Outcome) -> String {
    let way = if direction == EGRESS { "egress" } else { "ingress" };
    let name = |rule: &policy::RuleRef| format!("{}/{}", rule.namespace, rule.name);
    let whole = |rule: &policy::RuleRef| format!("{} {way}[{}]", name(rule), rule.index);
    let mut text = match (&decision.rule, decision.isolated, decision.allowed) {
        (Some(rule), ..) => format!("allowed by {}", whole(rule)),
        (None, false, true) => format!("allowed: no policy isolates it for {way}"),
        (None, true, true) => "allowed".to_owned(),
        (None, _, false) => {
            let by: Vec<_> = decision.isolated_by.iter().map(name).collect();
            let denied = if verdict == Outcome::Denied { "denied" } else { "would be denied in mode enforce" };
            format!("{denied}: isolated for {way} by {}, and no rule allows it", by.join(", "))
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
