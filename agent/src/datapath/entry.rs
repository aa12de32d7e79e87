//! What the kernel is told of an endpoint: its policy, and what it may speak as.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use sekisho_core::layout::{self, endpoint_flags};

use super::Datapath;
use super::discover::link_local_of;
use super::endpoint::{Coverage, EndpointInfo, boundary};
use super::error::ApplyError;
use crate::inventory::Pod;
use crate::policy::EndpointPolicy;

/// Networks that an endpoint may speak for.
const SOURCES: usize = 4;

impl Datapath {
    pub(super) fn note_sources(&mut self, pods: &[Arc<Pod>]) {
        for pod in pods {
            if let Some(endpoint) = self.endpoints.get_mut(&pod.uid)
                && endpoint.info.sources != pod.allow_sources
            {
                endpoint.info.sources.clone_from(&pod.allow_sources);
                if pod.allow_sources.len() > SOURCES {
                    tracing::warn!(pod = %pod.name, "sekisho.dev/allow-sources: only the first {SOURCES} networks are in force");
                }
            }
        }
    }

    /// Writes the entry of every endpoint that has a place and a policy.
    pub(super) fn point_endpoints(&mut self) -> Result<(), ApplyError> {
        let (established_cap, answered_cap) = (self.sizes.established / 4, self.sizes.answered / 8);
        for endpoint in self.endpoints.values_mut().filter(|endpoint| endpoint.found()) {
            let Some(policy) = self.tables.endpoints.get(&endpoint.info.uid) else { continue };
            let entry = entry(&endpoint.info, policy, established_cap, answered_cap);
            endpoint.info.set = policy.set;
            endpoint.info.isolated = policy.isolated;
            if endpoint.written == Some(entry) {
                continue;
            }
            self.maps.endpoints.put(&endpoint.info.number, &entry).map_err(|source| ApplyError::Map { map: "ENDPOINTS", source })?;
            endpoint.written = Some(entry);
            self.repointed = true;
        }
        Ok(())
    }
}

fn last_half(address: Ipv6Addr) -> [u8; 8] {
    let [.., a, b, c, d, e, f, g, h] = address.octets();
    [a, b, c, d, e, f, g, h]
}

fn entry(info: &EndpointInfo, policy: &EndpointPolicy, established_cap: u32, answered_cap: u32) -> layout::Endpoint {
    let mut flags = 0;
    if policy.isolated[usize::from(layout::EGRESS)] {
        flags |= endpoint_flags::ISOLATED_EGRESS;
    }
    if policy.isolated[usize::from(layout::INGRESS)] {
        flags |= endpoint_flags::ISOLATED_INGRESS;
    }
    if policy.host_network || info.host_network {
        flags |= endpoint_flags::HOST_NETWORK;
    }
    if info.coverage == Coverage::OneWay {
        flags |= endpoint_flags::ONE_WAY;
    }
    let mut entry = layout::Endpoint {
        index: info.index,
        set: policy.set,
        instance: policy.instance,
        flags,
        established_cap,
        answered_cap,
        mac: info.mac.unwrap_or_default(),
        link_local: info.mac.map(|mac| last_half(info.link_local.unwrap_or_else(|| link_local_of(mac)))).unwrap_or_default(),
        node_netns: info.node_netns,
        sources: [[0xff; 16]; SOURCES],
        masks: [[0xff; 16]; SOURCES],
        ..layout::Endpoint::ZERO
    };
    for (slot, address) in entry.addresses.iter_mut().zip(&info.addresses) {
        *slot = boundary(*address);
        entry.address_count += 1;
    }
    for (slot, net) in info.sources.iter().take(SOURCES).enumerate() {
        entry.sources[slot] = boundary(net.network());
        // IPv4 in its v4-mapped form: the first 96 bits are its prefix.
        entry.masks[slot] = match net.netmask() {
            IpAddr::V4(mask) => (u128::from(mask.to_bits()) | !u128::from(u32::MAX)).to_be_bytes(),
            IpAddr::V6(mask) => mask.octets(),
        };
    }
    entry
}
