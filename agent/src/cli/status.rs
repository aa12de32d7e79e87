//! `sekisho status`.

use clap::Args;
use sekisho_proto::StatusRequest;

use super::cluster::{self, ClusterArgs, Target};
use super::output::{OutputArgs, Printer};
use super::{Exit, Failure, client, render};

const EXAMPLES: &str = "Examples:
  sekisho status                                   everything at a glance
  sekisho status -o json | jq '.endpoints[] | select(.ready | not)'
  sekisho status --all-nodes                       a line for each node of the cluster
  until sekisho status >/dev/null; do sleep 1; done  wait until the node is covered

Ready means: a program at both directions of every local pod's interface, and the policy in force. `yes, with \
warnings` means that something needs a look all the same: an object that is refused, a source that does not answer. Exit code 0 when \
ready, with warnings as well (one tenant's broken object must not take a node out of service), 1 when not.";

/// Arguments of `sekisho status`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

pub(super) fn run(target: Target<'_>, args: &StatusArgs) -> Result<Exit, Failure> {
    let socket = match target {
        Target::Socket(socket) => socket,
        Target::Cluster(cluster) => return cluster::status(cluster, args.output),
    };
    client::converse(async {
        let status = client::answered(async {
            let mut client = client::connect(socket).await?;
            client.status(StatusRequest {}).await.map_err(|status| client::refused(&status))
        });
        let status = status.await?.into_inner();
        let mut printer = Printer::new(args.output);
        printer.print(&status, render::status)?;
        printer.flush()?;
        if status.ready {
            return Ok(Exit::Done);
        }
        for reason in &status.unready {
            eprintln!("sekisho: not ready: {reason}");
        }
        Ok(Exit::NotReady)
    })
}
