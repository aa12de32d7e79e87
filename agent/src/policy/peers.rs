//! Peers of rules as selectors with numbers, and which pods they select.
//!
//! A selector is kept in the form that does not depend on its policy: "all pods of the policy's own namespace" names that
//! namespace. Thousands of selectors meet thousands of pods here, so pods with equal labels are looked at once and selectors
//! that want a label's value look only at the pods that have it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ipnet::IpNet;

use crate::inventory::{Labels, Namespace, PolicyPeer, Requirement, Selector};

/// A peer that says the same wherever it stands.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Peer {
    /// Pods of one namespace.
    Own(Arc<str>, Selector),
    /// Pods of namespaces with these labels.
    Pods(Selector, Selector),
    /// Addresses.
    Block(IpNet, Vec<IpNet>),
}

impl Peer {
    /// `peer` as it is meant in a policy of `namespace`.
    pub(super) fn of(peer: &PolicyPeer, namespace: &Arc<str>) -> Self {
        match peer {
            PolicyPeer::Pods { namespaces: None, pods } => Self::Own(namespace.clone(), pods.clone().unwrap_or_default()),
            PolicyPeer::Pods { namespaces: Some(namespaces), pods } => Self::Pods(namespaces.clone(), pods.clone().unwrap_or_default()),
            PolicyPeer::Block { cidr, except } => Self::Block(*cidr, except.clone()),
        }
    }
}

/// Pods that no selector tells apart.
pub(super) struct Group {
    pub(super) namespace: Arc<str>,
    pub(super) labels: Labels,
    /// Selector ids, ascending.
    pub(super) selectors: Vec<u32>,
}

/// The groups of all pods.
#[derive(Default)]
pub(super) struct Groups {
    all: Vec<Group>,
    index: HashMap<(Arc<str>, Labels), usize>,
    /// The same by where namespace and labels lie in memory: most pods share them with others of their workload.
    met: HashMap<(*const u8, *const BTreeMap<Arc<str>, Arc<str>>), usize>,
    /// Groups by label.
    labelled: HashMap<(Arc<str>, Arc<str>), Vec<usize>>,
    by_namespace: BTreeMap<Arc<str>, Vec<usize>>,
}

impl Groups {
    /// The group of a pod. What is passed must live as long as the groups, as a snapshot's pods do.
    pub(super) fn of(&mut self, namespace: &Arc<str>, labels: &Labels) -> usize {
        let place = (namespace.as_ptr(), Arc::as_ptr(labels));
        if let Some(group) = self.met.get(&place) {
            return *group;
        }
        let group = self.group(namespace, labels);
        self.met.insert(place, group);
        group
    }

    fn group(&mut self, namespace: &Arc<str>, labels: &Labels) -> usize {
        let key = (namespace.clone(), labels.clone());
        if let Some(group) = self.index.get(&key) {
            return *group;
        }
        let group = self.all.len();
        for (name, value) in labels.iter() {
            self.labelled.entry((name.clone(), value.clone())).or_default().push(group);
        }
        self.by_namespace.entry(namespace.clone()).or_default().push(group);
        self.all.push(Group { namespace: namespace.clone(), labels: labels.clone(), selectors: Vec::new() });
        self.index.insert(key, group);
        group
    }

    /// Selectors of a group.
    pub(super) fn selectors(&self, group: usize) -> &[u32] {
        &self.all[group].selectors
    }

    /// Notes which groups `peer` selects; several peers may have one id.
    pub(super) fn select(&mut self, id: u32, peer: &Peer, namespaces: &BTreeMap<Arc<str>, Arc<Namespace>>) {
        let (own, wanted, pods) = match peer {
            Peer::Own(namespace, pods) => (Some(namespace), None, pods),
            Peer::Pods(wanted, pods) => (None, Some(wanted), pods),
            Peer::Block(..) => return,
        };
        let in_namespace = |name: &Arc<str>| match (own, wanted) {
            (Some(own), _) => own == name,
            (_, Some(wanted)) => namespaces.get(name).is_some_and(|n| wanted.matches(&n.labels)),
            _ => false,
        };
        let candidates = self.candidates(pods, own, &in_namespace);
        for group in candidates {
            let group = &mut self.all[group];
            if in_namespace(&group.namespace) && pods.matches(&group.labels) {
                group.selectors.push(id);
            }
        }
    }

    /// Brings the selectors of all groups into order.
    pub(super) fn sort(&mut self) {
        for group in &mut self.all {
            group.selectors.sort_unstable();
            group.selectors.dedup();
        }
    }

    /// A superset of the groups that `pods` selects, as small as is cheap to find, each once.
    fn candidates(&self, pods: &Selector, own: Option<&Arc<str>>, in_namespace: &dyn Fn(&Arc<str>) -> bool) -> Vec<usize> {
        let lists = |key: &Arc<str>, values: &[Arc<str>]| -> Vec<&Vec<usize>> {
            values.iter().filter_map(|value| self.labelled.get(&(key.clone(), value.clone()))).collect()
        };
        let best = pods
            .requirements
            .iter()
            .filter_map(|requirement| match requirement {
                Requirement::In(key, values) => Some(lists(key, values)),
                _ => None,
            })
            .min_by_key(|lists| lists.iter().map(|list| list.len()).sum::<usize>());
        if let Some(best) = best {
            // A group has one value for a label: the lists share none.
            return best.into_iter().flatten().copied().collect();
        }
        match own {
            Some(own) => self.by_namespace.get(own).cloned().unwrap_or_default(),
            None => self.by_namespace.iter().filter(|(name, _)| in_namespace(name)).flat_map(|(_, list)| list).copied().collect(),
        }
    }
}
