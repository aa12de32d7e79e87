//! `sekisho alerts`.

use clap::Args;
use sekisho_proto::AlertsRequest;

use super::cluster::{self, Ask, ClusterArgs, Target};
use super::output::{OutputArgs, Printer};
use super::values::{self, Last};
use super::{Exit, Failure, client, observe};

const EXAMPLES: &str = "Examples:
  sekisho alerts                     the last 20
  sekisho alerts --last all -o dict  all that are remembered, with their evidence
  sekisho alerts --follow -o json | jq '{rule, id, status, source, count}'

An incident keeps its id: a later line with the same id is an update of it. Alerts of earlier runs of the agent come first (`run` says \
which), at most 256 in all. An agent that ends closes its open alerts; what goes on after it starts again is an update under the same id. \
One that is killed loses what the last five seconds brought.";

/// Arguments of `sekisho alerts`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct AlertsArgs {
    /// How many of the newest, or `all` [default: 20; none with --follow]
    #[arg(long, value_name = "N or all", value_parser = values::last)]
    last: Option<Last>,
    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

pub(super) fn run(target: Target<'_>, args: &AlertsArgs) -> Result<Exit, Failure> {
    let (all, last) = observe::history(args.last, args.follow, false);
    let request = AlertsRequest { last, all, follow: args.follow };
    let socket = match target {
        Target::Socket(socket) => socket,
        Target::Cluster(cluster) => return cluster::records(cluster, &Ask::Alerts(request), args.output),
    };
    client::converse(async {
        let records = client::answered(async {
            let mut client = client::connect(socket).await?;
            client.alerts(request).await.map_err(|status| client::refused(&status))
        });
        let records = records.await?.into_inner();
        observe::print(records, Printer::new(args.output)).await
    })
}
