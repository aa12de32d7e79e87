//! Which `ipBlock` peers an address matches: the CIDRs and their exceptions as one set of nested prefixes, each with the
//! list of peers that hold for it. The longest prefix that contains an address has the answer.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};

/// Prefixes of one compile.
#[derive(Default)]
pub(super) struct Blocks {
    /// Selector ids by prefix, ascending.
    lists: HashMap<IpNet, Vec<u32>>,
    /// Prefix lengths in use, longest first, `[IPv4, IPv6]`.
    lengths: [Vec<u8>; 2],
}

impl Blocks {
    /// `blocks`: `(selector id, cidr, except)`.
    pub(super) fn of<'a>(blocks: impl Iterator<Item = (u32, &'a IpNet, &'a [IpNet])>) -> Self {
        let mut enter: HashMap<IpNet, Vec<u32>> = HashMap::new();
        let mut leave: HashMap<IpNet, Vec<u32>> = HashMap::new();
        for (id, cidr, except) in blocks {
            enter.entry(*cidr).or_default().push(id);
            for inner in except {
                leave.entry(*inner).or_default().push(id);
            }
        }
        let mut prefixes: Vec<IpNet> = enter.keys().chain(leave.keys()).copied().collect();
        // In the kernel's map all of IPv4 lies within IPv6, where a short IPv6 prefix would reach it.
        if prefixes.iter().any(|p| matches!(p, IpNet::V6(_))) {
            prefixes.push(IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0)));
        }
        // Parents come before their children.
        prefixes.sort_unstable_by_key(|p| (p.addr(), p.prefix_len()));
        prefixes.dedup();
        let mut lists: HashMap<IpNet, Vec<u32>> = HashMap::with_capacity(prefixes.len());
        let mut above: Vec<IpNet> = Vec::new();
        for prefix in prefixes {
            while above.last().is_some_and(|parent| !parent.contains(&prefix)) {
                above.pop();
            }
            let mut list = above.last().map_or_else(Vec::new, |parent| lists[parent].clone());
            if let Some(left) = leave.get(&prefix) {
                list.retain(|id| !left.contains(id));
            }
            list.extend(enter.get(&prefix).into_iter().flatten());
            list.sort_unstable();
            list.dedup();
            lists.insert(prefix, list);
            above.push(prefix);
        }
        let lengths = [false, true].map(|v6| {
            let mut lengths: Vec<u8> = lists.keys().filter(|p| p.addr().is_ipv6() == v6).map(IpNet::prefix_len).collect();
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
            lengths
        });
        Self { lists, lengths }
    }

    /// The peers that `address` matches.
    pub(super) fn of_address(&self, address: IpAddr) -> &[u32] {
        for length in &self.lengths[usize::from(address.is_ipv6())] {
            let prefix = IpNet::new_assert(address, *length).trunc();
            if let Some(list) = self.lists.get(&prefix) {
                return list;
            }
        }
        &[]
    }

    /// Every prefix with its peers.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = (&IpNet, &[u32])> {
        self.lists.iter().map(|(prefix, list)| (prefix, &**list))
    }
}
