//! What a compile takes of the kernel's tables of rules and of ports, by namespace, and who goes without where it is too much.
//!
//! How much policies take is not in their text: a rule takes a row for each distinct pod that it selects and each distinct peer
//! that it names. So it is counted as it comes out. Policies of namespaces that take more than there is for each are refused, the
//! largest first, and fail closed; who takes little has it whole, whatever others do.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::compiler::ByNamespace;
use super::round::Round;
use super::rows::View;
use super::sets::Numbers;
use super::share::{close, is_closed, level};
use super::warning::Warning;
use super::{Input, RuleRef};

/// How much of each table policies may take for good, in sixteenths. Two versions of them are in the kernel for a moment where they
/// change wholly, as all do when an agent starts; what is left of one half is for pods that are behind Services of their own.
const FOR_GOOD: usize = 7;

/// See the module.
#[derive(Default)]
pub(super) struct Usage {
    rows: BTreeMap<Arc<str>, usize>,
    /// Prefixes by port table.
    ports: BTreeMap<Arc<str>, HashMap<u32, usize>>,
}

impl Usage {
    /// Counts a row of a namespace's set.
    pub(super) fn row(&mut self, namespace: &Arc<str>) {
        match self.rows.get_mut(namespace) {
            Some(rows) => *rows += 1,
            None => drop(self.rows.insert(namespace.clone(), 1)),
        }
    }

    /// Counts a port table of a namespace's set, once however many rows use it.
    pub(super) fn table(&mut self, namespace: &Arc<str>, table: u32, prefixes: usize) {
        if table != 0 {
            self.ports.entry(namespace.clone()).or_default().insert(table, prefixes);
        }
    }

    /// Who takes too much, if anyone does.
    pub(super) fn excess(&self, input: &Input<'_>) -> Option<Excess> {
        let prefixes = |tables: &HashMap<u32, usize>| tables.values().sum::<usize>();
        let rows = level(self.rows.values().copied(), input.room_for_rules / 16 * FOR_GOOD);
        let ports = level(self.ports.values().map(prefixes), input.room_for_networks / 16 * FOR_GOOD);
        let large = |namespace: &&Arc<str>| {
            self.rows.get(*namespace).is_some_and(|used| *used > rows) || self.ports.get(*namespace).map_or(0, prefixes) > ports
        };
        let namespaces: Vec<Arc<str>> = self.rows.keys().filter(large).cloned().collect();
        (!namespaces.is_empty()).then_some(Excess { namespaces, rows, ports })
    }
}

/// Namespaces that take more than there is for each.
pub(super) struct Excess {
    namespaces: Vec<Arc<str>>,
    /// The most that each may take.
    rows: usize,
    ports: usize,
}

impl Excess {
    /// Refuses their largest policies; `whole` = all of them, where that was not enough.
    pub(super) fn close(
        &self,
        whole: bool,
        round: &Round<'_>,
        numbers: &Numbers,
        by_namespace: &mut ByNamespace,
        warnings: &mut Vec<Warning>,
    ) {
        let weights = if whole { HashMap::new() } else { self.weigh(round, numbers) };
        for namespace in &self.namespaces {
            let Some(policies) = by_namespace.get_mut(namespace) else { continue };
            let weight = |name: &Arc<str>| weights.get(&(namespace.clone(), name.clone())).copied().unwrap_or_default();
            let mut order: Vec<(Weight, usize)> = policies.iter().map(|policy| weight(&policy.name)).zip(0..).collect();
            order.sort_by_key(|(weight, index)| (weight.rows + weight.ports, *index));
            let mut used = Weight::default();
            for (weight, index) in order {
                let next = Weight { rows: used.rows + weight.rows, ports: used.ports + weight.ports };
                let fits = !whole && next.rows <= self.rows && next.ports <= self.ports;
                if fits {
                    used = next;
                } else if !is_closed(&policies[index]) {
                    close(&mut policies[index], Warning::too_large, warnings);
                }
            }
        }
    }

    /// No less than each policy of these namespaces takes: the rows in which one of its rules has a say.
    fn weigh(&self, round: &Round<'_>, numbers: &Numbers) -> HashMap<(Arc<str>, Arc<str>), Weight> {
        let mut weights: HashMap<(Arc<str>, Arc<str>), Weight> = HashMap::new();
        let sets = round.sets.iter().filter(|(number, _)| round.places.get(*number).is_some_and(|at| self.namespaces.contains(at)));
        for (number, set) in sets {
            for direction in 0..2 {
                let view = View::of(*number, set, direction);
                let ports: HashMap<u32, usize> =
                    set.rules[direction].iter().map(|rule| (rule.id, rule.ports.as_ref().map_or(0, |ports| ports.len() * 2))).collect();
                let mut known: HashMap<Vec<u32>, usize> = HashMap::new();
                for class in std::iter::once(None).chain(round.classes.values().map(|class| Some(&**class))) {
                    *known.entry(view.rules_of(class, &round.classes)).or_default() += 1;
                }
                for (rules, rows) in known {
                    let mut policies: Vec<(&RuleRef, usize)> =
                        rules.iter().filter_map(|id| Some((numbers.names.get(id)?, ports.get(id).copied().unwrap_or(0)))).collect();
                    policies.sort_by(|(one, _), (other, _)| one.name.cmp(&other.name));
                    for of_one in policies.chunk_by(|(one, _), (other, _)| one.name == other.name) {
                        let (first, _) = of_one[0];
                        let weight = weights.entry((first.namespace.clone(), first.name.clone())).or_default();
                        weight.rows += rows;
                        weight.ports += of_one.iter().map(|(_, ports)| ports).sum::<usize>();
                    }
                }
            }
        }
        weights
    }
}

#[derive(Clone, Copy, Default)]
struct Weight {
    rows: usize,
    ports: usize,
}
