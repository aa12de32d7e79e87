//! Why: the decision on one question, from the policies' own text.
//!
//! It never looks at classes or sets, so it is also the second opinion that the tests hold against the tables. Where several
//! rules allow, it names the one that the kernel names: the first without ports, else the first.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use sekisho_core::layout::INGRESS;

use super::compiler::{ByNamespace, Compiled, Selecting};
use super::services::Dialled;
use super::sets::{named, rule_ref};
use super::{Decision, Input, Mismatch, Question, RuleRef};
use crate::inventory::{Namespace, NetworkPolicy, ObjectName, Pod, PolicyPeer, PolicyPort, PolicyRule, PortMatch};

/// An address, a port and a protocol that somebody dials.
type Door = (IpAddr, u16, u8);
/// The Service behind a door, and its backends.
type Behind = (String, Arc<[(IpAddr, u16)]>);

/// What an explanation needs of the snapshot that was compiled.
pub(super) struct Explainer {
    pods: Arc<BTreeMap<ObjectName, Arc<Pod>>>,
    namespaces: Arc<BTreeMap<Arc<str>, Arc<Namespace>>>,
    owners: HashMap<IpAddr, Arc<Pod>>,
    nodes: Vec<IpAddr>,
    selecting: Selecting,
    by_namespace: ByNamespace,
    behind: HashMap<Door, Behind>,
}

/// A destination, or who came.
#[derive(Clone, Copy)]
struct Remote<'a> {
    address: IpAddr,
    pod: Option<&'a Arc<Pod>>,
    /// The port that is judged: the remote's for egress, the local one for ingress.
    port: Option<u16>,
    protocol: u8,
}

/// A rule that does not allow it: how well it fits, and what failed.
struct Near {
    score: (usize, bool),
    rule: RuleRef,
    mismatch: Vec<Mismatch>,
}

impl Explainer {
    pub(super) fn new(
        input: &Input<'_>,
        owners: HashMap<IpAddr, Arc<Pod>>,
        selecting: Selecting,
        by_namespace: ByNamespace,
        services: &[(Dialled<'_>, u32)],
    ) -> Self {
        let behind = services.iter().map(|(dialled, _)| {
            let (service, port) = (dialled.service, dialled.service_port);
            let name = format!("Service {}/{} port {}", service.namespace, service.name, port.label());
            ((dialled.address, dialled.port, port.protocol), (name, dialled.backends.clone()))
        });
        Self {
            pods: input.snapshot.pods.clone(),
            namespaces: input.snapshot.namespaces.clone(),
            owners,
            nodes: input.node_addresses.iter().map(IpAddr::to_canonical).collect(),
            selecting,
            by_namespace,
            behind: behind.collect(),
        }
    }

    fn policies(&self, pod: &Pod) -> Arc<[Arc<NetworkPolicy>]> {
        if let Some(known) = self.selecting.get(&(pod.namespace.clone(), pod.labels.clone())) {
            return known.clone();
        }
        let all = self.by_namespace.get(&pod.namespace).map_or(&[][..], Vec::as_slice);
        all.iter().filter(|policy| policy.pod_selector.matches(&pod.labels)).cloned().collect()
    }

    fn remote(&self, address: IpAddr, port: Option<u16>, protocol: u8) -> Remote<'_> {
        Remote { address, pod: self.owners.get(&address), port, protocol }
    }

    /// Whether an address is the pod's own.
    fn has(&self, pod: &Pod, address: IpAddr) -> bool {
        self.owners.get(&address).is_some_and(|owner| owner.uid == pod.uid)
    }

    fn selects(&self, peer: &PolicyPeer, own: &str, remote: Remote<'_>) -> bool {
        match (peer, remote.pod) {
            (PolicyPeer::Block { cidr, except }, _) => {
                cidr.contains(&remote.address) && !except.iter().any(|inner| inner.contains(&remote.address))
            }
            (PolicyPeer::Pods { .. }, None) => false,
            (PolicyPeer::Pods { namespaces, pods }, Some(pod)) => {
                let namespace = match namespaces {
                    None => *pod.namespace == *own,
                    Some(wanted) => self.namespaces.get(&pod.namespace).is_some_and(|n| wanted.matches(&n.labels)),
                };
                namespace && pods.as_ref().is_none_or(|wanted| wanted.matches(&pod.labels))
            }
        }
    }

    /// The rule that allows it, or the nearest that does not.
    fn judge(&self, policies: &[Arc<NetworkPolicy>], direction: u8, local: &Pod, remote: Remote<'_>) -> Result<RuleRef, Option<Near>> {
        let mut allowing = None;
        let mut nearest: Option<Near> = None;
        for policy in policies {
            for (index, rule) in (0..).zip(rules(policy, direction).into_iter().flatten()) {
                let peer = rule.peers.is_empty() || rule.peers.iter().any(|p| self.selects(p, &policy.namespace, remote));
                let (port, protocol) = ports(rule, direction, local, remote);
                if peer && port && protocol {
                    let named = rule_ref(policy, direction, index);
                    if rule.ports.is_empty() {
                        return Ok(named);
                    }
                    allowing.get_or_insert(named);
                    continue;
                }
                let score = (usize::from(peer) + usize::from(port) + usize::from(protocol), peer);
                if allowing.is_none() && nearest.as_ref().is_none_or(|best| best.score < score) {
                    let failed = [(peer, Mismatch::Peer), (port, Mismatch::Port), (protocol, Mismatch::Protocol)];
                    let mismatch = failed.into_iter().filter(|(right, _)| !right).map(|(_, what)| what).collect();
                    nearest = Some(Near { score, rule: rule_ref(policy, direction, index), mismatch });
                }
            }
        }
        allowing.ok_or(nearest)
    }

    /// A Service is what its backends are: allowed if all are.
    fn service(
        &self,
        policies: &[Arc<NetworkPolicy>],
        local: &Pod,
        question: &Question,
        name: &str,
        backends: &[(IpAddr, u16)],
    ) -> (Result<Option<RuleRef>, Option<Near>>, Option<String>) {
        let judged: Vec<_> = backends
            .iter()
            .map(|(address, port)| self.judge(policies, question.direction, local, self.remote(*address, Some(*port), question.protocol)))
            .collect();
        let denied = judged.iter().filter(|j| j.is_err()).count();
        let others: Vec<(IpAddr, u16)> = backends.iter().filter(|(address, _)| !self.has(local, *address)).copied().collect();
        if denied > 0 && others.len() < backends.len() {
            // It is as if the pod itself were not behind the Service.
            return if others.is_empty() { (Ok(None), None) } else { self.service(policies, local, question, name, &others) };
        }
        if judged.is_empty() {
            let unknown = Remote { address: question.remote, pod: None, port: None, protocol: 0 };
            let everywhere = |rule: &PolicyRule| rule.peers.is_empty() && rule.ports.is_empty();
            let open = policies.iter().any(|p| rules(p, question.direction).into_iter().flatten().any(everywhere));
            let verdict = if open { self.judge(policies, question.direction, local, unknown).map(Some) } else { Err(None) };
            return (verdict, Some(format!("{name} has no ready backend")));
        }
        if denied == 0 {
            let order = |rule: &RuleRef| (rule.namespace.clone(), rule.name.clone(), rule.index);
            let first = judged.into_iter().filter_map(Result::ok).min_by_key(order);
            return (first.ok_or(None).map(Some), None);
        }
        let warning =
            (denied < judged.len()).then(|| format!("{name}: {denied} of its {} backends are denied, so it is denied", judged.len()));
        let mut nearest: Option<Near> = None;
        for near in judged.into_iter().filter_map(|j| j.err().flatten()) {
            if nearest.as_ref().is_none_or(|best| best.score < near.score) {
                nearest = Some(near);
            }
        }
        (Err(nearest), warning)
    }
}

fn rules(policy: &NetworkPolicy, direction: u8) -> Option<&[PolicyRule]> {
    if direction == INGRESS { policy.ingress.as_deref() } else { policy.egress.as_deref() }
}

/// Whether `(port, protocol)` are right: of all entries of the rule, the best.
fn ports(rule: &PolicyRule, direction: u8, local: &Pod, remote: Remote<'_>) -> (bool, bool) {
    if rule.ports.is_empty() {
        return (true, true);
    }
    let each = rule.ports.iter().map(|entry| {
        let protocol = entry.protocol == remote.protocol;
        (port(entry, direction, local, remote), protocol)
    });
    // Of two that are half right, the right protocol is nearer.
    each.max_by_key(|(port, protocol)| (usize::from(*port) + usize::from(*protocol), *protocol)).unwrap_or((false, false))
}

fn port(entry: &PolicyPort, direction: u8, local: &Pod, remote: Remote<'_>) -> bool {
    let Some(asked) = remote.port else {
        // A protocol without ports fails for its protocol, not for a port that it cannot have.
        return entry.port == PortMatch::All || !matches!(remote.protocol, 6 | 17 | 132);
    };
    match &entry.port {
        PortMatch::All => true,
        PortMatch::Range(first, last) => (*first..=*last).contains(&asked),
        PortMatch::Named(name) => {
            let destination = if direction == INGRESS { Some(local) } else { remote.pod.map(|p| &**p) };
            destination.is_some_and(|pod| named(pod, name, entry.protocol).any(|number| number == asked))
        }
    }
}

fn allowed(isolated: bool) -> Decision {
    Decision { allowed: true, isolated, rule: None, isolated_by: Vec::new(), nearest: None, mismatch: Vec::new(), warning: None }
}

impl Compiled {
    /// The Service whose port that is, with its backends' addresses and ports.
    pub fn behind(&self, address: IpAddr, port: u16, protocol: u8) -> Option<(&str, &[(IpAddr, u16)])> {
        let (name, backends) = self.explainer.behind.get(&(address.to_canonical(), port, protocol))?;
        Some((name, backends))
    }

    /// Decides `question` and says why. A pod that is not known, or shares the node's network, is judged by no policy.
    pub fn explain(&self, question: &Question) -> Decision {
        let explainer = &self.explainer;
        let Some(local) = explainer.pods.get(&question.local) else {
            let warning = format!("pod {}/{} is not known", question.local.0, question.local.1);
            return Decision { warning: Some(warning), ..allowed(false) };
        };
        if local.host_network {
            let warning = "a hostNetwork pod: policies neither select nor judge it".to_owned();
            return Decision { warning: Some(warning), ..allowed(false) };
        }
        let policies: Vec<Arc<NetworkPolicy>> =
            explainer.policies(local).iter().filter(|p| rules(p, question.direction).is_some()).cloned().collect();
        let remote = question.remote.to_canonical();
        let own = explainer.has(local, remote);
        if policies.is_empty() || own || remote.is_loopback() {
            return allowed(!policies.is_empty());
        }
        let behind = question.port.and_then(|port| explainer.behind.get(&(remote, port, question.protocol)));
        let (verdict, mut warning) = match behind {
            Some((name, backends)) if question.direction != INGRESS => explainer.service(&policies, local, question, name, backends),
            _ => {
                let remote = explainer.remote(remote, question.port, question.protocol);
                (explainer.judge(&policies, question.direction, local, remote).map(Some), None)
            }
        };
        if question.direction == INGRESS && explainer.nodes.contains(&remote) {
            warning = Some("an address of this node: its own processes always reach the pod, forwarded traffic is judged".to_owned());
        }
        match verdict {
            Ok(rule) => Decision { rule, warning, ..allowed(true) },
            Err(near) => Decision {
                allowed: false,
                isolated_by: policies.iter().map(|p| rule_ref(p, question.direction, 0)).collect(),
                mismatch: near.as_ref().map_or_else(Vec::new, |n| n.mismatch.clone()),
                nearest: near.map(|n| n.rule),
                warning,
                ..allowed(true)
            },
        }
    }
}
