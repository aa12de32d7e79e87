//! `sekisho version`.

use clap::Args;
use sekisho_proto::{StatusRequest, StatusResponse};
use serde_json::{Value, json};

use super::cluster::{self, ClusterArgs, Target};
use super::doctor::PATIENCE;
use super::output::{Format, OutputArgs, Printer};
use super::{Exit, Failure, client, render};
use crate::version::{COMMIT, VERSION};

const EXAMPLES: &str = "Examples:
  sekisho version                  this program's version and commit, and those of the agent that runs here
  sekisho version --client         this program's alone
  kubectl sekisho version          those of every node's agent

An agent that does not answer is named on stderr; the exit code is 0 all the same.";

/// Arguments of `sekisho version`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct VersionArgs {
    /// Ask no agent
    #[arg(long)]
    client: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    pub(super) cluster: ClusterArgs,
}

#[cfg(test)]
impl VersionArgs {
    pub(super) fn format(&self) -> Format {
        self.output.format()
    }
}

pub(super) fn run(target: Target<'_>, args: &VersionArgs) -> Result<Exit, Failure> {
    let mut agents = Vec::new();
    if !args.client {
        match target {
            Target::Cluster(cluster) => agents = cluster::statuses(cluster)?,
            Target::Socket(socket) => {
                client::converse(async {
                    let asked = client::answered_within(PATIENCE, async {
                        let mut client = client::connect(socket).await?;
                        client.status(StatusRequest {}).await.map_err(|status| client::refused(&status))
                    });
                    match asked.await {
                        Ok(status) => agents.push(status.into_inner()),
                        Err(failure) => eprintln!("sekisho: {failure}"),
                    }
                    Ok(Exit::Done)
                })?;
            }
        }
    }
    let mut printer = Printer::new(args.output);
    printer.text(&text(&agents, args.output.format()))?;
    printer.flush()?;
    Ok(Exit::Done)
}

fn text(agents: &[StatusResponse], format: Format) -> String {
    let agent = |status: &StatusResponse| json!({"node": status.node, "version": status.version, "commit": status.commit});
    let agents: Vec<Value> = agents.iter().map(agent).collect();
    let all = json!({"client": {"version": VERSION, "commit": COMMIT}, "agents": agents});
    match format {
        Format::Json => all.to_string(),
        Format::Dict => render::dict(&all.to_string()),
        Format::Compact | Format::Wide => {
            let word = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
            let client = format!("client  {VERSION}, commit {COMMIT}");
            let line = |agent: &Value| {
                format!("agent   {}, commit {}, node {}", word(agent, "version"), word(agent, "commit"), word(agent, "node"))
            };
            std::iter::once(client).chain(agents.iter().map(line)).collect::<Vec<_>>().join("\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_and_agents_are_named_with_version_and_commit() {
        let agent = StatusResponse { node: "node-1".into(), version: "9.9.9".into(), commit: "abc".into(), ..Default::default() };
        let lines = text(std::slice::from_ref(&agent), Format::Compact);
        assert_eq!(lines, format!("client  {VERSION}, commit {COMMIT}\nagent   9.9.9, commit abc, node node-1"));
        let json: Value = serde_json::from_str(&text(&[agent], Format::Json)).expect("JSON");
        assert_eq!((&json["client"]["commit"], &json["agents"][0]["version"]), (&json!(COMMIT), &json!("9.9.9")));
    }
}
