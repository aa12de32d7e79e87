//! `sekisho observe`: history, then what comes.

use clap::Args;
use prost_types::Timestamp;
use sekisho_proto::FlowsRequest;

use super::cluster::{self, Ask, ClusterArgs, Target};
use super::filters::FilterArgs;
use super::fold::Fold;
use super::output::OutputArgs;
use super::records::{self, BothArgs, Page};
use super::values::{self, Last};
use super::{Exit, Failure, client, names};

/// How much of the past is printed where nothing is said and nothing followed.
const LAST: u64 = 20;

const EXAMPLES: &str = "Examples:
  sekisho observe                                    the last 20 flows' records, a short line each
  sekisho observe -f --verdict denied                what is turned back from now on, and why
  sekisho observe -n shop --last all                 everything remembered about a namespace
  sekisho observe -n shop --pod web -o wide          pods whose names begin with web, with all that fits on no screen
  sekisho observe --since 5m --to-pod shop/db --to-port 5432
  sekisho observe --since '2026-11-30 10:00' --until '2026-11-30 10:05'
  sekisho observe -l app=web,tier!=canary --not --namespace kube-system
  sekisho observe --workload deployment/web --reason default_deny
  sekisho observe --policy shop/db-ingress           what a policy has decided
  sekisho observe --pod shop/web --from-pod          what that pod opened
  sekisho observe --all-nodes --follow               every node's, merged by time, through the API server
  sekisho observe --last all -o json --follow        the whole book: every kind, `seq` without a gap

Filters are applied by the agent. A record passes if it matches every option that is given; an option may be given several \
times or with a comma list, and then any of its values will do. --not turns round the option behind it: what that matches is left \
out. Without a filter, alerts, ledgers and the other records that are not flows are printed as well.

A name without a namespace is one of those that -n gives, or of namespace default; with -A it may be in any. NS/ is every pod of a \
namespace. Where nothing is found because no such pod, namespace, workload, Service or policy exists, that is said, with exit code 1.

A line shows a flow once, also where both of its ends are seen: the end with the worse verdict speaks. --both shows each end, \
and -o json is always one object for each end. Lines are as wide as the terminal; COLUMNS sets another width where there is none.

Over several nodes: --last counts over all of them. A node that cannot be asked is named on stderr, and the exit code is 1. \
With --follow it is tried again, and its records are told from where they broke off.";

/// Arguments of `sekisho observe`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct ObserveArgs {
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
    both: BothArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    filter: FilterArgs<false>,
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

impl ObserveArgs {
    /// What is asked of the agent.
    pub(super) fn request(&self) -> Result<FlowsRequest, Failure> {
        let (all, last) = history(self.last, self.follow, self.since.is_some());
        let (filter, exclude) = self.filter.messages()?;
        Ok(FlowsRequest { filter: Some(filter), exclude, last, all, since: self.since, until: self.until, follow: self.follow })
    }
}

/// How much of the past: what was asked for, else all since a given time, else nothing where it is followed, else a little.
pub(super) fn history(last: Option<Last>, follow: bool, since: bool) -> (bool, Option<u64>) {
    match last {
        Some(Last::All) => (true, None),
        Some(Last::Count(count)) => (false, Some(count)),
        None if since => (true, None),
        None if follow => (false, None),
        None => (false, Some(LAST)),
    }
}

pub(super) fn run(target: Target<'_>, args: &ObserveArgs) -> Result<Exit, Failure> {
    let mut request = args.request()?;
    let folds = args.both.folds(args.output);
    // A line may take two records: twice as many are asked for, and the newest lines shown.
    let most = request.last.filter(|_| folds && !request.follow && !request.all);
    if let Some(most) = most {
        request.last = Some(most.saturating_mul(2));
    }
    let most = most.map(|most| usize::try_from(most).unwrap_or(usize::MAX));
    let socket = match target {
        Target::Socket(socket) => socket,
        Target::Cluster(cluster) => return cluster::records(cluster, &Ask::Flows(request), args.output, folds, most),
    };
    client::converse(async {
        let filter = request.filter.clone().unwrap_or_default();
        let follow = request.follow;
        let (client, records) = client::answered(async {
            let mut client = client::connect(socket).await?;
            let records = client.flows(request).await.map_err(|status| client::refused(&status))?;
            Ok((client, records.into_inner()))
        })
        .await?;
        if follow {
            names::warn(names::missing_here(&filter, &client).await);
        }
        let mut page = Page::new(args.output, folds.then(|| Fold::new(false)), 0).with_newest(most);
        records::print(records, &mut page).await?;
        if page.is_empty() { names::nothing(names::missing_here(&filter, &client).await) } else { Ok(Exit::Done) }
    })
}
