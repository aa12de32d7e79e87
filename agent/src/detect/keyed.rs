//! State by key, bounded: what was not used for long is dropped, and counted.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;

/// Holds at most `2 * half` keys; drops the older half at once when the younger is full.
pub(super) struct Keyed<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    half: usize,
    dropped: u64,
}

impl<K: Eq + Hash + Clone, V> Keyed<K, V> {
    pub(super) fn new(limit: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (limit / 2).max(1), dropped: 0 }
    }

    /// The state of a key, made if missing.
    pub(super) fn entry(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V {
        if self.young.len() >= self.half && !self.young.contains_key(key) {
            self.dropped += self.old.len() as u64;
            self.old = std::mem::take(&mut self.young);
        }
        match self.young.entry(key.clone()) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(self.old.remove(key).unwrap_or_else(make)),
        }
    }

    /// The state of a key that was used just now.
    pub(super) fn get(&self, key: &K) -> Option<&V> {
        self.young.get(key)
    }

    /// All keys with their state.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.young.iter().chain(&self.old)
    }

    /// The same, to change the state.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.young.iter_mut().chain(&mut self.old)
    }

    /// How many keys were dropped for want of room.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }
}
