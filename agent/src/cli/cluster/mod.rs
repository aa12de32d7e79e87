//! The agents of a cluster's nodes, asked through the API server: `kubectl sekisho`, or `--all-nodes` and `--node`.
//!
//! Nouns. A *place* is a node and the agent's pod on it, or why there is none to ask. A *tunnel* is gRPC through `exec` in
//! that pod: `sekisho relay` there joins it with the agent's socket, so that nothing listens for it and whoever may exec may ask.
//! A *lane* is one node's records on their way to the *merge*.
//!
//! Nothing is made up here: what a node does not answer is said on stderr, and the exit code tells it. In a large cluster a few nodes
//! are reached at a time, the first time and after a break.

mod answers;
mod lanes;
mod merge;
mod offers;
mod places;
mod streams;
#[cfg(test)]
mod tests;
mod tunnel;

use std::path::{Path, PathBuf};

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use super::{Exit, Failure, complete};

pub(super) use answers::{explain, mode, status, statuses};
pub(super) use offers::{contexts, names};
pub(super) use streams::{Ask, records};

/// Nodes that are reached at a time.
const AT_ONCE: usize = 64;

/// Which agents are asked.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Through the API server")]
pub(super) struct ClusterArgs {
    /// Ask the agents of all nodes
    #[arg(long, conflicts_with = "node", display_order = 800)]
    all_nodes: bool,
    /// Ask the agents of these nodes
    #[arg(long, value_name = "NAME", value_delimiter = ',', display_order = 801, add = ArgValueCompleter::new(complete::nodes))]
    node: Vec<String>,
    /// Context in the kubeconfig
    #[arg(long, value_name = "NAME", display_order = 802, add = ArgValueCompleter::new(complete::contexts))]
    context: Option<String>,
    /// Credentials for the API server [default: KUBECONFIG, ~/.kube/config, or the pod's service account]
    #[arg(long, value_name = "PATH", display_order = 803)]
    kubeconfig: Option<PathBuf>,
    /// Namespace in which the agents run
    #[arg(long, value_name = "NS", default_value = "sekisho", env = "SEKISHO_NAMESPACE", display_order = 804)]
    agents_namespace: String,
}

/// Who is asked: the agent behind a socket, or those of a cluster.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    /// This machine's agent.
    Socket(&'a Path),
    /// Nodes' agents, through the API server.
    Cluster(&'a ClusterArgs),
}

impl<'a> Target<'a> {
    /// A plugin of kubectl has no socket in mind.
    pub(super) fn new(socket: &'a Path, cluster: &'a ClusterArgs, plugin: bool) -> Self {
        if plugin || cluster.all_nodes || !cluster.node.is_empty() || cluster.context.is_some() || cluster.kubeconfig.is_some() {
            Self::Cluster(cluster)
        } else {
            Self::Socket(socket)
        }
    }
}

impl ClusterArgs {
    /// Whether only one agent can be meant.
    fn one(&self) -> bool {
        self.node.len() == 1
    }

    /// Whether nodes that come later are meant as well.
    fn all(&self) -> bool {
        self.node.is_empty()
    }

    async fn client(&self) -> Result<Client, Failure> {
        let cannot = |e: &dyn std::fmt::Display| Failure::new(Exit::CannotRun, e);
        let mut config = self.config().await?;
        // One that the environment names is for the web at large; one that the kubeconfig names would be needed.
        if let Some(proxy) = config.proxy_url.take()
            && !["HTTPS_PROXY", "https_proxy"]
                .iter()
                .any(|name| std::env::var(name).is_ok_and(|named| named.parse().is_ok_and(|named: http::Uri| named == proxy)))
        {
            return Err(cannot(&format!("the kubeconfig names the proxy {proxy}, and the API server is only spoken to directly")));
        }
        // Lists and exec are answered at once; an open tunnel may be silent for long.
        config.connect_timeout = Some(tunnel::PATIENCE);
        config.read_timeout = None;
        config.default_retry = false;
        Client::try_from(config).map_err(|e| cannot(&format!("no client for the API server: {e}")))
    }

    async fn config(&self) -> Result<Config, Failure> {
        let wrong = |e: &dyn std::fmt::Display| Failure::new(Exit::CannotRun, format_args!("the kubeconfig cannot be used: {e}"));
        let options = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        if let Some(path) = &self.kubeconfig {
            let file = Kubeconfig::read_from(path).map_err(|e| wrong(&e))?;
            return Config::from_custom_kubeconfig(file, &options).await.map_err(|e| wrong(&e));
        }
        match Kubeconfig::read() {
            Ok(file) => Config::from_custom_kubeconfig(file, &options).await.map_err(|e| wrong(&e)),
            Err(unread) => Config::incluster().map_err(|_| {
                let text = format!("no API server is known: give --kubeconfig PATH, or set KUBECONFIG ({unread})");
                Failure::new(Exit::CannotRun, text)
            }),
        }
    }
}

/// Says on stderr what is wrong with a node.
fn complain(node: &str, what: impl std::fmt::Display) {
    eprintln!("sekisho: {node}: {what}");
}
