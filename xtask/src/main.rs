//! What a developer types. One file per command; nothing clever in shell.

mod bench;
mod build_ebpf;
mod cluster;
mod demo;
mod e2e;
mod generate;
mod image;
mod kernel;
mod lint;
mod oci;
mod promtool;
mod servers;
mod setup;
mod test;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "What a developer of Sekisho types", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Install what is missing on this machine; seconds when nothing is
    Setup {
        /// Also what booting other kernels needs
        #[arg(long)]
        kernel: bool,
    },
    /// Build the kernel programs and say where they are
    BuildEbpf,
    /// Watch a small shop being guarded: real pods, real traffic, a scan; cleans up after itself
    Demo {
        /// Leave everything running and print what to type next
        #[arg(long, conflicts_with = "clean")]
        keep: bool,
        /// Remove what --keep has left
        #[arg(long)]
        clean: bool,
    },
    /// Run every test: in user space, then on this machine's real kernel
    Test {
        /// Only the real-kernel journeys of one machine, under Debian's kernel of this version (6.1 or 6.12)
        #[arg(long, value_name = "VERSION")]
        kernel: Option<String>,
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Write the files that are made from others
    Gen,
    /// Formatting, clippy, and the rules of the house
    Lint,
    /// A real Kubernetes cluster on this machine, for tests
    Cluster {
        #[command(subcommand)]
        action: cluster::Action,
    },
    /// The product in a real cluster: brought up, installed by Helm, tested
    E2e {
        /// How pods are connected
        #[arg(long, value_enum, default_value_t = cluster::Cni::Bridge)]
        cni: cluster::Cni,
        /// How Services are translated
        #[arg(long, value_enum, default_value_t = cluster::Proxy::Iptables)]
        proxy: cluster::Proxy,
        /// Leave the cluster up
        #[arg(long)]
        keep: bool,
        /// Only tests whose name contains this
        filter: Option<String>,
    },
    /// Build the container image, an OCI archive; its path is the last line printed
    Image {
        /// What for: linux/amd64 (amd64), linux/arm64 (arm64), or both with a comma between
        #[arg(long, visible_alias = "arch", value_enum, value_delimiter = ',', default_value = "linux/amd64", hide_possible_values = true)]
        platform: Vec<image::Platform>,
    },
    /// Measure: datapath, edits, flows, rr, starts
    Bench {
        /// Which one
        name: bench::Name,
        /// With datapath: compare these kernel programs with another build's, both in turns: an object that
        /// `cargo xtask build-ebpf` has made in another checkout, where it prints its path
        #[arg(long, value_name = "OBJECT")]
        against: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        None => Arguments::command().print_help().map_err(Into::into),
        Some(Command::Setup { kernel }) => setup::run(kernel),
        Some(Command::BuildEbpf) => build_ebpf::run(),
        Some(Command::Demo { clean: true, .. }) => demo::clean(),
        Some(Command::Demo { keep, .. }) => demo::run(keep),
        Some(Command::Test { kernel: Some(version), filter }) => kernel::run(&version, filter.as_deref()),
        Some(Command::Test { kernel: None, filter }) => test::run(filter.as_deref()),
        Some(Command::Gen) => generate::run(),
        Some(Command::Lint) => lint::run(),
        Some(Command::Bench { name, against }) => bench::run(name, against.as_deref()),
        Some(Command::E2e { cni, proxy, keep, filter }) => e2e::run(cluster::Plan { nodes: 2, cni, proxy }, filter.as_deref(), keep),
        Some(Command::Image { platform }) => image::run(&platform),
        Some(Command::Cluster { action }) => return conclude(cluster::run(action)),
    };
    conclude(done.map(|()| ExitCode::SUCCESS))
}

fn conclude(done: anyhow::Result<ExitCode>) -> ExitCode {
    match done {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
