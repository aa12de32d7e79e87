//! One filter, checked.

use sekisho_core::layout::{INGRESS, verdict};
use sekisho_proto::{self as proto, Kind, Name as _, Reason, Verdict};

use super::FilterError;
use super::ends::{EndPattern, NamePattern, Party};
use crate::flow::{Body, Explanation, FlowRecord, Moment, Record};

/// A filter, ready for use. Lists that are empty ask for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pattern {
    kinds: Vec<Kind>,
    verdicts: Vec<u8>,
    protocols: Vec<u8>,
    reasons: Vec<u8>,
    policies: Vec<NamePattern>,
    severities: Vec<String>,
    rules: Vec<String>,
    either: EndPattern,
    source: EndPattern,
    destination: EndPattern,
}

impl Pattern {
    pub(super) fn new(filter: &proto::Filter) -> Result<Self, FilterError> {
        let f = filter;
        Ok(Self {
            kinds: each(&f.kinds, |kind| {
                Kind::try_from(*kind).ok().filter(|kind| kind.name().is_some()).ok_or(FilterError::Unknown(*kind))
            })?,
            verdicts: each(&f.verdicts, |verdict| verdict_number(*verdict))?,
            protocols: each(&f.protocols, |text| protocol_numbers(text))?.concat(),
            reasons: each(&f.reasons, |reason| reason_number(*reason))?,
            policies: each(&f.policies, |name| NamePattern::new(name).ok_or_else(|| FilterError::Name(name.clone())))?,
            severities: f.severities.iter().map(|severity| severity.to_ascii_lowercase()).collect(),
            rules: f.rules.clone(),
            either: EndPattern::new(&f.namespaces, &f.pods, &f.workloads, &f.services, &f.selectors, &f.ips, &f.ports)?,
            source: EndPattern::new(
                &f.from_namespaces,
                &f.from_pods,
                &f.from_workloads,
                &f.from_services,
                &f.from_selectors,
                &f.from_ips,
                &f.from_ports,
            )?,
            destination: EndPattern::new(
                &f.to_namespaces,
                &f.to_pods,
                &f.to_workloads,
                &f.to_services,
                &f.to_selectors,
                &f.to_ips,
                &f.to_ports,
            )?,
        })
    }

    pub(super) fn of_alerts(self) -> Self {
        Self { kinds: vec![Kind::Alert], ..self }
    }

    /// Whether a record passes this filter. What is not a flow passes a filter on flows only if its kind is asked for; then what it
    /// has not, as an alert has no verdict, is left out of account.
    pub(super) fn wants(&self, record: &Record) -> bool {
        let kind_asked = self.kinds.contains(&kind(record));
        if !self.kinds.is_empty() && !kind_asked {
            return false;
        }
        match &record.body {
            Body::Flow(flow) => self.matches_flow(flow),
            Body::Alert(alert) if kind_asked || self.asks_for_alerts() => self.matches_alert(alert),
            _ if !kind_asked => *self == Self::default(),
            _ if self.asks_for_alerts() => false,
            Body::Coverage(coverage) => self.matches_pod(coverage.pod.as_ref()),
            Body::Summary(summary) => self.matches_pod(summary.pod.as_ref()),
            Body::Alert(_) | Body::Ledger(_) | Body::Policy(_) => true,
        }
    }

    /// Whether everything that this filter names is true of a record: such records are left out. What a record has not is not
    /// true of it.
    pub(super) fn describes(&self, record: &Record) -> bool {
        if !self.kinds.is_empty() && !self.kinds.contains(&kind(record)) {
            return false;
        }
        if let Body::Flow(flow) = &record.body {
            return self.matches_flow(flow);
        }
        if !(self.verdicts.is_empty() && self.protocols.is_empty() && self.reasons.is_empty() && self.policies.is_empty()) {
            return false;
        }
        let ends_asked = [&self.either, &self.source, &self.destination].iter().any(|ends| **ends != EndPattern::default());
        match &record.body {
            Body::Alert(alert) => self.matches_alert(alert),
            _ if self.asks_for_alerts() => false,
            Body::Coverage(coverage) => self.matches_pod(coverage.pod.as_ref()),
            Body::Summary(summary) => self.matches_pod(summary.pod.as_ref()),
            Body::Flow(_) | Body::Ledger(_) | Body::Policy(_) => !ends_asked,
        }
    }

    fn asks_for_alerts(&self) -> bool {
        !(self.severities.is_empty() && self.rules.is_empty())
    }

    fn matches_flow(&self, record: &FlowRecord) -> bool {
        let flow = &record.flow;
        if self.asks_for_alerts()
            || !any_or_empty(&self.verdicts, |verdict| *verdict == flow.verdict)
            || !any_or_empty(&self.protocols, |protocol| *protocol == record.key.protocol)
            || !any_or_empty(&self.reasons, |reason| flow.verdict != verdict::ALLOWED && *reason == flow.reason)
            || !any_or_empty(&self.policies, |policy| record.decision.as_deref().is_some_and(|why| decided_by(why, policy)))
        {
            return false;
        }
        let (local, remote) = (Party::local(record), Party::remote(record));
        // A flow to a Service goes to what stands behind it as well.
        let behind = Party::behind(record);
        let (source, destination) = if flow.opened == INGRESS { (remote, local) } else { (local, remote) };
        self.matches_ends(&[source], &[destination, behind.unwrap_or(destination)])
    }

    fn matches_ends(&self, sources: &[Party<'_>], destinations: &[Party<'_>]) -> bool {
        self.source.matches([sources, &[]]) && self.destination.matches([destinations, &[]]) && self.either.matches([sources, destinations])
    }

    /// An alert has ends as a flow has; verdict and protocol it has not.
    fn matches_alert(&self, alert: &proto::Alert) -> bool {
        let sources: Vec<Party<'_>> = alert.source.iter().map(Party::of_alert).collect();
        // The ports that were tried are the targets'.
        let tried = alert.evidence.as_ref().map_or(&[][..], |evidence| &evidence.ports);
        let tried = tried.iter().filter_map(|port| u16::try_from(*port).ok()).map(Party::port);
        let targets: Vec<Party<'_>> = alert.targets.iter().map(Party::of_alert).chain(tried).collect();
        any_or_empty(&self.severities, |severity| *severity == alert.severity)
            && any_or_empty(&self.rules, |rule| is_rule(&alert.rule, rule))
            && self.matches_ends(&sources, &targets)
    }

    fn matches_pod(&self, pod: Option<&proto::Pod>) -> bool {
        let parties: Vec<Party<'_>> = pod.map(Party::of_pod).into_iter().collect();
        self.matches_ends(&parties, &parties)
    }
}

/// What a record is.
fn kind(record: &Record) -> Kind {
    match &record.body {
        Body::Flow(flow) => match flow.moment {
            Moment::Start => Kind::Start,
            Moment::Update => Kind::Update,
            Moment::End(_) => Kind::End,
        },
        Body::Alert(_) => Kind::Alert,
        Body::Ledger(_) => Kind::Ledger,
        Body::Policy(_) => Kind::Policy,
        Body::Coverage(_) => Kind::Coverage,
        Body::Summary(_) => Kind::Summarised,
    }
}

/// The rule itself, or a family of rules: `scan` is `scan.vertical` too.
fn is_rule(rule: &str, wanted: &str) -> bool {
    rule.strip_prefix(wanted.trim_end_matches('.')).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn decided_by(why: &Explanation, policy: &NamePattern) -> bool {
    why.rule.iter().chain(&why.isolated_by).any(|rule| policy.is(&rule.namespace, &rule.name))
}

pub(super) fn each<T, U>(values: &[T], check: impl Fn(&T) -> Result<U, FilterError>) -> Result<Vec<U>, FilterError> {
    values.iter().map(check).collect()
}

pub(super) fn any_or_empty<T>(wanted: &[T], test: impl Fn(&T) -> bool) -> bool {
    wanted.is_empty() || wanted.iter().any(test)
}

fn verdict_number(number: i32) -> Result<u8, FilterError> {
    match Verdict::try_from(number) {
        Ok(Verdict::Allowed) => Ok(verdict::ALLOWED),
        Ok(Verdict::Denied) => Ok(verdict::DENIED),
        Ok(Verdict::Audit) => Ok(verdict::AUDIT),
        _ => Err(FilterError::Unknown(number)),
    }
}

/// Reasons have the kernel's numbers.
fn reason_number(number: i32) -> Result<u8, FilterError> {
    let known = Reason::try_from(number).ok().filter(|reason| reason.name().is_some());
    known.and_then(|_| u8::try_from(number).ok()).ok_or(FilterError::Unknown(number))
}

fn protocol_numbers(text: &str) -> Result<Vec<u8>, FilterError> {
    Ok(match text.to_ascii_uppercase().as_str() {
        "TCP" => vec![6],
        "UDP" => vec![17],
        "SCTP" => vec![132],
        "ICMP" => vec![1, 58],
        "ICMPV4" => vec![1],
        "ICMPV6" => vec![58],
        number => vec![number.parse().map_err(|_| FilterError::Protocol(text.to_owned()))?],
    })
}
