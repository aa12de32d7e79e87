//! `sekisho detach`.

use std::io::Write as _;
use std::path::PathBuf;

use clap::Args;

use super::args::PIN_DIR;
use super::output::closed;
use super::{Exit, Failure, Machine};

const EXAMPLES: &str = "Examples:
  sekisho detach                                   remove everything, nothing else
  sekisho detach --pin-dir /sys/fs/bpf/sekisho-b   of an agent that was started with that --pin-dir

Run it in the node's network namespace. It refuses (exit code 3) while an agent runs on these pins. Nothing to remove is no error.";

/// Arguments of `sekisho detach`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct DetachArgs {
    /// Where the agent's pins lie
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pin_dir: PathBuf,
}

pub(super) fn run(args: &DetachArgs, machine: &dyn Machine) -> Result<Exit, Failure> {
    let removed = machine.detach(&args.pin_dir)?;
    let mut out = std::io::stdout().lock();
    for line in &removed {
        writeln!(out, "{line}").map_err(|error| closed(&error))?;
    }
    if removed.is_empty() {
        eprintln!("sekisho: nothing of Sekisho is attached here");
    }
    Ok(Exit::Done)
}
