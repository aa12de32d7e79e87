//! `sekisho mode`: shows or sets what happens to flows that no policy allows.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use sekisho_proto::{GetModeRequest, ModeResponse, SetModeRequest};

use super::args::{Mode, PIN_DIR};
use super::cluster::{self, ClusterArgs, Target};
use super::output::{OutputArgs, Printer};
use super::{Exit, Failure, Machine, client};

/// How long the kill switch waits for an agent before it does without.
const PATIENCE: Duration = Duration::from_secs(3);

const EXAMPLES: &str = "Examples:
  sekisho mode             which mode is in force
  sekisho mode observe     the kill switch: works also when the agent is dead
  sekisho mode observe --all-nodes   on every node of the cluster
  sekisho mode enforce     judge and drop again";

/// Arguments of `sekisho mode`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct ModeArgs {
    /// The mode to set
    #[arg(value_enum, value_name = "MODE")]
    mode: Option<Mode>,
    /// Where the agent's pins lie, for `mode observe` when no agent answers
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pin_dir: PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

pub(super) fn run(target: Target<'_>, args: &ModeArgs, machine: &dyn Machine) -> Result<Exit, Failure> {
    let socket = match target {
        Target::Socket(socket) => socket,
        Target::Cluster(cluster) => return cluster::mode(cluster, args.mode.map(Mode::name), args.output),
    };
    client::converse(async {
        let answer = match (client::answered_within(PATIENCE, ask(socket, args.mode)).await, args.mode) {
            (Ok(answer), _) => answer,
            (Err(unanswered), Some(Mode::Observe)) if unanswered.exit == Exit::NotReady => {
                let on_pins = machine.observe_on_pins(&args.pin_dir);
                let epoch = on_pins.map_err(|failure| Failure::new(failure.exit, format_args!("{unanswered}; {failure}")))?;
                eprintln!("sekisho: {unanswered}; the mode is set on the pins in {}", args.pin_dir.display());
                ModeResponse { mode: Mode::Observe.name().to_owned(), epoch, ..ModeResponse::default() }
            }
            (Err(unanswered), Some(mode)) => {
                let text = format!("{unanswered}; mode {mode} needs a running agent, only `sekisho mode observe` works without");
                return Err(Failure::new(unanswered.exit, text));
            }
            (Err(unanswered), None) => return Err(unanswered),
        };
        let mut printer = Printer::new(args.output);
        printer.print(&answer, |answer, _| answer.mode.clone())?;
        printer.flush()?;
        Ok(Exit::Done)
    })
}

async fn ask(socket: &Path, mode: Option<Mode>) -> Result<ModeResponse, Failure> {
    let mut client = client::connect(socket).await?;
    let answer = match mode {
        Some(mode) => client.set_mode(SetModeRequest { mode: mode.name().to_owned() }).await,
        None => client.get_mode(GetModeRequest {}).await,
    };
    answer.map(tonic::Response::into_inner).map_err(|status| client::refused(&status))
}
