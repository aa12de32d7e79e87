//! Policy sets: the whole list of rules of one pod, as content. Pods with equal content share a set.

use std::collections::HashMap;
use std::sync::Arc;

use sekisho_core::layout::{EGRESS, INGRESS};

use super::RuleRef;
use super::interner::Interner;
use super::peers::Peer;
use super::ports::PortRange;
use crate::inventory::{NetworkPolicy, Pod, PolicyPort, PolicyRule, PortMatch};

/// A pod's rules. What is in it decides its number.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Set {
    /// `[egress, ingress]`.
    pub(super) isolated: [bool; 2],
    /// `[egress, ingress]`, in the order of namespace, name and index.
    pub(super) rules: [Vec<Rule>; 2],
}

/// One rule of a set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Rule {
    /// Its number.
    pub(super) id: u32,
    /// Selector ids, ascending; `None` = every address.
    pub(super) peers: Option<Vec<u32>>,
    /// `None` = every protocol and port.
    pub(super) ports: Option<Vec<Ports>>,
}

/// Ports that a rule allows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Ports {
    /// By number.
    Range(PortRange),
    /// Egress: the ports that the destination pod calls so.
    Named(Arc<str>, u8),
}

/// Gives selectors and rules their numbers.
pub(super) struct Numbers {
    pub(super) selectors: Interner<Peer>,
    pub(super) rules: Interner<RuleRef>,
    /// What the selector numbers of this compile mean.
    pub(super) active: HashMap<u32, Arc<Peer>>,
    /// What rule numbers mean.
    pub(super) names: HashMap<u32, RuleRef>,
}

/// A policy's rules with numbers, `[egress, ingress]`; `None` where it does not isolate.
pub(super) type Numbered = [Option<Vec<(Rule, Arc<[PolicyPort]>)>>; 2];

impl Numbers {
    /// Gives a policy's rules and peers their numbers. Ports are left to [`set`].
    pub(super) fn number(&mut self, policy: &NetworkPolicy) -> Numbered {
        let egress = policy.egress.as_ref().map(|rules| self.rules(policy, EGRESS, rules));
        let ingress = policy.ingress.as_ref().map(|rules| self.rules(policy, INGRESS, rules));
        [egress, ingress]
    }

    fn rules(&mut self, policy: &NetworkPolicy, direction: u8, rules: &[PolicyRule]) -> Vec<(Rule, Arc<[PolicyPort]>)> {
        let mut numbered = Vec::with_capacity(rules.len());
        for (index, rule) in (0..).zip(rules) {
            let name = rule_ref(policy, direction, index);
            let id = self.rules.number(name.clone());
            self.names.insert(id, name);
            let peers = (!rule.peers.is_empty()).then(|| {
                let mut peers: Vec<u32> = rule.peers.iter().map(|p| self.peer(Peer::of(p, &policy.namespace))).collect();
                peers.sort_unstable();
                peers.dedup();
                peers
            });
            numbered.push((Rule { id, peers, ports: None }, rule.ports.as_slice().into()));
        }
        numbered
    }

    fn peer(&mut self, peer: Peer) -> u32 {
        let (id, peer) = self.selectors.intern(peer);
        self.active.insert(id, peer);
        id
    }
}

/// How records name a rule.
pub(super) fn rule_ref(policy: &NetworkPolicy, direction: u8, index: u32) -> RuleRef {
    RuleRef {
        kind: "NetworkPolicy",
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
        uid: policy.uid.clone(),
        direction,
        index,
    }
}

/// The set of a pod that `policies` select, in order of their names.
pub(super) fn set<'a>(policies: impl Iterator<Item = &'a Numbered>, pod: &Pod) -> Set {
    let mut set = Set::default();
    for policy in policies {
        for (direction, rules) in policy.iter().enumerate() {
            let Some(rules) = rules else { continue };
            set.isolated[direction] = true;
            let resolve = (direction == usize::from(INGRESS)).then_some(pod);
            set.rules[direction].extend(rules.iter().filter_map(|(rule, wanted)| with_ports(rule, wanted, resolve)));
        }
    }
    set
}

/// The rule with its ports; `None` if it names only ports that `pod` does not have.
fn with_ports(rule: &Rule, wanted: &[PolicyPort], pod: Option<&Pod>) -> Option<Rule> {
    if wanted.is_empty() {
        return Some(rule.clone());
    }
    let mut ports = Vec::new();
    for port in wanted {
        let range = |first, last| PortRange { protocol: port.protocol, first, last };
        match (&port.port, pod) {
            (PortMatch::All, _) => ports.push(Ports::Range(range(0, u16::MAX))),
            (PortMatch::Range(first, last), _) => ports.push(Ports::Range(range(*first, *last))),
            (PortMatch::Named(name), None) => ports.push(Ports::Named(name.clone(), port.protocol)),
            (PortMatch::Named(name), Some(pod)) => {
                ports.extend(named(pod, name, port.protocol).map(|n| Ports::Range(range(n, n))));
            }
        }
    }
    (!ports.is_empty()).then(|| Rule { ports: Some(ports), ..rule.clone() })
}

/// The ports that a pod calls `name`.
pub(super) fn named<'a>(pod: &'a Pod, name: &'a str, protocol: u8) -> impl Iterator<Item = u16> + 'a {
    pod.ports.iter().filter(move |(n, _, p)| &**n == name && *p == protocol).map(|(_, number, _)| *number)
}
