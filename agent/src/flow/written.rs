//! What of the journal is written down, and who gives way where there is no room.
//!
//! The next run cannot do without numbers, rules and the names of this node's pods. The names of others whom flows bear are
//! written as long as there is room, and make room for the former.

use std::collections::HashSet;

use super::journal_entry::{encode_identity, key, kind};
use super::record::Identity;

/// Where entries are kept over restarts: small values by number.
pub trait JournalStore {
    /// Everything that is kept.
    fn load(&self) -> Vec<(u64, Vec<u8>)>;
    /// Writes or replaces one value of at most 510 bytes; tells whether there was room.
    fn put(&mut self, key: u64, value: &[u8]) -> bool;
    /// Forgets one.
    fn remove(&mut self, key: u64);
}

/// See the module.
pub(super) struct Written {
    store: Box<dyn JournalStore + Send>,
    /// Numbers whose identity is in the store.
    identities: HashSet<u32>,
    /// Those of this node's pods.
    near: HashSet<u32>,
}

impl Written {
    pub(super) fn new(store: Box<dyn JournalStore + Send>) -> Self {
        Self { store, identities: HashSet::new(), near: HashSet::new() }
    }

    /// Everything that is in the store.
    pub(super) fn load(&self) -> Vec<(u64, Vec<u8>)> {
        self.store.load()
    }

    /// An identity was found in the store.
    pub(super) fn holds(&mut self, instance: u32) {
        self.identities.insert(instance);
    }

    /// Who the pods of this node are.
    pub(super) fn set_near(&mut self, near: HashSet<u32>) {
        self.near = near;
    }

    /// Writes what the next run cannot do without; tells whether there was room.
    pub(super) fn put(&mut self, key: u64, value: &[u8]) -> bool {
        if self.store.put(key, value) {
            return true;
        }
        let Some(far) = self.identities.iter().find(|instance| !self.near.contains(instance)).copied() else { return false };
        self.forget(far);
        self.store.put(key, value)
    }

    /// Writes an identity, if it is not there already and there is room.
    pub(super) fn keep(&mut self, identity: &Identity) {
        let instance = identity.instance;
        if self.identities.contains(&instance) {
            return;
        }
        let (key, value) = (key(kind::IDENTITY, instance), encode_identity(identity));
        let kept = if self.near.contains(&instance) { self.put(key, &value) } else { self.store.put(key, &value) };
        if kept {
            self.identities.insert(instance);
        }
    }

    /// An identity is another now: the store is to know that, if it knows it at all.
    pub(super) fn renew(&mut self, identity: &Identity) {
        if self.identities.remove(&identity.instance) {
            self.keep(identity);
        }
    }

    /// Takes an identity out of the store, if it is there.
    pub(super) fn forget(&mut self, instance: u32) {
        if self.identities.remove(&instance) {
            self.store.remove(key(kind::IDENTITY, instance));
        }
    }

    /// Takes another value out of the store.
    pub(super) fn remove(&mut self, key: u64) {
        self.store.remove(key);
    }
}
