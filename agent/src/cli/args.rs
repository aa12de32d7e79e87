//! The commands and their arguments: the one source of parsing, help, completion and man pages.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::alerts::AlertsArgs;
use super::completion::{CompletionArgs, ManArgs};
use super::detach::DetachArgs;
use super::doctor::DoctorArgs;
use super::explain::ExplainArgs;
use super::mode::ModeArgs;
use super::observe::ObserveArgs;
use super::output::Color;
use super::status::StatusArgs;
use super::values;
use super::version::VersionArgs;
use crate::api::TlsFiles;
use crate::inventory::kube::Access;
use crate::policy::Lending;

/// Where the agent listens unless told otherwise.
pub(super) const SOCKET: &str = "/run/sekisho/sekisho.sock";
/// Where the agent pins what outlives it unless told otherwise.
pub(super) const PIN_DIR: &str = "/sys/fs/bpf/sekisho";

/// What `--version` says.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (commit ", env!("SEKISHO_COMMIT"), ")");

const ABOUT: &str = "Sees, judges and stops pod network flows on a Kubernetes node";
const LONG_ABOUT: &str = "Sees, judges and stops pod network flows on a Kubernetes node.\n\n\
    One agent runs on every node. It attaches to the pods' interfaces, judges each flow against the NetworkPolicies, \
    and writes one record of it with verdict, deciding rule, identities, counts and process. \
    The other commands ask that agent over its Unix socket.";
const EXAMPLES: &str = "Examples:
  sekisho agent --manifests ./cluster --node-name node-1     run on a folder of manifests
  sekisho status                                             is everything attached and in force?
  sekisho observe --follow --verdict denied                  watch what is turned back, and why
  sekisho explain --from shop/web --to shop/db --port 5432/TCP
  sekisho mode observe                                       the kill switch: drop nothing
  sekisho doctor                                             can it run here, and what would it not see?
  kubectl sekisho status                                     every node, through the API server (a link of this name to sekisho)

Exit codes: 0 done, 1 not ready or not found, 2 wrong usage, 3 cannot run here.";

/// The command line.
#[derive(Debug, Parser)]
#[command(name = "sekisho", version = VERSION, about = ABOUT, long_about = LONG_ABOUT, after_help = EXAMPLES, subcommand_required = true)]
pub(super) struct Cli {
    /// Unix socket of the agent
    #[arg(long, global = true, value_name = "PATH", default_value = SOCKET, env = "SEKISHO_SOCKET", display_order = 900)]
    pub(super) socket: PathBuf,
    /// When to use colours
    #[arg(long, global = true, value_enum, value_name = "WHEN", default_value_t = Color::Auto, display_order = 901)]
    pub(super) color: Color,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run the agent in the foreground
    Agent(Box<AgentArgs>),
    /// Say whether every pod is covered and the policy is in force
    Status(StatusArgs),
    /// Print flow records: who talked to whom, judged how, and why
    Observe(ObserveArgs),
    /// Print alerts: scans, spoofing, and what else no policy can see
    Alerts(AlertsArgs),
    /// Ask what would be decided for a connection, at both ends, and why
    Explain(ExplainArgs),
    /// Show the mode, or set it; `mode observe` is the kill switch
    Mode(ModeArgs),
    /// Say what is missing on this node, and what that costs
    Doctor(DoctorArgs),
    /// Remove everything that Sekisho has attached and pinned here
    Detach(DetachArgs),
    /// Print this program's version and that of the agent
    Version(VersionArgs),
    /// Print a completion script for a shell
    Completion(CompletionArgs),
    /// Join standard input and output with the agent's socket
    #[command(hide = true)]
    Relay,
    /// Write man pages
    #[command(hide = true)]
    Man(ManArgs),
}

const AGENT_EXAMPLES: &str = "Examples:
  sekisho agent --manifests ./cluster --node-name node-1
  sekisho agent --manifests ./cluster --node-name node-1 --mode audit --jsonl flows.jsonl
  sekisho agent --manifests ./cluster --node-name node-1 --listen 127.0.0.1:4317
  sekisho agent --kubeconfig ~/.kube/config --node-name node-1 --mode audit

The node is the network namespace in which the agent is started. In a pod of a DaemonSet it needs no arguments: the pod's \
service account and the variable NODE_NAME (from spec.nodeName) say the rest. Manifests are ordinary Kubernetes objects in *.yaml, *.yml \
and *.json files; the folder is watched, and a changed file changes the verdict.

A flow that has been idle for long enough ends, and a later packet begins another one. UDP ends after 30s without an answer and 120s \
with answers, ICMP after 30s, SCTP and other protocols after 30s and 10m. TCP ends after 30s without an answer, 2h once established and \
10m once one side has closed. A denied flow ends after 30s, of TCP after 150s, which is longer than TCP waits between two \
retransmissions. The times of UDP follow this node's connection tracking where it has longer ones.

When the agent ends, enforcement stays, unless --detach-on-exit is given; `sekisho detach` removes it later.";

/// Arguments of `sekisho agent`.
#[derive(Args, Clone, Debug)]
#[command(after_help = AGENT_EXAMPLES)]
pub struct AgentArgs {
    /// Folder of manifests (pods, namespaces, policies, ...), watched. Without it the API server is the source
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Credentials for the API server, where this is no pod of the cluster (else: the variable KUBECONFIG)
    #[arg(long, value_name = "PATH", conflicts_with = "manifests")]
    pub kubeconfig: Option<PathBuf>,
    /// Name of this node; its pods are the ones that are judged
    #[arg(long, value_name = "NAME", env = "NODE_NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub node_name: String,
    /// Name of the cluster, for the records
    #[arg(long, value_name = "NAME")]
    pub cluster: Option<String>,
    /// Unix socket to listen on; a stale one is replaced.
    #[arg(skip)]
    pub socket: PathBuf,
    /// Folder on a mounted bpffs for what outlives the agent; made if missing
    #[arg(long, value_name = "DIR", default_value = PIN_DIR)]
    pub pin_dir: PathBuf,
    /// Folder in which alerts and detections are kept for the next run; on a disk they also outlive a reboot [default: that of --socket]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Serve gRPC over TCP too: on a loopback address, or under TLS on any
    #[arg(long, value_name = "127.0.0.1:PORT", value_parser = values::address)]
    pub listen: Option<SocketAddr>,
    /// Certificates for it.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Serve Prometheus metrics on /metrics, and /healthz and /readyz, over HTTP; [::]:PORT is every address of both families
    #[arg(long, value_name = "ADDRESS:PORT", value_parser = values::address)]
    pub metrics: Option<SocketAddr>,
    /// Write every record as a line of JSON into a file, or to stdout with `-`
    #[arg(long, value_name = "PATH or -")]
    pub jsonl: Option<PathBuf>,
    /// Size at which the file of --jsonl is rotated
    #[arg(long, value_name = "SIZE", default_value = "100M", value_parser = values::size)]
    pub jsonl_max_size: u64,
    /// How many rotated files of --jsonl are kept
    #[arg(long, value_name = "N", default_value_t = 5)]
    pub jsonl_keep: u32,
    /// What to do with a flow that no policy allows [default: enforce with --manifests, audit with the API server]
    #[arg(long, value_enum)]
    pub mode: Option<Mode>,
    /// What a pod may do before its policy is in force: `hold` drops what it sends and gets, `open` lets it pass. In mode
    /// enforce only; kept while no agent runs, for what passes sockets [default: open with --manifests, hold with the API server]
    #[arg(long, value_enum)]
    pub posture: Option<Posture>,
    /// How long after its first attachment a pod may have connections that are older. While it lasts, a connection of a sandbox
    /// with a network stack of its own (a pod with `runtimeClassName`) is believed without a socket in the node's kernel, and a
    /// server may go on with what a client opened, whatever egress policy says
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = values::duration)]
    pub adoption_window: Duration,
    /// Whose annotation `sekisho.dev/allow-sources` counts: the pods of a namespace, or those of a name or of names that begin so.
    /// May be given several times [default: nobody's]
    #[arg(long, value_name = "NAMESPACE[/POD[*]]")]
    pub allow_sources_from: Vec<Lending>,
    /// How to attach to a pod's interface
    #[arg(long, value_enum, default_value_t = TcBackend::Auto)]
    pub tc_backend: TcBackend,
    /// Bytes that all kernel maps together may take
    #[arg(long, value_name = "SIZE", default_value = "128Mi", value_parser = values::budget)]
    pub memory_budget: u64,
    /// Remove everything when the agent ends, instead of leaving enforcement in place
    #[arg(long)]
    pub detach_on_exit: bool,
    /// How often an open flow gets an update record
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = values::duration)]
    pub update_interval: Duration,
    /// Age at which an open flow gets its first update record
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = values::duration)]
    pub first_update: Duration,
    /// How often a ledger record is written
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = values::duration)]
    pub ledger_interval: Duration,
    /// How long a UDP flow without an answer may be idle [default: 30s, or nf_conntrack_udp_timeout if that is longer]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub udp_timeout: Option<Duration>,
    /// How long a UDP flow with answers may be idle [default: 120s, or nf_conntrack_udp_timeout_stream if that is longer]
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    pub udp_stream_timeout: Option<Duration>,
    /// How many records are kept in memory for `observe` and clients that come later
    #[arg(long, value_name = "N", default_value_t = 32_768, value_parser = clap::value_parser!(u32).range(1..=4_194_304))]
    pub history: u32,
    /// Form of the agent's own log on stderr
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// Level of the log: error, warn, info, debug, trace, or per module as in `info,sekisho::datapath=debug`
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "SEKISHO_LOG", value_parser = values::log_level)]
    pub log_level: String,
}

/// TLS for --listen: all three or none.
#[derive(Args, Clone, Debug, Default)]
pub struct TlsArgs {
    /// Certificate for --listen, in PEM, those in between included; like the other two it is read again when it is replaced
    #[arg(long, value_name = "FILE", requires_all = ["listen", "tls_key", "tls_client_ca"])]
    pub tls_cert: Option<PathBuf>,
    /// Its private key, in PEM
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Authorities, in PEM: only a client with a certificate of theirs is answered
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    pub tls_client_ca: Option<PathBuf>,
}

impl TlsArgs {
    /// The files, where TLS is asked for.
    pub fn files(&self) -> Option<TlsFiles> {
        let (certificate, key, client_authority) = (self.tls_cert.clone()?, self.tls_key.clone()?, self.tls_client_ca.clone()?);
        Some(TlsFiles { certificate, key, client_authority })
    }
}

impl AgentArgs {
    /// What a pod may do before its policy is in force. In a cluster the API server knows a pod before it starts; in a folder
    /// it may come later, or never.
    pub fn posture(&self) -> Posture {
        self.posture.unwrap_or(if self.manifests.is_some() { Posture::Open } else { Posture::Hold })
    }

    /// Where the inventory comes from; `None` where neither a folder nor an API server is known.
    pub fn source(&self) -> Option<Origin> {
        match (&self.manifests, &self.kubeconfig) {
            (Some(folder), _) => Some(Origin::Folder(folder.clone())),
            (None, Some(path)) => Some(Origin::Cluster(Access::Kubeconfig(path.clone()))),
            (None, None) => Access::found().map(Origin::Cluster),
        }
    }

    /// The mode to start in. On a cluster that knows nothing of it yet, the agent first shows what it would deny.
    pub fn mode(&self) -> Mode {
        self.mode.unwrap_or(if self.manifests.is_some() { Mode::Enforce } else { Mode::Audit })
    }
}

/// Where the inventory comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A folder of manifests.
    Folder(PathBuf),
    /// The API server.
    Cluster(Access),
}

/// What happens to a flow that no policy allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Judge nothing, drop nothing, record everything
    Observe,
    /// Judge and record what would be denied, drop nothing
    Audit,
    /// Judge and drop
    Enforce,
}

impl Mode {
    /// The name on the command line, in records and in the protocol.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Audit => "audit",
            Self::Enforce => "enforce",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a pod may do before its policy is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Posture {
    /// Nothing, where policies exist
    Hold,
    /// Everything
    Open,
}

/// How to attach to a pod's interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TcBackend {
    /// TCX where the kernel has it (6.6 and newer), else clsact
    Auto,
    /// TCX or nothing
    Tcx,
    /// A clsact qdisc, as on kernels before 6.6
    Clsact,
}

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// One readable line each
    Text,
    /// One JSON object per line
    Json,
}
