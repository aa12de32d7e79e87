//! Who, why and which process: everything a record says beyond what the kernel counted.
//!
//! Answers are remembered: explanations by (pod, class, direction, protocol, port), processes by socket cookie,
//! listeners by (endpoint, port, protocol). So a busy endpoint costs a few look-ups per flow.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use sekisho_core::layout::{self, Address, Flow, FlowEvent, FlowKey6, flow_flags, reason, verdict};

use super::directory::Directory;
use super::number::NumberMap;
use super::recent::Recent;
use super::record::{Explanation, Identity, Owner, ProcessInfo};
use crate::inventory::ObjectName;
use crate::policy::{Decision, Question};

/// How many versions of the policy are kept to explain flows that were judged by an earlier one.
const VERSIONS: usize = 3;
/// How many explanations are remembered.
const EXPLANATIONS: usize = 4096;
/// How many sockets' processes are remembered.
const SOCKETS: usize = 8192;
/// From how many sockets on they are asked for together.
const TOGETHER: usize = 4;
/// How long it is believed that nobody is known behind a socket: one that hooks do not see, a raw one, may send many flows.
const NO_PROCESS_NS: u64 = 1_000_000_000;
/// How long a listener is believed.
const LISTENER_NS: u64 = 5_000_000_000;
/// How long it is believed that nobody listens: a server may be about to start.
const NO_LISTENER_NS: u64 = 500_000_000;

/// How many ports without a listener are looked up per endpoint and [`NO_LISTENER_NS`]: a scanned pod must not keep us busy.
const MISSES: u32 = 16;

/// Explains decisions. The compiled policy implements it.
pub trait Explainer: Send + Sync {
    /// May the pod talk, and why?
    fn explain(&self, question: &Question) -> Decision;
}

/// What the flow room asks of the node while it writes records.
pub trait Kernel {
    /// The process behind a socket cookie, as a hook saw it.
    fn process(&mut self, cookie: u64) -> Option<layout::Process>;
    /// The same of many, in their order.
    fn processes(&mut self, cookies: &[u64]) -> Vec<Option<layout::Process>>;
    /// The same with what only user space can add: container id, executable.
    fn describe(&mut self, process: &layout::Process) -> ProcessInfo;
    /// Who listens on an endpoint's port.
    fn listener(&mut self, endpoint: u32, port: u16, protocol: u8) -> Option<ProcessInfo>;
}

/// The address of the boundary as the standard library has it.
pub fn address(bytes: &Address) -> IpAddr {
    Ipv6Addr::from(*bytes).to_canonical()
}

/// Whether the protocol has ports.
pub fn has_ports(protocol: u8) -> bool {
    matches!(protocol, 6 | 17 | 132 | 136)
}

/// The destination's port of a flow; absent for protocols without, and where it could not be read.
pub fn destination_port(key: &FlowKey6, opened: u8) -> Option<u16> {
    let port = if opened == layout::INGRESS { key.local_port } else { key.remote_port };
    (has_ports(key.protocol) && (key.local_port, key.remote_port) != (0, 0)).then_some(port)
}

/// `(pod, class, direction and protocol, port)`.
type Asked = (u32, u32, u16, u32);

/// `(pod, direction and protocol, remote, port)`.
type Allowed = (u32, u16, Address, u32);

/// A policy and since when it judges.
struct InForce {
    epoch: u32,
    since_ns: u64,
    /// Not so in mode observe.
    judges: bool,
    policy: Arc<dyn Explainer>,
}

/// Answers and their memory.
pub(super) struct Attribution {
    pub(super) directory: Arc<Directory>,
    /// Oldest first.
    policies: VecDeque<InForce>,
    by_rule: NumberMap<u32, Arc<Explanation>>,
    denied: Recent<Asked, Arc<Explanation>>,
    /// What the newest policy says of flows that an earlier one let in, and whether it isolates their pod; `None` where it does not allow them.
    allowed: Recent<Allowed, Option<(Arc<Explanation>, bool)>>,
    /// The last explanation by (pod, class, direction and protocol): ports that no rule names share it.
    shared: Recent<(u32, u32, u16), Arc<Explanation>>,
    /// By cookie; who is not known is asked for again after the time.
    sockets: Recent<u64, (u64, Option<Arc<ProcessInfo>>)>,
    processes: Recent<(u32, u32, u64, u128), Arc<ProcessInfo>>,
    listeners: Recent<(u32, u32), (u64, Option<Arc<ProcessInfo>>)>,
    /// Questions per endpoint that found nobody: `(since, how many)`.
    misses: NumberMap<u32, (u64, u32)>,
}

impl Attribution {
    pub(super) fn new(directory: Arc<Directory>) -> Self {
        Self {
            directory,
            policies: VecDeque::new(),
            by_rule: NumberMap::default(),
            denied: Recent::new(EXPLANATIONS),
            allowed: Recent::new(EXPLANATIONS),
            shared: Recent::new(EXPLANATIONS),
            sockets: Recent::new(SOCKETS),
            processes: Recent::new(SOCKETS),
            listeners: Recent::new(SOCKETS),
            misses: NumberMap::default(),
        }
    }

    pub(super) fn set_directory(&mut self, directory: Arc<Directory>) {
        self.directory = directory;
        self.by_rule.clear();
    }

    pub(super) fn set_policy(&mut self, epoch: u32, policy: Arc<dyn Explainer>, judges: bool, since_ns: u64) {
        self.policies.push_back(InForce { epoch, since_ns, judges, policy });
        if self.policies.len() > VERSIONS {
            self.policies.pop_front();
        }
        self.denied.clear();
        self.allowed.clear();
        self.shared.clear();
    }

    /// The other side: who the kernel judged, or whose name came after. The flag says the latter.
    pub(super) fn remote(&self, key: &FlowKey6, flow: &Flow) -> (Option<Arc<Identity>>, bool) {
        let remote = address(&key.remote);
        if flow.remote_instance != 0 && !self.directory.had_lost(flow.remote_instance, remote, flow.start_ns) {
            return (self.directory.identity(flow.remote_instance, flow.start_ns).cloned(), false);
        }
        let mut late = self.directory.late(remote, flow.start_ns);
        if late.is_none() && flow.opened == layout::UNKNOWN {
            late = self.directory.former(remote, flow.start_ns);
        }
        (late.cloned(), late.is_some())
    }

    /// Why the flow was decided as it was; `None` where no policy had a say. Brings the flow's flags up to date with it.
    pub(super) fn decision(&mut self, key: &FlowKey6, flow: &mut Flow, local: Option<&Identity>) -> Option<Arc<Explanation>> {
        if let Some(explanation) = self.judged_again(key, flow, local) {
            return explanation.filter(|explanation| explanation.rule.is_some());
        }
        if flow.rule != 0 {
            return self.rule(flow.rule);
        }
        let explained = flow.verdict != verdict::ALLOWED && flow.reason == reason::DEFAULT_DENY;
        if !explained || flow.opened == layout::UNKNOWN {
            return None;
        }
        let Owner::Pod { namespace, name, .. } = &local?.owner else { return None };
        self.default_deny(key, flow, &(namespace.clone(), name.clone()))
    }

    /// What the policy of the flow's epoch says of a flow that an earlier one let in. The kernel keeps the rule and the flags of a
    /// flow's first packet for as long as the verdict stays the same: its rule may be one that is deleted. `None` where the kernel's
    /// rule holds, and where this policy would not name any.
    #[expect(clippy::option_option, reason = "whether it says something, and what: also that no policy had a say")]
    fn judged_again(&mut self, key: &FlowKey6, flow: &mut Flow, local: Option<&Identity>) -> Option<Option<Arc<Explanation>>> {
        if flow.verdict != verdict::ALLOWED || flow.opened == layout::UNKNOWN || flow.flags & flow_flags::OWN_NODE != 0 {
            return None;
        }
        let place = self.policies.iter().rposition(|policy| policy.epoch <= flow.epoch)?;
        let policy = &self.policies[place];
        if flow.start_ns >= policy.since_ns {
            return None;
        }
        if !policy.judges {
            flow.flags = flow.flags & !flow_flags::ISOLATED | flow_flags::UNJUDGED;
            return Some(None);
        }
        let local = local?;
        let Owner::Pod { namespace, name, .. } = &local.owner else { return None };
        let port = destination_port(key, flow.opened);
        let side = u16::from(flow.opened) << 8 | u16::from(key.protocol);
        let asked = (local.instance, side, key.remote, port.map_or(u32::MAX, u32::from));
        let newest = place + 1 == self.policies.len();
        let known = if newest { self.allowed.get(&asked) } else { None };
        let answer = known.unwrap_or_else(|| {
            let question = Question {
                local: (namespace.clone(), name.clone()),
                direction: flow.opened,
                remote: address(&key.remote),
                protocol: key.protocol,
                port,
            };
            let decision = policy.policy.explain(&question);
            decision.allowed.then(|| (Arc::new(Explanation { rule: decision.rule, ..Explanation::default() }), decision.isolated))
        });
        if newest {
            self.allowed.insert(asked, answer.clone());
        }
        let (explanation, isolated) = answer?;
        let kept = flow.flags & !(flow_flags::ISOLATED | flow_flags::UNJUDGED);
        flow.flags = kept | if isolated { flow_flags::ISOLATED } else { 0 };
        Some(Some(explanation))
    }

    fn rule(&mut self, id: u32) -> Option<Arc<Explanation>> {
        if let Some(known) = self.by_rule.get(&id) {
            return Some(known.clone());
        }
        let rule = Some((**self.directory.rules.get(&id)?).clone());
        let explanation = Arc::new(Explanation { rule, ..Explanation::default() });
        self.by_rule.insert(id, explanation.clone());
        Some(explanation)
    }

    fn default_deny(&mut self, key: &FlowKey6, flow: &Flow, local: &ObjectName) -> Option<Arc<Explanation>> {
        let port = destination_port(key, flow.opened);
        let side = u16::from(flow.opened) << 8 | u16::from(key.protocol);
        let group = (flow.local_instance, flow.class, side);
        let asked = (group.0, group.1, side, port.map_or(u32::MAX, u32::from));
        let newest = self.policies.back().is_none_or(|policy| flow.epoch >= policy.epoch);
        if newest && let Some(known) = self.denied.get(&asked) {
            return Some(known);
        }
        let judge = self.policies.iter().rev().find(|policy| policy.epoch <= flow.epoch).or(self.policies.front());
        let decision = judge?.policy.explain(&Question {
            local: local.clone(),
            direction: flow.opened,
            remote: address(&key.remote),
            protocol: key.protocol,
            port,
        });
        if decision.allowed {
            // Another policy than the one that judged: better no explanation than a wrong one.
            return None;
        }
        let explanation =
            Explanation { rule: None, isolated_by: decision.isolated_by, nearest: decision.nearest, mismatch: decision.mismatch };
        let explanation = match self.shared.get(&group) {
            Some(same) if *same == explanation => same,
            _ => Arc::new(explanation),
        };
        if newest {
            self.shared.insert(group, explanation.clone());
            self.denied.insert(asked, explanation.clone());
        }
        Some(explanation)
    }

    /// Who connected, for flows that the endpoint opened.
    pub(super) fn process(&mut self, flow: &Flow, boot_ns: u64, kernel: &mut dyn Kernel) -> Option<Arc<ProcessInfo>> {
        if flow.cookie == 0 || flow.opened != layout::EGRESS {
            return None;
        }
        if let Some((until, known)) = self.sockets.get(&flow.cookie)
            && boot_ns < until
        {
            return known;
        }
        let seen = kernel.process(flow.cookie);
        self.remember(flow.cookie, seen, boot_ns, kernel)
    }

    /// Asks who is behind the sockets of flows that begin, for all of them together: one by one it is a system call for each.
    pub(super) fn meet_sockets(&mut self, starts: &[FlowEvent], boot_ns: u64, kernel: &mut dyn Kernel) {
        let mut cookies = Vec::new();
        for flow in starts.iter().map(|event| &event.flow).filter(|flow| flow.cookie != 0 && flow.opened == layout::EGRESS) {
            if self.sockets.get(&flow.cookie).is_none_or(|(until, _)| until <= boot_ns) {
                cookies.push(flow.cookie);
            }
        }
        cookies.dedup();
        if cookies.len() < TOGETHER {
            return;
        }
        for (cookie, seen) in cookies.iter().zip(kernel.processes(&cookies)) {
            self.remember(*cookie, seen, boot_ns, kernel);
        }
    }

    fn remember(&mut self, cookie: u64, seen: Option<layout::Process>, boot_ns: u64, kernel: &mut dyn Kernel) -> Option<Arc<ProcessInfo>> {
        let Some(seen) = seen else {
            self.sockets.insert(cookie, (boot_ns + NO_PROCESS_NS, None));
            return None;
        };
        let name = (seen.pid, seen.uid, seen.cgroup, u128::from_le_bytes(seen.comm));
        let info = if let Some(known) = self.processes.get(&name) {
            known
        } else {
            let info = Arc::new(kernel.describe(&seen));
            self.processes.insert(name, info.clone());
            info
        };
        self.sockets.insert(cookie, (u64::MAX, Some(info.clone())));
        Some(info)
    }

    /// Who listens, for flows that the peer opened; of a denied one who would have been reached.
    pub(super) fn listener(&mut self, key: &FlowKey6, flow: &Flow, boot_ns: u64, kernel: &mut dyn Kernel) -> Option<Arc<ProcessInfo>> {
        if flow.opened != layout::INGRESS || !has_ports(key.protocol) {
            return None;
        }
        let place = (key.endpoint, u32::from(key.local_port) << 8 | u32::from(key.protocol));
        if let Some((until, known)) = self.listeners.get(&place)
            && boot_ns < until
        {
            return known;
        }
        let misses = self.misses.entry(key.endpoint).or_insert((boot_ns, 0));
        if boot_ns >= misses.0 + NO_LISTENER_NS {
            *misses = (boot_ns, 0);
        } else if misses.1 >= MISSES {
            return None;
        }
        let found = kernel.listener(key.endpoint, key.local_port, key.protocol).map(Arc::new);
        misses.1 += u32::from(found.is_none());
        let believed = if found.is_some() { LISTENER_NS } else { NO_LISTENER_NS };
        self.listeners.insert(place, (boot_ns + believed, found.clone()));
        found
    }

    /// Forgets what was asked about an endpoint's number: the number may come back as another pod's.
    pub(super) fn forget_listeners(&mut self) {
        self.listeners.clear();
        self.misses.clear();
    }
}
