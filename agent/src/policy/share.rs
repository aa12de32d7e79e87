//! A *share*: what the policies of one namespace may take of the kernel's tables of networks and of ports.
//!
//! Whoever may write policies in one namespace could fill these tables, and the node would then take no change of policy for
//! anyone. What goes beyond a share is refused, the largest policies first, and fails closed: a refused policy isolates
//! the pods that it selects as before, and allows nothing. A policy counts where it selects a pod of this node.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use ipnet::IpNet;

use super::Input;
use super::compiler::{ByNamespace, local_pods};
use super::ports::{PortRange, table};
use super::warning::Warning;
use crate::inventory::{NetworkPolicy, Pod, PolicyPeer, PolicyPort, PolicyRule, PortMatch};

/// Most prefixes that a range of ports can take: two of each length but the two longest.
const WORST_RANGE: usize = 30;

/// How much of each table one namespace may take: a quarter. A policy may change wholly, and change again at once: then
/// three versions of it are in the kernel's tables for a moment. That of Service ports is the smallest of the three tables; the
/// other two hold at least a third more.
fn share(input: &Input<'_>) -> usize {
    input.room_for_services / 3
}

/// Takes all that a policy allows from those that go beyond their namespace's share.
pub(super) fn within_shares(input: &Input<'_>, by_namespace: &mut ByNamespace, warnings: &mut Vec<Warning>) {
    let share = share(input);
    let mut local: Option<BTreeMap<&str, Vec<&Pod>>> = None;
    for (namespace, policies) in by_namespace {
        // Nearly all namespaces are far below.
        if policies.iter().map(|policy| most(policy)).sum::<usize>() <= share {
            continue;
        }
        let local = local.get_or_insert_with(|| pods_by_namespace(input));
        let pods = local.get(&**namespace).map_or(&[][..], Vec::as_slice);
        let mut used = Used::default();
        let mut weighed: Vec<(usize, &mut Arc<NetworkPolicy>)> = policies
            .iter_mut()
            .filter(|policy| pods.iter().any(|pod| policy.pod_selector.matches(&pod.labels)))
            .map(|policy| (networks(policy).collect::<HashSet<_>>().len() + ports(policy), policy))
            .collect();
        weighed.sort_by(|(one, a), (other, b)| (one, &a.name).cmp(&(other, &b.name)));
        for (_, policy) in weighed {
            if !used.take(policy, share) {
                warnings.push(Warning::too_large(policy, share));
                *policy = Arc::new(closed(policy));
            }
        }
    }
}

/// What the policies of a namespace take together.
#[derive(Default)]
struct Used {
    networks: BTreeSet<IpNet>,
    ports: usize,
}

impl Used {
    /// Adds a policy if there is room for it.
    fn take(&mut self, policy: &NetworkPolicy, share: usize) -> bool {
        let new: HashSet<IpNet> = networks(policy).filter(|network| !self.networks.contains(network)).collect();
        let ports = self.ports + ports(policy);
        if self.networks.len() + new.len() > share || ports > share {
            return false;
        }
        self.networks.extend(new);
        self.ports = ports;
        true
    }
}

/// The same policy without its rules.
fn closed(policy: &NetworkPolicy) -> NetworkPolicy {
    let nothing = |rules: &Option<Vec<PolicyRule>>| rules.as_ref().map(|_| Vec::new());
    NetworkPolicy {
        namespace: policy.namespace.clone(),
        name: policy.name.clone(),
        uid: policy.uid.clone(),
        pod_selector: policy.pod_selector.clone(),
        ingress: nothing(&policy.ingress),
        egress: nothing(&policy.egress),
    }
}

fn pods_by_namespace<'a>(input: &Input<'a>) -> BTreeMap<&'a str, Vec<&'a Pod>> {
    let mut pods: BTreeMap<&str, Vec<&Pod>> = BTreeMap::new();
    for pod in local_pods(input).filter(|pod| !pod.host_network) {
        pods.entry(&pod.namespace).or_default().push(pod);
    }
    pods
}

fn rules(policy: &NetworkPolicy) -> impl Iterator<Item = &PolicyRule> {
    policy.egress.iter().chain(&policy.ingress).flatten()
}

/// Networks that a policy names, exceptions among them, as often as it does.
fn networks(policy: &NetworkPolicy) -> impl Iterator<Item = IpNet> {
    let peers = rules(policy).flat_map(|rule| &rule.peers);
    peers.flat_map(|peer| match peer {
        PolicyPeer::Block { cidr, except } => std::iter::once(*cidr).chain(except.iter().copied()).collect(),
        PolicyPeer::Pods { .. } => Vec::new(),
    })
}

/// Prefixes that the ports of its rules take.
fn ports(policy: &NetworkPolicy) -> usize {
    let range = |port: &PolicyPort| {
        let (first, last) = match port.port {
            PortMatch::All => (0, u16::MAX),
            PortMatch::Range(first, last) => (first, last),
            // Whatever number it has.
            PortMatch::Named(_) => return None,
        };
        Some(PortRange { protocol: port.protocol, first, last })
    };
    let of_rule = |rule: &PolicyRule| {
        let ranges: Vec<PortRange> = rule.ports.iter().filter_map(range).collect();
        rule.ports.len() - ranges.len() + table(&[(1, ranges)]).len()
    };
    rules(policy).map(of_rule).sum()
}

/// No less than its networks and its prefixes of ports, found without looking at them.
fn most(policy: &NetworkPolicy) -> usize {
    let blocks = |peer: &PolicyPeer| match peer {
        PolicyPeer::Block { except, .. } => 1 + except.len(),
        PolicyPeer::Pods { .. } => 0,
    };
    let prefixes = |port: &PolicyPort| match port.port {
        PortMatch::Range(first, last) if first < last => WORST_RANGE,
        _ => 1,
    };
    let of_rule = |rule: &PolicyRule| rule.peers.iter().map(blocks).sum::<usize>() + rule.ports.iter().map(prefixes).sum::<usize>();
    rules(policy).map(of_rule).sum()
}
