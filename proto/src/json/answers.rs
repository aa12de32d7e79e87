//! What the agent answers when it is asked: status, explanation, mode. Lists are always there, empty or not.

use super::object::{Message, Object};
use crate::{
    Decision, EndpointStatus, ExplainResponse, MapStatus, Mismatch, ModeResponse, Outcome, PolicyStatus, Reason, SourceStatus,
    StatusResponse,
};

impl Message for StatusResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.flag("ready", self.ready);
        object.every_text("unready", &self.unready);
        object.text("node", &self.node);
        object.text("run", &self.run);
        object.text("mode", &self.mode);
        object.number("epoch", self.epoch);
        object.text("version", &self.version);
        object.text("commit", &self.commit);
        object.text("kernel", &self.kernel);
        object.text("layout", &self.layout);
        object.time("started", self.started.as_ref());
        object.text("tc_backend", &self.tc_backend);
        object.text("pin_dir", &self.pin_dir);
        object.every_message("endpoints", &self.endpoints);
        object.every_message("maps", &self.maps);
        object.message("ledger", self.ledger.as_ref());
        object.every_text("refused", &self.refused);
        object.every_text("warnings", &self.warnings);
        object.message("policy", self.policy.as_ref());
        object.counts("counters", &self.counters);
        object.counts("suppressed", &self.suppressed);
        object.counts("translations", &self.translations);
        object.counts("events", &self.events);
        object.message("source", self.source.as_ref());
    }
}

impl Message for SourceStatus {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("name", &self.name);
        object.flag("synced", self.synced);
        object.time("stale_since", self.stale_since.as_ref());
        object.maybe_text("error", self.error.as_ref());
    }
}

impl Message for EndpointStatus {
    fn fields(&self, object: &mut Object<'_>) {
        object.message("pod", self.pod.as_ref());
        object.texts("ips", &self.ips);
        object.maybe_text("interface", self.interface.as_ref());
        object.text("attach", &self.attach);
        object.number("set", self.set);
        object.flag("isolated_ingress", self.isolated_ingress);
        object.flag("isolated_egress", self.isolated_egress);
        object.text("coverage", &self.coverage);
        object.flag("ready", self.ready);
        object.maybe_text("message", self.message.as_ref());
        object.flag("host_network", self.host_network);
    }
}

impl Message for MapStatus {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("name", &self.name);
        object.number("entries", self.entries);
        object.number("max", self.max);
        object.number("bytes", self.bytes);
    }
}

impl Message for PolicyStatus {
    fn fields(&self, object: &mut Object<'_>) {
        object.number("policies", self.policies);
        object.number("sets", self.sets);
        object.number("classes", self.classes);
        object.number("rules", self.rules);
        object.time("applied", self.applied.as_ref());
        object.number("left_out", self.left_out);
        object.every_text("warnings", &self.warnings);
    }
}

impl Message for ExplainResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.name::<Outcome>("verdict", self.verdict);
        object.name::<Outcome>("enforced", self.enforced);
        object.message("source", self.source.as_ref());
        object.message("destination", self.destination.as_ref());
        object.message("egress", self.egress.as_ref());
        object.maybe_text("egress_elsewhere", self.egress_elsewhere.as_ref());
        object.message("ingress", self.ingress.as_ref());
        object.maybe_text("ingress_elsewhere", self.ingress_elsewhere.as_ref());
        object.text("mode", &self.mode);
    }
}

impl Message for Decision {
    fn fields(&self, object: &mut Object<'_>) {
        object.name::<Outcome>("verdict", self.verdict);
        object.name::<Outcome>("enforced", self.enforced);
        object.name::<Reason>("reason", self.reason);
        object.flag("isolated", self.isolated);
        object.message("policy", self.policy.as_ref());
        object.messages("isolated_by", &self.isolated_by);
        object.message("nearest", self.nearest.as_ref());
        object.names::<Mismatch>("mismatch", &self.mismatch);
        object.text("text", &self.text);
    }
}

impl Message for ModeResponse {
    fn fields(&self, object: &mut Object<'_>) {
        object.text("node", &self.node);
        object.text("mode", &self.mode);
        object.number("epoch", self.epoch);
    }
}
