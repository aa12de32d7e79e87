//! What has happened so far: counters.

use std::collections::BTreeMap;
use std::fmt;

use prometheus_client::encoding::DescriptorEncoder;
use sekisho_proto as proto;

use super::{Sample, by, counters, float, gauges, plain};
use crate::flow::{Family, Key, SinkTotals, Tally};

/// What was done to packets, whether or not an agent ran.
pub(super) fn packets(out: &mut DescriptorEncoder<'_>, status: &proto::StatusResponse) -> fmt::Result {
    let count = |name: &str| plain(float(status.counters.get(name).copied().unwrap_or(0)));
    counters(out, "packets_dropped", "Packets dropped", count("dropped"))?;
    counters(out, "packets_held", "Packets of pods whose policy is not in force yet, dropped", count("held"))?;
    counters(out, "packets_unjudged", "Packets of pods whose policy is not in force yet, passed", count("unjudged"))
}

pub(super) fn ledger(out: &mut DescriptorEncoder<'_>, ledger: &proto::Ledger) -> fmt::Result {
    if let Some(kernel) = &ledger.kernel {
        counters(out, "flows_judged", "Flows judged in the kernel", plain(float(kernel.created)))?;
        counters(out, "flows_summarised", "Flows told as a count only, beyond an endpoint's budget", plain(float(kernel.summarised)))?;
        counters(out, "flows_lost", "Flows of which no start reached the agent, by cause", by("cause", &kernel.lost))?;
        counters(out, "packets_stateless", "Packets judged without state", plain(float(kernel.stateless)))?;
    }
    let Some(flows) = &ledger.flows else { return Ok(()) };
    gauges(out, "flows_open", "Flows open now", plain(float(flows.open)))?;
    counters(out, "flows_started", "Flows that the agent began to record", plain(float(flows.created)))?;
    counters(out, "flows_ended", "Flows that it has seen end", plain(float(flows.ended)))
}

fn samples<K: Key, V: Copy + Default>(family: &Family<K, V>, value: fn(V) -> u64) -> Vec<Sample> {
    family.series().into_iter().map(|(labels, counted)| (labels, float(value(counted)))).collect()
}

/// What the records say, by namespace, policy and rule.
pub(super) fn tally(out: &mut DescriptorEncoder<'_>, tally: &Tally) -> fmt::Result {
    let Tally { flows, policies, denials, traffic, alerts_by_namespace, alerts } = tally;
    counters(out, "flows", "Flows at pods of a namespace", samples(flows, |n| n))?;
    let policy = "Flows that a policy decided; rule none = no rule allows it, told at the policy that came nearest";
    counters(out, "policy_flows", policy, samples(policies, |n| n))?;
    counters(out, "denials", "Flows that are denied (verdict denied) or would be (verdict audit)", samples(denials, |n| n))?;
    counters(out, "traffic_packets", "Packets that pods of a namespace sent and received", samples(traffic, |volume| volume.packets))?;
    counters(out, "traffic_bytes", "Bytes of these packets, IP headers included", samples(traffic, |volume| volume.bytes))?;
    let opened = alerts.iter().map(|((rule, severity), n)| (vec![("rule", rule.clone()), ("severity", severity.clone())], float(*n)));
    counters(out, "alerts", "Alerts opened", opened.collect())?;
    counters(out, "namespace_alerts", "Alerts opened, by the namespace that caused them", samples(alerts_by_namespace, |n| n))?;
    let overflow = [
        ("flows", flows.overflow()),
        ("policy_flows", policies.overflow()),
        ("denials", denials.overflow()),
        ("traffic", traffic.overflow()),
        ("namespace_alerts", alerts_by_namespace.overflow()),
    ];
    let overflow = overflow.map(|(metric, n)| (vec![("metric", metric.to_owned())], float(n)));
    counters(out, "metric_overflows", "Counts that went to _other, for a metric has no more than 1000 series", overflow.into())
}

/// What became of records on their way out. Streams to clients come and go: together they are one sink.
pub(super) fn sinks(out: &mut DescriptorEncoder<'_>, sinks: &BTreeMap<String, SinkTotals>, status: &proto::StatusResponse) -> fmt::Result {
    let each = |value: fn(&SinkTotals) -> u64| -> Vec<Sample> {
        sinks.iter().map(|(name, totals)| (vec![("sink", name.clone())], float(value(totals)))).collect()
    };
    counters(out, "sink_records_made", "Records made for a sink", each(|totals| totals.made))?;
    counters(out, "sink_records_delivered", "Of these, delivered", each(|totals| totals.delivered))?;
    counters(out, "sink_records_filtered", "Of these, not wanted by its filter", each(|totals| totals.filtered))?;
    counters(out, "sink_records_lost", "Of these, lost", each(|totals| totals.lost.values().sum()))?;
    let mut queued: BTreeMap<&str, u64> = sinks.keys().map(|name| (name.as_str(), 0)).collect();
    for sink in status.ledger.iter().flat_map(|ledger| &ledger.sinks) {
        *queued.entry(sink.name.split(':').next().unwrap_or_default()).or_default() += sink.queued;
    }
    gauges(out, "sink_records_queued", "Records that wait for a sink now", by("sink", &queued))
}

/// What the agent tried, by outcome.
pub(super) fn outcomes(out: &mut DescriptorEncoder<'_>, status: &proto::StatusResponse) -> fmt::Result {
    let suppressed = by("reason", &status.suppressed);
    counters(out, "detections_suppressed", "What detections saw and did not count, by kind and reason", suppressed)?;
    let translations = by("outcome", &status.translations);
    counters(out, "service_translations", "Look-ups of what stands behind a Service's address, by outcome", translations)?;
    counters(out, "events", "Events for the API server, by outcome", by("outcome", &status.events))
}
