//! What a bench has to say: one line per number, with its bar beside it where there is one.

use anyhow::{Result, bail};

/// Numbers and bars under construction.
pub(crate) struct Table {
    rows: Vec<Row>,
}

struct Row {
    what: String,
    measured: String,
    bar: Option<(String, bool)>,
}

impl Table {
    /// An empty one.
    pub(crate) fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// A number without a bar.
    pub(crate) fn told(&mut self, what: &str, measured: impl std::fmt::Display) -> &mut Self {
        self.rows.push(Row { what: what.to_owned(), measured: measured.to_string(), bar: None });
        self
    }

    /// A number that must not exceed `limit`; NaN exceeds everything.
    pub(crate) fn at_most(&mut self, what: &str, measured: f64, limit: f64, unit: &str) -> &mut Self {
        self.held(what, measured, unit, format!("at most {}", short(limit)), measured <= limit)
    }

    /// A number that must reach `limit`; NaN reaches nothing.
    pub(crate) fn at_least(&mut self, what: &str, measured: f64, limit: f64, unit: &str) -> &mut Self {
        self.held(what, measured, unit, format!("at least {}", short(limit)), measured >= limit)
    }

    fn held(&mut self, what: &str, measured: f64, unit: &str, bar: String, holds: bool) -> &mut Self {
        let measured = format!("{} {unit}", short(measured)).trim_end().to_owned();
        self.rows.push(Row { what: what.to_owned(), measured, bar: Some((bar, holds)) });
        self
    }

    /// Prints it all; an error if a bar is broken.
    pub(crate) fn finish(&self) -> Result<()> {
        let width = |of: fn(&Row) -> usize| self.rows.iter().map(of).max().unwrap_or(0);
        let (what, measured) = (width(|row| row.what.len()), width(|row| row.measured.len()));
        for row in &self.rows {
            let bar = match &row.bar {
                None => String::new(),
                Some((bar, true)) => format!("  {bar:<16} holds"),
                Some((bar, false)) => format!("  {bar:<16} BROKEN"),
            };
            println!("{:what$}  {:>measured$}{bar}", row.what, row.measured);
        }
        let broken: Vec<&str> =
            self.rows.iter().filter(|row| row.bar.as_ref().is_some_and(|(_, holds)| !holds)).map(|row| row.what.as_str()).collect();
        if broken.is_empty() { Ok(()) } else { bail!("broken: {}", broken.join(", ")) }
    }
}

/// Whole numbers whole, others with three digits.
fn short(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.3}") }
}

#[cfg(test)]
mod tests {
    use super::Table;

    #[test]
    fn a_broken_bar_is_an_error() {
        let mut table = Table::new();
        table.told("told", 7).at_most("held", 0.5, 1.0, "cores");
        assert!(table.finish().is_ok());
        table.at_most("loss", 2.0, 0.0, "");
        assert_eq!(table.finish().unwrap_err().to_string(), "broken: loss");
        for wrong in [f64::NAN, 0.9] {
            let mut short = Table::new();
            short.at_least("rate", wrong, 1.0, "");
            assert!(short.finish().is_err());
        }
        let mut unknown = Table::new();
        unknown.at_most("unknown", f64::NAN, 1.0, "");
        assert!(unknown.finish().is_err());
    }
}
