//! `cargo xtask bench NAME`: the promises that are numbers. Each compares with something measured in between,
//! on the same machine.

mod datapath;
mod edits;
mod flows;
mod rr;
mod starts;
mod table;
mod usage;

use std::path::Path;

use anyhow::{Result, bail};
use clap::ValueEnum;

/// What can be measured.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Name {
    /// Nanoseconds per packet in the kernel programs
    Datapath,
    /// Milliseconds from an edited manifest to the kernel's verdict
    Edits,
    /// 50,000 new flows a second for ten seconds: loss, processor, memory
    Flows,
    /// Request and response through a pair of pods, with and without the agent
    Rr,
    /// A thousand pods whose first act is to send: what is denied, and how long what is allowed waits
    Starts,
}

pub(crate) fn run(name: Name, against: Option<&Path>) -> Result<()> {
    match name {
        Name::Datapath => against.map_or_else(datapath::run, datapath::against),
        _ if against.is_some() => bail!("only the data path is compared with another build's"),
        Name::Edits => edits::run(),
        Name::Flows => flows::run(),
        Name::Rr => rr::run(),
        Name::Starts => starts::run(),
    }
}
