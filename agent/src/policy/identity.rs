//! The identity that is exported: a number for "pods that no policy tells apart", the same on every node.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::inventory::{Pod, PolicyPeer, Requirement, Selector, Snapshot};

/// The label keys that some policy of the cluster reads.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Relevant(BTreeSet<Arc<str>>);

impl Relevant {
    /// Collects the keys from every policy.
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut keys = BTreeSet::new();
        for policy in snapshot.policies.values() {
            read(&policy.pod_selector, &mut keys);
            let rules = policy.ingress.iter().chain(&policy.egress).flatten();
            for peer in rules.flat_map(|rule| &rule.peers) {
                if let PolicyPeer::Pods { pods: Some(pods), .. } = peer {
                    read(pods, &mut keys);
                }
            }
        }
        Self(keys)
    }
}

fn read(selector: &Selector, keys: &mut BTreeSet<Arc<str>>) {
    for requirement in &selector.requirements {
        let (Requirement::In(key, _) | Requirement::NotIn(key, _) | Requirement::Exists(key) | Requirement::DoesNotExist(key)) =
            requirement;
        keys.insert(key.clone());
    }
}

/// FNV-1a over the namespace and the labels that policies read.
pub fn identity_number(pod: &Pod, relevant: &Relevant) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325;
    add(&mut hash, &pod.namespace);
    for (key, value) in pod.labels.iter().filter(|(key, _)| relevant.0.contains(*key)) {
        add(&mut hash, key);
        add(&mut hash, value);
    }
    hash
}

/// The closing byte keeps `ab, c` and `a, bc` apart.
fn add(hash: &mut u64, text: &str) {
    for byte in text.bytes().chain([0xff]) {
        *hash = (*hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    }
}
