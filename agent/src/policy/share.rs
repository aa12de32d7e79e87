//! A *share*: what the policies of one namespace may take of the kernel's tables of networks and of ports.
//!
//! Whoever may write policies in one namespace could fill these tables, and the node would then take no change of policy for
//! anyone. What goes beyond a share is refused, the largest policies first, and fails closed: a refused policy isolates
//! the pods that it selects as before, and allows nothing. A policy counts where it selects a pod of this node.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::Input;
use super::blocks::weigh;
use super::compiler::{ByNamespace, local_pods};
use super::ports::{PortRange, table};
use super::warning::Warning;
use crate::inventory::{NetworkPolicy, Pod, PolicyPeer, PolicyPort, PolicyRule, PortMatch};

/// Rules that may overlap at each network of a share. The compiler keeps a list of rules for every network.
const OVERLAPPING: usize = 64;

/// How much of each table one namespace may take: a third. A policy may change wholly: then two versions of it are in the kernel's
/// tables for a moment, beside all others'.
const PART: usize = 3;

/// What all namespaces together may take of each table: half, so that what comes always has room beside what goes.
const ALL: usize = 2;

/// Takes all that a policy allows from those that go beyond their namespace's share. Where all namespaces together take too much,
/// the shares are smaller, but never smaller than what those who take little need.
pub(super) fn within_shares(input: &Input<'_>, by_namespace: &mut ByNamespace, warnings: &mut Vec<Warning>) {
    let (share, all) = (input.room_for_networks / PART, input.room_for_networks / ALL);
    let mut most = Size::default();
    for policy in by_namespace.values().flatten() {
        most.add(&Size::most(policy));
    }
    // Nearly all clusters are far below.
    if most.fits(&Limit::of(share)) {
        return;
    }
    let local = pods_by_namespace(input);
    let here: BTreeMap<Arc<str>, Vec<Weighed>> =
        local.iter().filter_map(|(name, pods)| Some(((*name).into(), weighed(by_namespace.get(*name)?, pods, share)))).collect();
    let taken: Vec<Size> = here.values().map(|policies| within(policies, &Limit::of(share)).0).collect();
    let limit = Limit {
        networks: share.min(level(taken.iter().map(|size| size.networks), all)),
        ports: share.min(level(taken.iter().map(|size| size.ports), all)),
        overlapping: OVERLAPPING * share,
    };
    for (namespace, policies) in &here {
        let (_, refused) = within(policies, &limit);
        let Some(all) = by_namespace.get_mut(namespace) else { continue };
        for index in refused {
            close(&mut all[index], Warning::too_large, warnings);
        }
    }
}

/// The most that each may have where they ask for `wanted` and `all` is there: who wants less than that has it whole.
pub(super) fn level(wanted: impl Iterator<Item = usize>, all: usize) -> usize {
    let mut wanted: Vec<usize> = wanted.collect();
    if wanted.iter().sum::<usize>() <= all {
        return usize::MAX;
    }
    wanted.sort_unstable();
    let (mut left, mut asking) = (all, wanted.len());
    for each in wanted {
        if each * asking > left {
            break;
        }
        left -= each;
        asking -= 1;
    }
    left.checked_div(asking).unwrap_or(usize::MAX)
}

/// A policy in its namespace's list, and what it takes.
type Weighed = (Size, usize, Arc<NetworkPolicy>);

/// The policies that select one of these pods, the smallest first.
fn weighed(policies: &[Arc<NetworkPolicy>], pods: &[&Pod], share: usize) -> Vec<Weighed> {
    let selecting = policies.iter().enumerate().filter(|(_, policy)| pods.iter().any(|pod| policy.pod_selector.matches(&pod.labels)));
    let mut weighed: Vec<Weighed> = selecting.map(|(index, policy)| (Size::of(policy, share), index, policy.clone())).collect();
    weighed.sort_by(|(one, _, a), (other, _, b)| (one.total(), &a.name).cmp(&(other.total(), &b.name)));
    weighed
}

/// What those take that stay within `limit`, and where the others stand.
fn within(policies: &[Weighed], limit: &Limit) -> (Size, Vec<usize>) {
    let mut used = Used::default();
    let refused = policies.iter().filter(|(size, _, policy)| !used.take(policy, *size, limit)).map(|(_, index, _)| *index).collect();
    (used.size, refused)
}

/// Takes all that it allows from a policy, and says so.
pub(super) fn close(policy: &mut Arc<NetworkPolicy>, warning: fn(&NetworkPolicy) -> Warning, warnings: &mut Vec<Warning>) {
    warnings.push(warning(policy));
    *policy = Arc::new(closed(policy));
}

/// Whether anything is left that a policy allows.
pub(super) fn is_closed(policy: &NetworkPolicy) -> bool {
    rules(policy).next().is_none()
}

/// What a namespace may take.
struct Limit {
    networks: usize,
    ports: usize,
    /// Networks times rules that name some.
    overlapping: usize,
}

impl Limit {
    fn of(share: usize) -> Self {
        Self { networks: share, ports: share, overlapping: OVERLAPPING * share }
    }
}

/// What policies take.
#[derive(Clone, Copy, Default)]
struct Size {
    networks: usize,
    /// Prefixes of ports.
    ports: usize,
    /// Rules that name networks.
    rules: usize,
}

impl Size {
    /// A policy alone. What is far beyond a share is not counted to its end.
    fn of(policy: &NetworkPolicy, share: usize) -> Self {
        let distinct: HashSet<IpNet> = networks(policy).collect();
        Self { networks: distinct.len(), ports: ports(policy, share), rules: rules(policy).filter(|rule| blocks(rule) > 0).count() }
    }

    /// No less than that, found without comparing networks and ports.
    fn most(policy: &NetworkPolicy) -> Self {
        let networks = rules(policy).map(blocks).sum();
        let ports: usize = rules(policy).flat_map(|rule| &rule.ports).map(prefixes).sum();
        Self { networks, ports: (networks + 1) * ports, rules: rules(policy).filter(|rule| blocks(rule) > 0).count() }
    }

    fn add(&mut self, other: &Self) {
        self.networks += other.networks;
        self.ports += other.ports;
        self.rules += other.rules;
    }

    fn total(&self) -> usize {
        self.networks + self.ports
    }

    fn fits(&self, limit: &Limit) -> bool {
        self.networks <= limit.networks && self.ports <= limit.ports && self.networks * self.rules <= limit.overlapping
    }
}

/// What the policies of a namespace take together.
#[derive(Default)]
struct Used {
    size: Size,
    networks: HashSet<IpNet>,
}

impl Used {
    /// Adds a policy if there is room for it.
    fn take(&mut self, policy: &NetworkPolicy, size: Size, limit: &Limit) -> bool {
        let new: HashSet<IpNet> = networks(policy).filter(|network| !self.networks.contains(network)).collect();
        let mut next = self.size;
        // Networks that are named already take nothing more.
        next.add(&Size { networks: new.len(), ..size });
        if !next.fits(limit) {
            return false;
        }
        self.size = next;
        self.networks.extend(new);
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

/// Networks that a rule names.
fn blocks(rule: &PolicyRule) -> usize {
    let named = rule.peers.iter().map(|peer| match peer {
        PolicyPeer::Block { except, .. } => 1 + except.len(),
        PolicyPeer::Pods { .. } => 0,
    });
    named.sum()
}

/// Prefixes that the ports of a policy's rules take. Where rules overlap, the kernel has a table of all their ports.
fn ports(policy: &NetworkPolicy, share: usize) -> usize {
    let weights: Vec<usize> = rules(policy).map(ports_of_rule).collect();
    let everywhere = [IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
    // The others add nothing.
    let with_ports = (0u32..).zip(rules(policy)).filter(|(_, rule)| !rule.ports.is_empty());
    let blocks = with_ports.flat_map(|(id, rule)| {
        let everyone = everywhere.iter().filter(|_| rule.peers.is_empty()).map(move |all| (id, all, &[][..]));
        let named = rule.peers.iter().filter_map(move |peer| match peer {
            PolicyPeer::Block { cidr, except } => Some((id, cidr, &**except)),
            PolicyPeer::Pods { .. } => None,
        });
        everyone.chain(named)
    });
    let together = weigh(blocks, |id| weights.get(id as usize).copied().unwrap_or(0), share);
    together.max(weights.iter().sum())
}

fn ports_of_rule(rule: &PolicyRule) -> usize {
    let range = |port: &PolicyPort| {
        let (first, last) = match port.port {
            PortMatch::All => (0, u16::MAX),
            PortMatch::Range(first, last) => (first, last),
            // Whatever number it has.
            PortMatch::Named(_) => return None,
        };
        Some(PortRange { protocol: port.protocol, first, last })
    };
    let ranges: Vec<PortRange> = rule.ports.iter().filter_map(range).collect();
    rule.ports.len() - ranges.len() + table(&[(1, ranges)]).len()
}

/// Prefixes of one entry.
fn prefixes(port: &PolicyPort) -> usize {
    let PortMatch::Range(first, last) = port.port else { return 1 };
    let (mut next, end, mut count) = (u32::from(first), u32::from(last) + 1, 0);
    while next < end {
        // The longest step that begins here and ends within.
        next += (1 << next.trailing_zeros().min(16)).min(1 << (end - next).ilog2());
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn who_takes_little_has_it_whole() {
        for (wanted, all, expected) in [
            (&[10, 20, 30][..], 60, usize::MAX),
            (&[10, 20, 30], 59, 29),
            (&[1, 100, 100], 101, 50),
            (&[100, 100, 100, 100], 100, 25),
            (&[0, 0, 7], 5, 5),
            (&[], 0, usize::MAX),
        ] {
            assert_eq!(level(wanted.iter().copied(), all), expected, "{wanted:?} of {all}");
        }
    }

    proptest! {
        #[test]
        fn a_level_gives_all_there_is_and_no_more(wanted in proptest::collection::vec(0usize..1000, 0..20), all in 0usize..5000) {
            let level = level(wanted.iter().copied(), all);
            let given: usize = wanted.iter().map(|each| (*each).min(level)).sum();
            prop_assert!(given <= all);
            prop_assert!(given + wanted.len() > all || wanted.iter().all(|each| *each <= level));
        }

        #[test]
        fn a_range_takes_as_many_prefixes_as_its_table_has(first in any::<u16>(), more in any::<u16>()) {
            let last = first.saturating_add(more);
            let entry = PolicyPort { protocol: 6, port: PortMatch::Range(first, last) };
            prop_assert_eq!(prefixes(&entry), table(&[(1, vec![PortRange { protocol: 6, first, last }])]).len());
        }
    }
}
