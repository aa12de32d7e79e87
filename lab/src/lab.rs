//! The lab itself: one node, its uplink to the outside, its directories, and everything's removal.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::netns::Netns;
use crate::place::Place;
use crate::pod::{Pod, PodSpec};
use crate::{manifest, netlink, sweep, sys};

/// What manifests call the node.
pub const NODE_NAME: &str = "node-1";

/// The node's bridge.
pub(crate) const BRIDGE: &str = "cni0";

/// One node in a box. Removes all of itself when dropped, unless [`Lab::keep`] was called.
#[derive(Debug)]
pub struct Lab {
    name: String,
    directory: PathBuf,
    cgroup: PathBuf,
    node: Place,
    outside: Place,
    numbers: AtomicU8,
    keep: AtomicBool,
}

impl Lab {
    /// Makes a node named after `name` (letters, digits, hyphens). Leftovers of dead labs are swept first.
    pub fn new(name: &str) -> Result<Self> {
        if !sys::is_root() {
            bail!("a lab needs root: it makes network namespaces, control groups and a bpffs");
        }
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
            bail!("a lab's name is made of letters, digits and hyphens, not {name:?}");
        }
        sweep::sweep()?;
        let directory = sweep::directory(name);
        if directory.exists() {
            bail!("the lab {name} exists already ({})", directory.display());
        }
        let cgroup = sweep::cgroup(name)?;
        fs::create_dir_all(directory.join("ns"))?;
        sweep::claim(name)?;
        let made = Self::make(name, directory, cgroup);
        if made.is_err() {
            sweep::remove(name)?;
        }
        made
    }

    fn make(name: &str, directory: PathBuf, cgroup: PathBuf) -> Result<Self> {
        fs::create_dir_all(directory.join("manifests"))?;
        fs::create_dir_all(directory.join("bpf"))?;
        sys::mount(Path::new("bpf"), &directory.join("bpf"), "bpf").context("cannot mount a bpffs")?;
        let netns = Netns::create(&directory.join("ns/node"))?;
        let node = Place::new("node", netns, cgroup.join("node"), directory.join("node.log"))?;
        let netns = Netns::create(&directory.join("ns/outside"))?;
        let outside = Place::new("outside", netns, cgroup.join("outside"), directory.join("outside.log"))?;
        let lab = Self { name: name.to_owned(), directory, cgroup, node, outside, numbers: AtomicU8::new(1), keep: AtomicBool::new(false) };
        lab.wire()?;
        lab.manifest("node", &manifest::node(NODE_NAME, &[lab.node_v4(), lab.node_v6()]))?;
        Ok(lab)
    }

    /// The uplink, the bridge, forwarding.
    fn wire(&self) -> Result<()> {
        let outside = self.outside.netns().open()?;
        self.node.netns().within(|| {
            use std::os::fd::AsFd;
            netlink::add_veth("eth0", "eth0", outside.as_fd()).context("cannot make the uplink")?;
            netlink::add_address("eth0", self.node_v4(), 24)?;
            netlink::add_address("eth0", self.node_v6(), 64)?;
            netlink::set_up("eth0")?;
            netlink::add_route(Ipv4Addr::UNSPECIFIED.into(), 0, Some(self.outside_v4()), "eth0")?;
            netlink::add_route(Ipv6Addr::UNSPECIFIED.into(), 0, Some(self.outside_v6()), "eth0")?;
            netlink::add_bridge(BRIDGE).context("cannot make the bridge")?;
            netlink::add_address(BRIDGE, bridge_v4(), 24)?;
            netlink::add_address(BRIDGE, bridge_v6(), 64)?;
            netlink::set_up(BRIDGE).context("cannot switch the bridge on")
        })?;
        for (name, value) in [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")] {
            self.node.netns().sysctl(name, value)?;
            // Some pods lie behind it.
            self.outside.netns().sysctl(name, value)?;
        }
        self.outside.netns().within(|| {
            netlink::add_address("eth0", self.outside_v4(), 24)?;
            netlink::add_address("eth0", self.outside_v6(), 64)?;
            netlink::set_up("eth0")?;
            netlink::add_route(Ipv4Addr::UNSPECIFIED.into(), 0, Some(self.node_v4()), "eth0")?;
            netlink::add_route(Ipv6Addr::UNSPECIFIED.into(), 0, Some(self.node_v6()), "eth0").context("cannot route from outside")
        })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The folder that the agent is told to watch.
    pub fn manifests(&self) -> PathBuf {
        self.directory.join("manifests")
    }

    /// The directory for pins: on the lab's own bpffs.
    pub fn pin_dir(&self) -> PathBuf {
        self.directory.join("bpf/pins")
    }

    /// The agent's socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.join("sekisho.sock")
    }

    /// The node: where the agent runs, and the kubelet would.
    pub fn node(&self) -> &Place {
        &self.node
    }

    /// A machine beyond the uplink; its default route is the node.
    pub fn outside(&self) -> &Place {
        &self.outside
    }

    /// The node's address on the uplink.
    pub fn node_v4(&self) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, 1).into()
    }

    /// The node's address on the uplink.
    pub fn node_v6(&self) -> IpAddr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1).into()
    }

    /// The node's address on the bridge.
    pub fn bridge_v4(&self) -> IpAddr {
        bridge_v4()
    }

    /// The node's address on the bridge.
    pub fn bridge_v6(&self) -> IpAddr {
        bridge_v6()
    }

    /// The outside machine's address.
    pub fn outside_v4(&self) -> IpAddr {
        Ipv4Addr::new(192, 0, 2, 2).into()
    }

    /// The outside machine's address.
    pub fn outside_v6(&self) -> IpAddr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2).into()
    }

    /// Makes a pod, real and running, and writes its manifest.
    pub fn pod(&self, spec: PodSpec) -> Result<Pod> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        if number == u8::MAX {
            bail!("a lab has at most 254 pods");
        }
        Pod::create(self, spec, number)
    }

    /// Plain pods of one namespace, see [`PodSpec::new`].
    pub fn pods<const N: usize>(&self, namespace: &str, names: [&str; N]) -> Result<[Pod; N]> {
        let pods = names.iter().map(|name| self.pod(PodSpec::new(namespace, name))).collect::<Result<Vec<Pod>>>()?;
        Ok(pods.try_into().expect("a pod for every name"))
    }

    /// A pod with a number of the caller's choice, which decides on its addresses: nobody else has it now.
    pub fn pod_at(&self, spec: PodSpec, number: u8) -> Result<Pod> {
        Pod::create(self, spec, number)
    }

    pub(crate) fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// Writes `NAME.json` into the manifests folder, whole or not at all.
    pub fn manifest(&self, name: &str, object: &serde_json::Value) -> Result<()> {
        self.write_manifest(&format!("{name}.json"), &serde_json::to_string_pretty(object)?)
    }

    /// Writes a file into the manifests folder by renaming it into place.
    pub fn write_manifest(&self, file: &str, text: &str) -> Result<()> {
        let draft = self.directory.join(format!("{file}.draft"));
        fs::write(&draft, text)?;
        fs::rename(&draft, self.manifests().join(file)).with_context(|| format!("cannot put {file} into the manifests folder"))
    }

    /// Takes a file out of the manifests folder.
    pub fn remove_manifest(&self, file: &str) -> Result<()> {
        fs::remove_file(self.manifests().join(file)).with_context(|| format!("there is no manifest {file}"))
    }

    /// Writes a Namespace with labels.
    pub fn namespace(&self, name: &str, labels: &[(&str, &str)]) -> Result<()> {
        let labels: BTreeMap<_, _> = labels.iter().copied().chain([("kubernetes.io/metadata.name", name)]).collect();
        self.manifest(
            &format!("namespace-{name}"),
            &json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}),
        )
    }

    /// Writes a `NetworkPolicy`: `policy("shop", "db", json!({"podSelector": {}, ...}))`.
    pub fn policy(&self, namespace: &str, name: &str, spec: &serde_json::Value) -> Result<()> {
        self.manifest(
            &format!("policy-{namespace}-{name}"),
            &json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": namespace, "name": name}, "spec": spec}),
        )
    }

    /// Writes the `NetworkPolicy` `name`: pods with the label `app=name` admit what one of the rules `ingress` says, and nothing
    /// else: `admit("shop", "db", &json!([{"from": [app("api")], "ports": [{"port": 5432}]}]))`.
    pub fn admit(&self, namespace: &str, name: &str, ingress: &serde_json::Value) -> Result<()> {
        let mut spec = app(name);
        spec["policyTypes"] = json!(["Ingress"]);
        spec["ingress"] = ingress.clone();
        self.policy(namespace, name, &spec)
    }

    /// What `sekisho` prints when it is run on the node with these arguments.
    pub fn sekisho<A: AsRef<std::ffi::OsStr>>(&self, arguments: &[A]) -> Result<crate::Finished> {
        self.node.run(crate::agent::binary()?, arguments)
    }

    /// Leaves everything in place when dropped.
    pub fn keep(&self) {
        self.keep.store(true, Ordering::Relaxed);
        // The files have no owner now, so that a later sweep leaves them alone.
        let _missing = fs::remove_file(self.directory.join("owner"));
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if self.keep.load(Ordering::Relaxed) {
            return;
        }
        if let Err(error) = sweep::remove(&self.name) {
            eprintln!("the lab {} is not wholly removed: {error:#}", self.name);
        }
    }
}

/// Pods with the label `app=name`: a peer in a rule, or whom a policy selects.
pub fn app(name: &str) -> serde_json::Value {
    json!({"podSelector": {"matchLabels": {"app": name}}})
}

/// The bridge's own address, which is the node's.
pub(crate) fn bridge_v4() -> IpAddr {
    Ipv4Addr::new(10, 244, 1, 1).into()
}

/// The bridge's own address, which is the node's.
pub(crate) fn bridge_v6() -> IpAddr {
    Ipv6Addr::new(0xfd00, 0x10, 0x244, 1, 0, 0, 0, 1).into()
}
