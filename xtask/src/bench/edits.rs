//! `bench edits`: from a manifest's edit to the kernel's verdict, a hundred times, seen by what arrives at the pod.

use anyhow::Result;

use super::table::Table;
use crate::workspace::{build_agent, build_fast_lab};

const EDITS: usize = 100;
/// Milliseconds that 99 of 100 edits have to keep.
const LIMIT: f64 = 50.0;

pub(crate) fn run() -> Result<()> {
    sekisho_lab::use_programs(build_agent()?, build_fast_lab()?);
    let delays = sekisho_lab::edit_delays(EDITS)?;
    let at = |percent: usize| delays[(delays.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    let mut table = Table::new();
    table
        .told("edit to verdict, half of 100 within", format!("{:.1} ms", at(50)))
        .at_most("edit to verdict, 99 of 100 within", at(99), LIMIT, "ms")
        .told("edit to verdict, all within", format!("{:.1} ms", at(100)));
    table.finish()
}
