//! One kind of object as it is in force: by name, each with its version.
//!
//! A *relist* is collected beside what is in force and takes its place whole. An object that is refused keeps its previous version.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;

use crate::inventory::in_force;

/// See the module.
pub(super) struct Table<K, V> {
    live: Arc<BTreeMap<K, V>>,
    versions: HashMap<K, u64>,
    refused: BTreeMap<K, String>,
    /// What was last said of objects that are in force all the same.
    remarked: BTreeMap<K, String>,
    relist: Option<Relist<K, V>>,
    synced: bool,
    changed: bool,
}

struct Relist<K, V> {
    live: BTreeMap<K, V>,
    versions: HashMap<K, u64>,
    refused: BTreeMap<K, String>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self {
            live: Arc::default(),
            versions: HashMap::new(),
            refused: BTreeMap::new(),
            remarked: BTreeMap::new(),
            relist: None,
            synced: false,
            changed: false,
        }
    }
}

impl<K: Ord + Hash + Clone, V: Clone + PartialEq> Table<K, V> {
    /// What is in force.
    pub(super) fn live(&self) -> &Arc<BTreeMap<K, V>> {
        &self.live
    }

    /// What is wrong with objects, and what is in force of each.
    pub(super) fn refused(&self) -> impl Iterator<Item = String> {
        self.refused.iter().map(|(key, why)| {
            let state = if self.remarked.contains_key(key) { "the rest of it is in force" } else { in_force(self.live.contains_key(key)) };
            format!("{why}; {state}")
        })
    }

    /// Whether one whole list has been taken in.
    pub(super) fn synced(&self) -> bool {
        self.synced
    }

    /// Whether it is another one since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// A relist begins; one that did not end is dropped.
    pub(super) fn begin(&mut self) {
        self.relist = Some(Relist { live: BTreeMap::new(), versions: HashMap::new(), refused: BTreeMap::new() });
    }

    /// An object of the relist.
    pub(super) fn collect(&mut self, key: K, version: u64, value: V) {
        let Some(relist) = &mut self.relist else { return self.put(key, version, value) };
        let known = self.versions.get(&key).copied().unwrap_or(0);
        match self.live.get(&key) {
            // A list from a server that lags behind what we have already, or the same once more.
            Some(live) if known > version || *live == value => {
                relist.versions.insert(key.clone(), known.max(version));
                relist.live.insert(key, live.clone());
            }
            _ => {
                relist.versions.insert(key.clone(), version);
                relist.live.insert(key, value);
            }
        }
    }

    /// The relist is complete and takes the place of what was.
    pub(super) fn finish(&mut self) {
        let Some(relist) = self.relist.take() else { return };
        self.synced = true;
        self.remarked.retain(|key, _| relist.live.contains_key(key));
        self.versions = relist.versions;
        if *self.live != relist.live {
            self.live = Arc::new(relist.live);
            self.changed = true;
        }
        if self.refused != relist.refused {
            self.refused = relist.refused;
            self.changed = true;
        }
    }

    /// An object came or changed. What is older than what is known is passed over.
    pub(super) fn put(&mut self, key: K, version: u64, value: V) {
        if self.is_old(&key, version) {
            return;
        }
        self.changed |= self.refused.remove(&key).is_some();
        self.versions.insert(key.clone(), version);
        if self.live.get(&key) != Some(&value) {
            Arc::make_mut(&mut self.live).insert(key, value);
            self.changed = true;
        }
    }

    /// An object came that cannot be understood; `true` if that is news. Its previous version stays.
    pub(super) fn refuse(&mut self, key: K, version: u64, why: String) -> bool {
        let news = self.refused.get(&key) != Some(&why);
        if let Some(relist) = &mut self.relist {
            if let Some(live) = self.live.get(&key) {
                relist.live.insert(key.clone(), live.clone());
                relist.versions.insert(key.clone(), version);
            }
            relist.refused.insert(key, why);
            return news;
        }
        if self.is_old(&key, version) {
            return false;
        }
        self.versions.insert(key.clone(), version);
        self.changed |= news;
        self.refused.insert(key, why);
        news
    }

    /// Something is wrong with an object that is in force all the same; `true` if that is news. To be called after it was put.
    pub(super) fn remark(&mut self, key: K, version: u64, what: String) -> bool {
        let news = self.remarked.get(&key) != Some(&what);
        if let Some(relist) = &mut self.relist {
            relist.refused.insert(key.clone(), what.clone());
        } else {
            if self.is_old(&key, version) {
                return false;
            }
            self.changed |= self.refused.insert(key.clone(), what.clone()).as_ref() != Some(&what);
        }
        self.remarked.insert(key, what);
        news
    }

    /// Nothing is wrong with it any more.
    pub(super) fn unremark(&mut self, key: &K) {
        self.remarked.remove(key);
    }

    /// An object is gone.
    pub(super) fn remove(&mut self, key: &K, version: u64) {
        if self.is_old(key, version) {
            return;
        }
        self.versions.remove(key);
        self.remarked.remove(key);
        self.changed |= self.refused.remove(key).is_some();
        if self.live.contains_key(key) {
            Arc::make_mut(&mut self.live).remove(key);
            self.changed = true;
        }
    }

    /// Puts other values in the place of some, without a new version.
    pub(super) fn replace(&mut self, values: Vec<(K, V)>) {
        if values.is_empty() {
            return;
        }
        self.changed = true;
        Arc::make_mut(&mut self.live).extend(values);
    }

    /// A number that is missing is never old.
    fn is_old(&self, key: &K, version: u64) -> bool {
        version != 0 && self.versions.get(key).is_some_and(|known| *known > version)
    }
}
