//! What an operator types: every command, its arguments, its exit code, and how answers look on a terminal.
//!
//! Nouns. An *exit* is one of four codes, the same for every command. A *failure* is one sentence with the exit that
//! goes with it. A *machine* is what commands do here by themselves rather than through a running agent; the
//! daemon gives it, so that this room knows neither kernel nor threads.
//!
//! Answers go to stdout, sentences to stderr. No verdict is made here: the agent answers, this room asks and prints.

mod alerts;
mod args;
mod client;
mod cluster;
mod complete;
mod completion;
mod detach;
mod doctor;
mod explain;
mod filters;
mod fold;
mod mode;
mod names;
mod observe;
mod output;
mod records;
mod relay;
mod render;
mod status;
#[cfg(test)]
mod tests;
mod values;
mod version;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, Parser as _};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use args::{AgentArgs, LogFormat, Mode, Origin, Posture, TcBackend, TlsArgs};

use crate::api::check_loopback;
use crate::doctor::Finding;
use crate::inventory::kube::Access;

use args::{Cli, Command};
use cluster::Target;

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Done,
    /// Not ready, or not found.
    NotReady,
    /// Wrong usage.
    Usage,
    /// Cannot run here.
    CannotRun,
}

impl Exit {
    /// The number that the shell sees.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::NotReady => 1,
            Self::Usage => 2,
            Self::CannotRun => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        exit.code().into()
    }
}

/// Why a command failed: one sentence that says what to do, and how it ends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Failure {
    /// How the command ends.
    pub exit: Exit,
    /// The sentence.
    pub text: String,
}

impl Failure {
    /// A failure with a sentence.
    pub fn new(exit: Exit, text: impl std::fmt::Display) -> Self {
        Self { exit, text: text.to_string() }
    }
}

/// What commands do on this machine itself, without asking an agent.
pub trait Machine {
    /// Runs the agent in the foreground.
    fn agent(&self, args: &AgentArgs) -> ExitCode;
    /// Removes everything that lies under the pins; one line for each thing that was removed.
    fn detach(&self, pin_dir: &Path) -> Result<Vec<String>, Failure>;
    /// Switches to mode observe on the pins of an agent that does not answer. The new policy epoch.
    fn observe_on_pins(&self, pin_dir: &Path) -> Result<u32, Failure>;
    /// Looks at kernel, node, CNI and rights.
    fn examine(&self, pin_dir: &Path, access: Option<&Access>) -> Vec<Finding>;
}

/// The program: reads the arguments of this process, runs one command.
pub fn main(machine: &dyn Machine) -> ExitCode {
    allow_open_files();
    let args: Vec<OsString> = std::env::args_os().collect();
    // A shell that asks what may come next on a command line.
    if let Some(exit) = completion::for_shell(&args) {
        return exit.into();
    }
    run(args, machine)
}

const NO_SOURCE: &str =
    "the agent needs --manifests DIR, or an API server: run it in a pod of the cluster, give --kubeconfig PATH, or set KUBECONFIG";

/// The arguments, and what the parser cannot know of them.
fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let cli = Cli::try_parse_from(args)?;
    match &cli.command {
        Command::Agent(agent) if agent.source().is_none() => Err(Cli::command().error(ErrorKind::MissingRequiredArgument, NO_SOURCE)),
        Command::Agent(agent) if agent.tls.files().is_none() => match agent.listen.map(check_loopback) {
            Some(Err(error)) => Err(Cli::command().error(ErrorKind::ValueValidation, error)),
            _ => Ok(cli),
        },
        _ => Ok(cli),
    }
}

/// Under which name the program was called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Called {
    /// Its own.
    Plainly,
    /// As a plugin of kubectl.
    Plugin,
    /// By kubectl, for what may come next on the plugin's command line.
    Completer,
}

impl Called {
    fn by(name: Option<&OsString>) -> Self {
        match name.map(Path::new).and_then(Path::file_stem).and_then(OsStr::to_str) {
            Some("kubectl-sekisho" | "kubectl_sekisho") => Self::Plugin,
            Some("kubectl_complete-sekisho") => Self::Completer,
            _ => Self::Plainly,
        }
    }
}

/// Whoever runs a plugin of kubectl does not mean the machine at which they sit.
fn check_plugin(command: &Command) -> Result<(), Failure> {
    let name = match command {
        Command::Agent(_) => "agent",
        Command::Doctor(_) => "doctor",
        Command::Detach(_) => "detach",
        _ => return Ok(()),
    };
    let text = format!(
        "`{name}` is done on a node itself: run `sekisho {name}` there, or `kubectl -n sekisho exec POD -- /sekisho {name}` with the agent's pod"
    );
    Err(Failure::new(Exit::Usage, text))
}

/// As many open files as may be: a connection for each of a thousand nodes, and more clients than a runtime's default allows.
fn allow_open_files() {
    let limit = getrlimit(Resource::Nofile);
    // Where it is refused, what is there must do.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// The same with given arguments; the first is the program's name.
pub fn run(args: impl IntoIterator<Item = OsString>, machine: &dyn Machine) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().collect();
    let called = Called::by(args.first());
    if called == Called::Completer {
        return completion::for_kubectl(&args[1..]).unwrap_or_else(|failure| failure.exit).into();
    }
    let cli = match parse(args) {
        Ok(cli) => cli,
        Err(error) => {
            // Help into a closed pipe is no error.
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done }.into();
        }
    };
    cli.color.choose();
    if called == Called::Plugin
        && let Err(failure) = check_plugin(&cli.command)
    {
        return end(Err(failure));
    }
    let target = |cluster| Target::new(&cli.socket, cluster, called == Called::Plugin);
    end(match &cli.command {
        Command::Agent(args) => return machine.agent(&AgentArgs { socket: cli.socket.clone(), ..args.as_ref().clone() }),
        Command::Status(args) => status::run(target(&args.cluster), args),
        Command::Observe(args) => observe::run(target(&args.cluster), args),
        Command::Alerts(args) => alerts::run(target(&args.cluster), args),
        Command::Explain(args) => explain::run(target(&args.cluster), args),
        Command::Mode(args) => mode::run(target(&args.cluster), args, machine),
        Command::Version(args) => version::run(target(&args.cluster), args),
        Command::Doctor(args) => doctor::run(&cli.socket, args, machine),
        Command::Detach(args) => detach::run(args, machine),
        Command::Completion(args) => completion::completion(args),
        Command::Relay => relay::run(&cli.socket),
        Command::Man(args) => completion::man(args),
    })
}

/// Says why a command failed, and how it ends.
fn end(result: Result<Exit, Failure>) -> ExitCode {
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => {
            if !failure.text.is_empty() {
                eprintln!("sekisho: {failure}");
            }
            failure.exit.into()
        }
    }
}
