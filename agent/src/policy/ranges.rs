//! Where pods' addresses come from, as far as the cluster says: who may have an address that no known pod has.

use std::collections::HashSet;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::inventory::Snapshot;

/// Networks, asked for the ones that contain an address.
#[derive(Default)]
struct Networks {
    all: HashSet<IpNet>,
    /// Prefix lengths in use, `[IPv4, IPv6]`.
    lengths: [Vec<u8>; 2],
}

impl Networks {
    fn of(networks: impl Iterator<Item = IpNet>) -> Self {
        let all: HashSet<IpNet> = networks.map(|network| network.trunc()).collect();
        let lengths = [false, true].map(|v6| {
            let mut lengths: Vec<u8> = all.iter().filter(|n| n.addr().is_ipv6() == v6).map(IpNet::prefix_len).collect();
            lengths.sort_unstable();
            lengths.dedup();
            lengths
        });
        Self { all, lengths }
    }

    fn contain(&self, address: IpAddr) -> bool {
        let lengths = &self.lengths[usize::from(address.is_ipv6())];
        lengths.iter().any(|length| self.all.contains(&IpNet::new_assert(address, *length).trunc()))
    }
}

/// See the module.
pub(super) struct Ranges {
    /// What nodes give their pods.
    exact: Networks,
    /// The same with what lies around it; where no node says what it gives, what lies around known pods.
    around: Networks,
}

/// CNIs with an address management of their own take addresses from the cluster's network, not from the node's part of it.
const CLUSTER: [u8; 2] = [16, 48];
/// A subnet, where pods share one with machines.
const SUBNET: [u8; 2] = [24, 64];

fn widened(address: IpAddr, length: u8, least: [u8; 2]) -> IpNet {
    IpNet::new_assert(address, length.min(least[usize::from(address.is_ipv6())]))
}

impl Ranges {
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        let exact = Networks::of(snapshot.nodes.values().flat_map(|node| &node.pod_networks).copied());
        let around = if exact.all.is_empty() {
            let pods = snapshot.pods.values().filter(|pod| !pod.host_network);
            Networks::of(pods.flat_map(|pod| &pod.ips).map(|ip| widened(*ip, 128, SUBNET)))
        } else {
            Networks::of(exact.all.iter().map(|network| widened(network.addr(), network.prefix_len(), CLUSTER)))
        };
        Self { exact, around }
    }

    /// Whether nobody but a pod has such an address.
    pub(super) fn are_pods(&self, address: IpAddr) -> bool {
        self.exact.contain(address)
    }

    /// Whether it may well be a pod's, where something says that it is.
    pub(super) fn may_be_pods(&self, address: IpAddr) -> bool {
        self.around.contain(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::files::snapshot_of;
    use crate::policy::tests::pod;

    fn asked(snapshot: &Snapshot, address: &str) -> (bool, bool) {
        let (ranges, address) = (Ranges::of(snapshot), address.parse().unwrap());
        (ranges.are_pods(address), ranges.may_be_pods(address))
    }

    #[test]
    fn what_nodes_say_counts_else_what_is_near_pods() {
        let near = pod("a", "10.1.2.3", "", "") + &pod("b", "fd00:1:2:3::4", "", "");
        let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\nspec: {podCIDRs: [10.244.1.0/24, 'fd01:2:3:4::/64'], podCIDR: 10.244.1.0/24}\n";
        let told = snapshot_of(&(near.clone() + node));
        for (address, answer) in [
            ("10.244.1.9", (true, true)),
            ("10.244.2.9", (false, true)),
            ("10.1.2.9", (false, false)),
            ("fd01:2:3:4::9", (true, true)),
            ("fd01:2:3:5::9", (false, true)),
            ("fd01:2:4::9", (false, false)),
        ] {
            assert_eq!(asked(&told, address), answer, "{address}");
        }
        let untold = snapshot_of(&near);
        for (address, answer) in
            [("10.1.2.9", (false, true)), ("10.1.3.9", (false, false)), ("fd00:1:2:3::9", (false, true)), ("fd00:1:2:4::9", (false, false))]
        {
            assert_eq!(asked(&untold, address), answer, "{address}");
        }
    }
}
