//! One pass from policies to tables. A compile takes another one where the first comes out too large.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use sekisho_core::layout::{EGRESS, HAIRPIN, RuleKey, Rules};

use super::addresses::{Addresses, Own};
use super::compiler::{ByNamespace, Compiler, Selecting};
use super::rows::{Backend, Class, NamedPorts, Row, View};
use super::services::Dialled;
use super::sets::Set;
use super::share::level;
use super::usage::Usage;
use super::warning::Warning;
use super::{Input, Tables};
use crate::inventory::Pod;

/// What came out.
pub(super) struct Round<'a> {
    pub(super) tables: Tables,
    pub(super) sets: BTreeMap<u32, Arc<Set>>,
    /// Namespaces of the sets.
    pub(super) places: HashMap<u32, Arc<str>>,
    pub(super) selecting: Selecting,
    /// How many policies select a pod of this node.
    pub(super) policies: usize,
    pub(super) owners: HashMap<IpAddr, Arc<Pod>>,
    /// Class numbers in use, 0 left out.
    pub(super) classes: HashMap<u32, Arc<Class>>,
    pub(super) services: Vec<(Dialled<'a>, u32)>,
    pub(super) usage: Usage,
    pub(super) warnings: Vec<Warning>,
}

/// Entries of a table while it changes from `old` to `next`: what goes leaves after what comes is written.
fn meanwhile<K: Eq + Hash, V>(old: &HashMap<K, V>, next: &HashMap<K, V>) -> usize {
    old.len() + next.keys().filter(|key| !old.contains_key(*key)).count()
}

impl Round<'_> {
    /// Whether the kernel has room for it beside what is there.
    pub(super) fn fits(&self, input: &Input<'_>) -> bool {
        let (old, next) = (input.in_kernel, &self.tables);
        meanwhile(&old.rules, &next.rules) <= input.room_for_rules
            && meanwhile(&old.ports, &next.ports) <= input.room_for_networks
            && meanwhile(&old.cidrs, &next.cidrs) <= input.room_for_networks
    }
}

/// Pods that are allowed a Service as if they were not behind it themselves, by set and class.
type Allowed = HashMap<(u32, u32), usize>;

impl Compiler {
    /// `seamless`: the tables also answer for the sets of the last compile.
    pub(super) fn round<'a>(&mut self, input: &Input<'a>, by_namespace: &ByNamespace, seamless: bool) -> Round<'a> {
        let mut tables = Tables::default();
        let mut warnings = Vec::new();
        let (sets, places, selecting, policies) = self.endpoints(input, by_namespace, &mut tables);
        let live = self.live_sets(&sets, seamless);
        let mut work = Addresses::of(input, &live, &self.numbers);
        work.pods(&mut self.classes, &mut tables, &mut warnings);
        work.nodes(&mut self.classes, &mut tables);
        work.cidrs(&mut self.classes, &mut tables);
        let (services, selves) = work.services(&mut self.classes, &sets, &mut tables, &mut warnings);
        tables.passing.cidrs = work.passing(&sets, &self.numbers);
        tables.passing.sets = live.keys().filter(|number| !sets.contains_key(number)).copied().collect();
        let Addresses { owners, classes, .. } = work;
        let mut round = Round { tables, sets, places, selecting, policies, owners, classes, services, usage: Usage::default(), warnings };
        let allowed = round.hairpins(input, &selves);
        self.rows(&mut round, &live, input.room_for_rules * 2, &allowed);
        round
    }

    /// Writes what sets say about classes, `most` rows at the most: more are only counted.
    fn rows(&mut self, round: &mut Round<'_>, live: &BTreeMap<u32, Arc<Set>>, most: usize, allowed: &Allowed) {
        let mut pods: HashMap<u32, usize> = HashMap::new();
        for endpoint in round.tables.endpoints.values() {
            *pods.entry(endpoint.set).or_default() += 1;
        }
        let mut said = BTreeSet::new();
        for (number, set) in live {
            let place = round.places.get(number);
            for direction in 0..2 {
                let mut view = View::of(*number, set, direction);
                if view.is_empty() {
                    continue;
                }
                let everyone = view.row(&[], &NamedPorts::new());
                let mut mixed = BTreeSet::new();
                for (class, content) in std::iter::once((0, None)).chain(round.classes.iter().map(|(n, class)| (*n, Some(&**class)))) {
                    let row = match content {
                        Some(Class::Service(_)) if direction != usize::from(EGRESS) => continue,
                        Some(Class::Service(backends)) => {
                            let (rule, differ) = view.service(backends, &round.classes);
                            let all_meet_themselves = || allowed.get(&(*number, class)).is_some_and(|n| Some(n) == pods.get(number));
                            if differ && view.isolated() && place.is_some() && !all_meet_themselves() {
                                mixed.insert(class);
                            }
                            Arc::new(Row::any(rule.unwrap_or(0)))
                        }
                        Some(Class::Address { selectors, named }) => view.row(selectors, named),
                        None => everyone.clone(),
                    };
                    // Where there is no row for a class, the one for everyone holds.
                    let spare = if class == 0 { row.is_empty() } else { row == everyone };
                    if spare {
                        continue;
                    }
                    if let Some(place) = place {
                        round.usage.row(place);
                    }
                    if round.tables.rules.len() < most {
                        let (table, prefixes) = view.write(class, &row, &mut self.tables, &mut round.tables);
                        if let Some(place) = place {
                            round.usage.table(place, table, prefixes);
                        }
                    }
                }
                said.extend(round.services.iter().enumerate().filter(|(_, (_, class))| mixed.contains(class)).map(|(index, _)| index));
            }
        }
        let mut names = BTreeSet::new();
        names.extend(said.into_iter().map(|index| {
            let service = &round.services[index].0;
            (service.service.namespace.clone(), service.service.name.clone(), service.service_port.label())
        }));
        round.warnings.extend(names.into_iter().map(|(namespace, name, port)| Warning::backends_differ(namespace, name, &port)));
    }
}

impl Round<'_> {
    /// A pod always reaches itself, through its own Service as well. Which backend its connection will get is not known when it is
    /// judged, so it is as if the pod itself were not behind the Service: where all others are allowed, so is the Service.
    fn hairpins(&mut self, input: &Input<'_>, selves: &BTreeSet<Own>) -> Allowed {
        let mut views: HashMap<u32, View<'_>> = HashMap::new();
        let mut found: BTreeMap<&str, Vec<(&Own, u32)>> = BTreeMap::new();
        for own in selves {
            let (Some(set), Some(Class::Service(backends))) = (self.sets.get(&own.set), self.classes.get(&own.class).map(|c| &**c)) else {
                continue;
            };
            let others: Vec<Backend> = backends.iter().filter(|backend| backend.own != own.instance).copied().collect();
            let view = views.entry(own.set).or_insert_with(|| View::of(own.set, set, usize::from(EGRESS)));
            let rule = if others.is_empty() { Some(0) } else { view.service(&others, &self.classes).0 };
            if let Some(rule) = rule {
                found.entry(self.places.get(&own.set).map_or("", |place| &**place)).or_default().push((own, rule));
            }
        }
        let most = level(found.values().map(Vec::len), input.room_for_rules / 16);
        let mut allowed = Allowed::new();
        for (own, rule) in found.into_values().flat_map(|list| list.into_iter().take(most)) {
            let key = RuleKey { set: own.instance, class: own.class, direction: u32::from(HAIRPIN) };
            self.tables.rules.insert(key, Rules::new(rule, 0));
            *allowed.entry((own.set, own.class)).or_default() += 1;
        }
        allowed
    }
}

/// What only the sets of the last compile need: to be left out once no endpoint points at them any more, where room is short.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Passing {
    /// Sets.
    pub sets: HashSet<u32>,
    /// Networks, as in [`Tables::cidrs`].
    pub cidrs: HashSet<(sekisho_core::layout::Address, u8)>,
}
