//! `sekisho completion`, what kubectl asks of its plugin's completer, and the man pages: all from the arguments themselves.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::{Arg, Args, Command, CommandFactory as _, ValueHint};
use clap_complete::Shell;

use super::args::Cli;
use super::output::closed;
use super::{Exit, Failure};

const EXAMPLES: &str = "Examples:
  source <(sekisho completion bash)
  sekisho completion zsh > ~/.zfunc/_sekisho
  sekisho completion fish > ~/.config/fish/completions/sekisho.fish

As a plugin, kubectl completes it by itself where a second link to sekisho, called kubectl_complete-sekisho, is on the PATH.";

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

/// Prints what may come next after the plugin's words, the last of which is still being typed.
pub(super) fn for_kubectl(words: &[OsString]) -> Result<Exit, Failure> {
    let words: Vec<String> = words.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let mut cli = Cli::command();
    cli.build();
    writeln!(io::stdout(), "{}", Place::at(&cli, &words).page()).map_err(|error| closed(&error))?;
    Ok(Exit::Done)
}

/// A place on the command line, with the word that is being typed there.
struct Place<'a> {
    command: &'a Command,
    /// The option whose value is due.
    option: Option<&'a Arg>,
    /// What stands before that value in the same word: `--option=`, and values before a comma.
    before: &'a str,
    typed: &'a str,
}

impl<'a> Place<'a> {
    fn at(cli: &'a Command, words: &'a [String]) -> Self {
        let (typed, words) = words.split_last().map_or(("", words), |(typed, words)| (typed.as_str(), words));
        let mut place = Self { command: cli, option: None, before: "", typed };
        for word in words {
            if place.option.take().is_some() {
                continue;
            }
            match word.strip_prefix('-') {
                Some(_) => place.option = place.find(word).filter(|option| option.get_action().takes_values() && !word.contains('=')),
                None => place.command = place.command.find_subcommand(word).unwrap_or(place.command),
            }
        }
        let value_at = match typed.split_once('=') {
            Some((option, _)) if place.option.is_none() && option.starts_with("--") => {
                place.option = place.find(option);
                option.len() + 1
            }
            _ => 0,
        };
        if place.option.is_some() {
            let value_at = typed.rfind(',').map_or(value_at, |comma| comma + 1);
            (place.before, place.typed) = typed.split_at(value_at);
        }
        place
    }

    fn find(&self, word: &str) -> Option<&'a Arg> {
        self.command.get_arguments().find(|arg| match word.strip_prefix("--") {
            Some(long) => arg.get_long() == long.split('=').next(),
            None => arg.get_short().is_some_and(|short| word.chars().eq(['-', short])),
        })
    }

    /// One word a line, each with what it means; last, whether files may come here as well.
    fn page(&self) -> String {
        const FILES: &str = ":0";
        const NO_FILES: &str = ":4";
        let mut words: Vec<(String, String)> = Vec::new();
        let mut values = |arg: &Arg| {
            let values = arg.get_possible_values();
            words.extend(
                values.iter().map(|value| (value.get_name().to_owned(), value.get_help().map(ToString::to_string).unwrap_or_default())),
            );
        };
        if let Some(option) = self.option {
            values(option);
        } else if self.typed.starts_with('-') {
            let options = self.command.get_arguments().filter(|arg| !arg.is_hide_set());
            let help = |arg: &Arg| arg.get_help().map(ToString::to_string).unwrap_or_default();
            words.extend(options.filter_map(|arg| Some((format!("--{}", arg.get_long()?), help(arg)))));
        } else {
            self.command.get_positionals().for_each(values);
            let commands = self.command.get_subcommands().filter(|command| !command.is_hide_set());
            let about = |command: &Command| command.get_about().map(ToString::to_string).unwrap_or_default();
            words.extend(commands.map(|command| (command.get_name().to_owned(), about(command))));
        }
        words.retain(|(word, _)| word.starts_with(self.typed));
        let is_path = |option: &Arg| matches!(option.get_value_hint(), ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath);
        let mut lines: Vec<String> = words.iter().map(|(word, meaning)| format!("{}{word}\t{meaning}", self.before)).collect();
        lines.push(if self.option.is_some_and(is_path) { FILES } else { NO_FILES }.to_owned());
        lines.join("\n")
    }
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
    fn offered(line: &str) -> (Vec<String>, String) {
        let words: Vec<String> = line.split(' ').map(|word| if word == "_" { String::new() } else { word.to_owned() }).collect();
        let mut cli = Cli::command();
        cli.build();
        let page = Place::at(&cli, &words).page();
        let mut lines: Vec<String> = page.lines().map(|line| line.split('\t').next().unwrap_or_default().to_owned()).collect();
        let directive = lines.pop().expect("a directive");
        (lines, directive)
    }

    #[test]
    fn kubectl_is_told_what_may_come_next() {
        let words = |line: &str| offered(line).0;
        assert_eq!(words("ob"), ["observe"]);
        assert!(words("_").contains(&"status".to_owned()) && !words("_").contains(&"relay".to_owned()));
        assert_eq!(words("observe --verd"), ["--verdict"]);
        assert_eq!(words("observe --verdict d"), ["denied"]);
        assert_eq!(words("observe --verdict=d"), ["--verdict=denied"]);
        assert_eq!(words("observe --kind start,le"), ["start,ledger"]);
        assert_eq!(words("observe -o _"), ["compact", "json", "dict"]);
        assert_eq!(words("observe --follow --out"), ["--output"]);
        assert_eq!(words("observe --namespace shop --all"), ["--all-nodes"]);
        assert_eq!(words("mode en"), ["enforce"]);
        assert_eq!(words("nonsense --x"), [""; 0]);
        assert_eq!(offered("status --kubeconfig _"), (Vec::new(), ":0".to_owned()));
        assert_eq!(offered("status --node _").1, ":4");
    }
}
