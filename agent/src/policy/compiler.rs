//! From the cluster to the kernel's tables.
//!
//! A compile looks at everything anew; only numbers are remembered. The tables also answer for the sets of the compile before:
//! while the datapath writes the difference, endpoints still point at those, and addresses are already of the new classes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use super::explain::Explainer;
use super::interner::Interner;
use super::lending::not_lent;
use super::ports::Table;
use super::rows::Class;
use super::sets::{Numbered, Numbers, Set, set};
use super::share::within_shares;
use super::warning::{Warning, unjudged};
use super::{EndpointPolicy, Input, RuleRef, Tables, UsedIds};
use crate::inventory::{Labels, NetworkPolicy, Pod, Snapshot};

/// Compiles snapshots, one after the other.
pub struct Compiler {
    pub(super) numbers: Numbers,
    sets: Interner<Set>,
    pub(super) classes: Interner<Class>,
    pub(super) tables: Interner<Table>,
    /// Sets of the last compile, those that endpoints point at.
    before: BTreeMap<u32, Arc<Set>>,
    /// Sets of the one before that.
    former: BTreeMap<u32, Arc<Set>>,
}

/// How large a compile came out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Policies that select a pod of this node.
    pub policies: usize,
    /// Distinct peers that they name.
    pub selectors: usize,
    /// Sets in use.
    pub sets: usize,
    /// Classes in use.
    pub classes: usize,
    /// Addresses that were left out for want of room.
    pub left_out: usize,
}

/// One compile's outcome.
pub struct Compiled {
    /// For the kernel.
    pub tables: Tables,
    /// What rule numbers mean, those of the last compile included.
    pub rules: HashMap<u32, RuleRef>,
    /// What a person should know.
    pub warnings: Vec<Warning>,
    /// Sizes.
    pub stats: Stats,
    pub(super) explainer: Explainer,
}

/// What is worth saying once, not ten thousand times.
const MAX_WARNINGS: usize = 100;

impl Compiler {
    /// `used`: the highest numbers that the kernel's maps hold already.
    pub fn new(used: UsedIds) -> Self {
        Self {
            numbers: Numbers {
                selectors: Interner::above(0),
                rules: Interner::above(used.rule),
                active: HashMap::new(),
                names: HashMap::new(),
            },
            sets: Interner::above(used.set),
            classes: Interner::above(used.class),
            tables: Interner::above(used.table),
            before: BTreeMap::new(),
            former: BTreeMap::new(),
        }
    }

    /// The same compiler, with the rule numbers that an earlier run gave: flows in the kernel speak of them, and keep
    /// their meaning. To be called before the first compile.
    #[must_use]
    pub fn knowing(mut self, rules: impl IntoIterator<Item = (u32, RuleRef)>) -> Self {
        for (number, rule) in rules {
            self.numbers.rules.know(number, rule);
        }
        self
    }

    /// Compiles what `input` says.
    pub fn compile(&mut self, input: &Input<'_>) -> Compiled {
        self.begin();
        let mut warnings = Vec::new();
        let mut by_namespace = policies_by_namespace(input.snapshot);
        within_shares(input, &mut by_namespace, &mut warnings);
        let mut round = self.round(input, &by_namespace, true);
        for whole in [false, true] {
            let Some(excess) = round.usage.excess(input) else { break };
            excess.close(whole, &round, &self.numbers, &mut by_namespace, &mut warnings);
            self.forget();
            round = self.round(input, &by_namespace, true);
        }
        if !round.fits(input) {
            // For the moment of the change the sets before allow nothing new, rather than that there is no change.
            self.forget();
            round = self.round(input, &by_namespace, false);
        }
        warnings.append(&mut round.warnings);
        unjudged(input, &by_namespace, &mut warnings);
        not_lent(input, &mut warnings);
        let stats = Stats {
            policies: round.policies,
            selectors: self.numbers.active.len(),
            sets: round.sets.len(),
            classes: round.classes.len(),
            left_out: 0,
        };
        self.former = std::mem::replace(&mut self.before, round.sets);
        warnings.truncate(MAX_WARNINGS);
        Compiled {
            tables: round.tables,
            rules: self.numbers.names.clone(),
            warnings,
            stats,
            explainer: Explainer::new(input, round.owners, round.selecting, by_namespace, &round.services),
        }
    }

    /// The last compile did not come into force: endpoints still point at the sets of the one before.
    pub fn take_back(&mut self) {
        self.before = std::mem::take(&mut self.former);
    }

    fn begin(&mut self) {
        self.numbers.selectors.begin();
        self.numbers.rules.begin();
        self.sets.begin();
        self.classes.begin();
        self.tables.begin();
        self.forget();
        for peer in self.numbers.active.values() {
            self.numbers.selectors.touch(peer);
        }
        for name in self.numbers.names.values() {
            self.numbers.rules.number(name.clone());
        }
    }

    /// Forgets all selectors and rules but those of the last compile's sets, which stay in use once more, with their numbers.
    fn forget(&mut self) {
        let spoken: BTreeSet<u32> =
            self.before.values().flat_map(|s| s.rules.iter().flatten()).flat_map(|r| r.peers.iter().flatten()).copied().collect();
        self.numbers.active.retain(|id, _| spoken.contains(id));
        let rules: BTreeSet<u32> = self.before.values().flat_map(|s| s.rules.iter().flatten()).map(|r| r.id).collect();
        self.numbers.names.retain(|id, _| rules.contains(id));
    }

    /// Endpoints of local pods and their sets, with the sets' namespaces; which policies select which pods; how many policies that are.
    pub(super) fn endpoints(
        &mut self,
        input: &Input<'_>,
        by_namespace: &ByNamespace,
        out: &mut Tables,
    ) -> (BTreeMap<u32, Arc<Set>>, HashMap<u32, Arc<str>>, Selecting, usize) {
        let mut sets = BTreeMap::new();
        let mut places = HashMap::new();
        let mut selecting = Selecting::new();
        let mut numbered: HashMap<*const NetworkPolicy, Numbered> = HashMap::new();
        for pod in local_pods(input) {
            let instance = input.instances.pod(&pod.uid);
            if pod.host_network {
                out.endpoints.insert(pod.uid.clone(), EndpointPolicy { instance, host_network: true, ..EndpointPolicy::default() });
                continue;
            }
            let policies = selecting.entry((pod.namespace.clone(), pod.labels.clone())).or_insert_with(|| {
                let all = by_namespace.get(&pod.namespace).map_or(&[][..], Vec::as_slice);
                all.iter().filter(|policy| policy.pod_selector.matches(&pod.labels)).cloned().collect()
            });
            for policy in policies.iter() {
                numbered.entry(Arc::as_ptr(policy)).or_insert_with(|| self.numbers.number(policy));
            }
            let content = set(policies.iter().map(|policy| &numbered[&Arc::as_ptr(policy)]), pod);
            let isolated = content.isolated;
            let number = if isolated == [false, false] {
                0
            } else {
                let (number, kept) = self.sets.intern(content);
                sets.insert(number, kept);
                places.insert(number, pod.namespace.clone());
                number
            };
            out.endpoints.insert(pod.uid.clone(), EndpointPolicy { set: number, instance, isolated, host_network: false });
        }
        (sets, places, selecting, numbered.len())
    }

    /// The sets of this compile, and of the last one if it is to be answered for as well.
    pub(super) fn live_sets(&mut self, sets: &BTreeMap<u32, Arc<Set>>, seamless: bool) -> BTreeMap<u32, Arc<Set>> {
        for set in self.before.values() {
            self.sets.touch(set);
        }
        self.before.iter().filter(|_| seamless).chain(sets).map(|(number, set)| (*number, set.clone())).collect()
    }
}

/// Policies of a namespace, by name.
pub(super) type ByNamespace = BTreeMap<Arc<str>, Vec<Arc<NetworkPolicy>>>;
/// Policies that select pods with a namespace and labels.
pub(super) type Selecting = HashMap<(Arc<str>, Labels), Arc<[Arc<NetworkPolicy>]>>;

fn policies_by_namespace(snapshot: &Snapshot) -> ByNamespace {
    let mut by_namespace = ByNamespace::new();
    for policy in snapshot.policies.values() {
        by_namespace.entry(policy.namespace.clone()).or_default().push(policy.clone());
    }
    by_namespace
}

pub(super) fn local_pods<'a>(input: &Input<'a>) -> impl Iterator<Item = &'a Arc<Pod>> {
    let node = input.node;
    input.snapshot.pods.values().filter(move |pod| !pod.finished && pod.node.as_deref() == Some(node))
}
