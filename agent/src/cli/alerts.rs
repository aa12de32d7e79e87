//! `sekisho alerts`.

use clap::Args;
use prost_types::Timestamp;
use sekisho_proto::AlertsRequest;

use super::cluster::{self, Ask, ClusterArgs, Target};
use super::filters::FilterArgs;
use super::output::OutputArgs;
use super::records::{self, Page};
use super::values::{self, Last};
use super::{Exit, Failure, client, names, observe};

const EXAMPLES: &str = "Examples:
  sekisho alerts                                   the last 20
  sekisho alerts --severity high,critical --since 1h
  sekisho alerts --rule scan -n shop               scans of any kind that a namespace is an end of
  sekisho alerts --not --rule spoof.ip --last all
  sekisho alerts --last all -o dict                all that are remembered, with their evidence
  sekisho alerts --follow -o json | jq '{rule, id, status, source, count}'

An incident keeps its id: a later line with the same id is an update of it. Filters work as those of `sekisho observe`. Alerts of \
earlier runs of the agent come first (`run` says which), at most 256 in all. An agent that ends closes its open alerts; what goes on \
after it starts again is an update under the same id. One that is killed loses what the last five seconds brought.";

/// Arguments of `sekisho alerts`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct AlertsArgs {
    /// How many of the newest that pass, or `all` [default: 20; none with --follow]
    #[arg(long, value_name = "N or all", value_parser = values::last)]
    last: Option<Last>,
    /// Nothing older: how long ago, such as 5m, or a time such as 2026-11-21T12:00:00Z or '2026-11-21 12:00' (local)
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    since: Option<Timestamp>,
    /// Nothing newer, as with --since
    #[arg(long, value_name = "TIME", value_parser = values::moment)]
    until: Option<Timestamp>,
    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    filter: FilterArgs<true>,
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

impl AlertsArgs {
    /// What is asked of the agent.
    pub(super) fn request(&self) -> Result<AlertsRequest, Failure> {
        let (all, last) = observe::history(self.last, self.follow, self.since.is_some());
        let (filter, exclude) = self.filter.messages()?;
        Ok(AlertsRequest { last, all, follow: self.follow, filter: Some(filter), exclude, since: self.since, until: self.until })
    }
}

pub(super) fn run(target: Target<'_>, args: &AlertsArgs) -> Result<Exit, Failure> {
    let request = args.request()?;
    let socket = match target {
        Target::Socket(socket) => socket,
        Target::Cluster(cluster) => return cluster::records(cluster, &Ask::Alerts(request), args.output, false, None),
    };
    client::converse(async {
        let filter = request.filter.clone().unwrap_or_default();
        let follow = request.follow;
        let (client, records) = client::answered(async {
            let mut client = client::connect(socket).await?;
            let records = client.alerts(request).await.map_err(|status| client::refused(&status))?;
            Ok((client, records.into_inner()))
        })
        .await?;
        if follow {
            names::warn(names::missing_here(&filter, &client).await);
        }
        let mut page = Page::new(args.output, None, 0);
        records::print(records, &mut page).await?;
        if page.is_empty() { names::nothing(names::missing_here(&filter, &client).await) } else { Ok(Exit::Done) }
    })
}
