//! Endpoints follow pods: found, pointed at their policy, attached, and removed when pod or interface is gone.
//!
//! A pod that cannot be found yet stays in the list with the reason. The order for a new one: its entry in
//! `ENDPOINTS` with the policy, then the programs; nothing is attached before there is a policy to judge by.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sekisho_core::layout::{CGROUP_ENDPOINT, EndpointState, EndpointSwept};

use super::cgroup::{self, PodCgroup};
use super::coverage::evidence;
use super::discover::{Place, Surroundings, link_local_beside};
use super::endpoint::{Attach, ChangeKind, Coverage, EndpointChange, EndpointInfo};
use super::follow::{Endpoint, Left, MOVED, Settled, WHOLE_INTERVAL, settled};
use super::{Datapath, sizes};
use crate::inventory::Pod;

/// How often the cgroup tree is walked for pods that have been found already.
const TREE_INTERVAL: Duration = Duration::from_secs(10);

/// One look at the local pods.
#[derive(Debug)]
pub struct Look {
    /// What has changed.
    pub changes: Vec<EndpointChange>,
    /// Whether pods that had been found were looked at as well.
    pub whole: bool,
}

impl Datapath {
    /// Follows the local pods. Call it when pods change, when [`watch`](super::watch) wakes, and now and then; soon again where a
    /// look was not whole.
    pub fn reconcile(&mut self, pods: &[Arc<Pod>]) -> Look {
        let now = Instant::now();
        let whole = self.looked.is_none_or(|then| now.duration_since(then) >= WHOLE_INTERVAL);
        let (mut changes, mut left) = (Vec::new(), Vec::new());
        self.forget_absent(pods, &mut changes, &mut left);
        let unknown: Vec<&Arc<Pod>> = pods.iter().filter(|pod| !self.endpoints.contains_key(&pod.uid)).collect();
        for pod in unknown {
            self.endpoints.insert(Arc::clone(&pod.uid), Endpoint::new(pod, self.looked.is_none()));
        }
        self.find_cgroups(pods, now, whole);
        self.note_sources(pods);
        let seen = self.find_places(pods, whole, &mut changes, &mut left);
        self.attach_ready();
        self.follow_hold();
        // Not before: there is no moment in which a pod is neither judged nor held.
        for (number, cgroup) in left {
            self.take_out(number, cgroup);
        }
        match seen {
            Ok(()) => self.drop_strangers(),
            Err(error) => tracing::warn!(%error, "the node's interfaces cannot be listed"),
        }
        if whole {
            self.looked = Some(now);
        }
        Look { changes, whole }
    }

    /// Every local pod, found or not.
    pub fn endpoints(&self) -> impl Iterator<Item = &EndpointInfo> {
        self.endpoints.values().map(|endpoint| &endpoint.info)
    }

    /// Addresses of the node's own interfaces; kube-proxy's `kube-ipvs0` and loopback left out.
    pub fn node_addresses(&mut self) -> Vec<IpAddr> {
        let skipped: Vec<u32> = match self.netlink.links(None) {
            Ok(links) => links.into_iter().filter(|link| link.name == "kube-ipvs0").map(|link| link.index).collect(),
            Err(_) => Vec::new(),
        };
        let held = self.netlink.addresses(None).unwrap_or_default();
        let mut addresses: Vec<IpAddr> = held
            .into_iter()
            .filter(|held| !skipped.contains(&held.ifindex) && !held.address.is_loopback())
            .map(|held| held.address)
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }

    fn take_out(&mut self, number: u32, cgroup: Option<u64>) {
        if let Err(error) = self.withdraw(number, cgroup) {
            tracing::warn!(%error, number, "an endpoint could not be removed from the kernel whole");
        }
    }

    /// Removes hooks, entry and slot of an endpoint number.
    pub(super) fn withdraw(&mut self, number: u32, cgroup: Option<u64>) -> io::Result<()> {
        let group = cgroup.map_or(Ok(()), |id| self.leave_group(id));
        let result = if number & CGROUP_ENDPOINT == 0 {
            self.attacher.leave_interface(&mut self.netlink, &self.maps, number).and(group)
        } else {
            group
        };
        self.slots.retire(number);
        self.maps.endpoints.remove(&number)?;
        result
    }

    /// Looks for the control groups of pods that have none, or whose one is gone.
    fn find_cgroups(&mut self, pods: &[Arc<Pod>], now: Instant, whole: bool) {
        let stale = self.cgroups_looked_up.is_none_or(|then| now.duration_since(then) > TREE_INTERVAL);
        let mut wanted = HashMap::new();
        for pod in pods {
            let Some(endpoint) = self.endpoints.get_mut(&pod.uid) else { continue };
            // Its successor, if there is one, must not stay held.
            let died = endpoint.cgroup.take_if(|cgroup| !cgroup.alive()).is_some();
            if endpoint.cgroup.is_none() && (stale || died || !endpoint.found()) {
                wanted.insert(cgroup::normal(&pod.uid), Arc::clone(&pod.uid));
                if let Some(hash) = &pod.config_hash {
                    // An annotation's word: no pod loses its own cgroup to it.
                    wanted.entry(cgroup::normal(hash)).or_insert_with(|| Arc::clone(&pod.uid));
                }
            }
        }
        if stale {
            self.cgroups_looked_up = Some(now);
        }
        // Where pods lie is known after the first one; all of the tree is walked less often.
        let known = || cgroup::pods_in(self.holding.roots.values(), &wanted);
        let found = if whole || stale || self.holding.roots.is_empty() { self.hierarchy.pods(&wanted) } else { known() };
        for (uid, cgroup) in found {
            if let Some(endpoint) = self.endpoints.get_mut(&uid) {
                endpoint.cgroup = Some(cgroup);
            }
        }
    }

    /// Gives every pod its place. What moved has not been taken out of the kernel at its former place: that is `left`.
    fn find_places(&mut self, pods: &[Arc<Pod>], whole: bool, changes: &mut Vec<EndpointChange>, left: &mut Vec<Left>) -> io::Result<()> {
        let mut found = Vec::new();
        let unclaimed = self.unclaimed_interfaces();
        let mut surroundings = Surroundings::new(&mut self.netlink)?;
        for pod in pods {
            let Some(endpoint) = self.endpoints.get_mut(&pod.uid) else { continue };
            if !whole && endpoint.rests(&surroundings) {
                continue;
            }
            match settled(endpoint, pod, &mut surroundings) {
                Settled::Stays => {}
                Settled::Changed => {
                    changes.push(EndpointChange { uid: Arc::clone(&pod.uid), number: endpoint.info.number, kind: ChangeKind::Changed });
                }
                Settled::Lost => {
                    let mut place = surroundings.find(pod, endpoint.cgroup.as_ref());
                    if matches!(place, Place::Cgroup { because: Some(_), .. }) && endpoint.watched.is_none() {
                        // Its process may be younger than the list of interfaces, and its veth not in it.
                        surroundings.refresh()?;
                        place = surroundings.find(pod, endpoint.cgroup.as_ref());
                    }
                    // While its interface is there, programs stay on it, wherever it leads: the pod may have moved its end.
                    let exists = endpoint.ifindex().is_some_and(|ifindex| surroundings.exists(ifindex, endpoint.info.interface.as_deref()));
                    if !matches!(place, Place::Interface { .. }) {
                        if exists {
                            endpoint.note_moved(&surroundings);
                            continue;
                        }
                        if !endpoint.found() {
                            place = surroundings.inherited(pod, &unclaimed).unwrap_or(place);
                        }
                    }
                    found.push((pod, place, exists));
                }
            }
        }
        self.settler.look(surroundings.ends());
        for (pod, place, exists) in found {
            self.move_to(pod, place, exists, changes, left);
        }
        Ok(())
    }

    /// Gives an endpoint its place, and takes it from another one. `exists`: the interface that it was watched at is still there.
    fn move_to(&mut self, pod: &Pod, place: Place, exists: bool, changes: &mut Vec<EndpointChange>, left: &mut Vec<Left>) {
        let Some(mut endpoint) = self.endpoints.remove(&pod.uid) else { return };
        let place = self.vacate(place, changes);
        let same = match &place {
            Place::Interface { ifindex, nsid, .. } => endpoint.ifindex() == Some(*ifindex) && (exists || endpoint.nsid == *nsid),
            Place::Cgroup { .. } => {
                endpoint.ifindex().is_none()
                    && endpoint.watched.is_some()
                    && endpoint.watched == endpoint.cgroup.as_ref().map(|cgroup| cgroup.id)
            }
            Place::Unknown(_) => false,
        };
        if !same {
            // One that was never attached there leaves nothing behind.
            let attached = endpoint.info.ready;
            match endpoint.leave(changes) {
                // An interface that is there keeps its programs, as a stranger's.
                Some((number, group)) if exists && attached => {
                    tracing::warn!(pod = %pod.name, number, "another interface carries its addresses now; the former one stays closed as it was");
                    if let Some(Err(error)) = group.map(|id| self.leave_group(id)) {
                        tracing::warn!(%error, "programs could not be taken off a control group");
                    }
                }
                other => left.extend(other),
            }
            // Who comes to a place that was just left begins anew there.
            let taken = |(number, group): &mut Left| match &place {
                Place::Interface { ifindex, .. } => number == ifindex,
                Place::Cgroup { .. } => group.is_some() && *group == endpoint.cgroup.as_ref().map(|cgroup| cgroup.id),
                Place::Unknown(_) => false,
            };
            for (number, cgroup) in left.extract_if(.., taken) {
                self.take_out(number, cgroup);
            }
        }
        let new = !endpoint.found();
        if new {
            endpoint.placed = Instant::now();
        }
        let before = endpoint.info.addresses.clone();
        match self.place(&mut endpoint, place, &pod.ips) {
            Err(message) => endpoint.info.message = Some(message),
            Ok(()) if endpoint.found() && (new || before != endpoint.info.addresses) => {
                let kind = if new { ChangeKind::Found } else { ChangeKind::Changed };
                changes.push(EndpointChange { uid: Arc::clone(&pod.uid), number: endpoint.info.number, kind });
            }
            Ok(()) => {}
        }
        self.endpoints.insert(Arc::clone(&pod.uid), endpoint);
    }

    /// Takes an interface from an endpoint whose pod is not known any more: its flows end, and programs stay until the newcomer's
    /// policy is written. A pod that is known keeps its interface.
    fn vacate(&mut self, place: Place, changes: &mut Vec<EndpointChange>) -> Place {
        let Place::Interface { ifindex, .. } = &place else { return place };
        let Some((uid, holder)) = self.endpoints.iter_mut().find(|(_, holder)| holder.ifindex() == Some(*ifindex)) else { return place };
        if !holder.info.orphaned {
            return Place::Unknown("its interface is another pod's".into());
        }
        let uid = Arc::clone(uid);
        holder.leave(changes);
        self.endpoints.remove(&uid);
        place
    }

    fn place(&mut self, endpoint: &mut Endpoint, place: Place, status: &[IpAddr]) -> Result<(), String> {
        let full = || format!("all {} endpoint slots are in use", sizes::ENDPOINTS);
        let uncleared = |error| format!("its slot could not be cleared: {error}");
        match place {
            Place::Unknown(why) => Err(why),
            Place::Interface { ifindex, name, nsid, addresses, mac, others } => {
                let (index, new) = self.slots.interface(ifindex, sizes::ENDPOINTS).ok_or_else(full)?;
                if new {
                    self.clear_slot(index).map_err(uncleared)?;
                }
                // Where nothing holds the addresses inside, their being named says nothing about what comes later.
                let bare = mac.is_none() && addresses == status;
                let moved = bare && endpoint.ifindex() == Some(ifindex) && endpoint.nsid.is_some_and(|before| Some(before) != nsid);
                let nsid = if moved { endpoint.nsid } else { nsid };
                endpoint.nsid = nsid;
                endpoint.info.number = ifindex;
                endpoint.info.index = index;
                endpoint.info.interface = Some(name.into());
                endpoint.info.addresses = if bare { addresses } else { endpoint.own(addresses, status) };
                // Who takes the addresses off its interface must not get rid of its MAC, nor of its link-local address.
                endpoint.info.mac = mac.or(endpoint.info.mac).or_else(|| self.former_mac(ifindex));
                let (addresses, mac) = (&endpoint.info.addresses, endpoint.info.mac);
                let link_local = nsid.and_then(|nsid| link_local_beside(&mut self.netlink, nsid, addresses, mac));
                endpoint.info.link_local = link_local.or(endpoint.info.link_local);
                self.restore_pair(endpoint, ifindex);
                let seen = nsid.and_then(|nsid| self.netlink.node_seen_from(Some(nsid)).ok().flatten());
                endpoint.info.node_netns = seen.and_then(|number| u8::try_from(number + 1).ok()).unwrap_or(0);
                let secondary = || format!("secondary_network: {} is not judged", others.join(", "));
                endpoint.info.message = if moved { Some(MOVED.into()) } else { (!others.is_empty()).then(secondary) };
                Ok(())
            }
            Place::Cgroup { addresses, because } => {
                let id = endpoint.cgroup.as_ref().map(|cgroup| cgroup.id).ok_or("its control group is gone")?;
                if !endpoint.found() {
                    let adopted = self.maps.cgroups.get(&id).ok().flatten().filter(|number| self.slots.of(*number).is_some());
                    endpoint.info.index = if let Some(number) = adopted {
                        number & !CGROUP_ENDPOINT
                    } else {
                        let index = self.slots.cgroup(sizes::ENDPOINTS).ok_or_else(full)?;
                        self.clear_slot(index).map_err(uncleared)?;
                        index
                    };
                    endpoint.info.number = CGROUP_ENDPOINT | endpoint.info.index;
                    endpoint.watched = Some(id);
                }
                endpoint.info.addresses = endpoint.own(addresses, status);
                endpoint.info.message = because;
                Ok(())
            }
        }
    }

    /// The MAC that a former agent has noted.
    fn former_mac(&self, ifindex: u32) -> Option<[u8; 6]> {
        self.maps.endpoints.get(&ifindex).ok().flatten().map(|entry| entry.mac).filter(|mac| *mac != [0; 6])
    }

    /// A former agent has watched an endpoint at its control group as well: this one goes on so.
    fn restore_pair(&self, endpoint: &mut Endpoint, ifindex: u32) {
        let Some(id) = endpoint.cgroup.as_ref().map(|group| group.id).filter(|_| endpoint.watched.is_none()) else { return };
        if self.maps.cgroups.get(&id).ok().flatten() != Some(ifindex) {
            return;
        }
        endpoint.watched = Some(id);
        endpoint.blind = true;
        endpoint.info.paired = true;
        endpoint.info.evidence = self.maps.states.get(&endpoint.info.index).ok().flatten().map(|state| evidence(&state));
    }

    /// Nothing of a former owner may count for a new one. No programs write there yet.
    pub(super) fn clear_slot(&mut self, index: u32) -> io::Result<()> {
        if let Some(head) = self.contact_heads.get_mut(index as usize) {
            *head = 0;
        }
        self.maps.states.put(&index, &EndpointState::ZERO)?;
        self.maps.swept.put(&index, &EndpointSwept::ZERO)
    }

    /// Attaches every endpoint whose entry is written and whose programs do not run yet.
    pub(super) fn attach_ready(&mut self) {
        if self.applied_once
            && let Err(error) = self.point_endpoints()
        {
            tracing::warn!(%error, "an endpoint could not be written");
        }
        let uids: Vec<Arc<str>> = self
            .endpoints
            .values()
            .filter(|endpoint| endpoint.written.is_some() && !endpoint.info.ready)
            .map(|endpoint| Arc::clone(&endpoint.info.uid))
            .collect();
        let crossings = if self.formers.is_empty() {
            Vec::new()
        } else {
            let places: Vec<_> = uids.iter().filter_map(|uid| self.endpoints.get(uid)).map(|e| (e.info.number, e.watched)).collect();
            self.begin_crossing(&places)
        };
        for uid in uids {
            let Some(mut endpoint) = self.endpoints.remove(&uid) else { continue };
            match self.attach(&endpoint) {
                Ok(attach) => {
                    endpoint.info.attach = attach;
                    endpoint.info.coverage = if endpoint.info.coverage == Coverage::OneWay { Coverage::OneWay } else { Coverage::Full };
                    endpoint.info.ready = true;
                    self.stands(&mut endpoint);
                }
                Err(error) => {
                    let message = format!("attaching failed: {error}");
                    if endpoint.info.message.as_deref() != Some(&message) {
                        tracing::warn!(uid = %uid, %error, "an endpoint could not be attached");
                    }
                    endpoint.info.message = Some(message);
                }
            }
            self.endpoints.insert(uid, endpoint);
        }
        self.end_crossing(crossings);
        self.end_settling();
    }

    /// Attaches one endpoint; says how.
    pub(super) fn attach(&mut self, endpoint: &Endpoint) -> io::Result<Attach> {
        if let Some(ifindex) = endpoint.ifindex() {
            let attach = self.attach_interface(ifindex)?;
            if let Some(group) = endpoint.cgroup.as_ref().filter(|group| endpoint.watched == Some(group.id)) {
                self.attach_group(group, ifindex)?;
            }
            return Ok(attach);
        }
        let watched = endpoint.cgroup.as_ref().ok_or_else(|| io::Error::other("its control group is gone"))?;
        self.attach_group(watched, endpoint.info.number)?;
        Ok(Attach::Cgroup)
    }

    /// Attaches to a control group; what passes there is that of the endpoint `number`.
    pub(super) fn attach_group(&mut self, group: &PodCgroup, number: u32) -> io::Result<()> {
        self.maps.cgroups.put(&group.id, &number)?;
        let levels = self.config.cgroup_levels | cgroup::level_bits(group.level, 0);
        let paired = self.config.paired | u32::from(number & CGROUP_ENDPOINT == 0);
        if (self.config.cgroup_levels, self.config.paired) != (levels, paired) {
            self.notice_mode()?;
            (self.config.cgroup_levels, self.config.paired) = (levels, paired);
            self.write_config()?;
        }
        self.attacher.cgroup(&self.programs, group)
    }

    /// Takes programs off a control group.
    pub(super) fn leave_group(&mut self, id: u64) -> io::Result<()> {
        self.attacher.leave_cgroup(id)?;
        self.maps.cgroups.remove(&id).map(drop)
    }

    /// Reads which slots a former agent had given.
    pub(super) fn read_slots(&mut self) -> io::Result<()> {
        for (number, endpoint) in self.maps.endpoints.entries()? {
            self.slots.adopt(number, endpoint.index);
        }
        Ok(())
    }
}
