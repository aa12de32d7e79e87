//! A flow as one line.

use sekisho_proto::{Counts, Direction, EndReason, Flow, Mismatch, Name as _, PolicyRef, PolicyRule, Reason, Verdict, to_nanoseconds};

use super::paint::Paint;
use super::{human_bytes, peer};

/// Kind, verdict, direction, both ends, protocol, why, who, how much.
pub(super) fn line(flow: &Flow, kind: &str, paint: Paint) -> String {
    let verdict = Verdict::name_of(flow.verdict).unwrap_or("unjudged").to_uppercase();
    let direction = Direction::name_of(flow.direction).unwrap_or("unknown");
    let ends = format!("{} -> {}", end(flow.source.as_ref()), end(flow.destination.as_ref()));
    let mut parts =
        vec![format!("{kind:<6}"), paint.verdict(flow.verdict, &format!("{verdict:<7}")), format!("{direction:<7}"), ends, protocol(flow)];
    parts.extend(why(flow).map(|why| paint.verdict(flow.verdict, &why)));
    parts.extend(flow.process.as_ref().map(|process| format!("by {}", peer::process(process))));
    parts.extend(flow.listener.as_ref().map(|listener| format!("to {}", peer::process(listener))));
    parts.extend(counts(flow).map(|counts| paint.faint(&counts)));
    parts.extend(ending(flow).map(|ending| paint.faint(&ending)));
    parts.join(" ")
}

fn end(end: Option<&sekisho_proto::Peer>) -> String {
    end.map_or_else(|| "unknown".to_owned(), peer::peer)
}

fn protocol(flow: &Flow) -> String {
    let detail = match (&flow.icmp, &flow.tcp) {
        (Some(icmp), _) => format!(" {}/{}", icmp.r#type, icmp.code),
        (None, Some(tcp)) => tcp.conn_state.as_ref().map(|state| format!(" {state}")).unwrap_or_default(),
        (None, None) => String::new(),
    };
    format!("{}{detail}", flow.protocol)
}

/// Why it was judged so, in brackets.
fn why(flow: &Flow) -> Option<String> {
    let text = because(flow.reason, flow.policy.as_ref(), &flow.isolated_by, flow.nearest.as_ref(), &flow.mismatch);
    let audit = flow.audit.as_ref().map(|policy| format!("audit: {}/{} would deny", policy.namespace, policy.name));
    let parts: Vec<String> = text.into_iter().chain(audit).collect();
    if parts.is_empty() { None } else { Some(format!("[{}]", parts.join("; "))) }
}

/// The reason, the rule that decided, or who isolates and how near it was.
pub(super) fn because(
    reason: i32,
    policy: Option<&PolicyRule>,
    isolated_by: &[PolicyRef],
    nearest: Option<&PolicyRule>,
    mismatch: &[i32],
) -> Option<String> {
    let mut parts = Vec::new();
    parts.extend(Reason::name_of(reason).map(str::to_owned));
    parts.extend(policy.map(|policy| format!("rule {}", peer::rule(policy))));
    if !isolated_by.is_empty() {
        parts.push(format!("isolated by {}", peer::policies(isolated_by)));
    }
    parts.extend(nearest.map(|nearest| {
        let failed: Vec<&str> = mismatch.iter().filter_map(|part| Mismatch::name_of(*part)).collect();
        format!("nearest {}: wrong {}", peer::rule(nearest), failed.join(" and "))
    }));
    if parts.is_empty() { None } else { Some(parts.join("; ")) }
}

fn counts(flow: &Flow) -> Option<String> {
    let (packets, bytes): (&Counts, &Counts) = (flow.packets.as_ref()?, flow.bytes.as_ref()?);
    Some(format!("{}/{} packets {}/{}", packets.forward, packets.reply, human_bytes(bytes.forward), human_bytes(bytes.reply)))
}

fn ending(flow: &Flow) -> Option<String> {
    EndReason::name_of(flow.end_reason).map(|reason| lasted(flow, reason))
}

/// How long the flow has lasted, and how it stands.
pub(super) fn lasted(flow: &Flow, how: &str) -> String {
    let time = |time: &Option<prost_types::Timestamp>| time.as_ref().map(to_nanoseconds).unwrap_or_default();
    let milliseconds = time(&flow.last).saturating_sub(time(&flow.start)) / 1_000_000;
    format!("{how} after {}.{:03}s", milliseconds / 1000, milliseconds % 1000)
}
