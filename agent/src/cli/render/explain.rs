//! An explanation: the outcome, then each end with its reason.

use sekisho_proto::{Decision, ExplainRequest, ExplainResponse, Name as _, Outcome, Peer};

use super::flow::because;
use super::paint::Paint;
use super::peer;

pub(in crate::cli) fn explanation(asked: &ExplainRequest, answer: &ExplainResponse, paint: Paint) -> String {
    let port = if asked.port > 0 { format!("{}/{}", asked.port, asked.protocol) } else { asked.protocol.clone() };
    let from = answer.source.as_ref().map_or_else(|| asked.from.clone(), named);
    let to = answer.destination.as_ref().map_or_else(|| asked.to.clone(), named);
    let outcome = outcome(answer.verdict, answer.enforced).to_uppercase();
    let head = format!("{} {from} -> {to} {port} (mode {})", painted(answer.verdict, answer.enforced, &outcome, paint), answer.mode);
    let ends = [
        end("egress", &from, answer.egress.as_ref(), answer.egress_elsewhere.as_ref(), paint),
        end("ingress", &to, answer.ingress.as_ref(), answer.ingress_elsewhere.as_ref(), paint),
    ];
    std::iter::once(head).chain(ends).collect::<Vec<_>>().join("\n")
}

/// What happens, in words. Where the mode drops nothing, what mode enforce would do is what a person asks for.
fn outcome(verdict: i32, enforced: i32) -> &'static str {
    match (Outcome::try_from(verdict), Outcome::try_from(enforced)) {
        (Ok(Outcome::Undetermined), _) | (_, Ok(Outcome::Undetermined)) => "undetermined here",
        (Ok(Outcome::Denied), _) => "denied",
        (Ok(Outcome::Audit), _) | (_, Ok(Outcome::Denied)) => "would be denied",
        (Ok(Outcome::Allowed), _) => "allowed",
        _ => "unjudged",
    }
}

fn painted(verdict: i32, enforced: i32, text: &str, paint: Paint) -> String {
    match outcome(verdict, enforced) {
        "allowed" => paint.good(text),
        "denied" => paint.bad(text),
        _ => paint.warning(text),
    }
}

/// The end's name without its port, which the head says once.
fn named(end: &Peer) -> String {
    peer::peer(&Peer { port: None, ..end.clone() })
}

fn end(direction: &str, name: &str, decision: Option<&Decision>, elsewhere: Option<&String>, paint: Paint) -> String {
    let Some(decision) = decision else {
        return match elsewhere {
            Some(who) => format!("  {direction:<7} {name}: judged by {who}, which is not asked here"),
            None => format!("  {direction:<7} {name}: not judged, no pod"),
        };
    };
    let reason = because(decision.reason, decision.policy.as_ref(), &decision.isolated_by, decision.nearest.as_ref(), &decision.mismatch);
    let reason = match reason {
        Some(reason) => format!(" [{reason}]"),
        None if decision.isolated || Outcome::name_of(decision.verdict) != Some("allowed") => String::new(),
        None => " [nothing isolates it]".to_owned(),
    };
    let text = if decision.text.is_empty() { String::new() } else { format!("\n          {}", decision.text) };
    let outcome = outcome(decision.verdict, decision.enforced);
    format!("  {direction:<7} {name}: {}{reason}{text}", painted(decision.verdict, decision.enforced, outcome, paint))
}
