//! Records that are neither flows nor alerts, as one line each.

use std::collections::BTreeMap;

use sekisho_proto::{Coverage, Ledger, PolicyChange, Summary};

use super::paint::Paint;
use super::peer;

pub(super) fn ledger(ledger: &Ledger, paint: Paint) -> String {
    let kernel = ledger.kernel.clone().unwrap_or_default();
    let flows = ledger.flows.unwrap_or_default();
    let sinks: Vec<String> = ledger
        .sinks
        .iter()
        .map(|sink| format!("{} {}/{} lost {}", sink.name, sink.delivered, sink.made, sink.lost.values().sum::<u64>()))
        .collect();
    let text = format!(
        "ledger kernel {} created, {} sent, {} summarised, {}; flows {} open of {}; sinks {}",
        kernel.created,
        kernel.start_sent,
        kernel.summarised,
        lost(&kernel.lost),
        flows.open,
        flows.created,
        if sinks.is_empty() { "none".to_owned() } else { sinks.join(", ") },
    );
    paint.faint(&text)
}

/// Losses with their causes.
pub(super) fn lost(lost: &BTreeMap<String, u64>) -> String {
    let causes: Vec<String> = lost.iter().filter(|(_, count)| **count > 0).map(|(cause, count)| format!("{cause} {count}")).collect();
    if causes.is_empty() { "none lost".to_owned() } else { format!("lost {}", causes.join(" ")) }
}

pub(super) fn policy(change: &PolicyChange, paint: Paint) -> String {
    let mut text = format!("policy {} epoch {} policies {}", change.action, change.epoch, change.policies);
    if let Some(mode) = &change.mode {
        text.push_str(" mode ");
        text.push_str(mode);
    }
    match &change.error {
        Some(error) => paint.bad(&format!("{text}: {error}")),
        None => text,
    }
}

pub(super) fn coverage(coverage: &Coverage, paint: Paint) -> String {
    let pod = coverage.pod.as_ref().map(peer::pod_name).unwrap_or_default();
    let interface = coverage.interface.as_deref().unwrap_or_default();
    let words = ["coverage", &coverage.event, &pod, interface, &coverage.attach, &coverage.message];
    let text = words.iter().copied().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
    if matches!(coverage.event.as_str(), "one_way" | "unseen") { paint.bad(&text) } else { text }
}

pub(super) fn summary(summary: &Summary, paint: Paint) -> String {
    let pod = summary.pod.as_ref().map_or_else(|| "unknown".to_owned(), peer::pod_name);
    paint.warning(&format!("summarised {} flows of {pod} beyond its event budget", summary.flows))
}
