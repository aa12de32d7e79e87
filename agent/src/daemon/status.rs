//! What the agent says of itself.

use std::net::IpAddr;

use sekisho_core::layout::{self, EGRESS, INGRESS, mode};
use sekisho_proto as proto;

use super::pump::Pump;
use crate::datapath::EndpointInfo;
use crate::flow;
use crate::inventory::Pod;

impl Pump {
    /// Why this node is not ready, one sentence each; empty when it is.
    pub(super) fn unready(&self) -> Vec<String> {
        let mut why: Vec<String> = self.refused.iter().cloned().collect();
        if !self.synced {
            let error = self.source.state().error.map(|e| format!(" ({e})")).unwrap_or_default();
            why.push(format!("the cluster has not been read whole yet{error}; what an earlier agent put in force stays"));
        }
        for pod in &self.local {
            match self.datapath.endpoints().find(|e| e.uid == pod.uid) {
                Some(endpoint) if endpoint.ready => {}
                found => {
                    let message = found.and_then(|e| e.message.clone());
                    let message = message.unwrap_or_else(|| "neither its control group nor its interface has been found yet".into());
                    why.push(format!("{}/{}: {message}", pod.namespace, pod.name));
                }
            }
        }
        why
    }

    /// What needs attention although the node may be ready, one sentence each. One tenant's broken object must not take the node out
    /// of service, so none of it makes the node unready.
    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let never = self.snapshot.refused.iter().filter(|refused| refused.contains("never applied")).count();
        match (self.snapshot.refused.len(), never) {
            (0, _) => {}
            (1, 0) => warnings.push("a change of an object is refused; its previous version stays in force".to_owned()),
            (all, 0) => warnings.push(format!("changes of {all} objects are refused; their previous versions stay in force")),
            (1, _) => warnings.push("an object is refused and was never applied: nothing of it is in force".to_owned()),
            (all, never) => {
                warnings.push(format!("{all} objects are refused; {never} of them never applied: nothing of those is in force"));
            }
        }
        let state = self.source.state();
        if state.stale_since.is_some() {
            warnings.push(format!("the cluster cannot be read ({}); what was known last is in force", state.error.unwrap_or_default()));
        }
        let left_out = self.compiled.as_ref().map_or(0, |compiled| compiled.stats.left_out);
        if left_out > 0 {
            warnings.push(format!("{left_out} addresses have no room in the kernel's table; raise --memory-budget"));
        }
        warnings
    }

    /// Everything that `sekisho status` shows.
    pub(super) fn status(&mut self) -> proto::StatusResponse {
        let unready = self.unready();
        let ledger = self.ledger();
        let counters = self.datapath.counters();
        let named = sekisho_core::counters::NAMES.iter();
        let maps = self.datapath.maps().into_iter().map(|m| proto::MapStatus {
            name: m.name.to_owned(),
            entries: m.entries,
            max: m.max,
            bytes: m.bytes,
        });
        proto::StatusResponse {
            ready: unready.is_empty(),
            unready,
            node: self.args.node_name.clone(),
            run: self.header().run.to_string(),
            mode: mode::name(self.datapath.mode()).unwrap_or("unknown").to_owned(),
            epoch: self.datapath.epoch(),
            version: crate::version::VERSION.to_owned(),
            commit: crate::version::COMMIT.to_owned(),
            kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned(),
            layout: format!("{:016x}", layout::LAYOUT),
            started: Some(flow::timestamp(self.started_ns)),
            tc_backend: self.datapath.backend_name().to_owned(),
            pin_dir: self.args.pin_dir.display().to_string(),
            endpoints: self
                .local
                .iter()
                .chain(&self.lingering)
                .map(|pod| self.endpoint_status(pod))
                .chain(self.stranger_status())
                .collect(),
            maps: maps.collect(),
            ledger: Some(ledger),
            refused: self.snapshot.refused.clone(),
            warnings: self.warnings(),
            policy: Some(self.policy_status()),
            source: Some(self.source_status()),
            counters: named.map(|(slot, name)| ((*name).to_owned(), counters[*slot as usize])).collect(),
            suppressed: self.detector.suppressed().into_iter().map(|((kind, why), n)| (format!("{kind}.{why}"), n)).collect(),
            translations: self.translations(),
            events: self.source.notices().into_iter().map(|(outcome, n)| (outcome.to_owned(), n)).collect(),
        }
    }

    fn translations(&self) -> std::collections::BTreeMap<String, u64> {
        let tally = self.translator.as_ref().map(super::translate::Translator::tally).unwrap_or_default();
        let not_asked = self.engine.not_looked_up();
        let counts = [("found", tally.found), ("not_found", tally.not_found), ("failed", tally.failed), ("not_asked", not_asked)];
        counts.map(|(name, n)| (name.to_owned(), n)).into()
    }

    fn endpoint_status(&self, pod: &Pod) -> proto::EndpointStatus {
        let none = EndpointInfo::default();
        let endpoint = self.datapath.endpoints().find(|e| e.uid == pod.uid).unwrap_or(&none);
        let ips = if endpoint.addresses.is_empty() { &pod.ips } else { &endpoint.addresses };
        proto::EndpointStatus {
            pod: Some(self::pod(pod)),
            ips: ips.iter().map(IpAddr::to_string).collect(),
            interface: endpoint.interface.as_deref().map(str::to_owned),
            attach: endpoint.attach_name().to_owned(),
            set: endpoint.set,
            isolated_ingress: endpoint.isolated[usize::from(INGRESS)],
            isolated_egress: endpoint.isolated[usize::from(EGRESS)],
            coverage: endpoint.coverage.name().to_owned(),
            ready: endpoint.ready,
            message: endpoint.remarks(),
            host_network: pod.host_network,
        }
    }

    fn source_status(&self) -> proto::SourceStatus {
        let state = self.source.state();
        let nanoseconds = |since: std::time::SystemTime| {
            since.duration_since(std::time::UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
        };
        proto::SourceStatus {
            name: state.name.to_owned(),
            synced: state.synced,
            stale_since: state.stale_since.map(|since| flow::timestamp(nanoseconds(since))),
            error: state.error,
        }
    }

    fn policy_status(&self) -> proto::PolicyStatus {
        let (stats, rules) = self.compiled.as_ref().map(|c| (c.stats, c.tables.rules.len())).unwrap_or_default();
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        proto::PolicyStatus {
            policies: small(self.snapshot.policies.len()),
            sets: small(stats.sets),
            classes: small(stats.classes),
            rules: rules as u64,
            applied: Some(flow::timestamp(self.applied_ns)),
            left_out: stats.left_out as u64,
            warnings: self.compiled.iter().flat_map(|c| &c.warnings).map(|warning| warning.text.clone()).collect(),
        }
    }
}

/// A pod as records name it.
pub(super) fn pod(pod: &Pod) -> proto::Pod {
    proto::Pod {
        namespace: pod.namespace.to_string(),
        name: pod.name.to_string(),
        uid: pod.uid.to_string(),
        labels: pod.labels.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect(),
    }
}
