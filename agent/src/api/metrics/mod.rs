//! The agent's status as Prometheus metrics. Cardinality is bounded: no label names a pod, and those that name namespaces, policies and
//! rules have a limit (see [`Tally`]). What only helps to look into the kernel's maps is there for those who ask for it.
//!
//! The page is OpenMetrics for those who ask for it, as Prometheus does, and the older text format for all others: `curl`,
//! `promtool check metrics`, and agents of other makes.

mod counts;
mod process;
mod state;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use sekisho_proto as proto;

use crate::flow::{SinkTotals, Tally};

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

/// What a page is made of.
#[derive(Debug)]
pub(super) struct Moment {
    pub(super) status: Arc<proto::StatusResponse>,
    pub(super) tally: Tally,
    pub(super) sinks: BTreeMap<String, SinkTotals>,
    /// With every counter and every map of the kernel programs.
    pub(super) kernel: bool,
}

/// Whether the query of a request asks for the kernel's part: `detail=kernel`.
pub(super) fn wants_kernel(query: &str) -> bool {
    query.split('&').any(|pair| pair == "detail=kernel")
}

/// Every metric of this moment.
pub(super) fn page(moment: Moment, format: Format) -> String {
    let page = render(moment);
    match format {
        Format::OpenMetrics => page,
        Format::Text => as_text(&page),
    }
}

/// In the older format a counter's description has the name that its samples have and nothing marks the end.
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

fn render(moment: Moment) -> String {
    let mut registry = Registry::with_prefix("sekisho");
    registry.register_collector(Box::new(moment));
    let mut process = Registry::default();
    process.register_collector(Box::new(process::Process));
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

impl Collector for Moment {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        let status = &self.status;
        state::agent(out, status)?;
        state::coverage(out, status)?;
        state::source(out, status)?;
        state::tables(out, status)?;
        counts::packets(out, status)?;
        status.ledger.as_ref().map_or(Ok(()), |ledger| counts::ledger(out, ledger))?;
        counts::tally(out, &self.tally)?;
        counts::sinks(out, &self.sinks, status)?;
        counts::outcomes(out, status)?;
        if self.kernel { state::kernel(out, status) } else { Ok(()) }
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
