//! Counts of what the records say, by namespace, policy and rule, for metrics.
//!
//! Who names namespaces and policies must not be able to fill the agent's memory or Prometheus': a [`Family`] has at most
//! [`SERIES`] series, and what comes beyond is counted under `_other`, which is no name that Kubernetes allows.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use sekisho_core::layout;
use sekisho_proto::{self as proto, Name as _};

use super::project;
use super::record::{Body, FlowRecord, Moment, Owner};
use crate::policy::RuleRef;

/// How many series a family has before what is new is counted under [`OTHER`].
pub(super) const SERIES: usize = 1000;
/// Stands for every name beyond [`SERIES`].
pub(super) const OTHER: &str = "_other";
/// The rule where none decided: default deny.
const NONE: &str = "none";
/// Every severity of an alert.
const SEVERITIES: [&str; 5] = ["info", "low", "medium", "high", "critical"];

/// A series' labels.
pub type Labels = Vec<(&'static str, String)>;

/// What tells the series of a family apart.
pub trait Key: Clone + Eq + Hash {
    /// As labels.
    fn labels(&self) -> Labels;
    /// The same without names that somebody outside chooses.
    #[must_use]
    fn other(&self) -> Self;
}

/// Series of one metric, or of several with the same labels.
#[derive(Clone, Debug)]
pub struct Family<K, V> {
    series: HashMap<K, V>,
    overflow: u64,
}

impl<K, V> Default for Family<K, V> {
    fn default() -> Self {
        Self { series: HashMap::new(), overflow: 0 }
    }
}

impl<K: Key, V: Copy + Default> Family<K, V> {
    fn at(&mut self, key: K) -> &mut V {
        let full = self.series.len() >= SERIES && !self.series.contains_key(&key);
        self.overflow += u64::from(full);
        let key = if full { key.other() } else { key };
        self.series.entry(key).or_default()
    }

    /// Every series, sorted by its labels.
    pub fn series(&self) -> Vec<(Labels, V)> {
        let mut all: Vec<_> = self.series.iter().map(|(key, value)| (key.labels(), *value)).collect();
        all.sort_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// How often something was counted under [`OTHER`].
    pub fn overflow(&self) -> u64 {
        self.overflow
    }
}

/// Flows of a namespace's pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    namespace: Arc<str>,
    direction: &'static str,
    verdict: &'static str,
}

impl Key for FlowKey {
    fn labels(&self) -> Labels {
        let Self { namespace, direction, verdict } = self;
        vec![("namespace", namespace.to_string()), ("direction", (*direction).to_owned()), ("verdict", (*verdict).to_owned())]
    }

    fn other(&self) -> Self {
        Self { namespace: OTHER.into(), ..self.clone() }
    }
}

/// Flows that a policy decided: by a rule, or because it isolates.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PolicyKey {
    namespace: Arc<str>,
    policy: Arc<str>,
    direction: &'static str,
    /// Absent where no rule decided.
    rule: Option<u32>,
    verdict: &'static str,
}

impl Key for PolicyKey {
    fn labels(&self) -> Labels {
        let Self { namespace, policy, direction, rule, verdict } = self;
        let rule = rule.map_or_else(|| NONE.to_owned(), |index| format!("{direction}[{index}]"));
        vec![
            ("namespace", namespace.to_string()),
            ("policy", policy.to_string()),
            ("direction", (*direction).to_owned()),
            ("rule", rule),
            ("verdict", (*verdict).to_owned()),
        ]
    }

    fn other(&self) -> Self {
        Self { namespace: OTHER.into(), policy: OTHER.into(), rule: None, ..self.clone() }
    }
}

/// Flows that are denied, or would be.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct DenialKey {
    namespace: Arc<str>,
    direction: &'static str,
    reason: &'static str,
    verdict: &'static str,
}

impl Key for DenialKey {
    fn labels(&self) -> Labels {
        let Self { namespace, direction, reason, verdict } = self;
        vec![
            ("namespace", namespace.to_string()),
            ("direction", (*direction).to_owned()),
            ("reason", (*reason).to_owned()),
            ("verdict", (*verdict).to_owned()),
        ]
    }

    fn other(&self) -> Self {
        Self { namespace: OTHER.into(), ..self.clone() }
    }
}

/// Traffic of a namespace's pods that was let through.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TrafficKey {
    namespace: Arc<str>,
    /// As the pods see it.
    direction: &'static str,
}

impl Key for TrafficKey {
    fn labels(&self) -> Labels {
        vec![("namespace", self.namespace.to_string()), ("direction", self.direction.to_owned())]
    }

    fn other(&self) -> Self {
        Self { namespace: OTHER.into(), ..self.clone() }
    }
}

/// Alerts about a namespace's pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AlertKey {
    namespace: Arc<str>,
    rule: Arc<str>,
}

impl Key for AlertKey {
    fn labels(&self) -> Labels {
        vec![("namespace", self.namespace.to_string()), ("rule", self.rule.to_string())]
    }

    fn other(&self) -> Self {
        Self { namespace: OTHER.into(), ..self.clone() }
    }
}

/// Packets and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Volume {
    /// As the wire has them.
    pub packets: u64,
    /// With IP headers.
    pub bytes: u64,
}

/// What the records of this run have said so far.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Starts of flows.
    pub flows: Family<FlowKey, u64>,
    /// Of these, those that a policy decided.
    pub policies: Family<PolicyKey, u64>,
    /// Of these, those that are denied or would be.
    pub denials: Family<DenialKey, u64>,
    /// What was let through.
    pub traffic: Family<TrafficKey, Volume>,
    /// Alerts that were opened, by the namespace of their source.
    pub alerts_by_namespace: Family<AlertKey, u64>,
    /// Alerts that were opened, by rule and severity: as many as the detections have.
    pub alerts: BTreeMap<(String, String), u64>,
}

impl Tally {
    /// Alerts of these rules are counted from zero on. A series that appears with its first alert shows Prometheus no increase.
    pub fn expect_alerts(&mut self, rules: impl IntoIterator<Item = &'static str>) {
        for rule in rules {
            for severity in SEVERITIES {
                self.alerts.entry((rule.to_owned(), severity.to_owned())).or_default();
            }
        }
    }

    /// Takes a record in.
    pub fn count(&mut self, body: &Body) {
        match body {
            Body::Flow(flow) => self.flow(flow),
            Body::Alert(alert) if alert.status == "open" => self.alert(alert),
            _ => {}
        }
    }

    fn flow(&mut self, record: &FlowRecord) {
        let namespace = || match record.local.as_deref().map(|identity| &identity.owner) {
            Some(Owner::Pod { namespace, .. }) => namespace.clone(),
            _ => Arc::default(),
        };
        let flow = &record.flow;
        let verdict = project::verdict(flow);
        if record.moment == Moment::Start {
            self.start(record, &namespace(), verdict);
        }
        if verdict == proto::Verdict::Denied {
            return;
        }
        let Some([packets, bytes]) = record.delta else { return };
        // Forward is from whoever opened the flow.
        let directions = if flow.opened == layout::INGRESS { ["received", "sent"] } else { ["sent", "received"] };
        for (side, direction) in directions.into_iter().enumerate() {
            if packets[side] > 0 {
                let volume = self.traffic.at(TrafficKey { namespace: namespace(), direction });
                volume.packets += packets[side];
                volume.bytes += bytes[side];
            }
        }
    }

    fn start(&mut self, record: &FlowRecord, namespace: &Arc<str>, verdict: proto::Verdict) {
        let flow = &record.flow;
        let name = verdict.name().unwrap_or("unjudged");
        let direction = project::direction(flow).name().unwrap_or("unknown");
        *self.flows.at(FlowKey { namespace: namespace.clone(), direction, verdict: name }) += 1;
        if verdict != proto::Verdict::Allowed {
            let reason = proto::Reason::name_of(i32::from(flow.reason)).unwrap_or("unknown");
            *self.denials.at(DenialKey { namespace: namespace.clone(), direction, reason, verdict: name }) += 1;
        }
        let Some(explanation) = record.decision.as_deref() else { return };
        // For default deny, the policy that came nearest to allow it, else the first of those that isolate.
        let nearest = || explanation.nearest.as_ref().or(explanation.isolated_by.first());
        let Some(policy) = explanation.rule.as_ref().or_else(nearest) else { return };
        let key = PolicyKey {
            namespace: policy.namespace.clone(),
            policy: policy.name.clone(),
            direction: way(policy),
            rule: explanation.rule.as_ref().map(|rule| rule.index),
            verdict: name,
        };
        *self.policies.at(key) += 1;
    }

    fn alert(&mut self, alert: &proto::Alert) {
        let namespace = alert.source.as_ref().and_then(|source| source.namespace.as_deref()).unwrap_or_default();
        let key = AlertKey { namespace: namespace.into(), rule: alert.rule.as_str().into() };
        *self.alerts_by_namespace.at(key) += 1;
        *self.alerts.entry((alert.rule.clone(), alert.severity.clone())).or_default() += 1;
    }
}

fn way(rule: &RuleRef) -> &'static str {
    if rule.direction == layout::INGRESS { "ingress" } else { "egress" }
}
