//! Proof that what should be seen is seen: programs attached, first, ours; no direction that passes by.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::Bound;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sekisho_core::layout::EndpointState;

use super::Datapath;
use super::attach::{Attacher, Backend, Finding, cgroup_of, interface_of};
use super::cgroup::PodCgroup;
use super::endpoint::{Attach, Coverage, CoverageEvent};
use super::follow::Endpoint;

/// How long one step of a check takes: a pod that comes meanwhile waits for it.
const STEP: Duration = Duration::from_millis(1);
/// Connections that must show that packets bypass an interface.
const EVIDENCE: u64 = 3;

/// One step of a check.
#[derive(Debug)]
pub struct Check {
    /// What was found.
    pub events: Vec<CoverageEvent>,
    /// Whether all endpoints have been looked at.
    pub through: bool,
}

impl Datapath {
    /// Looks at endpoints' hooks and evidence, one after the other; attaches again what is missing. Begin every few seconds,
    /// and go on in short steps until it is through.
    pub fn check(&mut self) -> Check {
        let began = Instant::now();
        let mut events = Vec::new();
        while let Some(uid) = self.next_to_check() {
            let Some(mut endpoint) = self.endpoints.remove(&uid) else { break };
            if endpoint.info.ready {
                self.check_hooks(&mut endpoint, &mut events);
                self.check_evidence(&mut endpoint, &mut events);
            }
            self.endpoints.insert(Arc::clone(&uid), endpoint);
            self.checked = Some(uid);
            if began.elapsed() > STEP {
                return Check { events, through: false };
            }
        }
        self.checked = None;
        self.attach_ready();
        self.follow_hold();
        self.tidy();
        Check { events, through: true }
    }

    fn next_to_check(&self) -> Option<Arc<str>> {
        let after = self.checked.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        self.endpoints.range::<str, _>((after, Bound::Unbounded)).next().map(|(uid, _)| Arc::clone(uid))
    }

    fn check_hooks(&mut self, endpoint: &mut Endpoint, events: &mut Vec<CoverageEvent>) {
        let backend = if endpoint.info.attach == Attach::Clsact { Backend::Clsact } else { Backend::Tcx };
        let group = endpoint.watched.map_or(Ok(Finding::Good), |id| self.attacher.check_cgroup(&self.programs, id));
        let finding = match (endpoint.ifindex(), group) {
            // Whether the group is still there is looked at with the evidence.
            (Some(_), Ok(Finding::Missing)) if endpoint.cgroup.as_ref().is_some_and(PodCgroup::alive) => Ok(Finding::Missing),
            (Some(ifindex), _) => Attacher::check_interface(&mut self.netlink, &self.programs, ifindex, backend),
            (None, group) => group,
        };
        let problem = match finding {
            // Of an interface that went away the next reconciliation says so.
            Ok(Finding::Good) | Err(_) => return,
            Ok(Finding::Missing) => "our program was not attached any more",
            Ok(Finding::NotFirst) => "another program ran before ours",
        };
        if finding.is_ok_and(|finding| finding == Finding::NotFirst)
            && let Some(ifindex) = endpoint.ifindex()
            && let Err(error) = self.come_first(ifindex, backend)
        {
            tracing::warn!(%error, ifindex, "our program could not be put in front");
        }
        let event = match self.attach(endpoint) {
            Ok(attach) => {
                endpoint.info.attach = attach;
                self.stands(endpoint);
                event(endpoint, "reattached", format!("{problem}; it is attached again"))
            }
            Err(error) => {
                endpoint.info.ready = false;
                endpoint.info.attach = Attach::None;
                endpoint.info.coverage = Coverage::Unseen;
                event(endpoint, "attach_failed", format!("{problem}, and attaching again failed: {error}"))
            }
        };
        events.push(event);
    }

    /// Programs are attached to both directions of an endpoint: from now on packets are evidence of others that were not seen.
    pub(super) fn stands(&mut self, endpoint: &mut Endpoint) {
        if endpoint.ifindex().is_none() {
            return;
        }
        endpoint.one_way = self.maps.states.get(&endpoint.info.index).ok().flatten().map_or(0, |state| state.one_way);
        endpoint.since_ns = self.clock().boot_ns;
        let Some(entry) = &mut endpoint.written else { return };
        entry.since_ns = endpoint.since_ns;
        // No new epoch: it changes no verdict.
        if let Err(error) = self.maps.endpoints.put(&endpoint.info.number, entry) {
            tracing::warn!(uid = %endpoint.info.uid, %error, "an endpoint could not be written");
        }
    }

    /// Evidence that packets to an endpoint bypass its interface: its control group is watched as well. The interface is never left
    /// for it, because the pod can forge all evidence.
    fn check_evidence(&mut self, endpoint: &mut Endpoint, events: &mut Vec<CoverageEvent>) {
        if endpoint.ifindex().is_none() || (endpoint.blind && !Self::is_astray(endpoint)) {
            return;
        }
        let Ok(Some(state)) = self.maps.states.get(&endpoint.info.index) else { return };
        if !endpoint.blind && state.one_way.wrapping_sub(endpoint.one_way) < EVIDENCE {
            return;
        }
        endpoint.blind = true;
        endpoint.info.evidence = Some(evidence(&state));
        if let Some(id) = endpoint.watched.take()
            && let Err(error) = self.leave_group(id)
        {
            tracing::debug!(%error, "programs could not be taken off a control group that is gone");
        }
        endpoint.info.paired = false;
        if let Some(group) = endpoint.cgroup.clone().filter(PodCgroup::alive) {
            match self.attach_group(&group, endpoint.info.number) {
                Ok(()) => {
                    endpoint.watched = Some(group.id);
                    endpoint.info.paired = true;
                    endpoint.info.coverage = Coverage::Full;
                    let message = "packets to it bypass its interface; its control group is watched as well";
                    return events.push(event(endpoint, "attached", said(message, endpoint)));
                }
                Err(error) => tracing::warn!(%error, "programs could not be attached to an endpoint's control group"),
            }
        }
        if endpoint.info.coverage != Coverage::OneWay {
            endpoint.info.coverage = Coverage::OneWay;
            let message = "packets to it bypass its interface, and it has no control group to watch as well";
            events.push(event(endpoint, "one_way", said(message, endpoint)));
        }
    }

    /// Whether an endpoint whose control group is to be watched as well has one that is not.
    fn is_astray(endpoint: &Endpoint) -> bool {
        let group = endpoint.cgroup.as_ref().filter(|group| group.alive()).map(|group| group.id);
        endpoint.watched != group || (endpoint.info.coverage == Coverage::OneWay && group.is_some())
    }

    /// Removes what nobody needs any more: links of devices that are gone, and former layouts once all is attached here.
    fn tidy(&mut self) {
        let interfaces: Vec<u32> = self.slots.numbers().map(|(number, _)| number).collect();
        let cgroups: Vec<u64> = self.maps.cgroups.entries().unwrap_or_default().into_iter().map(|(id, _)| id).collect();
        let ours = |name: &str| {
            let interface = interface_of(name).map(|ifindex| interfaces.contains(&ifindex));
            let root = name.starts_with("root-").then_some(true);
            interface.or_else(|| cgroup_of(name).map(|id| cgroups.contains(&id))).or(root)
        };
        if let Err(error) = self.attacher.sweep(&ours) {
            tracing::warn!(%error, "stale pins could not be removed");
        }
        // What does not hold any more is attached again at the next look.
        self.holding.roots.retain(|root, _| self.attacher.holds(*root));
        if self.may_settle()
            && let Err(error) = self.adopt_strangers()
        {
            tracing::warn!(%error, "what no pod claims could not be taken over from a former layout");
        }
        if self.has_settled() {
            self.finish_migration();
        }
    }

    /// Whether every pod that has been found is attached here, and a former layout is still there.
    fn may_settle(&self) -> bool {
        self.applied_once
            && self.formers.iter().any(|former| !former.done)
            && self.endpoints.values().all(|endpoint| endpoint.info.ready || !endpoint.found())
    }

    /// Whether nothing is left to former layouts: what they attached is attached here, whether a pod claims it or not.
    fn has_settled(&self) -> bool {
        let claimed: HashSet<u32> = self.endpoints.values().map(|endpoint| endpoint.info.number).collect();
        let is_here = |number: u32| claimed.contains(&number) || self.maps.endpoints.get(&number).is_ok_and(|entry| entry.is_some());
        self.may_settle() && self.slots.numbers().all(|(number, _)| is_here(number))
    }
}

/// What was found and which packets show it.
fn said(message: &str, endpoint: &Endpoint) -> String {
    endpoint.info.evidence.as_ref().map_or_else(|| message.to_owned(), |evidence| format!("{message}: {evidence}"))
}

/// Which packets show that others bypass an interface.
pub(super) fn evidence(state: &EndpointState) -> String {
    let remote = IpAddr::from(state.one_way_remote).to_canonical();
    let [local_port, remote_port] = state.one_way_ports;
    format!(
        "one_way: {} SYN-ACKs without a SYN, {} ACKs without a SYN-ACK; the last from port {local_port} to {}",
        state.one_way_answers,
        state.one_way.saturating_sub(state.one_way_answers),
        SocketAddr::new(remote, remote_port),
    )
}

fn event(endpoint: &Endpoint, event: &'static str, message: String) -> CoverageEvent {
    let info = &endpoint.info;
    CoverageEvent {
        uid: Arc::clone(&info.uid),
        number: info.number,
        event,
        attach: info.attach_name(),
        interface: info.interface.clone(),
        message,
    }
}
