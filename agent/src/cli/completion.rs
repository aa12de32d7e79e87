//! `sekisho completion` and the man pages: both from the arguments themselves.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _};
use clap_complete::Shell;

use super::args::Cli;
use super::output::closed;
use super::{Exit, Failure};

const EXAMPLES: &str = "Examples:
  source <(sekisho completion bash)
  sekisho completion zsh > ~/.zfunc/_sekisho
  sekisho completion fish > ~/.config/fish/completions/sekisho.fish";

/// Arguments of `sekisho completion`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct CompletionArgs {
    /// For which shell
    #[arg(value_enum, value_name = "SHELL")]
    shell: Shell,
}

/// Arguments of `sekisho man`.
#[derive(Args, Debug)]
pub(super) struct ManArgs {
    /// Write one page per command into this folder, instead of the first page to stdout
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(super) fn completion(args: &CompletionArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "sekisho", &mut script);
    io::stdout().write_all(&script).map_err(|error| closed(&error))?;
    Ok(Exit::Done)
}

pub(super) fn man(args: &ManArgs) -> Result<Exit, Failure> {
    match &args.dir {
        Some(dir) => pages(dir).map_err(|error| Failure::new(Exit::CannotRun, format_args!("{}: {error}", dir.display())))?,
        None => page().and_then(|page| io::stdout().write_all(&page)).map_err(|error| closed(&error))?,
    }
    Ok(Exit::Done)
}

fn page() -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    Ok(page)
}

fn pages(dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(Cli::command(), dir)
}
