//! How answers look to a person: pure functions from messages to text.
//!
//! Compact is one short line per record, wide a long one, and both are a page per status; dict is every field as an aligned `key: value`. JSON is not
//! made here but in the protocol's crate.

mod alert;
mod dict;
mod explain;
mod findings;
mod fit;
mod flow;
mod nodes;
mod paint;
mod peer;
mod short;
mod siblings;
mod status;
mod table;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use sekisho_proto::record::Body;
use sekisho_proto::{Kind, Name as _, Record, rfc3339};

pub(super) use dict::dict;
pub(super) use explain::explanation;
pub(super) use findings::findings;
pub(super) use nodes::nodes;
pub(super) use paint::Paint;
pub(super) use status::status;

/// How lines look.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct View {
    /// In colour or not.
    pub(super) paint: Paint,
    /// Columns of a line; absent where it may be as long as it is.
    pub(super) width: Option<usize>,
}

/// Targets and ports of an alert that are named, in a line of any length and in one that must fit.
const NAMED: (usize, usize) = (8, 2);

/// A record as one line. Its node comes first, in so many columns, where records of several nodes are shown.
pub(super) fn record(record: &Record, column: usize, view: View) -> String {
    let node = if column == 0 { String::new() } else { format!("{:<column$} ", record.node) };
    let clock = clock(record);
    let room = view.width.map(|width| width.saturating_sub(node.chars().count() + clock.len() + 1));
    let line = format!("{node}{} {}", view.paint.faint(&clock), text(record, room, view.paint));
    view.width.map_or_else(|| line.clone(), |width| fit::fit(&line, width))
}

/// What a record says, in so many columns where that is asked for.
fn text(record: &Record, room: Option<usize>, paint: Paint) -> String {
    let kind = Kind::name_of(record.kind).unwrap_or("record");
    match &record.body {
        Some(Body::Flow(body)) => match room {
            Some(room) => short::line(body, record.kind(), room, paint),
            None => flow::line(body, kind, paint),
        },
        Some(Body::Alert(body)) => alert::line(body, if room.is_some() { NAMED.1 } else { NAMED.0 }, paint),
        Some(Body::Ledger(body)) => siblings::ledger(body, paint),
        Some(Body::PolicyChange(body)) => siblings::policy(body, paint),
        Some(Body::Coverage(body)) => siblings::coverage(body, paint),
        Some(Body::Summary(body)) => siblings::summary(body, paint),
        None => kind.to_owned(),
    }
}

/// Time of day to the millisecond, UTC.
fn clock(record: &Record) -> String {
    let time = record.time.as_ref().map(rfc3339).unwrap_or_default();
    time.get(11..23).unwrap_or("--:--:--.---").to_owned()
}

/// Text in which nothing that a pod has made up, as its processes' names, steers the terminal: control characters are written out, but
/// for line breaks and our own colours.
pub(super) fn harmless(text: &str) -> Cow<'_, str> {
    let steers = |c: char| c.is_control() && c != '\n';
    let mut written = Cow::Borrowed("");
    let mut rest = text;
    while let Some(at) = rest.find(steers) {
        let (before, found) = rest.split_at(at);
        let length = paint::colour(found).unwrap_or_else(|| found.chars().next().map_or(1, char::len_utf8));
        let (found, after) = found.split_at(length);
        let written = written.to_mut();
        written.push_str(before);
        match paint::colour(found) {
            Some(_) => written.push_str(found),
            None => written.extend(found.chars().map(|c| format!("\\u{:04x}", u32::from(c)))),
        }
        rest = after;
    }
    if written.is_empty() { Cow::Borrowed(text) } else { written + rest }
}

/// Bytes for a person.
#[expect(clippy::cast_precision_loss, reason = "one digit behind the point is shown")]
pub(super) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}
