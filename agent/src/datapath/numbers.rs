//! Slots: which place in the kernel's per-endpoint arrays belongs to which endpoint number.
//!
//! A slot is given again only after a full sweep has removed the flows of its former owner, so that no flow is ever taken
//! for a newcomer's.

use std::collections::{BTreeSet, HashMap};

use sekisho_core::layout::CGROUP_ENDPOINT;

/// Slots in use and numbers that flows may bear.
#[derive(Debug, Default)]
pub(super) struct Slots {
    by_number: HashMap<u32, u32>,
    used: BTreeSet<u32>,
    retired: Vec<u32>,
    /// Retired before the sweep that runs now began.
    swept: Vec<u32>,
}

impl Slots {
    /// The slot of a live endpoint number.
    pub(super) fn of(&self, number: u32) -> Option<u32> {
        self.by_number.get(&number).copied()
    }

    /// Numbers in use.
    pub(super) fn numbers(&self) -> impl Iterator<Item = (u32, u32)> {
        self.by_number.iter().map(|(number, index)| (*number, *index))
    }

    /// One above the highest slot in use.
    pub(super) fn end(&self) -> u32 {
        self.used.last().map_or(0, |last| last + 1)
    }

    /// Takes over what a former agent had given.
    pub(super) fn adopt(&mut self, number: u32, index: u32) {
        self.by_number.insert(number, index);
        self.used.insert(index);
    }

    /// The slot of an interface, a free one if it has none; whether it is new.
    pub(super) fn interface(&mut self, ifindex: u32, max: u32) -> Option<(u32, bool)> {
        if let Some(index) = self.of(ifindex) {
            return Some((index, false));
        }
        let index = self.free(max)?;
        self.adopt(ifindex, index);
        Some((index, true))
    }

    /// A free slot for a cgroup endpoint, whose number it makes.
    pub(super) fn cgroup(&mut self, max: u32) -> Option<u32> {
        let index = self.free(max)?;
        self.adopt(CGROUP_ENDPOINT | index, index);
        Some(index)
    }

    fn free(&self, max: u32) -> Option<u32> {
        (0..max).find(|index| !self.used.contains(index))
    }

    /// The endpoint is gone; its flows are not yet.
    pub(super) fn retire(&mut self, number: u32) {
        if let Some(index) = self.by_number.remove(&number) {
            self.retired.push(index);
        }
    }

    /// A full sweep begins: what is retired by now will have no flows after it.
    pub(super) fn sweep_begins(&mut self) {
        self.swept.append(&mut self.retired);
    }

    /// It ended without an error.
    pub(super) fn sweep_ended(&mut self) {
        for index in self.swept.drain(..) {
            self.used.remove(&index);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_is_given_again_only_after_a_sweep_that_began_later() {
        let mut slots = Slots::default();
        assert_eq!(slots.interface(7, 2), Some((0, true)));
        assert_eq!(slots.interface(7, 2), Some((0, false)));
        assert_eq!(slots.cgroup(2), Some(1));
        assert_eq!(slots.interface(9, 2), None);
        slots.sweep_begins();
        slots.retire(7);
        slots.sweep_ended();
        assert_eq!(slots.interface(9, 2), None);
        slots.sweep_begins();
        slots.sweep_ended();
        assert_eq!(slots.interface(9, 2), Some((0, true)));
        assert_eq!(slots.of(CGROUP_ENDPOINT | 1), Some(1));
    }
}
