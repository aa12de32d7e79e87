//! One local pod as it is followed: where it is watched, which addresses are its own, and whether it may stay there.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sekisho_core::layout::{self, CGROUP_ENDPOINT};

use super::cgroup::PodCgroup;
use super::discover::Surroundings;
use super::endpoint::{ChangeKind, EndpointChange, EndpointInfo};
use crate::inventory::Pod;

/// How often pods that have been found are looked at again while others come and go: they must not make those wait. Just as long
/// after it was found a pod is looked at each time: its addresses come one after the other.
pub(super) const WHOLE_INTERVAL: Duration = Duration::from_millis(100);

/// How long a pod's interface may be under construction after it has been found.
const SET_UP: Duration = Duration::from_secs(10);

/// Said of an interface that stays an endpoint's although another namespace is behind it.
pub(super) const MOVED: &str = "its interface leads into another network namespace than before, and is judged as before";

/// What is in the kernel of an endpoint at a place it has left: its number, and the group that it was watched at.
pub(super) type Left = (u32, Option<u64>);

/// A local pod and where it is watched.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent of one another")]
pub(super) struct Endpoint {
    pub(super) info: EndpointInfo,
    pub(super) cgroup: Option<PodCgroup>,
    /// Namespace of an interface endpoint.
    pub(super) nsid: Option<i32>,
    /// When it got its place.
    pub(super) placed: Instant,
    /// Its status has named addresses that it holds here.
    named: bool,
    /// The cgroup that programs are attached to.
    pub(super) watched: Option<u64>,
    /// Its runtime may bring a network stack of its own.
    pub(super) own_stack: bool,
    /// It was there at this agent's first look.
    pub(super) from_start: bool,
    /// See [`layout::Endpoint::adopts_until`]; nothing before it has been written.
    pub(super) adopts_until: Option<u32>,
    /// It may speak: its programs have run here.
    pub(super) live: bool,
    /// What `ENDPOINTS` holds for it.
    pub(super) written: Option<layout::Endpoint>,
    /// See [`layout::Endpoint::since_ns`].
    pub(super) since_ns: u64,
    /// Evidence that was there before.
    pub(super) one_way: u64,
    /// Packets to it bypass its interface: its cgroup is watched as well, if there is one.
    pub(super) blind: bool,
}

impl Endpoint {
    pub(super) fn new(pod: &Pod, from_start: bool) -> Self {
        let info = EndpointInfo { uid: Arc::clone(&pod.uid), host_network: pod.host_network, ..EndpointInfo::default() };
        Self {
            info,
            cgroup: None,
            nsid: None,
            placed: Instant::now(),
            named: false,
            watched: None,
            own_stack: pod.runtime_class.is_some(),
            from_start,
            adopts_until: None,
            live: false,
            written: None,
            since_ns: 0,
            one_way: 0,
            blind: false,
        }
    }

    /// Whether it has a number.
    pub(super) fn found(&self) -> bool {
        self.info.number != 0
    }

    /// Its interface, if it is watched there.
    pub(super) fn ifindex(&self) -> Option<u32> {
        (self.found() && self.info.number & CGROUP_ENDPOINT == 0).then_some(self.info.number)
    }

    /// Whether it may be passed over while others are looked for: it has been here for a while, and its place is there.
    pub(super) fn rests(&self, surroundings: &Surroundings<'_>) -> bool {
        let (stands, after) = match self.ifindex() {
            Some(ifindex) => (surroundings.still(ifindex, self.nsid), WHOLE_INTERVAL),
            // A group that came in the place of another has no programs yet. An interface may still come.
            None => (
                self.watched.is_some() && self.watched == self.cgroup.as_ref().map(|cgroup| cgroup.id),
                if self.info.host_network { WHOLE_INTERVAL } else { SET_UP },
            ),
        };
        self.found() && stands && self.placed.elapsed() >= after
    }

    /// Which of the addresses that it holds are its own: those that its status names, and of a family that the status does not
    /// name all. Who may change its network could else give itself another pod's. Before there is a status, and after its network was
    /// made anew, what it holds is true.
    pub(super) fn own(&mut self, held: Vec<IpAddr>, status: &[IpAddr]) -> Vec<IpAddr> {
        let names_some = held.iter().any(|address| status.contains(address));
        self.named |= names_some;
        if !self.named {
            return held;
        }
        if !names_some {
            return self.info.addresses.clone();
        }
        let family = |address: &IpAddr| status.iter().any(|named| named.is_ipv4() == address.is_ipv4());
        held.into_iter().filter(|address| status.contains(address) || !family(address)).collect()
    }

    /// Says of its interface whether it leads where its processes are.
    pub(super) fn note_moved(&mut self, surroundings: &Surroundings<'_>) {
        let moved = self.ifindex().is_some_and(|ifindex| !surroundings.still(ifindex, self.nsid));
        if moved {
            self.info.message = Some(MOVED.into());
        } else if self.info.message.as_deref() == Some(MOVED) {
            self.info.message = None;
        }
    }

    /// Forgets its place. Tells what is in the kernel there: its number, and the group that it was watched at.
    pub(super) fn leave(&mut self, changes: &mut Vec<EndpointChange>) -> Option<Left> {
        if !self.found() {
            return None;
        }
        let number = self.info.number;
        changes.push(EndpointChange { uid: Arc::clone(&self.info.uid), number, kind: ChangeKind::Gone });
        let info = &mut self.info;
        *info = EndpointInfo {
            uid: Arc::clone(&info.uid),
            host_network: info.host_network,
            sources: std::mem::take(&mut info.sources),
            ..EndpointInfo::default()
        };
        self.written = None;
        self.named = false;
        self.nsid = None;
        self.live = false;
        self.since_ns = 0;
        self.one_way = 0;
        self.blind = false;
        Some((number, self.watched.take()))
    }
}

/// What has become of an endpoint's place.
pub(super) enum Settled {
    Stays,
    /// It has another name, other addresses or another MAC, which are noted.
    Changed,
    /// It must be looked for again.
    Lost,
}

/// Whether an endpoint may stay where it is.
pub(super) fn settled(endpoint: &mut Endpoint, pod: &Pod, surroundings: &mut Surroundings<'_>) -> Settled {
    let stays = |holds| if holds { Settled::Stays } else { Settled::Lost };
    let Some(ifindex) = endpoint.ifindex().filter(|ifindex| surroundings.still(*ifindex, endpoint.nsid)) else { return Settled::Lost };
    let Some(nsid) = endpoint.nsid else { return stays(endpoint.info.addresses == pod.ips) };
    let Some(held) = surroundings.addresses_behind(ifindex, nsid) else { return Settled::Lost };
    // Status names addresses that are elsewhere: look again.
    let wrong = !pod.ips.is_empty() && !pod.ips.iter().any(|address| held.contains(address)) && endpoint.info.message.is_none();
    let none = held.is_empty() && !endpoint.info.addresses.is_empty();
    if none || (wrong && !held.is_empty()) {
        return Settled::Lost;
    }
    let addresses = endpoint.own(held, &pod.ips);
    let info = &mut endpoint.info;
    let interface: Option<Arc<str>> = surroundings.name(ifindex).map(Arc::from);
    // Plugins that come after the one that gave the address may give another MAC. One that is new later may be the pod's own doing.
    let (mut mac, mut link_local) = (info.mac, info.link_local);
    if endpoint.placed.elapsed() < SET_UP {
        mac = surroundings.mac_behind(ifindex, nsid).or(mac);
        link_local = surroundings.link_local(nsid, &addresses, mac).or(link_local);
    }
    if (&addresses, &interface, mac, link_local) == (&info.addresses, &info.interface, info.mac, info.link_local) {
        return Settled::Stays;
    }
    (info.addresses, info.interface, info.mac, info.link_local) = (addresses, interface, mac, link_local);
    Settled::Changed
}
