//! Records: the header, the bodies and their parts.

use super::object::{Message, Object};
use crate::record::Body;
use crate::{
    Alert, AlertPeer, Counts, Coverage, Delta, Direction, EndReason, Evidence, Flow, Icmp, Kind, Ledger, Mismatch, Peer, Pod, PolicyChange,
    PolicyRef, PolicyRule, PreviousRun, Process, ProcessContacts, Reason, Record, ServiceRef, Summary, Tcp, TcpFlags, Translated, Verdict,
    Workload, Zone, ledger,
};

impl Message for Record {
    fn fields(&self, object: &mut Object<'_>) {
        object.name::<Kind>("kind", self.kind);
        object.number("seq", self.seq);
        object.text("run", &self.run);
        object.message("previous", self.previous.as_ref());
        object.time("time", self.time.as_ref());
        object.text("node", &self.node);
        object.maybe_text("cluster", self.cluster.as_ref());
        match &self.body {
            Some(Body::Flow(body)) => body.fields(object),
            Some(Body::Alert(body)) => body.fields(object),
            Some(Body::Ledger(body)) => body.fields(object),
            Some(Body::PolicyChange(body)) => body.fields(object),
            Some(Body::Coverage(body)) => body.fields(object),
            Some(Body::Summary(body)) => body.fields(object),
            None => {}
        }
    }
}

impl Message for PreviousRun {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("run", &self.run);
        object.number("seq", self.seq);
    }
}

impl Message for Flow {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("flow_id", &self.flow_id);
        object.maybe_text("community_id", self.community_id.as_ref());
        object.maybe_text("community_id_translated", self.community_id_translated.as_ref());
        object.time("start", self.start.as_ref());
        object.time("last", self.last.as_ref());
        object.name::<EndReason>("end_reason", self.end_reason);
        object.name::<Direction>("direction", self.direction);
        object.maybe_flag("adopted", self.adopted);
        object.name::<Verdict>("verdict", self.verdict);
        object.name::<Reason>("reason", self.reason);
        object.message("policy", self.policy.as_ref());
        object.maybe_flag("isolated", self.isolated);
        object.messages("isolated_by", &self.isolated_by);
        object.message("nearest", self.nearest.as_ref());
        object.names::<Mismatch>("mismatch", &self.mismatch);
        object.message("audit", self.audit.as_ref());
        object.maybe_number("epoch", self.epoch);
        object.message("source", self.source.as_ref());
        object.message("destination", self.destination.as_ref());
        object.text("protocol", &self.protocol);
        object.message("icmp", self.icmp.as_ref());
        object.message("tcp", self.tcp.as_ref());
        object.message("packets", self.packets.as_ref());
        object.message("bytes", self.bytes.as_ref());
        object.message("process", self.process.as_ref());
        object.message("listener", self.listener.as_ref());
        object.maybe_text("interface", self.interface.as_ref());
        object.text("attach", &self.attach);
        object.maybe_text("mac", self.mac.as_ref());
    }
}

impl Message for PolicyRef {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("kind", &self.kind);
        object.text("namespace", &self.namespace);
        object.text("name", &self.name);
        object.maybe_text("uid", self.uid.as_ref());
    }
}

impl Message for PolicyRule {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("kind", &self.kind);
        object.text("namespace", &self.namespace);
        object.text("name", &self.name);
        object.maybe_text("uid", self.uid.as_ref());
        object.text("rule", &self.rule);
    }
}

impl Message for Peer {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("ip", &self.ip);
        object.maybe_number("port", self.port);
        object.message("pod", self.pod.as_ref());
        object.message("workload", self.workload.as_ref());
        object.maybe_text("service_account", self.service_account.as_ref());
        object.maybe_text("node", self.node.as_ref());
        object.message("service", self.service.as_ref());
        object.texts("names", &self.names);
        object.maybe_digits("identity", self.identity);
        object.name::<Zone>("zone", self.zone);
        object.maybe_text("client", self.client.as_ref());
        object.maybe_flag("late_identity", self.late_identity);
        object.message("translated", self.translated.as_ref());
    }
}

impl Message for Pod {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("namespace", &self.namespace);
        object.text("name", &self.name);
        object.text("uid", &self.uid);
        object.labels("labels", &self.labels);
    }
}

impl Message for Workload {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("kind", &self.kind);
        object.text("name", &self.name);
    }
}

impl Message for ServiceRef {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("namespace", &self.namespace);
        object.text("name", &self.name);
        object.maybe_text("port", self.port.as_ref());
    }
}

impl Message for Translated {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("ip", &self.ip);
        object.maybe_number("port", self.port);
        object.message("pod", self.pod.as_ref());
    }
}

impl Message for Icmp {
    fn fields(&self, object: &mut Object<'_>) {
        object.number("type", self.r#type);
        object.number("code", self.code);
    }
}

impl Message for Tcp {
    fn fields(&self, object: &mut Object<'_>) {
        object.message("flags", self.flags.as_ref());
        object.maybe_text("state", self.state.as_ref());
        object.maybe_text("conn_state", self.conn_state.as_ref());
        object.maybe_number("rtt_us", self.rtt_us);
    }
}

impl Message for TcpFlags {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("forward", &self.forward);
        object.text("reply", &self.reply);
    }
}

impl Message for Counts {
    fn fields(&self, object: &mut Object<'_>) {
        object.number("forward", self.forward);
        object.number("reply", self.reply);
        object.message("delta", self.delta.as_ref());
    }
}

impl Message for Delta {
    fn fields(&self, object: &mut Object<'_>) {
        object.number("forward", self.forward);
        object.number("reply", self.reply);
    }
}

impl Message for Process {
    fn fields(&self, object: &mut Object<'_>) {
        object.number("pid", self.pid);
        object.text("comm", &self.comm);
        object.maybe_number("uid", self.uid);
        object.maybe_text("container_id", self.container_id.as_ref());
        object.maybe_text("exe", self.exe.as_ref());
    }
}

impl Message for Alert {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("rule", &self.rule);
        object.text("id", &self.id);
        object.number("version", self.version);
        object.text("title", &self.title);
        object.text("severity", &self.severity);
        object.number("confidence", self.confidence);
        object.text("status", &self.status);
        object.message("source", self.source.as_ref());
        object.messages("targets", &self.targets);
        object.number("target_count", self.target_count);
        object.message("evidence", self.evidence.as_ref());
        object.texts("attack", &self.attack);
        object.text("attack_version", &self.attack_version);
        object.time("first", self.first.as_ref());
        object.time("last", self.last.as_ref());
        object.number("count", self.count);
        object.message("process", self.process.as_ref());
        object.messages("processes", &self.processes);
        object.texts("flows", &self.flows);
        object.maybe_text("incident", self.incident.as_ref());
        object.maybe_number("reopened", self.reopened);
    }
}

impl Message for ProcessContacts {
    fn fields(&self, object: &mut Object<'_>) {
        object.message("process", self.process.as_ref());
        object.number("contacts", self.contacts);
    }
}

impl Message for AlertPeer {
    fn fields(&self, object: &mut Object<'_>) {
        object.maybe_text("namespace", self.namespace.as_ref());
        object.maybe_text("pod", self.pod.as_ref());
        object.maybe_text("uid", self.uid.as_ref());
        object.message("workload", self.workload.as_ref());
        object.maybe_text("node", self.node.as_ref());
        object.maybe_text("ip", self.ip.as_ref());
        object.maybe_number("port", self.port);
        object.name::<Zone>("zone", self.zone);
    }
}

impl Message for Evidence {
    fn fields(&self, object: &mut Object<'_>) {
        object.numbers("ports", &self.ports);
        object.maybe_number("port_count", self.port_count);
        object.numbers("open_ports", &self.open_ports);
        object.maybe_number("failed", self.failed);
        object.maybe_number("refused", self.refused);
        object.maybe_number("denied", self.denied);
        object.maybe_number("silent", self.silent);
        object.maybe_number("answered", self.answered);
        object.maybe_number("window_s", self.window_s);
        object.maybe_number("threshold", self.threshold);
        object.texts("first_flags", &self.first_flags);
        object.maybe_text("protocol", self.protocol.as_ref());
        object.maybe_text("claimed_ip", self.claimed_ip.as_ref());
        object.message("claimed_owner", self.claimed_owner.as_ref());
        object.maybe_text("mac", self.mac.as_ref());
    }
}

impl Message for Ledger {
    fn fields(&self, object: &mut Object<'_>) {
        object.message("kernel", self.kernel.as_ref());
        object.message("flows", self.flows.as_ref());
        object.every_message("sinks", &self.sinks);
    }
}

impl Message for ledger::Kernel {
    fn fields(&self, object: &mut Object<'_>) {
        object.number("created", self.created);
        object.number("start_sent", self.start_sent);
        object.number("summarised", self.summarised);
        object.counts("lost", &self.lost);
        object.number("stateless", self.stateless);
    }
}

impl Message for ledger::Flows {
    fn fields(&self, object: &mut Object<'_>) {
        object.number("created", self.created);
        object.number("ended", self.ended);
        object.number("open", self.open);
        object.number("evicted_unseen", self.evicted_unseen);
    }
}

impl Message for ledger::Sink {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("name", &self.name);
        object.number("made", self.made);
        object.number("delivered", self.delivered);
        object.number("filtered", self.filtered);
        object.counts("lost", &self.lost);
        object.number("queued", self.queued);
    }
}

impl Message for PolicyChange {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("action", &self.action);
        object.number("epoch", self.epoch);
        object.maybe_text("mode", self.mode.as_ref());
        object.maybe_text("error", self.error.as_ref());
        object.number("policies", self.policies);
    }
}

impl Message for Coverage {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("event", &self.event);
        object.message("pod", self.pod.as_ref());
        object.maybe_text("interface", self.interface.as_ref());
        object.text("attach", &self.attach);
        object.text("message", &self.message);
    }
}

impl Message for Summary {
    fn fields(&self, object: &mut Object<'_>) {
        object.message("pod", self.pod.as_ref());
        object.number("flows", self.flows);
    }
}
