//! A pod with its policies, in the maps of freshly loaded programs. Everything is on: isolation in both directions,
//! budgets, events, process look-ups.

use anyhow::Result;
use sekisho_core::layout::{
    Address, AddressEntry, CGROUP_ENDPOINT, Config, EGRESS, Endpoint, INGRESS, RuleKey, Rules, address_flags, endpoint_flags, mode,
};
use sekisho_core::parse::mapped;
use sekisho_lab::programs::{Programs, object};

use super::packets::{Family, Peer, SERVICE};

/// The pod's interface.
pub(super) const INTERFACE: u32 = 1;
/// Flows of each family that have not been answered yet, at most.
pub(super) const EMBRYONIC: u32 = 1 << 16;
/// The control group's number.
const GROUP: u32 = CGROUP_ENDPOINT | 2;
/// A pod that no policy selects.
pub(super) const OPEN_INTERFACE: u32 = 2;
/// The size that a machine of two CPUs gives each ring by default.
const RING: u32 = 2 << 20;

/// Sizes that are not the object's own.
const SIZES: [(&str, u32); 2] = [("EMBRYONIC4", EMBRYONIC), ("EMBRYONIC6", EMBRYONIC)];

/// Loads the programs and fills the maps for a node with `policies` policies.
pub(super) fn prepare(policies: u32) -> Result<Programs> {
    let programs = Programs::load(&object()?, RING, &SIZES)?;
    fill(&programs, policies)?;
    Ok(programs)
}

/// The same with the programs of packets in `object`, which another build may have made.
pub(super) fn prepare_other(object: &[u8], policies: u32) -> Result<Programs> {
    let programs = Programs::load_other(object, &["pod_egress", "pod_ingress", "empty"], RING, &SIZES)?;
    fill(&programs, policies)?;
    Ok(programs)
}

/// Each policy has a set, a class, a port table and a network of its own. The pod's is in the middle.
fn fill(programs: &Programs, policies: u32) -> Result<()> {
    let config = Config {
        epoch: 1,
        mode: mode::ENFORCE,
        cgroup_levels: 2,
        linger: 0,
        hz: 250,
        event_rate: 100_000_000,
        event_burst: 10_000_000,
        insert_rate: 100_000_000,
        insert_burst: 10_000_000,
        denied_rate: 100_000_000,
        denied_burst: 10_000_000,
        spoof_enforce: 1,
        ..Config::ZERO
    };
    programs.put("CONFIG", &0u32, &config)?;
    let own = policies / 2;
    for policy in 1..=policies {
        let [_, a, b, c] = policy.to_be_bytes();
        let address = mapped([11, a, b, c]);
        programs.put("ADDRESSES", &address, &AddressEntry { class: policy, instance: policy, flags: address_flags::POD })?;
        programs.put("CIDRS", &prefix(96 + 24, mapped([12 + a, b, c, 0])), &policy)?;
        for direction in [EGRESS, INGRESS] {
            let key = RuleKey { set: policy, class: policy, direction: direction.into() };
            // As the compiler places them: single ports in the row, what does not fit and ranges in the port table.
            let rules = Rules { rule: [policy; 2], port: [SERVICE, 443], protocol: [6; 2], ..Rules::new(0, policy) };
            programs.put("RULES", &key, &rules)?;
        }
        for (protocol, bits, port) in [(6, 48, 9 << 8), (17, 56, SERVICE), (17, 56, 443), (17, 48, 9 << 8)] {
            programs.put("PORTS", &port_key(bits, policy, protocol, port), &policy)?;
        }
    }
    for family in [Family::V4, Family::V6] {
        for (peer, class) in [(Peer::Friend, own), (Peer::Stranger, policies + 1)] {
            let entry = AddressEntry { class, instance: 7, flags: address_flags::POD };
            programs.put("ADDRESSES", &family.peer(peer), &entry)?;
        }
    }
    endpoints(programs, own)
}

fn endpoints(programs: &Programs, set: u32) -> Result<()> {
    let mut endpoint = Endpoint {
        set,
        instance: 1,
        flags: endpoint_flags::ISOLATED_EGRESS | endpoint_flags::ISOLATED_INGRESS,
        established_cap: 1 << 16,
        answered_cap: 1 << 16,
        mac: [2, 0, 0, 0, 0, 2],
        address_count: 2,
        ..Endpoint::ZERO
    };
    endpoint.addresses[0] = Family::V4.pod();
    endpoint.addresses[1] = Family::V6.pod();
    programs.put("ENDPOINTS", &INTERFACE, &endpoint)?;
    let open = Endpoint { index: 1, set: 0, flags: 0, ..endpoint };
    programs.put("ENDPOINTS", &OPEN_INTERFACE, &open)?;
    programs.put("ENDPOINTS", &GROUP, &Endpoint { index: 2, ..endpoint })
}

/// Makes a control group the pod's.
pub(super) fn own(programs: &Programs, group: u64) -> Result<()> {
    programs.put("CG_ENDPOINTS", &group, &GROUP)
}

fn prefix(bits: u32, address: Address) -> [u8; 20] {
    let mut key = [0; 20];
    key[..4].copy_from_slice(&bits.to_ne_bytes());
    key[4..].copy_from_slice(&address);
    key
}

fn port_key(bits: u32, table: u32, protocol: u8, port: u16) -> [u8; 11] {
    let mut key = [0; 11];
    key[..4].copy_from_slice(&bits.to_ne_bytes());
    key[4..8].copy_from_slice(&table.to_be_bytes());
    key[8] = protocol;
    key[9..].copy_from_slice(&port.to_be_bytes());
    key
}
