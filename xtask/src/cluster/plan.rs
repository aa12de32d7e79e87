//! What a cluster is made of, and the names and addresses that follow from it.

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

/// Where everything of the cluster lies. Outside the tree, and not below /run, which nodes have of their own.
const ROOT: &str = "/var/tmp/sekisho-cluster";
/// The cluster's directory in every hierarchy of control groups.
pub(super) const CGROUP: &str = "sekisho-cluster";
/// The control plane's name among the sites.
pub(super) const CONTROL_PLANE: &str = "control-plane";
/// Which pods' addresses there are, on all nodes.
pub(super) const PODS: &str = "10.244.0.0/16,fd00:244::/48";
/// Which addresses Services get.
pub(super) const SERVICES: &str = "10.96.0.0/16,fd00:96::/112";
/// The Service of the API server itself: the first of them.
pub(super) const API_SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// How pods are connected to their node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cni {
    /// Pods of a node share a bridge
    Bridge,
    /// A routed link to each pod
    Ptp,
}

/// How kube-proxy translates Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Proxy {
    /// By iptables
    Iptables,
    /// By nftables
    Nftables,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// How many nodes.
    pub(crate) nodes: u8,
    /// How pods are connected.
    pub(crate) cni: Cni,
    /// How Services are translated.
    pub(crate) proxy: Proxy,
}

impl Cni {
    fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Ptp => "ptp",
        }
    }
}

impl Proxy {
    /// As kube-proxy calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { nodes, cni, proxy } = self;
        write!(f, "{nodes} nodes, CNI {}, kube-proxy {}", cni.name(), proxy.name())
    }
}

impl Plan {
    /// The plan of the cluster that was brought up here last and not taken down.
    pub(crate) fn read() -> Option<Self> {
        let text = fs::read_to_string(root().join("plan")).ok()?;
        let mut words = text.split_whitespace();
        Some(Self {
            nodes: words.next()?.parse().ok()?,
            cni: Cni::from_str(words.next()?, false).ok()?,
            proxy: Proxy::from_str(words.next()?, false).ok()?,
        })
    }

    /// Writes it down, for `status`, `down` and the next `up`.
    pub(super) fn write(self) -> Result<()> {
        let text = format!("{} {} {}\n", self.nodes, self.cni.name(), self.proxy.name());
        fs::write(root().join("plan"), text).context("cannot write the plan")
    }

    /// Notes that the cluster has come up to the end.
    pub(super) fn complete() -> Result<()> {
        fs::write(root().join("complete"), "").context("cannot note that the cluster is up")
    }

    /// Whether it has; an `up` may have been killed half-way.
    pub(super) fn is_complete() -> bool {
        root().join("complete").exists()
    }

    /// The nodes' numbers.
    pub(crate) fn numbers(self) -> impl Iterator<Item = u8> {
        1..=self.nodes
    }
}

/// Where everything of the cluster lies.
pub(crate) fn root() -> &'static Path {
    Path::new(ROOT)
}

/// Where the daemons' logs are.
pub(crate) fn logs() -> PathBuf {
    root().join("log")
}

/// Where keys and certificates are.
pub(crate) fn pki() -> PathBuf {
    root().join("pki")
}

/// A node's name.
pub(crate) fn node_name(number: u8) -> String {
    format!("node-{number}")
}

/// The file that names a site's network namespace.
pub(crate) fn netns(site: &str) -> PathBuf {
    root().join("ns").join(site)
}

/// The control plane's addresses.
pub(crate) fn control_plane_addresses() -> [IpAddr; 2] {
    addresses(1)
}

/// A node's addresses.
pub(crate) fn node_addresses(number: u8) -> [IpAddr; 2] {
    addresses(10 + u16::from(number))
}

fn addresses(host: u16) -> [IpAddr; 2] {
    let low = u8::try_from(host).expect("few nodes");
    [Ipv4Addr::new(10, 99, 0, low).into(), Ipv6Addr::new(0xfd00, 0x99, 0, 0, 0, 0, 0, host).into()]
}

/// The addresses of a node's pods: network and length.
pub(crate) fn pod_networks(number: u8) -> [(IpAddr, u8); 2] {
    let v4 = Ipv4Addr::new(10, 244, number, 0);
    let v6 = Ipv6Addr::new(0xfd00, 0x244, 0, u16::from(number), 0, 0, 0, 0);
    [(v4.into(), 24), (v6.into(), 64)]
}

/// Where the API server is reached.
pub(crate) fn server() -> String {
    format!("https://{}:6443", control_plane_addresses()[0])
}
