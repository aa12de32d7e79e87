//! `sekisho completion`, what the scripts that it prints and kubectl ask next, and the man pages: all from the arguments themselves.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Command, CommandFactory as _};
use clap_complete::engine::{self, CompletionCandidate};
use clap_complete::env::Shells;
use clap_complete::{CompleteEnv, Shell};

use super::args::Cli;
use super::output::closed;
use super::{Exit, Failure};

/// The scripts run the program with this variable set to get what may come next.
const VARIABLE: &str = "SEKISHO_COMPLETE";

const EXAMPLES: &str = "Examples:
  source <(sekisho completion bash)
  sekisho completion zsh > ~/.zfunc/_sekisho
  sekisho completion fish > ~/.config/fish/completions/sekisho.fish

The script asks the program what may come next; names of namespaces, pods, workloads, Services and policies come from the running \
agent, if you may open its socket. Print the script again after an upgrade.

As a plugin, kubectl completes it where a second link to sekisho, called kubectl_complete-sekisho, is on the PATH; names come from \
the API server then.";

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

/// Prints a script that registers the program with a shell.
pub(super) fn completion(args: &CompletionArgs) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    let cannot = |error: &dyn std::fmt::Display| Failure::new(Exit::CannotRun, format_args!("no script for this shell: {error}"));
    let shells = Shells::builtins();
    let shell = shells.completer(&args.shell.to_string()).ok_or_else(|| cannot(&"it is not known"))?;
    shell.write_registration(VARIABLE, "sekisho", "sekisho", "sekisho", &mut script).map_err(|error| cannot(&error))?;
    io::stdout().write_all(&script).map_err(|error| closed(&error))?;
    Ok(Exit::Done)
}

/// Answers a shell's script, if one has started the program.
pub(super) fn for_shell(args: &[OsString]) -> Option<Exit> {
    let here = std::env::current_dir().ok();
    match CompleteEnv::with_factory(Cli::command).var(VARIABLE).try_complete(args, here.as_deref()) {
        Ok(false) => None,
        Ok(true) => Some(Exit::Done),
        // The shell shows nothing of it, and offers nothing.
        Err(_) => Some(Exit::CannotRun),
    }
}

/// Prints what may come next after the plugin's words, the last of which is still being typed.
pub(super) fn for_kubectl(words: &[OsString]) -> Result<Exit, Failure> {
    writeln!(io::stdout(), "{}", offers(&mut Cli::command(), words)).map_err(|error| closed(&error))?;
    Ok(Exit::Done)
}

/// One word a line, each with what it means; last, whether the shell may add files, and a space.
fn offers(cli: &mut Command, words: &[OsString]) -> String {
    const NO_FILES: &str = ":4";
    const NO_FILES_NO_SPACE: &str = ":6";
    let args: Vec<OsString> = std::iter::once(OsString::from("sekisho")).chain(words.iter().cloned()).collect();
    let last = args.len() - 1;
    let here = std::env::current_dir().ok();
    let found = engine::complete(cli, args, last, here.as_deref()).unwrap_or_default();
    let line = |candidate: &CompletionCandidate| {
        let help = candidate.get_help().map(ToString::to_string).unwrap_or_default();
        let value = candidate.get_value().to_string_lossy().into_owned();
        if help.is_empty() { value } else { format!("{value}\t{}", help.lines().next().unwrap_or_default()) }
    };
    // Folders and options that wait for a value go on in the same word.
    let goes_on = |candidate: &CompletionCandidate| candidate.get_value().to_string_lossy().ends_with(['/', '=']);
    let directive = if found.iter().any(goes_on) { NO_FILES_NO_SPACE } else { NO_FILES };
    let lines = found.iter().filter(|candidate| !candidate.is_hide_set()).map(line);
    lines.chain([directive.to_owned()]).collect::<Vec<_>>().join("\n")
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

#[cfg(test)]
mod tests {
    use super::*;

    /// What is offered after these words; `_` stands for nothing typed yet.
    fn offered(line: &str) -> Vec<String> {
        let words: Vec<OsString> = line.split(' ').map(|word| if word == "_" { "" } else { word }.into()).collect();
        let page = offers(&mut Cli::command(), &words);
        let mut lines: Vec<String> = page.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect();
        let directive = lines.pop().expect("a directive");
        assert!(directive.starts_with(':'), "{page}");
        lines
    }

    #[test]
    fn what_may_come_next_is_offered() {
        assert_eq!(offered("ob"), ["observe"]);
        assert!(offered("_").contains(&"status".to_owned()) && !offered("_").contains(&"relay".to_owned()));
        assert_eq!(offered("observe --verd"), ["--verdict"]);
        assert_eq!(offered("observe --verdict d"), ["denied"]);
        assert_eq!(offered("observe --verdict=d"), ["--verdict=denied"]);
        assert_eq!(offered("observe --kind start,le"), ["start,ledger"]);
        assert_eq!(offered("observe --reason default"), ["default_deny"]);
        assert_eq!(offered("observe -o _"), ["compact", "wide", "json", "dict"]);
        assert_eq!(offered("observe --follow --out"), ["--output"]);
        assert_eq!(offered("observe --namespace shop --all-no"), ["--all-nodes"]);
        assert_eq!(offered("mode en"), ["enforce"]);
        assert_eq!(offered("status --color n"), ["never"]);
    }

    #[test]
    fn no_agent_offers_no_names_and_no_error() {
        assert_eq!(offered("observe --socket /nowhere/sekisho.sock --namespace sh"), [""; 0]);
    }
}
