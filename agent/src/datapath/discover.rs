//! Finding a pod's place on the node, without privilege and without asking the CNI.
//!
//! Pod -> control group -> a process in it -> id of its network namespace -> the host's veth with that id at its other
//! end. Without a control group: the namespace that holds the pod's addresses; without a namespace: the interface to
//! which the pod's host route or bridge port leads. Only the interface that holds the pod's addresses is judged.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::fs::MetadataExt;

use sekisho_core::layout;

use super::cgroup::PodCgroup;
use super::netlink::{Held, Link, Netlink};
use super::orphan::held;
use crate::inventory::Pod;

/// Where a pod can be watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The host side of its veth.
    Interface {
        /// Interface index on the node.
        ifindex: u32,
        /// Its name.
        name: String,
        /// The pod's namespace, where it has a number.
        nsid: Option<i32>,
        /// Addresses on the other end.
        addresses: Vec<IpAddr>,
        /// MAC of the other end.
        mac: Option<[u8; 6]>,
        /// Further interfaces of the pod that hold addresses and are not judged.
        others: Vec<String>,
    },
    /// Only its control group.
    Cgroup {
        /// Addresses that it uses.
        addresses: Vec<IpAddr>,
        /// Why there is no interface; `None` for hostNetwork.
        because: Option<String>,
    },
    /// Not found yet, and why.
    Unknown(String),
}

/// The node as it stands at one reconciliation: each thing is asked for once.
pub(super) struct Surroundings<'a> {
    netlink: &'a mut Netlink,
    links: Vec<Link>,
    /// No interface is missing in the list.
    complete: bool,
    held: HashMap<i32, Vec<Held>>,
    own_netns: Option<u64>,
}

/// Kinds of interfaces that end in a pod. Programs read Ethernet headers, which others do not have (netkit in mode `l3`).
fn ends_in_pod(link: &Link) -> bool {
    link.ethernet && matches!(link.kind.as_deref(), Some("veth" | "netkit"))
}

/// Kinds of interfaces that lead nowhere but into the namespace they are in, or to a program there.
fn leads_nowhere(link: &Link) -> bool {
    matches!(link.kind.as_deref(), Some("dummy" | "bridge" | "tun"))
}

impl<'a> Surroundings<'a> {
    /// Looks around.
    pub(super) fn new(netlink: &'a mut Netlink) -> io::Result<Self> {
        let own_netns = fs::metadata("/proc/thread-self/ns/net").ok().map(|metadata| metadata.ino());
        let mut surroundings = Self { netlink, links: Vec::new(), complete: false, held: HashMap::new(), own_netns };
        surroundings.refresh()?;
        Ok(surroundings)
    }

    /// Looks around again.
    pub(super) fn refresh(&mut self) -> io::Result<()> {
        self.links = self.netlink.links(None)?;
        self.complete = self.netlink.is_whole();
        self.held.clear();
        Ok(())
    }

    /// Whether the interface is still there and still leads to that namespace. Of an interface that a torn list passed over
    /// nothing is known, so it is.
    pub(super) fn still(&self, ifindex: u32, nsid: Option<i32>) -> bool {
        self.links.iter().find(|link| link.index == ifindex).map_or(!self.complete, |link| nsid.is_none() || link.nsid == nsid)
    }

    /// Whether the interface is still there, wherever it leads. An index may be given again, its name hardly with it.
    pub(super) fn exists(&self, ifindex: u32, name: Option<&str>) -> bool {
        let found = self.links.iter().find(|link| link.index == ifindex);
        found.map_or(!self.complete, |link| name.is_none_or(|name| link.name == name))
    }

    /// The interface that a former agent watched for the addresses of a pod that cannot be found otherwise.
    pub(super) fn inherited(&self, pod: &Pod, unclaimed: &[(u32, layout::Endpoint)]) -> Option<Place> {
        let (ifindex, _) = unclaimed.iter().find(|(_, entry)| held(entry).any(|address| pod.ips.contains(&address)))?;
        let link = self.links.iter().find(|link| link.index == *ifindex && ends_in_pod(link))?;
        Some(bare(link, pod))
    }

    /// Interfaces that lead into namespaces.
    pub(super) fn ends(&self) -> Vec<u32> {
        self.links.iter().filter(|link| link.nsid.is_some() && ends_in_pod(link)).map(|link| link.index).collect()
    }

    /// Finds a pod.
    pub(super) fn find(&mut self, pod: &Pod, cgroup: Option<&PodCgroup>) -> Place {
        if pod.host_network {
            return match cgroup {
                Some(_) => Place::Cgroup { addresses: pod.ips.clone(), because: None },
                None => Place::Unknown(
                    "its control group has not been found: no process of it runs, or the cgroup v2 tree is not visible".into(),
                ),
            };
        }
        if let Some(nsid) = cgroup.and_then(|cgroup| self.namespace_of(cgroup)).or_else(|| self.namespace_holding(&pod.ips)) {
            return self.interface_in(nsid, pod, cgroup.is_some());
        }
        if let Some(link) = self.routed_to(&pod.ips) {
            if !link.ethernet {
                return without_ethernet(&link);
            }
            return bare(&link, pod);
        }
        match cgroup.filter(|cgroup| self.lives_elsewhere(cgroup)) {
            Some(_) => Place::Cgroup { addresses: pod.ips.clone(), because: Some("no veth of the node leads into its namespace".into()) },
            None => Place::Unknown("no process of it and no namespace with its addresses has been found".into()),
        }
    }

    /// The namespace of a pod's processes. A container's first one begins in the node's, and may not be looked at there
    /// (`prctl(2)`, `PR_SET_DUMPABLE`): it is known by what the node calls itself.
    fn namespace_of(&mut self, cgroup: &PodCgroup) -> Option<i32> {
        for pid in cgroup.pids().into_iter().take(64) {
            // Asked afterwards: the node is called something once an interface of another namespace has been looked at.
            if let Some(nsid) = self.netlink.nsid_of(pid).ok().flatten()
                && self.netlink.node_seen_from(None).ok()? != Some(nsid)
            {
                return Some(nsid);
            }
        }
        None
    }

    /// Whether some process of it is known to live in another namespace than ours.
    fn lives_elsewhere(&self, cgroup: &PodCgroup) -> bool {
        let netns = |pid: u32| fs::metadata(format!("/proc/{pid}/ns/net")).ok().map(|metadata| metadata.ino());
        cgroup.pids().into_iter().filter_map(netns).any(|netns| Some(netns) != self.own_netns)
    }

    fn addresses_in(&mut self, nsid: i32) -> &[Held] {
        let netlink = &mut *self.netlink;
        self.held.entry(nsid).or_insert_with(|| {
            let held = netlink.addresses(Some(nsid)).unwrap_or_default();
            held.into_iter().filter(|held| !held.address.is_loopback() && !is_link_local(held.address)).collect()
        })
    }

    fn namespace_holding(&mut self, ips: &[IpAddr]) -> Option<i32> {
        if ips.is_empty() {
            return None;
        }
        let mut nsids: Vec<i32> = self.links.iter().filter(|link| ends_in_pod(link)).filter_map(|link| link.nsid).collect();
        nsids.sort_unstable();
        nsids.dedup();
        nsids.into_iter().find(|nsid| self.addresses_in(*nsid).iter().any(|held| ips.contains(&held.address)))
    }

    /// Addresses that the other end of an interface holds now.
    pub(super) fn addresses_behind(&mut self, ifindex: u32, nsid: i32) -> Option<Vec<IpAddr>> {
        let peer = self.links.iter().find(|link| link.index == ifindex)?.peer?;
        Some(self.addresses_in(nsid).iter().filter(|held| held.ifindex == peer).map(|held| held.address).collect())
    }

    /// Name of an interface.
    pub(super) fn name(&self, ifindex: u32) -> Option<&str> {
        self.links.iter().find(|link| link.index == ifindex).map(|link| link.name.as_str())
    }

    /// MAC of the other end of an interface.
    pub(super) fn mac_behind(&mut self, ifindex: u32, nsid: i32) -> Option<[u8; 6]> {
        let peer = self.links.iter().find(|link| link.index == ifindex)?.peer?;
        self.netlink.link(peer, nsid).ok()??.mac
    }

    /// See [`link_local_beside`].
    pub(super) fn link_local(&mut self, nsid: i32, addresses: &[IpAddr], mac: Option<[u8; 6]>) -> Option<Ipv6Addr> {
        link_local_beside(self.netlink, nsid, addresses, mac)
    }

    fn interface_in(&mut self, nsid: i32, pod: &Pod, has_cgroup: bool) -> Place {
        let candidates: Vec<Link> = self.links.iter().filter(|link| link.nsid == Some(nsid) && ends_in_pod(link)).cloned().collect();
        let held = self.addresses_in(nsid).to_vec();
        let on = |link: &Link| held.iter().filter(|held| Some(held.ifindex) == link.peer).map(|held| held.address).collect::<Vec<_>>();
        let holds_status = |link: &&Link| on(link).iter().any(|address| pod.ips.contains(address));
        let chosen = candidates.iter().find(holds_status).or_else(|| {
            // Its status may be late; but what status names must not sit on an interface that we cannot watch.
            let elsewhere = held.iter().any(|held| pod.ips.contains(&held.address));
            candidates.iter().filter(|link| !elsewhere && !on(link).is_empty()).min_by_key(|link| link.peer)
        });
        let Some(link) = chosen else {
            return self.interface_without_address(nsid, pod, &candidates, &held, has_cgroup);
        };
        let others =
            candidates.iter().filter(|other| other.index != link.index && !on(other).is_empty()).map(|other| other.name.clone()).collect();
        let mac = self.mac_behind(link.index, nsid);
        Place::Interface { ifindex: link.index, name: link.name.clone(), nsid: Some(nsid), addresses: on(link), mac, others }
    }

    /// None of the interfaces into a pod's namespace holds its addresses: a virtual machine behind a bridge may have them, or a
    /// device inside. Then the one is meant to which the node's routes lead, or the only one there is.
    fn interface_without_address(&mut self, nsid: i32, pod: &Pod, candidates: &[Link], held: &[Held], has_cgroup: bool) -> Place {
        if let Some(link) = self.routed_to(&pod.ips) {
            if !link.ethernet && link.kind.as_deref() == Some("tun") {
                return without_ethernet(&link);
            }
            if candidates.contains(&link) || candidates.is_empty() && ends_in_pod(&link) {
                return bare(&link, pod);
            }
        }
        let holder = held.iter().find(|held| pod.ips.contains(&held.address)).map(|held| held.ifindex);
        match (candidates, holder) {
            ([], _) => without_interface(pod, held, has_cgroup),
            (_, None) if pod.ips.is_empty() => Place::Unknown("its interface has no address yet".into()),
            ([only], None) => bare(only, pod),
            ([only], Some(holder)) if self.netlink.link(holder, nsid).ok().flatten().is_some_and(|link| leads_nowhere(&link)) => {
                bare(only, pod)
            }
            (_, Some(_)) => without_interface(pod, held, has_cgroup),
            (_, None) => Place::Unknown("several interfaces lead into its namespace, and none is known to carry its addresses".into()),
        }
    }

    /// The interface behind which an address lies by a host route, or by a bridge's table.
    fn routed_to(&mut self, ips: &[IpAddr]) -> Option<Link> {
        ips.iter().find_map(|address| {
            let route = self.netlink.route_to(*address).ok()??;
            let link = self.links.iter().find(|link| link.index == route.ifindex)?.clone();
            let port = if link.kind.as_deref() == Some("bridge") {
                let mac = self.netlink.neighbour(link.index, *address).ok()??;
                let port = self.netlink.bridge_port(mac).ok()??;
                self.links.iter().find(|link| link.index == port)?.clone()
            } else if route.host {
                link
            } else {
                return None;
            };
            (ends_in_pod(&port) || port.kind.as_deref() == Some("tun")).then_some(port)
        })
    }
}

/// An interface that holds no address of the pod, which are those that its status names.
fn bare(link: &Link, pod: &Pod) -> Place {
    Place::Interface {
        ifindex: link.index,
        name: link.name.clone(),
        nsid: link.nsid,
        addresses: pod.ips.clone(),
        mac: None,
        others: Vec::new(),
    }
}

fn without_ethernet(link: &Link) -> Place {
    Place::Unknown(format!("unseen: its packets pass {}, which has no Ethernet header, and are not judged", link.name))
}

/// The link-local address of the interface that holds one of `addresses` in a namespace. Of several the one that `mac` makes: that
/// is what the kernel gives; an interface may be given others.
pub(super) fn link_local_beside(netlink: &mut Netlink, nsid: i32, addresses: &[IpAddr], mac: Option<[u8; 6]>) -> Option<Ipv6Addr> {
    let held = netlink.addresses(Some(nsid)).ok()?;
    let interface = held.iter().find(|held| addresses.contains(&held.address))?.ifindex;
    let mut all = held.iter().filter(|held| held.ifindex == interface).filter_map(|held| match held.address {
        IpAddr::V6(address) if address.is_unicast_link_local() => Some(address),
        _ => None,
    });
    let made = mac.map(link_local_of);
    let first = all.next()?;
    Some(made.filter(|made| *made == first || all.any(|address| address == *made)).unwrap_or(first))
}

/// The link-local address that an interface's MAC makes (RFC 4291, appendix A).
pub(super) fn link_local_of(mac: [u8; 6]) -> Ipv6Addr {
    let mut octets = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 0, 0];
    octets[8..11].copy_from_slice(&mac[..3]);
    octets[13..].copy_from_slice(&mac[3..]);
    octets[8] ^= 2;
    Ipv6Addr::from(octets)
}

fn without_interface(pod: &Pod, held: &[Held], has_cgroup: bool) -> Place {
    if !has_cgroup {
        return Place::Unknown("no veth of the node leads to its addresses, and its control group has not been found".into());
    }
    let mut addresses: Vec<IpAddr> = held.iter().map(|held| held.address).collect();
    addresses.extend(pod.ips.iter().filter(|address| !held.iter().any(|held| held.address == **address)));
    Place::Cgroup { addresses, because: Some("no veth of the node leads to its addresses".into()) }
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => false,
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
