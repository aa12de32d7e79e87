//! The doctor's findings as a page.

use crate::doctor::{Finding, State};

use super::paint::Paint;

/// A line each, and below it what it costs and what to do.
pub(in crate::cli) fn findings(findings: &[Finding], paint: Paint) -> String {
    let width = findings.iter().map(|finding| finding.check.len()).max().unwrap_or_default();
    let mut lines = Vec::new();
    for finding in findings {
        let state = format!("{:<5}", finding.state.name());
        let state = match finding.state {
            State::Good => paint.good(&state),
            State::Note => paint.warning(&state),
            State::Lack | State::Fatal => paint.bad(&state),
        };
        lines.push(format!("{state}  {:<width$}  {}", finding.check, finding.found));
        let below = [("costs", &finding.cost), ("do", &finding.remedy)];
        lines.extend(
            below
                .into_iter()
                .filter_map(|(word, text)| text.as_ref().map(|text| format!("{:indent$}{word}: {text}", "", indent = width + 9))),
        );
    }
    let count = |state: State| findings.iter().filter(|finding| finding.state == state).count();
    lines.push(String::new());
    lines.push(match (count(State::Fatal), count(State::Lack)) {
        (0, 0) => "All is well.".to_owned(),
        (0, lacks) => format!("Something is missing; what it costs is said above ({lacks} marked lack)."),
        _ => "An agent cannot run here; what stands in the way is marked fatal.".to_owned(),
    });
    lines.join("\n")
}
