//! What is so at this moment: gauges.

use std::collections::HashMap;
use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use sekisho_proto as proto;

use super::{Sample, by, counters, float, gauges, plain};

/// The kernel's tables whose size an operator sets with `--memory-budget`, by map.
const TABLES: [(&str, &str); 13] = [
    ("ADDRESSES", "addresses"),
    ("CIDRS", "networks"),
    ("VIPS", "services"),
    ("RULES", "rules"),
    ("PORTS", "ports"),
    ("ENDPOINTS", "endpoints"),
    ("JOURNAL", "journal"),
    ("EMBRYONIC4", "half_open_ipv4"),
    ("EMBRYONIC6", "half_open_ipv6"),
    ("ANSWERED4", "answered_ipv4"),
    ("ANSWERED6", "answered_ipv6"),
    ("ESTABLISHED4", "established_ipv4"),
    ("ESTABLISHED6", "established_ipv6"),
];

pub(super) fn agent(out: &mut DescriptorEncoder<'_>, status: &proto::StatusResponse) -> fmt::Result {
    let build = vec![("version", status.version.clone()), ("commit", status.commit.clone())];
    gauges(out, "build_info", "Which build runs here, as labels", vec![(build, 1.0)])?;
    let node = vec![("kernel", status.kernel.clone()), ("layout", status.layout.clone()), ("tc_backend", status.tc_backend.clone())];
    gauges(out, "node_info", "The node's kernel and how the agent uses it, as labels", vec![(node, 1.0)])?;
    gauges(out, "ready", "1 = every local pod is covered and the policy is in force", plain(u8::from(status.ready)))?;
    let mode = |name: &'static str| (vec![("mode", name.to_owned())], f64::from(u8::from(status.mode == name)));
    gauges(out, "mode", "1 for the mode in force", ["observe", "audit", "enforce"].map(mode).into())?;
    gauges(out, "policy_epoch", "Raised by whatever may change a verdict", plain(status.epoch))?;
    let Some(policy) = &status.policy else { return Ok(()) };
    gauges(out, "policies", "NetworkPolicies known", plain(policy.policies))?;
    gauges(out, "policy_sets", "Distinct sets of rules in use by local pods", plain(policy.sets))?;
    gauges(out, "policy_classes", "Classes of addresses that rules tell apart", plain(policy.classes))?;
    gauges(out, "policy_rules", "Entries of the rule table", plain(float(policy.rules)))?;
    let applied = policy.applied.as_ref().map_or(0.0, seconds);
    gauges(out, "policy_applied_timestamp_seconds", "When the policy in force was applied", plain(applied))
}

#[expect(clippy::cast_precision_loss, reason = "seconds since 1970 fit")]
fn seconds(time: &prost_types::Timestamp) -> f64 {
    time.seconds as f64 + f64::from(time.nanos) / 1e9
}

pub(super) fn coverage(out: &mut DescriptorEncoder<'_>, status: &proto::StatusResponse) -> fmt::Result {
    let mut groups: HashMap<(&str, &str), u32> = HashMap::new();
    for endpoint in &status.endpoints {
        *groups.entry((&endpoint.attach, &endpoint.coverage)).or_default() += 1;
    }
    let mut samples: Vec<Sample> = groups
        .into_iter()
        .map(|((attach, coverage), n)| (vec![("attach", attach.to_owned()), ("coverage", coverage.to_owned())], f64::from(n)))
        .collect();
    samples.sort_by(|a, b| a.0.cmp(&b.0));
    gauges(out, "endpoints", "Local pods by how they are attached and how much of them is seen", samples)?;
    let count = |is: fn(&proto::EndpointStatus) -> bool| float(status.endpoints.iter().filter(|e| is(e)).count() as u64);
    gauges(out, "endpoints_not_ready", "Local pods that are not covered yet", plain(count(|e| !e.ready)))?;
    let isolated = vec![
        (vec![("direction", "ingress".to_owned())], count(|e| e.isolated_ingress)),
        (vec![("direction", "egress".to_owned())], count(|e| e.isolated_egress)),
    ];
    gauges(out, "endpoints_isolated", "Local pods that some policy isolates", isolated)
}

pub(super) fn source(out: &mut DescriptorEncoder<'_>, status: &proto::StatusResponse) -> fmt::Result {
    gauges(
        out,
        "refused_objects",
        "Objects and manifests that are refused now; their previous version is in force",
        plain(float(status.refused.len() as u64)),
    )?;
    let Some(source) = &status.source else { return Ok(()) };
    let synced = vec![(vec![("source", source.name.clone())], f64::from(u8::from(source.synced)))];
    gauges(out, "source_synced", "1 = the cluster has been read whole once", synced)?;
    let since = source.stale_since.as_ref().map_or(0.0, seconds);
    gauges(out, "source_stale_since_timestamp_seconds", "Since when the source cannot be reached; 0 = it can", plain(since))
}

/// How full the tables are whose size an operator sets, and the memory of all.
pub(super) fn tables(out: &mut DescriptorEncoder<'_>, status: &proto::StatusResponse) -> fmt::Result {
    let mut usage: Vec<Sample> = Vec::new();
    for (map, table) in TABLES {
        if let Some(map) = status.maps.iter().find(|found| found.name == map && found.max > 0) {
            usage.push((vec![("table", table.to_owned())], float(map.entries) / float(map.max)));
        }
    }
    gauges(out, "table_usage_ratio", "How full a table in the kernel is, 1 = full", usage)?;
    let bytes = status.maps.iter().map(|map| map.bytes).sum();
    gauges(out, "tables_memory_bytes", "Kernel memory that all tables take", plain(float(bytes)))
}

/// Every map and counter of the kernel programs: for those who look into them.
pub(super) fn kernel(out: &mut DescriptorEncoder<'_>, status: &proto::StatusResponse) -> fmt::Result {
    let each = |value: fn(&proto::MapStatus) -> u64| -> Vec<Sample> {
        status.maps.iter().map(|map| (vec![("map", map.name.clone())], float(value(map)))).collect()
    };
    gauges(out, "map_entries", "Entries of a kernel map", each(|map| map.entries))?;
    gauges(out, "map_max_entries", "Entries that it can hold", each(|map| map.max))?;
    gauges(out, "map_bytes", "Kernel memory that it takes", each(|map| map.bytes))?;
    counters(out, "kernel", "Events that the kernel programs count, by name", by("counter", &status.counters))
}
