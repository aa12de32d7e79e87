//! What the kernel's table of addresses can do without, where a cluster has more of them than the table has room for.

use std::collections::BTreeSet;

use sekisho_core::layout::{Address, address_flags};

use super::{Compiled, Tables, Warning};

impl Compiled {
    /// Where there are more than `room` addresses, leaves out those of pods that no rule tells apart from the networks that
    /// hold them: without the entry the kernel finds the same class. What is lost is that the pod's identity is frozen with
    /// its first packet; its name is then looked up by address. Addresses that pass `keep` stay.
    pub fn fit(&mut self, room: usize, node: &str, keep: impl Fn(&Address) -> bool) {
        let before = self.tables.addresses.len();
        if before <= room {
            return;
        }
        let networks = Networks::of(&self.tables);
        let spare = |address: &Address, class| class == networks.class(&self.tables, address) && !keep(address);
        let left_out: Vec<Address> = self
            .tables
            .addresses
            .iter()
            .filter(|(address, entry)| entry.flags == address_flags::POD && spare(address, entry.class))
            .map(|(address, _)| *address)
            .collect();
        for address in &left_out {
            self.tables.addresses.remove(address);
        }
        self.stats.left_out = left_out.len();
        if !left_out.is_empty() {
            let text = format!(
                "the kernel's table has room for {room} addresses, and the cluster has more: pods that no policy tells apart are left out, \
                 and their names are looked up by address; raise --memory-budget to have all of them frozen at capture"
            );
            self.warnings.push(Warning::of_node(node, "AddressTableSmall", text));
        }
    }
}

/// Lengths of the networks that have a class.
struct Networks(BTreeSet<u8>);

impl Networks {
    fn of(tables: &Tables) -> Self {
        Self(tables.cidrs.keys().map(|(_, length)| *length).collect())
    }

    /// The class of the longest network that holds `address`; 0 = none.
    fn class(&self, tables: &Tables, address: &Address) -> u32 {
        let bits = u128::from_be_bytes(*address);
        let network = |length: u8| (bits & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)).to_be_bytes();
        self.0.iter().rev().find_map(|length| tables.cidrs.get(&(network(*length), *length))).copied().unwrap_or(0)
    }
}
