//! A bounded memory of what was asked lately: two generations, the older dropped whole.

use std::hash::Hash;

use super::number::NumberMap;

/// Holds between `size` and twice `size` of the entries used last.
pub(super) struct Recent<K, V> {
    young: NumberMap<K, V>,
    old: NumberMap<K, V>,
    size: usize,
}

impl<K: Eq + Hash, V: Clone> Recent<K, V> {
    pub(super) fn new(size: usize) -> Self {
        Self { young: NumberMap::default(), old: NumberMap::default(), size }
    }

    pub(super) fn get(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.insert(key, value.clone());
        Some(value)
    }

    pub(super) fn insert(&mut self, key: K, value: V) {
        if self.young.len() >= self.size {
            self.age();
        }
        self.young.insert(key, value);
    }

    /// Forgets one; tells whether it was there.
    pub(super) fn remove(&mut self, key: &K) -> bool {
        self.young.remove(key).is_some() | self.old.remove(key).is_some()
    }

    /// Starts a new generation; what is older than one generation is forgotten.
    pub(super) fn age(&mut self) {
        std::mem::swap(&mut self.old, &mut self.young);
        // Its room is kept: a busy memory ages many times a second.
        self.young.clear();
    }

    pub(super) fn clear(&mut self) {
        self.young.clear();
        self.old.clear();
    }
}
