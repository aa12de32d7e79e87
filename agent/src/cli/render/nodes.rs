//! Several nodes' states as a table.

use sekisho_proto::StatusResponse;

use super::paint::Paint;
use super::table::table;

/// One line per node; of one that did not answer only that is known.
pub(in crate::cli) fn nodes(nodes: &[(&str, Result<&StatusResponse, &str>)], paint: Paint) -> String {
    let rows: Vec<Vec<String>> = nodes.iter().map(|(node, status)| row(node, status)).collect();
    let mut lines = table(&["NODE", "READY", "MODE", "PODS", "POLICIES", "SOURCE", "VERSION", "KERNEL"], &rows);
    lines[0] = paint.heading(&lines[0]);
    for (line, (_, status)) in lines.iter_mut().skip(1).zip(nodes) {
        if status.is_err() || status.is_ok_and(|status| !status.ready) {
            *line = paint.bad(line);
        }
    }
    lines.join("\n")
}

fn row(node: &str, status: &Result<&StatusResponse, &str>) -> Vec<String> {
    let Ok(status) = status else {
        return vec![node.to_owned(), "no answer".to_owned()];
    };
    let ready = status.endpoints.iter().filter(|endpoint| endpoint.ready).count();
    let source = status.source.as_ref().map_or("", |source| match (source.synced, &source.stale_since) {
        (_, Some(_)) => "stale",
        (true, None) => "in step",
        (false, None) => "not read yet",
    });
    vec![
        node.to_owned(),
        match (status.ready, status.warnings.is_empty()) {
            (true, true) => "yes",
            (true, false) => "yes, with warnings",
            (false, _) => "no",
        }
        .to_owned(),
        status.mode.clone(),
        format!("{ready}/{}", status.endpoints.len()),
        status.policy.as_ref().map(|policy| policy.policies).unwrap_or_default().to_string(),
        source.to_owned(),
        status.version.clone(),
        status.kernel.clone(),
    ]
}
