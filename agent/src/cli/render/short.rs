//! A flow as one line that fits: who, where to, and why, and then as much else as there is room for.
//!
//! Where a line is too long, the middle of generated pod names goes first, then what matters least, then letters of names.

use sekisho_proto::{Direction, EndReason, Flow, Kind, Mismatch, Name as _, Peer, Reason, Translated, Verdict};

use super::paint::Paint;
use super::{flow as long, human_bytes, peer};

/// What is left out for want of room.
const GAP: &str = "…";
/// Letters of a generated name's end that tell pods of one workload apart.
const TAIL: usize = 5;
/// A name is not cut shorter than that.
const LEAST: usize = 12;

/// A part of the line behind the ends.
struct Part {
    text: String,
    style: Style,
    /// The lowest matter most.
    rank: u8,
}

impl Part {
    /// With the space before it.
    fn columns(&self) -> usize {
        self.text.chars().count() + 1
    }
}

#[derive(Clone, Copy)]
enum Style {
    Verdict,
    Faint,
    Plain,
}

fn part(text: impl Into<String>, style: Style, rank: u8) -> Part {
    Part { text: plain(&text.into()), style, rank }
}

/// Verdict, both ends, protocol, why, how it went, who; in so many columns.
pub(super) fn line(flow: &Flow, kind: Kind, room: usize, paint: Paint) -> String {
    let verdict = Verdict::name_of(flow.verdict).unwrap_or("unjudged").to_uppercase();
    let head = format!("{verdict:<8}");
    let ends = [&flow.source, &flow.destination];
    let full = ends.map(|end| name(end.as_ref(), false));
    let brief = ends.map(|end| name(end.as_ref(), true));
    let port = flow.destination.as_ref().and_then(port_of).map(|port| format!(":{port}")).unwrap_or_default();
    let parts = parts(flow, kind);
    let fixed = head.chars().count() + " -> ".len() + port.len() + 1 + flow.protocol.len();
    let length = |names: &[String; 2]| names.iter().map(|name| name.chars().count()).sum::<usize>();
    let whole = fixed + length(&full) + parts.iter().map(Part::columns).sum::<usize>();
    let base = if whole <= room { &full } else { &brief };
    let (chosen, used) = choose(&parts, room.saturating_sub(fixed + length(base)));
    let left = room.saturating_sub(fixed + used);
    // What the left out parts leave free goes to the names.
    let mut names = if length(&full) <= left { full } else { brief };
    if length(&names) > left {
        squeeze(&mut names, left);
    }
    let styled = |part: &Part| match part.style {
        Style::Verdict => paint.verdict(flow.verdict, &part.text),
        Style::Faint => paint.faint(&part.text),
        Style::Plain => part.text.clone(),
    };
    let [source, destination] = names;
    let mut words = vec![format!("{}{source} -> {destination}{port} {}", paint.verdict(flow.verdict, &head), flow.protocol)];
    words.extend(parts.iter().zip(chosen).filter(|(_, chosen)| *chosen).map(|(part, _)| styled(part)));
    words.join(" ")
}

/// Which parts there is room for, those that matter most first; and how much of it they take.
fn choose(parts: &[Part], room: usize) -> (Vec<bool>, usize) {
    let mut order: Vec<usize> = (0..parts.len()).collect();
    order.sort_by_key(|at| parts[*at].rank);
    let (mut chosen, mut used) = (vec![false; parts.len()], 0);
    for at in order {
        let columns = parts[at].columns();
        if used + columns <= room {
            chosen[at] = true;
            used += columns;
        }
    }
    (chosen, used)
}

/// What stands behind the ends, in this order.
fn parts(flow: &Flow, kind: Kind) -> Vec<Part> {
    let mut parts = Vec::new();
    if let Some(icmp) = &flow.icmp {
        parts.push(part(format!("{}/{}", icmp.r#type, icmp.code), Style::Plain, 3));
    }
    let allowed = flow.verdict() == Verdict::Allowed || flow.verdict() == Verdict::Unspecified;
    let policy = flow.policy.as_ref().map(peer::rule).or_else(|| isolating(flow)).or_else(|| audited(flow));
    if let Some(reason) = Reason::name_of(flow.reason) {
        let direction = Direction::name_of(flow.direction).map(|direction| format!("{direction} ")).unwrap_or_default();
        // The policy says more than `default_deny` does.
        parts.push(part(format!("{direction}{reason}"), Style::Verdict, if policy.is_some() { 5 } else { 1 }));
    }
    let wrong: Vec<&str> = flow.mismatch.iter().filter_map(|part| Mismatch::name_of(*part)).collect();
    if let Some(policy) = policy {
        parts.push(part(policy, Style::Verdict, if allowed { 4 } else { 1 }));
    }
    if !wrong.is_empty() {
        parts.push(part(format!("wrong {}", wrong.join(" and ")), Style::Verdict, 3));
    }
    if kind == Kind::Start {
        parts.extend(dialled(flow));
    } else {
        let state = flow.tcp.as_ref().and_then(|tcp| tcp.conn_state.clone());
        parts.extend(state.map(|state| part(state, Style::Plain, 3)));
        if let Some(bytes) = &flow.bytes {
            parts.push(part(format!("{}/{}", human_bytes(bytes.forward), human_bytes(bytes.reply)), Style::Faint, 2));
        }
        let ending = EndReason::name_of(flow.end_reason);
        parts.push(part(long::lasted(flow, ending.unwrap_or("open")), Style::Faint, 1));
    }
    parts.extend(flow.process.as_ref().map(|process| part(format!("by {}", peer::process(process)), Style::Plain, 4)));
    parts.extend(flow.listener.as_ref().map(|listener| part(format!("to {}", peer::process(listener)), Style::Plain, 4)));
    parts
}

fn isolating(flow: &Flow) -> Option<String> {
    let first = flow.isolated_by.first()?;
    let more = flow.isolated_by.len() - 1;
    let more = if more > 0 { format!(" +{more}") } else { String::new() };
    Some(format!("{}/{}{more}", first.namespace, first.name))
}

fn audited(flow: &Flow) -> Option<String> {
    flow.audit.as_ref().map(|policy| format!("{}/{}", policy.namespace, policy.name))
}

/// The Service that was dialled, where the line names what stands behind it.
fn dialled(flow: &Flow) -> Option<Part> {
    let destination = flow.destination.as_ref()?;
    let service = destination.service.as_ref().filter(|_| destination.translated.is_some())?;
    let port = destination.port.map(|port| format!(":{port}")).unwrap_or_default();
    Some(part(format!("by service {}/{}{port}", service.namespace, service.name), Style::Faint, 5))
}

/// An end without its port: the pod, or what else it is.
fn name(end: Option<&Peer>, brief: bool) -> String {
    let Some(end) = end else { return "unknown".to_owned() };
    let text = match (&end.pod, &end.translated) {
        (Some(pod), _) => {
            let workload = end.workload.as_ref().filter(|workload| workload.kind != "Pod").map(|workload| workload.name.as_str());
            let name = if brief { generated(&pod.name, workload) } else { pod.name.clone() };
            format!("{}/{name}", pod.namespace)
        }
        (None, Some(Translated { pod: Some(pod), .. })) => {
            let name = if brief { generated(&pod.name, None) } else { pod.name.clone() };
            format!("{}/{name}", pod.namespace)
        }
        (None, Some(behind)) => bracketed(&behind.ip),
        (None, None) if end.service.is_none() && end.node.is_none() => bracketed(&end.ip),
        (None, None) => peer::peer(&Peer { port: None, client: None, ..end.clone() }),
    };
    plain(&text)
}

fn bracketed(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() }
}

/// The port of what the line names.
fn port_of(end: &Peer) -> Option<u32> {
    match &end.translated {
        Some(behind) if end.pod.is_none() => behind.port,
        _ => end.port,
    }
}

/// A pod's name without the middle that a controller has made up: `api-5d9f7c6b8-x2x4z` of `api` is `api-…x2x4z`.
fn generated(pod: &str, workload: Option<&str>) -> String {
    // Without a workload, a hash of ten letters or so and five more tell.
    let begin = match workload {
        Some(workload) => pod.strip_prefix(workload).filter(|rest| rest.starts_with('-')).map(|_| workload.len() + 1),
        None => pod.rmatch_indices('-').nth(1).map(|(at, _)| at + 1).filter(|at| pod.len() - at >= 2 * TAIL),
    };
    match begin {
        Some(begin) if pod.len() > begin + TAIL + 1 && pod.is_ascii() => format!("{}{GAP}{}", &pod[..begin], &pod[pod.len() - TAIL..]),
        _ => pod.to_owned(),
    }
}

/// Cuts the longer of two names in its middle, then both, until they fit together.
fn squeeze(names: &mut [String; 2], room: usize) {
    let half = (room / 2).max(LEAST);
    let lengths = [names[0].chars().count(), names[1].chars().count()];
    for (at, name) in names.iter_mut().enumerate() {
        let share = half.max(room.saturating_sub(lengths[1 - at])).max(LEAST);
        let length = lengths[at];
        if length > share {
            let (front, back) = ((share - 1) / 2, share - 1 - (share - 1) / 2);
            let letters: Vec<char> = name.chars().collect();
            *name = letters[..front].iter().copied().chain(GAP.chars()).chain(letters[length - back..].iter().copied()).collect();
        }
    }
}

/// Without what would take more columns than it has letters.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
