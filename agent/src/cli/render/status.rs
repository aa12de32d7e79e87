//! A status as a page.

use sekisho_proto::{EndpointStatus, Ledger, SourceStatus, StatusResponse, rfc3339};

use super::paint::Paint;
use super::siblings::lost;
use super::table::table;
use super::{human_bytes, peer};

pub(in crate::cli) fn status(status: &StatusResponse, paint: Paint) -> String {
    let mut lines = summary(status, paint);
    lines.push(String::new());
    lines.extend(endpoints(&status.endpoints, paint));
    lines.push(String::new());
    lines.extend(maps(status, paint));
    if let Some(ledger) = &status.ledger {
        lines.push(String::new());
        lines.extend(ledger_lines(ledger, paint));
    }
    if !status.refused.is_empty() {
        lines.push(String::new());
        lines.push(paint.bad("Refused; each line ends with what is in force:"));
        lines.extend(status.refused.iter().map(|refused| format!("  {refused}")));
    }
    if let Some(policy) = status.policy.as_ref().filter(|policy| !policy.warnings.is_empty()) {
        lines.push(String::new());
        lines.push(paint.bad("Warnings:"));
        lines.extend(policy.warnings.iter().map(|warning| format!("  {warning}")));
    }
    lines.join("\n")
}

fn summary(status: &StatusResponse, paint: Paint) -> Vec<String> {
    let ready = match (status.ready, status.warnings.is_empty()) {
        (true, true) => paint.good("yes"),
        (true, false) => paint.warning("yes, with warnings"),
        (false, _) => paint.bad("no"),
    };
    let mut lines = vec![
        format!("Ready    {ready}"),
        format!("Mode     {} (epoch {})", status.mode, status.epoch),
        format!("Node     {}, run {}{}", status.node, status.run, since(status)),
        format!("Version  {}, kernel {}, {}, layout {}", status.version, status.kernel, status.tc_backend, status.layout),
        format!("Pins     {}", status.pin_dir),
    ];
    if let Some(policy) = &status.policy {
        let (policies, sets, classes, rules) = (policy.policies, policy.sets, policy.classes, policy.rules);
        lines.push(format!("Policy   {policies} policies: {sets} sets, {classes} classes, {rules} rules"));
        if policy.left_out > 0 {
            lines.push(format!("         {} addresses that no policy tells apart have no room in ADDRESSES", policy.left_out));
        }
    }
    lines.extend(status.source.as_ref().map(|source| source_line(source, paint)));
    let unready = status.unready.iter().map(|reason| paint.bad(&format!("         {reason}")));
    let warnings = status.warnings.iter().map(|warning| paint.warning(&format!("         {warning}")));
    lines.splice(1..1, unready.chain(warnings));
    lines
}

fn source_line(source: &SourceStatus, paint: Paint) -> String {
    let name = if source.name == "kube" { "the API server" } else { "manifests" };
    let Some(since) = &source.stale_since else {
        return format!("Source   {name}, {}", if source.synced { "in step" } else { "not read whole yet" });
    };
    let time = rfc3339(since);
    let error = source.error.as_deref().unwrap_or("no answer");
    paint.bad(&format!("Source   {name}, stale since {}Z: {error}", time.get(..19).unwrap_or(&time)))
}

fn since(status: &StatusResponse) -> String {
    let time = status.started.as_ref().map(rfc3339).unwrap_or_default();
    time.get(..19).map(|time| format!(", since {time}Z")).unwrap_or_default()
}

fn endpoints(endpoints: &[EndpointStatus], paint: Paint) -> Vec<String> {
    if endpoints.is_empty() {
        return vec!["No pods of this node.".to_owned()];
    }
    let rows: Vec<Vec<String>> = endpoints.iter().map(endpoint).collect();
    let heading = ["ENDPOINT", "ADDRESSES", "INTERFACE", "ATTACH", "SET", "ISOLATED", "COVERAGE", "READY"];
    let mut lines = table(&heading, &rows);
    lines[0] = paint.heading(&lines[0]);
    for (line, endpoint) in lines.iter_mut().skip(1).zip(endpoints) {
        if !endpoint.ready {
            *line = paint.bad(line);
        }
        if let Some(message) = &endpoint.message {
            *line = format!("{line}\n  {message}");
        }
    }
    lines
}

fn endpoint(endpoint: &EndpointStatus) -> Vec<String> {
    let isolated = match (endpoint.host_network, endpoint.isolated_ingress, endpoint.isolated_egress) {
        (true, _, _) => "host network",
        (false, true, true) => "both ways",
        (false, true, false) => "ingress",
        (false, false, true) => "egress",
        (false, false, false) => "no",
    };
    vec![
        endpoint.pod.as_ref().map(peer::pod_name).unwrap_or_default(),
        endpoint.ips.join(","),
        endpoint.interface.clone().unwrap_or_else(|| "-".to_owned()),
        endpoint.attach.clone(),
        endpoint.set.to_string(),
        isolated.to_owned(),
        endpoint.coverage.clone(),
        if endpoint.ready { "yes" } else { "no" }.to_owned(),
    ]
}

fn maps(status: &StatusResponse, paint: Paint) -> Vec<String> {
    let row = |map: &sekisho_proto::MapStatus| {
        let percent = (map.entries * 100).checked_div(map.max).unwrap_or_default();
        vec![map.name.clone(), map.entries.to_string(), map.max.to_string(), format!("{percent}%"), human_bytes(map.bytes)]
    };
    let rows: Vec<Vec<String>> = status.maps.iter().map(row).collect();
    let mut lines = table(&["MAP", "ENTRIES", "MAXIMUM", "FILL", "MEMORY"], &rows);
    lines[0] = paint.heading(&lines[0]);
    lines.push(format!("All maps take {}.", human_bytes(status.maps.iter().map(|map| map.bytes).sum())));
    lines
}

fn ledger_lines(ledger: &Ledger, paint: Paint) -> Vec<String> {
    let mut lines = vec![paint.heading("LEDGER")];
    if let Some(kernel) = &ledger.kernel {
        let lost = lost(&kernel.lost);
        let (created, sent, summarised, stateless) = (kernel.created, kernel.start_sent, kernel.summarised, kernel.stateless);
        lines.push(format!("kernel  {created} created = {sent} sent + {summarised} summarised, {lost}; {stateless} judged without state"));
    }
    if let Some(flows) = &ledger.flows {
        let (created, ended, open, evicted) = (flows.created, flows.ended, flows.open, flows.evicted_unseen);
        lines.push(format!("flows   {created} created = {ended} ended + {open} open + {evicted} evicted unseen"));
    }
    for sink in &ledger.sinks {
        let (made, delivered, filtered, queued) = (sink.made, sink.delivered, sink.filtered, sink.queued);
        let lost = lost(&sink.lost);
        lines.push(format!("sink {}  {made} made = {delivered} delivered + {filtered} filtered + {queued} queued, {lost}", sink.name));
    }
    lines
}
