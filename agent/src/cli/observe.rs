//! `sekisho observe`: history, then what comes.

use std::pin::pin;
use std::task::Poll;

use clap::Args;
use prost_types::Timestamp;
use sekisho_proto::{Filter, FlowsRequest, Kind, Record, Verdict};
use tonic::Streaming;

use super::cluster::{self, Ask, ClusterArgs, Target};
use super::output::{OutputArgs, Printer};
use super::values::{self, Last};
use super::{Exit, Failure, client, render};

/// How much of the past is printed where nothing is said and nothing followed.
const LAST: u64 = 20;

const EXAMPLES: &str = "Examples:
  sekisho observe                                    the last 20 records
  sekisho observe --follow --verdict denied          what is turned back from now on, and why
  sekisho observe --last all --pod shop/web          everything remembered about one pod
  sekisho observe --since 5m --to-pod shop/db --port 5432
  sekisho observe --pod shop/web --from-pod          what that pod opened
  sekisho observe --all-nodes --follow               every node's, merged by time, through the API server
  sekisho observe --last all -o json --follow        the whole book: every kind, `seq` without a gap

Filters are applied by the agent. A record passes if it matches every option that is given; an option may be given several \
times or with a comma list, and then any of its values will do. Without a filter, alerts, ledgers and the other records \
that are not flows are printed as well.

Over several nodes: --last counts over all of them. A node that cannot be asked is named on stderr, and the exit code is 1. \
With --follow it is tried again, and its records are told from where they broke off.";

/// Arguments of `sekisho observe`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct ObserveArgs {
    /// How many of the newest records that pass, or `all` [default: 20; none with --follow]
    #[arg(long, value_name = "N or all", value_parser = values::last)]
    last: Option<Last>,
    /// Nothing older: a time such as 2026-11-21T12:00:00Z, or how long ago, such as 5m
    #[arg(long, value_name = "TIME", value_parser = values::since)]
    since: Option<Timestamp>,
    /// Go on with what comes, until interrupted
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

/// Which records.
#[derive(Args, Debug)]
#[command(next_help_heading = "Filters")]
struct FilterArgs {
    /// How it was judged
    #[arg(long, value_name = "V", value_delimiter = ',', ignore_case = true, value_parser = values::name::<Verdict>())]
    verdict: Vec<Verdict>,
    /// Namespace of either end
    #[arg(long, value_name = "NS", value_delimiter = ',')]
    namespace: Vec<String>,
    /// Pod at either end
    #[arg(long, value_name = "NS/POD", value_delimiter = ',', value_parser = values::pod)]
    pod: Vec<String>,
    /// Pod that opened the flow; without a value: it is the one of --pod
    #[arg(long, value_name = "NS/POD", value_delimiter = ',', num_args = 0..=1, default_missing_value = "", value_parser = values::pod_or_bare)]
    from_pod: Vec<String>,
    /// Pod to which the flow was opened; without a value: it is the one of --pod
    #[arg(long, value_name = "NS/POD", value_delimiter = ',', num_args = 0..=1, default_missing_value = "", value_parser = values::pod_or_bare)]
    to_pod: Vec<String>,
    /// Address of either end, or a CIDR that holds it
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = values::network)]
    ip: Vec<String>,
    /// Port of either end
    #[arg(long, value_name = "P", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    port: Vec<u16>,
    /// TCP, UDP, SCTP, ICMP, ICMPv4, ICMPv6, or a number
    #[arg(long, value_name = "P", value_delimiter = ',', value_parser = values::protocol)]
    protocol: Vec<String>,
    /// What the record is: a moment of a flow's life, or about something else
    #[arg(long, value_name = "K", value_delimiter = ',', ignore_case = true, value_parser = values::name::<Kind>())]
    kind: Vec<Kind>,
}

impl FilterArgs {
    fn message(&self) -> Result<Filter, Failure> {
        let Ends { pods, from_pods, to_pods } = self.ends()?;
        Ok(Filter {
            kinds: self.kind.iter().map(|kind| *kind as i32).collect(),
            verdicts: self.verdict.iter().map(|verdict| *verdict as i32).collect(),
            namespaces: self.namespace.clone(),
            pods,
            from_pods,
            to_pods,
            ips: self.ip.clone(),
            ports: self.port.iter().copied().map(u32::from).collect(),
            protocols: self.protocol.clone(),
        })
    }

    /// Which pods at which end: `--from-pod` and `--to-pod` without a value say at which end those of `--pod` are.
    fn ends(&self) -> Result<Ends, Failure> {
        let bare = |pods: &[String]| pods.iter().any(String::is_empty);
        let named = |pods: &[String]| pods.iter().filter(|pod| !pod.is_empty()).cloned().collect::<Vec<_>>();
        let mut ends = Ends { pods: self.pod.clone(), from_pods: named(&self.from_pod), to_pods: named(&self.to_pod) };
        match (bare(&self.from_pod), bare(&self.to_pod)) {
            (false, false) => {}
            (from, _) if ends.pods.is_empty() => {
                let option = if from { "--from-pod" } else { "--to-pod" };
                return Err(Failure::new(Exit::Usage, format!("{option} of which pod? Give {option} NS/POD, or --pod NS/POD {option}")));
            }
            // At either end is what --pod says by itself.
            (true, true) => {}
            (true, false) => ends.from_pods.append(&mut ends.pods),
            (false, true) => ends.to_pods.append(&mut ends.pods),
        }
        Ok(ends)
    }
}

/// Pods by the end at which they are wanted.
struct Ends {
    pods: Vec<String>,
    from_pods: Vec<String>,
    to_pods: Vec<String>,
}

impl ObserveArgs {
    /// What is asked of the agent.
    pub(super) fn request(&self) -> Result<FlowsRequest, Failure> {
        let (all, last) = history(self.last, self.follow, self.since.is_some());
        Ok(FlowsRequest { filter: Some(self.filter.message()?), last, all, since: self.since, follow: self.follow })
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
    let request = args.request()?;
    let socket = match target {
        Target::Socket(socket) => socket,
        Target::Cluster(cluster) => return cluster::records(cluster, &Ask::Flows(request), args.output),
    };
    client::converse(async {
        let records = client::answered(async {
            let mut client = client::connect(socket).await?;
            client.flows(request).await.map_err(|status| client::refused(&status))
        });
        let records = records.await?.into_inner();
        print(records, Printer::new(args.output)).await
    })
}

/// Prints a stream to its end. Whatever has come is flushed before waiting for more.
pub(super) async fn print(mut records: Streaming<Record>, mut printer: Printer) -> Result<Exit, Failure> {
    loop {
        let ready = {
            let mut next = pin!(records.message());
            std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context))).await
        };
        let next = match ready {
            Poll::Ready(next) => next,
            Poll::Pending => {
                printer.flush()?;
                records.message().await
            }
        };
        match next.map_err(|status| client::refused(&status))? {
            Some(record) => printer.print(&record, render::record)?,
            None => break,
        }
    }
    printer.flush()?;
    Ok(Exit::Done)
}
