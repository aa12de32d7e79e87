//! Texts and label maps that many objects share, kept once.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use crate::inventory::{Labels, Pod, Workload};

/// How many new texts may come before unused ones are forgotten.
const SWEEP: usize = 16_384;

/// The texts in use.
#[derive(Default)]
pub(super) struct Texts {
    single: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
    /// Size after the last sweep.
    swept: usize,
}

impl Texts {
    /// The one copy of `text`.
    pub(super) fn text(&mut self, text: &Arc<str>) -> Arc<str> {
        if let Some(known) = self.single.get(text) {
            return known.clone();
        }
        self.single.insert(text.clone());
        text.clone()
    }

    fn optional(&mut self, text: Option<&Arc<str>>) -> Option<Arc<str>> {
        text.map(|text| self.text(text))
    }

    /// The one copy of a label map.
    pub(super) fn labels(&mut self, labels: &Labels) -> Labels {
        if let Some(known) = self.labels.get(labels) {
            return known.clone();
        }
        let shared: BTreeMap<_, _> = labels.iter().map(|(key, value)| (self.text(key), self.text(value))).collect();
        let shared = Arc::new(shared);
        self.labels.insert(shared.clone());
        shared
    }

    pub(super) fn workload(&mut self, workload: &Workload) -> Workload {
        Workload { kind: self.text(&workload.kind), name: self.text(&workload.name) }
    }

    /// `pod` over shared texts. Its name and UID are its own.
    pub(super) fn pod(&mut self, pod: &Pod) -> Pod {
        let mut ips = pod.ips.clone();
        ips.shrink_to_fit();
        Pod {
            namespace: self.text(&pod.namespace),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            labels: self.labels(&pod.labels),
            node: self.optional(pod.node.as_ref()),
            ips,
            announced: pod.announced.clone(),
            host_network: pod.host_network,
            finished: pod.finished,
            service_account: self.optional(pod.service_account.as_ref()),
            workload: self.workload(&pod.workload),
            ports: pod.ports.iter().map(|(name, port, protocol)| (self.text(name), *port, *protocol)).collect(),
            serves: pod.serves.clone(),
            config_hash: pod.config_hash.clone(),
            allow_sources: pod.allow_sources.clone(),
            runtime_class: self.optional(pod.runtime_class.as_ref()),
        }
    }

    /// Forgets what nobody uses any more, once enough has come to make it worth while.
    pub(super) fn sweep(&mut self) {
        if self.single.len() + self.labels.len() < self.swept + SWEEP {
            return;
        }
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        self.single.retain(|text| Arc::strong_count(text) > 1);
        self.swept = self.single.len() + self.labels.len();
    }
}
