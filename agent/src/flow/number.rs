//! Numbers made of flows: the stable `flow_id`, and a hasher for maps whose keys are numbers already.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use sekisho_core::layout::FlowKey6;

/// One round of folded multiplication: every bit of the input reaches every bit of the result.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    #[expect(clippy::cast_possible_truncation, reason = "the two halves are folded")]
    let folded = (product as u64) ^ ((product >> 64) as u64);
    folded
}

const MIX: [u64; 3] = [0x9e37_79b9_7f4a_7c15, 0xd6e8_feb8_6659_fd93, 0xa076_1d64_78bd_642f];

/// What makes flow ids of one boot differ from those of another: the kernel's boot id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootSeed(u64);

impl BootSeed {
    /// From the text of `/proc/sys/kernel/random/boot_id`.
    pub fn new(boot_id: &str) -> Self {
        Self(boot_id.trim().bytes().fold(MIX[0], |h, b| fold(h ^ u64::from(b), MIX[1])))
    }

    /// Names a flow over its records, verdicts and restarts of the agent: hash of boot, endpoint, tuple and first start.
    pub fn flow_id(self, key: &FlowKey6, born_ns: u64) -> u64 {
        let (high, low) = key.remote.split_at(8);
        let word = |b: &[u8]| b.iter().fold(0, |w, &b| w << 8 | u64::from(b));
        let ports = u64::from(key.local_port) << 24 | u64::from(key.remote_port) << 8 | u64::from(key.protocol);
        let h = fold(self.0 ^ u64::from(key.endpoint), MIX[1] ^ born_ns);
        let h = fold(h ^ word(high), MIX[2] ^ word(low));
        fold(h ^ ports, MIX[0])
    }
}

/// A hasher for keys that are numbers given by us: one multiplication.
#[derive(Clone, Copy, Debug, Default)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u8(&mut self, n: u8) {
        self.write_u64(u64::from(n));
    }
    fn write_u16(&mut self, n: u16) {
        self.write_u64(u64::from(n));
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = fold(self.0 ^ n ^ MIX[2], MIX[0]);
    }
    fn write_u128(&mut self, n: u128) {
        #[expect(clippy::cast_possible_truncation, reason = "both halves are written")]
        let halves = [n as u64, (n >> 64) as u64];
        for half in halves {
            self.write_u64(half);
        }
    }
}

/// A map keyed by numbers that no outsider chooses.
pub type NumberMap<K, V> = HashMap<K, V, BuildHasherDefault<NumberHasher>>;
/// A set of such numbers.
pub(super) type NumberSet<K> = HashSet<K, BuildHasherDefault<NumberHasher>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flow_ids_tell_every_part_apart() {
        let seed = BootSeed::new("3a1f5c0e-0000-4000-8000-000000000001\n");
        let key = FlowKey6 { endpoint: 7, local_port: 40000, remote_port: 80, protocol: 6, ..FlowKey6::ZERO };
        let id = seed.flow_id(&key, 1);
        assert_eq!(id, seed.flow_id(&key, 1));
        let mut remote = key;
        remote.remote[15] = 1;
        let others = [
            BootSeed::new("3a1f5c0e-0000-4000-8000-000000000002").flow_id(&key, 1),
            seed.flow_id(&key, 2),
            seed.flow_id(&FlowKey6 { endpoint: 8, ..key }, 1),
            seed.flow_id(&FlowKey6 { local_port: 40001, ..key }, 1),
            seed.flow_id(&FlowKey6 { remote_port: 81, ..key }, 1),
            seed.flow_id(&FlowKey6 { protocol: 17, ..key }, 1),
            seed.flow_id(&remote, 1),
        ];
        assert!(others.iter().all(|o| *o != id));
    }
}
