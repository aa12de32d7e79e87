//! Colours, or none.

use anstyle::{AnsiColor, Style};
use sekisho_proto::Verdict;

/// Paints text where colours are wanted.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cli) struct Paint {
    on: bool,
}

impl Paint {
    pub(in crate::cli) const fn new(on: bool) -> Self {
        Self { on }
    }

    fn wrap(self, style: Style, text: &str) -> String {
        if self.on { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }

    pub(super) fn good(self, text: &str) -> String {
        self.wrap(AnsiColor::Green.on_default(), text)
    }

    pub(super) fn bad(self, text: &str) -> String {
        self.wrap(AnsiColor::Red.on_default().bold(), text)
    }

    pub(super) fn warning(self, text: &str) -> String {
        self.wrap(AnsiColor::Yellow.on_default(), text)
    }

    pub(super) fn faint(self, text: &str) -> String {
        self.wrap(Style::new().dimmed(), text)
    }

    pub(super) fn heading(self, text: &str) -> String {
        self.wrap(Style::new().bold(), text)
    }

    /// In the colour of a verdict.
    pub(super) fn verdict(self, verdict: i32, text: &str) -> String {
        match Verdict::try_from(verdict) {
            Ok(Verdict::Allowed) => self.good(text),
            Ok(Verdict::Denied) => self.bad(text),
            Ok(Verdict::Audit) => self.warning(text),
            _ => text.to_owned(),
        }
    }
}

/// The length of the colour with which a text begins.
pub(super) fn colour(text: &str) -> Option<usize> {
    let code = text.strip_prefix("\x1b[")?;
    let end = code.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    code[end..].starts_with('m').then_some(text.len() - code.len() + end + 1)
}
