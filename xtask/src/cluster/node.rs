//! One node: its mounts and control groups, containerd, kubelet, kube-proxy.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use sekisho_lab::until;

use super::binaries::Programs;
use super::plan::{self, Cni, Plan};
use super::site::{self, Site};
use super::{cgroups, images, pki};
use crate::workspace::output;

/// The daemons, in the order in which they start; the first one holds the mounts.
pub(super) const DAEMONS: [&str; 4] = ["mounts", "containerd", "kubelet", "kube-proxy"];

/// Starts a node. It registers itself.
pub(super) fn start(plan: Plan, number: u8, programs: &Programs) -> Result<()> {
    let name = plan::node_name(number);
    cgroups::make(&name)?;
    let site = Site::new(&name, programs)?;
    let directory = site.directory();
    for below in ["cni", "static", "pod-logs", "volume-plugins", "kubelet"] {
        fs::create_dir_all(directory.join(below))?;
    }
    configure(plan, number, &directory)?;
    site.hold_mounts()?;
    site.start("containerd", &["--config".to_owned(), directory.join("containerd.toml").display().to_string()])?;
    until(Duration::from_secs(20), "containerd answers", || {
        site.must_live("containerd")?;
        Ok(images::ctr(&site)?.args(["version"]).stdout(std::process::Stdio::null()).status()?.success())
    })
    .with_context(|| site.log("containerd"))?;
    let kubeconfig = pki::kubeconfig(&name, &directory.join("kubelet.kubeconfig"))?;
    let addresses: Vec<String> = plan::node_addresses(number).iter().map(IpAddr::to_string).collect();
    site.start(
        "kubelet",
        &[
            format!("--config={}", directory.join("kubelet.yaml").display()),
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--hostname-override={name}"),
            format!("--node-ip={}", addresses.join(",")),
            format!("--root-dir={}", directory.join("kubelet").display()),
            format!("--cert-dir={}", directory.join("kubelet").display()),
        ],
    )?;
    pki::kubeconfig("kube-proxy", &directory.join("kube-proxy.kubeconfig"))?;
    site.start("kube-proxy", &[format!("--config={}", directory.join("kube-proxy.yaml").display())])
}

/// Writes what the daemons read.
fn configure(plan: Plan, number: u8, directory: &Path) -> Result<()> {
    let name = plan::node_name(number);
    let [(v4, v4_length), (v6, v6_length)] = plan::pod_networks(number);
    let cni = match plan.cni {
        Cni::Bridge => include_str!("../../cluster/config/bridge.conflist"),
        Cni::Ptp => include_str!("../../cluster/config/ptp.conflist"),
    };
    let files = [
        ("containerd.toml", include_str!("../../cluster/config/containerd.toml")),
        ("kubelet.yaml", include_str!("../../cluster/config/kubelet.yaml")),
        ("kube-proxy.yaml", include_str!("../../cluster/config/kube-proxy.yaml")),
        ("cni/10-cluster.conflist", cni),
        ("resolv.conf", "nameserver 127.0.0.1\n"),
    ];
    for (file, text) in files {
        let text = text
            .replace("{dir}", &directory.display().to_string())
            .replace("{pki}", &plan::pki().display().to_string())
            .replace("{node}", &name)
            .replace("{pause}", images::PAUSE)
            .replace("{cgroup}", &cgroups::kubelet_root(&name))
            .replace("{pods}", plan::PODS)
            .replace("{proxy}", plan.proxy.name())
            .replace("{v4}", &format!("{v4}/{v4_length}"))
            .replace("{v6}", &format!("{v6}/{v6_length}"));
        fs::write(directory.join(file), text).with_context(|| format!("cannot write {file}"))?;
    }
    Ok(())
}

/// A node's kubelet.
pub(crate) fn kubelet(node: &str) -> Result<u32> {
    site::pid(node, "kubelet").with_context(|| format!("no kubelet runs on {node}"))
}

/// Lets the CNI give these addresses to the next pod on a node, if they are free then.
pub(crate) fn give_next(node: &str, addresses: &[IpAddr]) -> Result<()> {
    let book = plan::root().join(node).join("ipam/cluster");
    for (range, address) in addresses.iter().enumerate() {
        // It goes on after the one that it gave last.
        let before: IpAddr = match address {
            IpAddr::V4(v4) => std::net::Ipv4Addr::from_bits(v4.to_bits() - 1).into(),
            IpAddr::V6(v6) => std::net::Ipv6Addr::from_bits(v6.to_bits() - 1).into(),
        };
        fs::write(book.join(format!("last_reserved_ip.{range}")), before.to_string())
            .context("cannot write into the CNI's address book")?;
        forget_neighbour(node, *address)?;
    }
    Ok(())
}

/// Lets a node forget who had an address. The CNI's plugin announces the new owner before the bridge listens, and what the node
/// believes else holds for half a minute.
fn forget_neighbour(node: &str, address: IpAddr) -> Result<()> {
    let mut command = std::process::Command::new("nsenter");
    command.arg(format!("--net={}", plan::netns(node).display())).args(["--", "ip", "neigh", "flush", "to", &address.to_string()]);
    output(&mut command).map(drop)
}

/// Where a node's kubelet finds pods that no API server told it of.
pub(crate) fn static_pods(node: &str) -> PathBuf {
    plan::root().join(node).join("static")
}
