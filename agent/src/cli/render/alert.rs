//! An alert as one line.

use sekisho_proto::{Alert, Evidence};

use super::paint::Paint;
use super::peer;

/// An alert with so many of its targets and ports by name; the rest is only counted.
pub(super) fn line(alert: &Alert, named: usize, paint: Paint) -> String {
    let source = alert.source.as_ref().map_or_else(|| "unknown".to_owned(), peer::alert_peer);
    let head = format!("ALERT  {} {}", alert.severity, alert.rule);
    let mut parts = vec![paint.bad(&head), alert.status.clone(), format!("from {source}")];
    if !alert.targets.is_empty() {
        let names: Vec<String> = alert.targets.iter().map(peer::alert_peer).collect();
        parts.push(format!("to {}", some(&names, alert.target_count as usize, named)));
    }
    parts.extend(alert.evidence.as_ref().and_then(|evidence| found(evidence, named)));
    parts.extend(alert.process.as_ref().map(|process| format!("by {}", peer::process(process))));
    if !alert.attack.is_empty() {
        parts.push(format!("ATT&CK {}", alert.attack.join(",")));
    }
    parts.push(format!("count {}", alert.count));
    parts.push(paint.faint(&format!("id {}", alert.id)));
    parts.retain(|part| !part.is_empty());
    parts.join(" ")
}

fn found(evidence: &Evidence, named: usize) -> Option<String> {
    if let Some(claimed) = &evidence.claimed_ip {
        let owner = evidence.claimed_owner.as_ref().map(|owner| format!(" of {}", peer::alert_peer(owner))).unwrap_or_default();
        return Some(format!("claims {claimed}{owner}"));
    }
    if evidence.ports.is_empty() {
        return None;
    }
    let ports: Vec<String> = evidence.ports.iter().map(u32::to_string).collect();
    let total = evidence.port_count.map_or(ports.len(), |count| count as usize);
    Some(format!("ports {}", some(&ports, total, named)))
}

fn some(names: &[String], total: usize, named: usize) -> String {
    let shown = names.len().min(named);
    let more = total.max(names.len()) - shown;
    let rest = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{rest}", names[..shown].join(","))
}
