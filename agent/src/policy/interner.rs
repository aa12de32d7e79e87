//! Numbers for content. Equal content has one number; a number never comes back with another meaning.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

/// Gives numbers to content, and forgets what two compiles in a row did not ask for.
pub(super) struct Interner<K> {
    numbers: HashMap<Arc<K>, (u32, u64)>,
    last: u32,
    generation: u64,
}

impl<K: Eq + Hash> Interner<K> {
    /// The first number given is `used + 1`.
    pub(super) fn above(used: u32) -> Self {
        Self { numbers: HashMap::new(), last: used, generation: 0 }
    }

    /// `content` has had this number since an earlier run.
    pub(super) fn know(&mut self, number: u32, content: K) {
        self.last = self.last.max(number);
        self.numbers.insert(Arc::new(content), (number, self.generation));
    }

    /// The number of `content`.
    pub(super) fn number(&mut self, content: K) -> u32 {
        self.intern(content).0
    }

    /// The number of `content`, and the content as it is kept.
    pub(super) fn intern(&mut self, content: K) -> (u32, Arc<K>) {
        if let Some((kept, _)) = self.numbers.get_key_value(&content) {
            let kept = kept.clone();
            return (self.touch(&kept), kept);
        }
        self.last += 1;
        let kept = Arc::new(content);
        self.numbers.insert(kept.clone(), (self.last, self.generation));
        (self.last, kept)
    }

    /// The number of content that is kept by someone; given anew if it was forgotten.
    pub(super) fn touch(&mut self, kept: &Arc<K>) -> u32 {
        let generation = self.generation;
        if let Some((number, used)) = self.numbers.get_mut(kept) {
            *used = generation;
            return *number;
        }
        self.last += 1;
        self.numbers.insert(kept.clone(), (self.last, generation));
        self.last
    }

    /// Begins a compile: content unused in the last one and the one before it is forgotten.
    pub(super) fn begin(&mut self) {
        let oldest = self.generation.saturating_sub(1);
        self.numbers.retain(|_, (_, used)| *used >= oldest);
        self.generation += 1;
    }
}
