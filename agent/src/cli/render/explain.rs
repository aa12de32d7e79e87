//! An explanation: the verdict, then each end with its reason.

use sekisho_proto::{Decision, ExplainRequest, ExplainResponse, Name as _, Peer, Verdict};

use super::flow::because;
use super::paint::Paint;
use super::peer;

pub(in crate::cli) fn explanation(asked: &ExplainRequest, answer: &ExplainResponse, paint: Paint) -> String {
    let verdict = Verdict::name_of(answer.verdict).unwrap_or("unjudged").to_uppercase();
    let port = if asked.port > 0 { format!("{}/{}", asked.port, asked.protocol) } else { asked.protocol.clone() };
    let from = answer.source.as_ref().map_or_else(|| asked.from.clone(), named);
    let to = answer.destination.as_ref().map_or_else(|| asked.to.clone(), named);
    let head = format!("{} {from} -> {to} {port} (mode {})", paint.verdict(answer.verdict, &verdict), answer.mode);
    let ends = [end("egress", &from, answer.egress.as_ref(), paint), end("ingress", &to, answer.ingress.as_ref(), paint)];
    std::iter::once(head).chain(ends).collect::<Vec<_>>().join("\n")
}

/// The end's name without its port, which the head says once.
fn named(end: &Peer) -> String {
    peer::peer(&Peer { port: None, ..end.clone() })
}

fn end(direction: &str, name: &str, decision: Option<&Decision>, paint: Paint) -> String {
    let Some(decision) = decision else {
        return format!("  {direction:<7} {name}: not judged here, no pod of this node");
    };
    let verdict = Verdict::name_of(decision.verdict).unwrap_or("unjudged");
    let reason = because(decision.reason, decision.policy.as_ref(), &decision.isolated_by, decision.nearest.as_ref(), &decision.mismatch);
    let reason = match reason {
        Some(reason) => format!(" [{reason}]"),
        None if decision.isolated => String::new(),
        None => " [nothing isolates it]".to_owned(),
    };
    let text = if decision.text.is_empty() { String::new() } else { format!("\n          {}", decision.text) };
    format!("  {direction:<7} {name}: {}{reason}{text}", paint.verdict(decision.verdict, verdict))
}
