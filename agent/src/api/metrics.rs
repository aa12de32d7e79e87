//! The agent's status as Prometheus metrics. Cardinality is bounded: no label names a pod.
//!
//! The page is OpenMetrics for those who ask for it, as Prometheus does, and the older text format for all others: `curl`,
//! `promtool check metrics`, and agents of other makes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::fs;
use std::hash::Hash;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use sekisho_proto as proto;

/// Which of the two formats a page is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    OpenMetrics,
    Text,
}

impl Format {
    /// What a request's `Accept` asks for.
    pub(super) fn accepted(accept: &str) -> Self {
        if accept.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Text }
    }

    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Every metric of this moment.
pub(super) fn page(status: Arc<proto::StatusResponse>, format: Format) -> String {
    let page = render(status);
    match format {
        Format::OpenMetrics => page,
        Format::Text => as_text(&page),
    }
}

/// In the older format a counter's description has the name that its samples have, and nothing marks the end.
fn as_text(page: &str) -> String {
    let counters: HashSet<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(page.len() + 256);
    for line in page.lines().filter(|line| *line != "# EOF") {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some(what @ ("HELP" | "TYPE")), Some(name), Some(rest)) if counters.contains(name) => {
                text.extend(["# ", what, " ", name, "_total ", rest]);
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

fn render(status: Arc<proto::StatusResponse>) -> String {
    let mut registry = Registry::with_prefix("sekisho");
    registry.register_collector(Box::new(Moment(status)));
    let mut process = Registry::default();
    process.register_collector(Box::new(Process));
    let mut page = String::with_capacity(16 << 10);
    // Writing into a string cannot fail.
    let written = text::encode_registry(&mut page, &process).and_then(|()| text::encode(&mut page, &registry));
    debug_assert!(written.is_ok());
    page
}

type Labels = Vec<(&'static str, String)>;
type Sample = (Labels, f64);

fn plain(value: impl Into<f64>) -> Vec<Sample> {
    vec![(Vec::new(), value.into())]
}

/// Counts beyond 2^53 lose their last digits, as everywhere in Prometheus.
#[expect(clippy::cast_precision_loss, reason = "Prometheus has no other numbers")]
fn float(n: u64) -> f64 {
    n as f64
}

fn by<'a, K>(label: &'static str, counts: impl IntoIterator<Item = (&'a K, &'a u64)>) -> Vec<Sample>
where
    K: ToString + Ord + Eq + Hash + 'a,
{
    let sorted: BTreeMap<_, _> = counts.into_iter().collect();
    sorted.into_iter().map(|(name, n)| (vec![(label, name.to_string())], float(*n))).collect()
}

#[derive(Debug)]
struct Moment(Arc<proto::StatusResponse>);

impl Collector for Moment {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        let status = &self.0;
        agent(out, status)?;
        coverage(out, status)?;
        source(out, status)?;
        maps(out, status)?;
        counters(out, "kernel", "Events that the kernel programs count, by name", by("counter", &status.counters))?;
        counters(
            out,
            "detections_suppressed",
            "What detections saw and did not count, by kind and reason",
            by("reason", &status.suppressed),
        )?;
        counters(
            out,
            "service_translations",
            "Look-ups of what stands behind a Service's address, by outcome",
            by("outcome", &status.translations),
        )?;
        counters(out, "events", "Events for the API server, by outcome", by("outcome", &status.events))?;
        status.ledger.as_ref().map_or(Ok(()), |ledger| self::ledger(out, ledger))
    }
}

fn gauges(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, samples: Vec<Sample>) -> fmt::Result {
    let mut metric = out.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (labels, value) in samples {
        if labels.is_empty() {
            metric.encode_gauge(&value)?;
        } else {
            metric.encode_family(&labels)?.encode_gauge(&value)?;
        }
    }
    Ok(())
}

fn counters(out: &mut DescriptorEncoder<'_>, name: &str, help: &str, samples: Vec<Sample>) -> fmt::Result {
    let mut metric = out.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in samples {
        if labels.is_empty() {
            metric.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        } else {
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, f64>(&value, None)?;
        }
    }
    Ok(())
}

fn agent(out: &mut DescriptorEncoder<'_>, status: &proto::StatusResponse) -> fmt::Result {
    let info = vec![
        ("version", status.version.clone()),
        ("kernel", status.kernel.clone()),
        ("layout", status.layout.clone()),
        ("tc_backend", status.tc_backend.clone()),
    ];
    gauges(out, "build", "What runs here, as labels", vec![(info, 1.0)])?;
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

fn coverage(out: &mut DescriptorEncoder<'_>, status: &proto::StatusResponse) -> fmt::Result {
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

fn source(out: &mut DescriptorEncoder<'_>, status: &proto::StatusResponse) -> fmt::Result {
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

fn maps(out: &mut DescriptorEncoder<'_>, status: &proto::StatusResponse) -> fmt::Result {
    let each = |value: fn(&proto::MapStatus) -> u64| -> Vec<Sample> {
        status.maps.iter().map(|map| (vec![("map", map.name.clone())], float(value(map)))).collect()
    };
    gauges(out, "map_entries", "Entries of a kernel map", each(|map| map.entries))?;
    gauges(out, "map_max_entries", "Entries that it can hold", each(|map| map.max))?;
    gauges(out, "map_bytes", "Kernel memory that it takes", each(|map| map.bytes))
}

fn ledger(out: &mut DescriptorEncoder<'_>, ledger: &proto::Ledger) -> fmt::Result {
    if let Some(kernel) = &ledger.kernel {
        counters(out, "flows_judged", "Flows judged in the kernel", plain(float(kernel.created)))?;
        counters(out, "flows_summarised", "Flows told as a count only, beyond an endpoint's budget", plain(float(kernel.summarised)))?;
        counters(out, "flows_lost", "Flows of which no start reached the agent, by cause", by("cause", &kernel.lost))?;
        counters(out, "flows_stateless", "Packets judged without state", plain(float(kernel.stateless)))?;
    }
    if let Some(flows) = &ledger.flows {
        gauges(out, "flows_open", "Flows open now", plain(float(flows.open)))?;
        counters(out, "flows_started", "Flows that the agent began to record", plain(float(flows.created)))?;
        counters(out, "flows_ended", "Flows that it has seen end", plain(float(flows.ended)))?;
    }
    let mut made = Vec::new();
    let (mut delivered, mut lost, mut queued) = (Vec::new(), Vec::new(), Vec::new());
    // Streams to clients come and go, each with a name: together they are one sink.
    let mut sinks: BTreeMap<&str, [u64; 4]> = BTreeMap::new();
    for sink in &ledger.sinks {
        let name = sink.name.split([':', '/', '#', ' ']).next().unwrap_or_default();
        let sum = sinks.entry(name).or_default();
        let row = [sink.made, sink.delivered, sink.lost.values().sum(), sink.queued];
        sum.iter_mut().zip(row).for_each(|(sum, n)| *sum += n);
    }
    for (name, row) in sinks {
        let label = || vec![("sink", name.to_owned())];
        for (samples, n) in [&mut made, &mut delivered, &mut lost, &mut queued].into_iter().zip(row) {
            samples.push((label(), float(n)));
        }
    }
    gauges(out, "sink_records_made", "Records made for the sinks that are open, by sink", made)?;
    gauges(out, "sink_records_delivered", "Of these, delivered", delivered)?;
    gauges(out, "sink_records_lost", "Of these, lost", lost)?;
    gauges(out, "sink_records_queued", "Of these, waiting", queued)
}

#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        const PAGE: f64 = 4096.0;
        // The kernel's clock ticks as user space sees them are 1/100 s on every architecture that we build for.
        const TICK: f64 = 0.01;
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let resident: f64 = statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0.0);
        gauges(&mut encoder, "process_resident_memory_bytes", "Memory of the agent", plain(resident * PAGE))?;
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let ticks: f64 = after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum();
        counters(&mut encoder, "process_cpu_seconds", "Processor time of the agent", plain(ticks * TICK))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_says_what_the_status_says_and_names_no_pod() {
        let endpoint = proto::EndpointStatus {
            pod: Some(proto::Pod { name: "web-1".into(), ..proto::Pod::default() }),
            attach: "tcx".into(),
            coverage: "full".into(),
            isolated_ingress: true,
            ready: true,
            ..proto::EndpointStatus::default()
        };
        let status = proto::StatusResponse {
            ready: true,
            mode: "audit".into(),
            endpoints: vec![endpoint.clone(), proto::EndpointStatus { ready: false, ..endpoint }],
            refused: vec!["NetworkPolicy a/b, spec: wrong".into()],
            source: Some(proto::SourceStatus { name: "kube".into(), synced: true, ..proto::SourceStatus::default() }),
            counters: [("dropped".to_owned(), 7)].into(),
            ledger: Some(proto::Ledger {
                kernel: Some(proto::ledger::Kernel { created: 12, lost: [("ring_full".to_owned(), 3)].into(), ..Default::default() }),
                ..proto::Ledger::default()
            }),
            ..proto::StatusResponse::default()
        };
        let page = render(Arc::new(status));
        let lines = [
            "sekisho_ready 1.0",
            "sekisho_mode{mode=\"audit\"} 1.0",
            "sekisho_mode{mode=\"enforce\"} 0.0",
            "sekisho_endpoints{attach=\"tcx\",coverage=\"full\"} 2.0",
            "sekisho_endpoints_not_ready 1.0",
            "sekisho_endpoints_isolated{direction=\"ingress\"} 2.0",
            "sekisho_refused_objects 1.0",
            "sekisho_source_synced{source=\"kube\"} 1.0",
            "sekisho_source_stale_since_timestamp_seconds 0.0",
            "sekisho_kernel_total{counter=\"dropped\"} 7.0",
            "sekisho_flows_judged_total 12.0",
            "sekisho_flows_lost_total{cause=\"ring_full\"} 3.0",
        ];
        for line in lines {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
        assert!(page.contains("process_resident_memory_bytes ") && page.contains("process_cpu_seconds_total "));
        assert!(!page.contains("web-1"));
        assert!(page.trim_end().ends_with("# EOF") && page.matches("# EOF").count() == 1);
    }

    #[test]
    fn who_does_not_ask_for_open_metrics_gets_the_older_text() {
        let status =
            || Arc::new(proto::StatusResponse { counters: [("dropped".to_owned(), 7)].into(), ..proto::StatusResponse::default() });
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4";
        let new = page(status(), Format::accepted(prometheus));
        assert!(new.contains("# TYPE sekisho_kernel counter\n") && new.ends_with("# EOF\n"));
        let old = page(status(), Format::accepted("*/*"));
        for line in [
            "# HELP sekisho_kernel_total Events that the kernel programs count, by name",
            "# TYPE sekisho_kernel_total counter",
            "sekisho_kernel_total{counter=\"dropped\"} 7.0",
            "# TYPE sekisho_ready gauge",
        ] {
            assert!(old.lines().any(|l| l == line), "{line} is not in\n{old}");
        }
        assert!(!old.contains("# EOF"));
        let samples = |page: &str| page.lines().filter(|line| !line.starts_with(['#', 'p'])).map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(samples(&new), samples(&old));
    }
}
