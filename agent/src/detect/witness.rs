//! From what the flow room sees to contacts: who is the source, whose business it is, and what does not count.

use std::net::IpAddr;
use std::sync::Arc;

use sekisho_core::layout::{self, flow_flags, reason, verdict};

use super::contact::{Contact, Outcome, Party};
use super::engine::Detector;
use crate::flow::{FlowRecord, Identity, Now, Owner, Sighting, Witness, address, destination_port, flag};

const TCP: u8 = 6;
const UDP: u8 = 17;

/// Ports from which the system gives out source ports.
const EPHEMERAL: u16 = 32_768;
/// Packets of a probe and its answer.
const PROBE_PACKETS: u64 = 4;

impl Witness for Detector {
    fn saw(&mut self, sighting: Sighting, record: &FlowRecord, one_way: bool, now: &Now) {
        let flow = &record.flow;
        let outcome = match flow.reason {
            reason::SPOOFED_SOURCE => Some(Outcome::Spoofed),
            reason::ROGUE_MESSAGE => Some(Outcome::Rogue),
            _ => None,
        };
        if let Some(outcome) = outcome {
            if sighting == Sighting::Started {
                self.forged(record, outcome);
            }
            return;
        }
        let (outcome, time_ns) = match sighting {
            Sighting::Started if flow.verdict == verdict::DENIED => (Outcome::Denied, flow.start_ns),
            Sighting::Started => (Outcome::Tried, flow.start_ns),
            Sighting::Refused => (Outcome::Refused, now.boot_ns),
            Sighting::Silent => (Outcome::Silent, flow.start_ns + 3_000_000_000),
            // Who answered matters only where an incident is open.
            Sighting::Ended if self.open_incidents() == 0 && record.flow.first_flags & flag::SYN != 0 => return,
            Sighting::Ended => match ended(record) {
                Some(outcome) => (outcome, now.boot_ns),
                None => return,
            },
        };
        if let Some(contact) = self.judge(record, outcome, one_way, time_ns, now) {
            self.contact(&contact);
        }
    }
}

impl Detector {
    /// A failed contact out of an endpoint's array in the kernel, which no full ring loses. `source` is the endpoint's pod.
    pub fn kernel_contact(&mut self, source: &Arc<Identity>, contact: &layout::Contact, one_way: bool, now: &Now) {
        let outcome = match contact.result {
            layout::contact::REFUSED => Outcome::Refused,
            layout::contact::DENIED => Outcome::Denied,
            _ => return,
        };
        if contact.time_ns == 0 {
            return;
        }
        if one_way {
            self.suppress("scan", "one_way");
            return;
        }
        let ip = address(&contact.remote);
        let (directory, instance, time_ns) = (&self.directory, contact.remote_instance, contact.time_ns);
        let judged = if directory.had_lost(instance, ip, time_ns) { None } else { directory.identity(instance, time_ns) };
        let target = Party { ip, identity: judged.or_else(|| directory.late(ip, time_ns)).cloned() };
        let source_ip = source.ips.iter().find(|own| own.is_ipv4() == ip.is_ipv4()).or(source.ips.first());
        let source = Party { ip: source_ip.copied().unwrap_or(IpAddr::from([0; 4])), identity: Some(source.clone()) };
        self.contact(&Contact {
            source,
            target,
            port: contact.remote_port,
            protocol: contact.protocol,
            outcome,
            time_ns: contact.time_ns,
            wall_ns: now.wall(contact.time_ns),
            first_flags: None,
            flow: None,
            process: None,
            claimed: None,
        });
    }

    fn suppress(&mut self, kind: &'static str, reason: &'static str) {
        *self.suppressed.entry((kind, reason)).or_default() += 1;
    }

    /// The contact that a record tells of, if it is one, and ours to judge.
    fn judge(&mut self, record: &FlowRecord, outcome: Outcome, one_way: bool, time_ns: u64, now: &Now) -> Option<Contact> {
        let (key, flow) = (&record.key, &record.flow);
        let inbound = match flow.opened {
            layout::EGRESS => false,
            layout::INGRESS => true,
            // An ACK that belongs to nothing: who sent it shows in the flags.
            _ => flow.tcp_flags[0] & flag::RST != 0,
        };
        let opened = if inbound { layout::INGRESS } else { layout::EGRESS };
        let port = destination_port(key, opened)?;
        if outcome.failed() && one_way {
            self.suppress("scan", "one_way");
            return None;
        }
        let adopted = flow.opened == layout::UNKNOWN || flow.flags & flow_flags::ADOPTED != 0;
        if flow.reason == reason::NO_CONNECTION || adopted && matches!(outcome, Outcome::Tried | Outcome::Denied | Outcome::Silent) {
            return None;
        }
        let source_port = if inbound { key.remote_port } else { key.local_port };
        if key.protocol == UDP && source_port < 1024 && port >= EPHEMERAL {
            // A server's answer whose question is forgotten.
            self.suppress("scan", "late_reply");
            return None;
        }
        if inbound && !self.is_ours(record, outcome) {
            return None;
        }
        let local = Party { ip: address(&flow.local), identity: record.local.clone() };
        let remote = Party { ip: address(&key.remote), identity: record.remote.clone() };
        let (source, target) = if inbound { (remote, local) } else { (local, remote) };
        Some(Contact {
            source,
            target,
            port,
            protocol: key.protocol,
            outcome,
            time_ns,
            wall_ns: now.wall(time_ns),
            first_flags: (key.protocol == TCP).then_some(flow.first_flags),
            flow: Some(record.flow_id),
            process: record.process.clone(),
            claimed: None,
        })
    }

    /// Whether a contact that came in from `record.remote` is this node's to judge.
    fn is_ours(&mut self, record: &FlowRecord, outcome: Outcome) -> bool {
        if record.flow.flags & flow_flags::OWN_NODE != 0 {
            // The kubelet probes.
            self.suppress("scan", "own_node");
            return false;
        }
        match record.remote.as_deref().map(|i| &i.owner) {
            Some(Owner::Pod { node, .. }) => node.as_deref() == Some(&*self.node) && outcome == Outcome::Denied,
            _ => true,
        }
    }

    fn forged(&mut self, record: &FlowRecord, outcome: Outcome) {
        let flow = &record.flow;
        let Some(local) = record.local.clone() else { return };
        let claimed = address(&flow.local);
        let owner = self.directory.late(claimed, flow.start_ns).cloned();
        let own = local.ips.first().copied().unwrap_or(claimed);
        self.contact(&Contact {
            source: Party { ip: own, identity: Some(local) },
            target: Party { ip: address(&record.key.remote), identity: record.remote.clone() },
            port: destination_port(&record.key, layout::EGRESS).unwrap_or(0),
            protocol: record.key.protocol,
            outcome,
            time_ns: flow.start_ns,
            wall_ns: record.start_ns,
            first_flags: (record.key.protocol == TCP).then_some(flow.first_flags),
            flow: Some(record.flow_id),
            process: record.process.clone(),
            claimed: (outcome == Outcome::Spoofed).then_some((Party { ip: claimed, identity: owner }, flow.mac)),
        });
    }
}

/// What the end of a flow says of its contact: a probe without SYN that got an RST, or a connection that was accepted.
fn ended(record: &FlowRecord) -> Option<Outcome> {
    let flow = &record.flow;
    if record.key.protocol != TCP || flow.verdict == verdict::DENIED {
        return None;
    }
    let [forward, reply] = flow.tcp_flags;
    if reply & (flag::SYN | flag::ACK) == flag::SYN | flag::ACK && forward & flag::SYN != 0 {
        return Some(Outcome::Answered);
    }
    let probe = flow.first_flags & (flag::SYN | flag::RST) == 0;
    let reset = (forward | reply) & flag::RST != 0;
    let small = flow.packets[0] + flow.packets[1] <= PROBE_PACKETS && flow.packets[0] > 0 && flow.packets[1] > 0;
    (probe && reset && small).then_some(Outcome::Refused)
}
