//! A real Kubernetes cluster on this machine, for tests: etcd, API server, controller manager and scheduler in
//! one network namespace, and per node one more with containerd, kubelet and kube-proxy, a mount namespace
//! with a bpffs and a /run of its own, and a subtree of control groups.
//!
//! Nouns: a [`Plan`] says how many nodes there are, which CNI and which kube-proxy; it is written down when the
//! cluster comes up. A [`Site`] is a place where daemons run: the control plane or a node.
//!
//! Everything lies below one directory and one control group name, so that `down` removes all of it, also what
//! a killed `up` left behind. The machine's own network and control groups stay untouched.

mod binaries;
mod cgroups;
mod client;
mod control_plane;
mod cut;
mod down;
mod images;
mod network;
mod node;
mod pki;
mod plan;
mod site;
mod status;

use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Subcommand;
use sekisho_lab::Netns;

pub(crate) use binaries::{ensure_helm, ensure_kubeconform, ensure_servers, servers_obstacle};
pub(crate) use cgroups::processes_of_pod;
pub(crate) use client::Client;
pub(crate) use control_plane::{audit_log, compact_history, kill_api_server, restart_api_server};
pub(crate) use cut::Cut;
pub(crate) use down::down;
pub(crate) use images::{PROBE, import};
pub(crate) use node::{give_next, kubelet, static_pods};
pub(crate) use plan::{Cni, Plan, Proxy, logs, node_addresses, node_name, pki as certificates, root};

pub(crate) use site::holder;

use crate::setup;
use crate::workspace::say;

/// What can be done with the cluster.
#[derive(Subcommand)]
pub(crate) enum Action {
    /// Bring it up; nothing happens if it is up as asked for
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
        nodes: u8,
        /// How pods are connected
        #[arg(long, value_enum, default_value_t = Cni::Bridge)]
        cni: Cni,
        /// How Services are translated
        #[arg(long, value_enum, default_value_t = Proxy::Iptables)]
        proxy: Proxy,
    },
    /// Remove it, whatever state it is in
    Down,
    /// Say what runs; ends with 1 if something does not
    Status,
    /// Put an image archive into every node
    Import {
        /// What `cargo xtask image` wrote
        archive: std::path::PathBuf,
    },
    /// Run helm against it
    #[command(disable_help_flag = true)]
    Helm {
        /// helm's own arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run kubectl against it
    #[command(disable_help_flag = true)]
    Kubectl {
        /// kubectl's own arguments
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

/// Does it.
pub(crate) fn run(action: Action) -> Result<ExitCode> {
    match action {
        Action::Up { nodes, cni, proxy } => {
            up(Plan { nodes, cni, proxy })?;
            eprintln!("    cargo xtask cluster kubectl get nodes -o wide");
            Ok(ExitCode::SUCCESS)
        }
        Action::Down => down::down().map(|()| ExitCode::SUCCESS),
        Action::Status => status::print(),
        Action::Import { archive } => import(&archive).map(|()| ExitCode::SUCCESS),
        Action::Helm { arguments } => Client::connect()?.pass_on(&ensure_helm()?, &arguments),
        Action::Kubectl { arguments } => Client::connect().and_then(|client| client.pass_on(&client.program(), &arguments)),
    }
}

/// A cluster as planned; one that is up already is taken if it is whole and of the same plan.
pub(crate) fn up(plan: Plan) -> Result<Client> {
    if !sekisho_lab::is_root() {
        bail!("the cluster needs root: it makes namespaces, control groups and mounts");
    }
    if Plan::read().is_some_and(|running| running == plan) && status::whole(plan) {
        say("the cluster is up already");
        return Client::connect();
    }
    setup::cluster()?;
    let programs = binaries::ensure_cluster()?;
    let probe = crate::workspace::build_lab()?;
    down::down()?;
    let begin = Instant::now();
    say(&format!("a cluster of {plan}"));
    fs::create_dir_all(plan::logs()).context("cannot make the cluster's directory")?;
    plan.write()?;
    network::make(plan)?;
    pki::make(plan)?;
    down::note_sysctls()?;
    let client = control_plane::start(&programs)?;
    for number in plan.numbers() {
        node::start(plan, number, &programs)?;
    }
    images::import_own(plan, &probe)?;
    client.wait(Duration::from_secs(60), "every node is ready", |client| {
        Ok(client.lines(&["get", "nodes", "--no-headers"])?.iter().filter(|line| line.contains(" Ready ")).count()
            == usize::from(plan.nodes))
    })?;
    client.wait(Duration::from_secs(30), "namespaces have their service accounts", |client| {
        Ok(client.try_run(&["get", "serviceaccount", "default", "-o", "name"])?.is_some())
    })?;
    Plan::complete()?;
    eprintln!("    up in {:.1} s", begin.elapsed().as_secs_f64());
    Ok(client)
}

/// The control plane's network: neither a pod's nor a node's, so the outside.
pub(crate) fn control_plane_netns() -> Netns {
    Netns::at(&plan::netns(plan::CONTROL_PLANE))
}

/// A node's own network.
pub(crate) fn node_netns(number: u8) -> Netns {
    Netns::at(&plan::netns(&node_name(number)))
}
