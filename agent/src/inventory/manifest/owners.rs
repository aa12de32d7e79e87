//! From a pod to the workload that a person knows. Both sources use this one rule.
//!
//! Only an owner reference with `controller: true` counts: other owners, such as a ConfigMap, only decide when an object is deleted.
//! The pod's controller is its workload, whatever its kind is, an operator's custom resource included. Two kinds stand between a pod
//! and its workload: a ReplicaSet is named by the Deployment or Argo Rollout that controls it, a Job by its CronJob. Nothing else is
//! climbed: a custom resource above a StatefulSet, a Deployment or a Job is an operator, not a workload. A pod without a
//! controller is its own workload.

use std::collections::HashMap;
use std::sync::Arc;

use super::object::{Key, Object};
use crate::inventory::{Pod, Workload};

/// `(kind, name)` of what controls an object.
pub(in crate::inventory) type Owner = Option<(Arc<str>, Arc<str>)>;

/// Who owns the owners.
pub(in crate::inventory) struct Owners<'a> {
    /// `(namespace, kind, name) -> its owner`.
    above: HashMap<(&'a str, &'a str, &'a str), &'a Owner>,
}

/// Kinds that stand between a pod and its workload, each with the kinds that name it.
const BETWEEN: [(&str, &[&str]); 2] = [("ReplicaSet", &["Deployment", "Rollout"]), ("Job", &["CronJob"])];

/// Whether the controller of an object of this kind may be the workload in its place.
pub(in crate::inventory) fn is_between(kind: &str) -> bool {
    BETWEEN.iter().any(|(between, _)| *between == kind)
}

impl<'a> Owners<'a> {
    /// Collects the owners among `objects`.
    pub(in crate::inventory) fn of(objects: impl Iterator<Item = &'a (Key, Object)>) -> Self {
        let above = objects.filter_map(|(key, object)| match object {
            Object::Owner(owner) => Some(((&*key.namespace, key.kind, &*key.name), owner)),
            _ => None,
        });
        Self { above: above.collect() }
    }

    /// `pod` with its workload. `before`, the pod as the last snapshot has it, is kept where nothing changed.
    pub(in crate::inventory) fn resolve(&self, pod: &Arc<Pod>, before: Option<&Arc<Pod>>) -> Arc<Pod> {
        let workload =
            top(pod, &pod.workload, |namespace, owner| self.above.get(&(&**namespace, &*owner.kind, &*owner.name)).map(|o| (*o).clone()));
        if workload == pod.workload {
            return pod.clone();
        }
        let resolved = Pod { workload, ..(**pod).clone() };
        match before {
            Some(before) if **before == resolved => before.clone(),
            _ => Arc::new(resolved),
        }
    }
}

/// The workload of `pod`, whose controller is `direct`; `above` answers who controls an owner, if that owner is known.
pub(in crate::inventory) fn top(pod: &Pod, direct: &Workload, above: impl Fn(&Arc<str>, &Workload) -> Option<Owner>) -> Workload {
    let Some((_, names)) = BETWEEN.iter().find(|(between, _)| **between == *direct.kind) else { return direct.clone() };
    match above(&pod.namespace, direct) {
        Some(Some((kind, name))) if names.contains(&&*kind) => Workload { kind, name },
        Some(_) => direct.clone(),
        None => unlisted(pod, direct.clone()),
    }
}

/// A ReplicaSet that is not known is named after its Deployment and the pod's template hash.
fn unlisted(pod: &Pod, owner: Workload) -> Workload {
    if &*owner.kind != "ReplicaSet" {
        return owner;
    }
    let hash = pod.labels.get("pod-template-hash");
    let stripped = hash.and_then(|hash| owner.name.strip_suffix(&**hash)).and_then(|name| name.strip_suffix('-'));
    match stripped.filter(|name| !name.is_empty()) {
        Some(name) => Workload { kind: "Deployment".into(), name: name.into() },
        None => owner,
    }
}
