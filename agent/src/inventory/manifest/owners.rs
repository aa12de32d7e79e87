//! From a pod to the workload that a person knows: ReplicaSet to Deployment, Job to CronJob.

use std::collections::HashMap;
use std::sync::Arc;

use super::object::{Key, Object};
use crate::inventory::{Pod, Workload};

/// `(kind, name)` of what owns an object.
pub(in crate::inventory) type Owner = Option<(Arc<str>, Arc<str>)>;

/// Who owns the owners.
pub(in crate::inventory) struct Owners<'a> {
    /// `(namespace, kind, name) -> its owner`.
    above: HashMap<(&'a str, &'a str, &'a str), &'a Owner>,
}

/// Ownership is two or three levels deep; a loop written by hand ends here.
const LEVELS: usize = 8;

impl<'a> Owners<'a> {
    /// Collects the owners among `objects`.
    pub(in crate::inventory) fn of(objects: impl Iterator<Item = &'a (Key, Object)>) -> Self {
        let above = objects.filter_map(|(key, object)| match object {
            Object::Owner(owner) => Some(((&*key.namespace, key.kind, &*key.name), owner)),
            _ => None,
        });
        Self { above: above.collect() }
    }

    /// `pod` with its top owner. `before`, the pod as the last snapshot has it, is kept where nothing changed.
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

/// The top owner of `pod`, whose direct owner is `direct`; `above` answers who owns an owner, if it is known.
pub(in crate::inventory) fn top(pod: &Pod, direct: &Workload, above: impl Fn(&Arc<str>, &Workload) -> Option<Owner>) -> Workload {
    let mut top = direct.clone();
    for _ in 0..LEVELS {
        match above(&pod.namespace, &top) {
            Some(Some((kind, name))) => top = Workload { kind, name },
            Some(None) => return top,
            None => return unlisted(pod, top),
        }
    }
    top
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
