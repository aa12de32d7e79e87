//! `sekisho explain`.

use std::net::IpAddr;

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use sekisho_proto::ExplainRequest;

use super::cluster::{self, ClusterArgs, Target};
use super::output::{OutputArgs, Printer};
use super::{Exit, Failure, client, complete, render, values};

const EXAMPLES: &str = "Examples:
  sekisho explain --from shop/frontend --to shop/api --port 8080/TCP
  sekisho explain -n shop --from frontend --to api --port 8080
  sekisho explain --from shop/api --to 192.0.2.7 --port 443
  sekisho explain --from shop/web --to shop/db --port ICMP

The answer is what the running agent would decide now, at the end that sends and at the end that receives; a flow passes \
only if both allow it. An end that is a pod of another node is judged there: what nothing here denies is then `undetermined here`; with \
--all-nodes each end is explained by its own node. `would be denied` says what mode enforce would do where the mode drops nothing. Exit \
code 0 when there is an answer, whatever it is (scripts read `verdict` and `enforced` of -o json), 1 when a pod is not known or nobody \
here has a say, 2 for wrong usage.";

/// Arguments of `sekisho explain`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct ExplainArgs {
    /// Who opens the connection
    #[arg(long, value_name = "NS/POD or IP", value_parser = values::end, add = ArgValueCompleter::new(complete::names("pods")))]
    from: String,
    /// To whom
    #[arg(long, value_name = "NS/POD or IP", value_parser = values::end, add = ArgValueCompleter::new(complete::names("pods")))]
    to: String,
    /// Namespace of pods that are named without one
    #[arg(short, long, value_name = "NS", default_value = "default", add = ArgValueCompleter::new(complete::names("namespaces")))]
    namespace: String,
    /// Port and protocol of the destination; TCP where only a port is given
    #[arg(long, value_name = "PORT/PROTO", value_parser = values::port_and_protocol)]
    port: (u16, String),
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

impl ExplainArgs {
    /// What is asked of the agent.
    pub(super) fn request(&self) -> ExplainRequest {
        let (port, protocol) = &self.port;
        let [from, to] = [&self.from, &self.to].map(|end| self.settle(end));
        ExplainRequest { from, to, port: u32::from(*port), protocol: protocol.clone() }
    }

    /// An end with its namespace, if it is a pod.
    fn settle(&self, end: &str) -> String {
        if end.contains('/') || end.parse::<IpAddr>().is_ok() { end.to_owned() } else { format!("{}/{end}", self.namespace) }
    }
}

pub(super) fn run(target: Target<'_>, args: &ExplainArgs) -> Result<Exit, Failure> {
    let socket = match target {
        Target::Socket(socket) => socket,
        Target::Cluster(cluster) => return cluster::explain(cluster, &args.request(), args.output),
    };
    client::converse(async {
        let request = args.request();
        let answer = client::answered(async {
            let mut client = client::connect(socket).await?;
            client.explain(request.clone()).await.map_err(|status| client::refused(&status))
        });
        let answer = answer.await?.into_inner();
        let mut printer = Printer::new(args.output);
        printer.print(&answer, |answer, paint| render::explanation(&request, answer, paint))?;
        printer.flush()?;
        Ok(Exit::Done)
    })
}
