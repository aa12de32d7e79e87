//! Which owner has which number, in twenty bytes each: enough to give a pod the same number again after a restart. Whole
//! entries, with names, are kept only of those whom flows bear; a large cluster has many more pods than a node talks with.
//!
//! Owners are known by a digest, and stand in pages of [`PER_PAGE`] that are values of the journal's store. Who is gone
//! leaves a free place, which the next one takes.

use std::collections::{BTreeSet, HashMap};

use sha1::{Digest as _, Sha1};

use super::journal_entry::{key, kind};
use super::number::NumberMap;
use super::written::Written;

/// Places on a page: as many as fit a value of the store.
const PER_PAGE: usize = 25;
const PLACE: usize = 16 + 4;

/// What an owner is known by.
type Digest = [u8; 16];

/// An owner as it is told apart from all others over restarts: a pod's UID, a node's name, a Service's port.
pub(super) fn digest(parts: &[&str]) -> Digest {
    let mut hash = Sha1::new();
    for part in parts {
        hash.update(part);
        // No name holds it, so that `ab, c` is not `a, bc`.
        hash.update([0xff]);
    }
    let mut digest = Digest::default();
    digest.copy_from_slice(&hash.finalize()[..16]);
    digest
}

/// See the module.
#[derive(Default)]
pub(super) struct Slots {
    pages: HashMap<u32, Vec<u8>>,
    /// Page and place of every number.
    places: NumberMap<u32, (u32, usize)>,
    free: BTreeSet<(u32, usize)>,
    next_page: u32,
    /// Pages that the store does not have as they are.
    dirty: BTreeSet<u32>,
    /// Owners of an earlier run who have not been seen in this one.
    unclaimed: HashMap<Digest, u32>,
}

impl Slots {
    /// Takes a page out of the store; answers with the highest number on it.
    pub(super) fn read(&mut self, page: u32, value: &[u8]) -> u32 {
        let mut content = value.to_vec();
        content.resize(PER_PAGE * PLACE, 0);
        let mut highest = 0;
        for (place, entry) in content.as_chunks::<PLACE>().0.iter().enumerate() {
            let (Some(digest), Some(number)) = (entry.first_chunk::<16>(), entry.last_chunk::<4>()) else { continue };
            match u32::from_le_bytes(*number) {
                0 => drop(self.free.insert((page, place))),
                number => {
                    self.unclaimed.insert(*digest, number);
                    self.places.insert(number, (page, place));
                    highest = highest.max(number);
                }
            }
        }
        self.pages.insert(page, content);
        self.next_page = self.next_page.max(page + 1);
        highest
    }

    /// The number that an owner had in an earlier run.
    pub(super) fn claim(&mut self, owner: &Digest) -> Option<u32> {
        self.unclaimed.remove(owner)
    }

    /// The owner with that number is known otherwise.
    pub(super) fn settle(&mut self, known: impl Fn(u32) -> bool) {
        self.unclaimed.retain(|_, number| !known(*number));
    }

    /// Notes an owner's new number.
    pub(super) fn enter(&mut self, owner: &Digest, number: u32) {
        let (page, place) = self.free.pop_first().unwrap_or_else(|| {
            let page = self.next_page;
            self.next_page += 1;
            self.pages.insert(page, vec![0; PER_PAGE * PLACE]);
            self.free.extend((1..PER_PAGE).map(|place| (page, place)));
            (page, 0)
        });
        self.places.insert(number, (page, place));
        self.write(page, place, owner, number);
    }

    /// The number is not used any more.
    pub(super) fn leave(&mut self, number: u32) {
        let Some((page, place)) = self.places.remove(&number) else { return };
        self.write(page, place, &Digest::default(), 0);
        self.free.insert((page, place));
    }

    /// Gives up the numbers of owners who did not come back.
    pub(super) fn forget_unclaimed(&mut self) {
        for number in std::mem::take(&mut self.unclaimed).into_values() {
            self.leave(number);
        }
    }

    fn write(&mut self, page: u32, place: usize, owner: &Digest, number: u32) {
        let content = self.pages.get_mut(&page).and_then(|content| content.as_chunks_mut::<PLACE>().0.get_mut(place));
        if let Some(entry) = content {
            entry[..16].copy_from_slice(owner);
            entry[16..].copy_from_slice(&number.to_le_bytes());
            self.dirty.insert(page);
        }
    }

    /// Puts what has changed into the store; what it does not take is put again the next time.
    pub(super) fn flush(&mut self, written: &mut Written) {
        let pages = &self.pages;
        self.dirty.retain(|page| pages.get(page).is_some_and(|content| !written.put(key(kind::PAGE, *page), content)));
    }
}
