//! What the kernel is told of an endpoint: its policy, and what it may speak as.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use sekisho_core::layout::{self, endpoint_flags};

use super::Datapath;
use super::discover::link_local_of;
use super::endpoint::{Coverage, boundary};
use super::error::ApplyError;
use super::follow::Endpoint;
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
                    tracing::warn!(
                        namespace = &*pod.namespace,
                        pod = &*pod.name,
                        "sekisho.dev/allow-sources: only the first {SOURCES} networks are in force"
                    );
                }
            }
        }
    }

    /// Writes the entry of every endpoint that has a place and a policy.
    pub(super) fn point_endpoints(&mut self) -> Result<(), ApplyError> {
        let (established_cap, answered_cap) = (self.sizes.established / 4, self.sizes.answered / 8);
        let mut adopting = Adopting::default();
        let undecided = self.endpoints.values().filter(|endpoint| endpoint.found() && endpoint.adopts_until.is_none());
        for uid in undecided.map(|endpoint| Arc::clone(&endpoint.info.uid)).collect::<Vec<_>>() {
            self.note_adoption(&uid, &mut adopting)?;
        }
        for endpoint in self.endpoints.values_mut().filter(|endpoint| endpoint.found()) {
            let Some(policy) = self.tables.endpoints.get(&endpoint.info.uid) else { continue };
            let mut entry = entry(endpoint, policy, established_cap, answered_cap);
            entry.since_ns = endpoint.since_ns;
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

/// What is read once, and only where an endpoint is written for the first time.
#[derive(Default)]
struct Adopting {
    boot_seconds: Option<u64>,
    /// Endpoints of former layouts by number.
    former: Option<HashMap<u32, layout::Endpoint>>,
}

impl Datapath {
    /// Finds out until when an endpoint that is about to be written for the first time may have connections that nobody has seen.
    /// The time is the pod's: neither another place nor another agent that finds its entry makes it longer. A pod that was held from
    /// its first packet on has no such connections.
    fn note_adoption(&mut self, uid: &Arc<str>, adopting: &mut Adopting) -> Result<(), ApplyError> {
        let failed = |source| ApplyError::Map { map: "ENDPOINTS", source };
        let (Some(endpoint), Some(policy)) = (self.endpoints.get(uid), self.tables.endpoints.get(uid)) else { return Ok(()) };
        let number = endpoint.info.number;
        let mut known = self.maps.endpoints.get(&number).map_err(failed)?;
        if known.is_none() && !self.formers.is_empty() {
            let formers = &self.formers;
            let former =
                adopting.former.get_or_insert_with(|| formers.iter().flat_map(|former| former.endpoints().unwrap_or_default()).collect());
            known = former.get(&number).copied();
        }
        let until = match known.filter(|known| known.instance == policy.instance) {
            Some(known) => known.adopts_until,
            None if self.was_held(endpoint) => 0,
            None => {
                let seconds = match adopting.boot_seconds {
                    Some(seconds) => seconds,
                    None => self.boot_seconds().map_err(failed)?,
                };
                adopting.boot_seconds = Some(seconds);
                u32::try_from(seconds + self.adoption_window.as_secs()).unwrap_or(u32::MAX)
            }
        };
        if let Some(endpoint) = self.endpoints.get_mut(uid) {
            endpoint.adopts_until = Some(until);
        }
        Ok(())
    }

    fn boot_seconds(&self) -> io::Result<u64> {
        // Rounded up, so that no window is shorter than asked for.
        self.boot_ns().map(|ns| ns / 1_000_000_000 + 1)
    }
}

fn last_half(address: Ipv6Addr) -> [u8; 8] {
    let mut half = [0; 8];
    half.copy_from_slice(&address.octets()[8..]);
    half
}

fn entry(endpoint: &Endpoint, policy: &EndpointPolicy, established_cap: u32, answered_cap: u32) -> layout::Endpoint {
    let info = &endpoint.info;
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
    if endpoint.own_stack {
        flags |= endpoint_flags::OWN_STACK;
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
        netns: endpoint.nsid.and_then(|nsid| u32::try_from(nsid).ok()).map_or(0, |nsid| nsid + 1),
        adopts_until: endpoint.adopts_until.unwrap_or(0),
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
