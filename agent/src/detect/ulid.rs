//! Ids of alerts: ULIDs, sortable by time.

const LETTERS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// Makes ULIDs out of times that are passed in and a seed.
pub(super) struct Ulids {
    state: u64,
}

impl Ulids {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number of SplitMix64.
    fn random(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A new id for an alert of that moment.
    pub(super) fn next(&mut self, wall_ns: u64) -> String {
        let millis = u128::from(wall_ns / 1_000_000) & 0xffff_ffff_ffff;
        let random = u128::from(self.random()) << 16 | u128::from(self.random() & 0xffff);
        let value = millis << 80 | random;
        (0..26).rev().map(|place| char::from(LETTERS[(value >> (place * 5) & 31) as usize])).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sorts_by_time_and_never_repeats() {
        let mut ulids = Ulids::new(7);
        let early = ulids.next(1_469_918_176_385_000_000);
        let same = ulids.next(1_469_918_176_385_000_000);
        let late = ulids.next(1_469_918_176_386_000_000);
        // The time part of the specification's example.
        assert_eq!(&early[..10], "01ARYZ6S41");
        assert_eq!(early.len(), 26);
        assert_ne!(early, same);
        assert!(early < late && same < late);
    }
}
