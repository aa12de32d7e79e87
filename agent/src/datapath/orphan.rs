//! Endpoints whose pod is not known any more, while what they are watched at is still there.
//!
//! A Pod object can go before its processes do: a manifest is removed, an object is deleted by force, or an agent starts after
//! the object went. Nothing may become less restricted because its pod is not known. So programs stay at an interface until
//! the interface is gone, and at a control group until the group is gone or has no process.
//!
//! An *orphan* is an endpoint that this agent has followed: it keeps its policy as far as the caller's tables name it. A
//! *stranger* is one that a former agent left, and that no pod has claimed: its entry in the kernel stays as it is. The rules of
//! its set are gone with the first policy that this agent writes, so it is denied everything in the directions in which it is
//! isolated. Both are bounded by the interfaces and groups of the node, and by the slots that they hold.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use sekisho_core::layout::{self, CGROUP_ENDPOINT, address_flags, endpoint_flags};

use super::Datapath;
use super::attach::Finding;
use super::endpoint::{EndpointChange, Stranger, boundary};
use super::follow::{Endpoint, Left};
use super::netlink::Link;
use crate::inventory::Pod;

const MESSAGE: &str = "orphaned: its pod is not known any more, and it stays under its policy until its interface is gone";

impl Endpoint {
    /// Whether what it is watched at is still there, and something may still speak behind it.
    fn remains(&self, links: Option<&[Link]>) -> bool {
        if !self.info.ready || self.info.host_network {
            return false;
        }
        match self.ifindex() {
            Some(ifindex) => links.is_none_or(|links| {
                let name = self.info.interface.as_deref();
                links.iter().any(|link| link.index == ifindex && name.is_none_or(|name| link.name == name))
            }),
            None => self.cgroup.as_ref().is_some_and(|group| group.alive() && !group.pids().is_empty()),
        }
    }
}

impl Datapath {
    /// Forgets endpoints whose pod is not among `pods`, unless what they are watched at is still there.
    pub(super) fn forget_absent(&mut self, pods: &[Arc<Pod>], changes: &mut Vec<EndpointChange>, left: &mut Vec<Left>) {
        let present: HashSet<&str> = pods.iter().map(|pod| &*pod.uid).collect();
        let (known, absent): (Vec<Arc<str>>, _) = self.endpoints.keys().cloned().partition(|uid| present.contains(&**uid));
        for uid in known {
            if let Some(endpoint) = self.endpoints.get_mut(&uid)
                && std::mem::take(&mut endpoint.info.orphaned)
            {
                endpoint.info.message = None;
            }
        }
        if absent.is_empty() {
            return;
        }
        let links = self.netlink.links(None).ok().filter(|_| self.netlink.is_whole());
        for uid in absent {
            let Some(endpoint) = self.endpoints.get_mut(&uid) else { continue };
            if !endpoint.remains(links.as_deref()) {
                left.extend(endpoint.leave(changes));
                self.endpoints.remove(&uid);
                continue;
            }
            if !endpoint.info.orphaned {
                tracing::warn!(pod_uid = %uid, interface = endpoint.info.interface.as_deref(), "{MESSAGE}");
                endpoint.info.orphaned = true;
                endpoint.info.message = Some(MESSAGE.into());
            }
            // An address that has come to another pod since must not be spoken for here.
            let own = endpoint.written.map_or(0, |entry| entry.instance);
            let addresses = &self.tables.addresses;
            endpoint.info.addresses.retain(|address| {
                let holder = addresses.get(&boundary(*address));
                holder.is_none_or(|holder| holder.flags & address_flags::POD == 0 || holder.instance == own)
            });
        }
    }

    /// Numbers that no pod has claimed, with their entries.
    fn unclaimed(&self) -> Vec<(u32, layout::Endpoint)> {
        let claimed: HashSet<u32> = self.endpoints.values().map(|endpoint| endpoint.info.number).collect();
        let numbers: Vec<u32> = self.slots.numbers().map(|(number, _)| number).filter(|number| !claimed.contains(number)).collect();
        if numbers.is_empty() {
            return Vec::new();
        }
        let of_formers: HashMap<u32, layout::Endpoint> =
            self.formers.iter().flat_map(|former| former.endpoints().unwrap_or_default()).collect();
        let entry = |number: u32| {
            let here = self.maps.endpoints.get(&number).ok().flatten();
            Some((number, here.or_else(|| of_formers.get(&number).copied())?))
        };
        numbers.into_iter().filter_map(entry).collect()
    }

    /// Interfaces that no pod has claimed, with their entries.
    pub(super) fn unclaimed_interfaces(&self) -> Vec<(u32, layout::Endpoint)> {
        self.unclaimed().into_iter().filter(|(number, _)| number & CGROUP_ENDPOINT == 0).collect()
    }

    /// Endpoints of a former agent whose pods are not known.
    pub fn strangers(&self) -> Vec<Stranger> {
        let stranger = |(number, entry): (u32, layout::Endpoint)| Stranger {
            number,
            instance: entry.instance,
            addresses: held(&entry).collect(),
            isolated: [endpoint_flags::ISOLATED_EGRESS, endpoint_flags::ISOLATED_INGRESS].map(|flag| entry.flags & flag != 0),
        };
        let host = |entry: &layout::Endpoint| entry.flags & endpoint_flags::HOST_NETWORK != 0;
        self.unclaimed().into_iter().filter(|(_, entry)| !host(entry)).map(stranger).collect()
    }

    /// Removes strangers whose interface or control group is gone, and those at the control group of a pod that is watched
    /// elsewhere now.
    pub(super) fn drop_strangers(&mut self) {
        let strangers = self.unclaimed();
        if strangers.is_empty() {
            return;
        }
        let Ok(links) = self.netlink.links(None) else { return };
        if !self.netlink.is_whole() {
            return;
        }
        let links: HashSet<u32> = links.into_iter().map(|link| link.index).collect();
        let groups: HashMap<u32, u64> =
            self.maps.cgroups.entries().unwrap_or_default().into_iter().map(|(id, number)| (number, id)).collect();
        let known: HashSet<u64> = self.endpoints.values().filter(|e| e.info.ready).filter_map(|e| Some(e.cgroup.as_ref()?.id)).collect();
        for (number, entry) in strangers {
            let group = groups.get(&number).copied();
            let gone = if number & CGROUP_ENDPOINT == 0 {
                !links.contains(&number)
            } else {
                entry.flags & endpoint_flags::HOST_NETWORK != 0 && self.all_found()
                    || group.is_none_or(|id| known.contains(&id) || self.is_gone(id))
            };
            if gone && let Err(error) = self.withdraw(number, group) {
                tracing::warn!(%error, number, "a former endpoint could not be removed whole");
            }
        }
    }

    fn all_found(&self) -> bool {
        self.endpoints.values().all(Endpoint::found)
    }

    /// Whether no live program of ours, or of a former layout, is at a control group any more.
    fn is_gone(&self, id: u64) -> bool {
        let here = self.attacher.check_cgroup(&self.programs, id);
        !matches!(here, Ok(Finding::Good) | Err(_))
            && !self.formers.iter().any(|former| self.attacher.former_links(&former.dir, 0, Some(id)))
    }

    /// Takes over from former layouts what no pod has claimed, so that those can go.
    pub(super) fn adopt_strangers(&mut self) -> io::Result<()> {
        let here = |number: &u32| self.maps.endpoints.get(number).is_ok_and(|entry| entry.is_some());
        let waiting: Vec<_> = self.unclaimed().into_iter().filter(|(number, _)| !here(number)).collect();
        let groups: HashMap<u32, u64> = self.maps.cgroups.entries()?.into_iter().map(|(id, number)| (number, id)).collect();
        for (number, entry) in waiting {
            let group = groups.get(&number).copied();
            self.maps.endpoints.put(&number, &entry)?;
            let crossings = self.begin_crossing(&[(number, group)]);
            let attached = if number & CGROUP_ENDPOINT == 0 { self.attach_interface(number).map(drop) } else { Ok(()) };
            let attached = attached.and_then(|()| group.map_or(Ok(()), |id| self.attacher.take_group(&self.programs, id)));
            self.end_crossing(crossings);
            if let Err(error) = attached {
                // Without its entry here, the former layout stays until this has succeeded.
                self.maps.endpoints.remove(&number)?;
                return Err(error);
            }
        }
        Ok(())
    }
}

/// The addresses in an endpoint's entry.
pub(super) fn held(entry: &layout::Endpoint) -> impl Iterator<Item = IpAddr> {
    let count = usize::from(entry.address_count);
    entry.addresses.into_iter().take(count).map(|address| Ipv6Addr::from(address).to_canonical())
}
