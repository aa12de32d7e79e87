//! A pod: namespace, veth, addresses, control group, and one process that keeps them alive.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;
use std::os::fd::AsFd;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::lab::{BRIDGE, Lab, NODE_NAME, bridge_v4, bridge_v6};
use crate::netns::Netns;
use crate::place::{Place, Running};
use crate::{cgroup, manifest, netlink, sys};

/// How a pod's veth is joined to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// A port of the node's bridge; the bridge has an address in the pods' subnet.
    Bridge,
    /// Host routes and proxy ARP; the pod's gateway is a link-local address.
    PointToPoint,
    /// Not on the node's network at all: its interface leads to the outside, as with a virtual function of the card
    /// or ipvlan. No veth of the node leads to it.
    Elsewhere,
}

/// How the kubelet names control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupLayout {
    /// `kubepods/burstable/pod<uid>/<id>`
    Cgroupfs,
    /// `kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid_>.slice/cri-containerd-<id>.scope`
    Systemd,
}

/// What a pod is to be. Addresses are chosen by the lab unless given.
#[derive(Clone, Debug)]
pub struct PodSpec {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) owner: Option<(String, String)>,
    pub(crate) service_account: Option<String>,
    pub(crate) host_network: bool,
    layout: Layout,
    cgroup: CgroupLayout,
    addresses: Vec<IpAddr>,
    just_scheduled: bool,
}

impl PodSpec {
    /// A pod on the bridge with the label `app=NAME`.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            annotations: BTreeMap::new(),
            owner: None,
            service_account: None,
            host_network: false,
            layout: Layout::Bridge,
            cgroup: CgroupLayout::Cgroupfs,
            addresses: Vec::new(),
            just_scheduled: false,
        }
    }

    /// Adds or replaces a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Its workload; a Deployment owns it through a ReplicaSet, as in a cluster.
    #[must_use]
    pub fn owner(mut self, kind: &str, name: &str) -> Self {
        self.owner = Some((kind.to_owned(), name.to_owned()));
        self
    }

    /// Its service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> Self {
        self.service_account = Some(name.to_owned());
        self
    }

    /// How its veth is joined.
    #[must_use]
    pub fn layout(mut self, layout: Layout) -> Self {
        self.layout = layout;
        self
    }

    /// How its control group is named.
    #[must_use]
    pub fn cgroup(mut self, cgroup: CgroupLayout) -> Self {
        self.cgroup = cgroup;
        self
    }

    /// It shares the node's network namespace.
    #[must_use]
    pub fn host_network(mut self) -> Self {
        self.host_network = true;
        self
    }

    /// Its manifest is there before anything of it is on the node, and knows no addresses.
    #[must_use]
    pub fn just_scheduled(mut self) -> Self {
        self.just_scheduled = true;
        self
    }

    /// Its addresses.
    #[must_use]
    pub fn addresses(mut self, addresses: &[IpAddr]) -> Self {
        self.addresses = addresses.to_vec();
        self
    }
}

/// A pod that runs. Processes run in it through [`Place`].
#[derive(Debug)]
pub struct Pod {
    place: Place,
    spec: PodSpec,
    uid: String,
    number: u8,
    addresses: Vec<IpAddr>,
    interface: Option<String>,
    cgroup: PathBuf,
    node: Netns,
    directory: PathBuf,
    pause: Running,
}

impl Deref for Pod {
    type Target = Place;

    fn deref(&self) -> &Place {
        &self.place
    }
}

impl Pod {
    pub(crate) fn create(lab: &Lab, spec: PodSpec, number: u8) -> Result<Self> {
        let file = format!("{}-{}", spec.namespace, spec.name);
        // The count makes a pod that comes again under its old name another pod.
        let uid = manifest::identifier(&format!("{}/{file}/{number}", lab.name()));
        let addresses = if spec.host_network {
            vec![lab.node_v4(), lab.node_v6()]
        } else if spec.addresses.is_empty() {
            default_addresses(spec.layout, number)
        } else {
            spec.addresses.clone()
        };
        if spec.just_scheduled {
            lab.manifest(&format!("pod-{file}"), &manifest::pod(&spec, &uid, &[], NODE_NAME))?;
        }
        let (netns, interface) = if spec.host_network {
            (lab.node().netns().clone(), None)
        } else {
            let netns = Netns::create(&lab.directory().join("ns").join(format!("{file}-{number}")))?;
            let interface = format!("veth{number}");
            wire(lab, &netns, &interface, spec.layout, &addresses, number)?;
            (netns, (spec.layout != Layout::Elsewhere).then_some(interface))
        };
        let (cgroup, container) = cgroup_names(spec.cgroup, &uid);
        let cgroup = lab.cgroup().join(cgroup);
        let place = Place::new(
            &format!("{}/{}", spec.namespace, spec.name),
            netns,
            cgroup.join(container),
            lab.directory().join(format!("{file}.log")),
        )?;
        let pause = place.start(&["pause"])?;
        if !spec.just_scheduled {
            lab.manifest(&format!("pod-{file}"), &manifest::pod(&spec, &uid, &addresses, NODE_NAME))?;
        }
        let (node, directory) = (lab.node().netns().clone(), lab.directory().to_owned());
        Ok(Self { place, spec, uid, number, addresses, interface, cgroup, node, directory, pause })
    }

    /// Its Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.spec.namespace
    }

    /// Its name, without the namespace.
    pub fn pod_name(&self) -> &str {
        &self.spec.name
    }

    /// Its UID.
    pub fn uid(&self) -> &str {
        &self.uid
    }

    /// Its first IPv4 address.
    pub fn v4(&self) -> IpAddr {
        *self.addresses.iter().find(|address| address.is_ipv4()).expect("the pod has an IPv4 address")
    }

    /// Its first IPv6 address.
    pub fn v6(&self) -> IpAddr {
        *self.addresses.iter().find(|address| address.is_ipv6()).expect("the pod has an IPv6 address")
    }

    /// Its address of a family.
    pub fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6() } else { self.v4() }
    }

    /// The host side of its veth, by name in the node's namespace; absent with `hostNetwork`.
    pub fn interface(&self) -> Option<&str> {
        self.interface.as_deref()
    }

    /// Takes its interface away, and gives it one that is joined in another way. Its processes and addresses stay.
    pub fn rewire(&mut self, lab: &Lab, layout: Layout) -> Result<()> {
        let number = self.number;
        self.place.netns().within(|| netlink::remove("eth0").context("the pod's interface is gone already"))?;
        let interface = format!("veth{number}");
        wire(lab, self.place.netns(), &interface, layout, &self.addresses, number)?;
        self.interface = (layout != Layout::Elsewhere).then_some(interface);
        Ok(())
    }

    /// Lets it run on by itself; the lab ends it when it goes.
    pub fn detach(self) {
        self.pause.detach();
    }

    /// Lets all of it vanish: processes, veth, control group and manifest.
    pub fn delete(self) -> Result<()> {
        fs::remove_file(self.directory.join("manifests").join(format!("pod-{}-{}.json", self.spec.namespace, self.spec.name)))
            .context("the pod's manifest is gone already")?;
        let Self { place, interface, cgroup, node, pause, .. } = self;
        drop(pause);
        cgroup::remove(&cgroup)?;
        if let Some(interface) = interface {
            node.within(|| netlink::remove(&interface).context("the pod's interface is gone already"))?;
            sys::unmount(place.netns().path()).context("the pod's namespace is gone already")?;
            fs::remove_file(place.netns().path())?;
        }
        Ok(())
    }
}

fn default_addresses(layout: Layout, number: u8) -> Vec<IpAddr> {
    let subnet = match layout {
        Layout::Bridge => 1u8,
        Layout::PointToPoint => 2,
        Layout::Elsewhere => 3,
    };
    // .1 is the bridge's own; numbers begin with 1.
    let host = number.saturating_add(1);
    vec![Ipv4Addr::new(10, 244, subnet, host).into(), Ipv6Addr::new(0xfd00, 0x10, 0x244, subnet.into(), 0, 0, 0, host.into()).into()]
}

/// `(the pod's, the container's)` directory names.
fn cgroup_names(layout: CgroupLayout, uid: &str) -> (String, String) {
    let container = manifest::hex(uid, 64);
    match layout {
        CgroupLayout::Cgroupfs => (format!("kubepods/burstable/pod{uid}"), container),
        CgroupLayout::Systemd => (
            format!("kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice", uid.replace('-', "_")),
            format!("cri-containerd-{container}.scope"),
        ),
    }
}

/// The gateway that a point-to-point pod sees: answered for by proxy ARP, as Calico does it.
const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

fn wire(lab: &Lab, netns: &Netns, interface: &str, layout: Layout, addresses: &[IpAddr], number: u8) -> Result<()> {
    let inside = netns.open()?;
    let outer = if layout == Layout::Elsewhere { lab.outside() } else { lab.node() };
    outer.netns().within(|| {
        netlink::add_veth(interface, "eth0", inside.as_fd()).context("cannot make the pod's veth")?;
        match layout {
            Layout::Bridge => netlink::set_master(interface, BRIDGE)?,
            Layout::PointToPoint | Layout::Elsewhere => netlink::add_address(interface, GATEWAY_V6.into(), 64)?,
        }
        netlink::set_up(interface)?;
        if layout != Layout::Bridge {
            for (name, value) in [("proxy_arp", "1"), ("rp_filter", "0")] {
                let path = format!("/proc/sys/net/ipv4/conf/{interface}/{name}");
                fs::write(&path, value).with_context(|| format!("cannot set {path}"))?;
            }
            // Linux answers for addresses that it can route elsewhere; the delay is of no use here.
            fs::write(format!("/proc/sys/net/ipv4/neigh/{interface}/proxy_delay"), "0")?;
            for address in addresses {
                netlink::add_route(*address, if address.is_ipv4() { 32 } else { 128 }, None, interface)?;
            }
        }
        Ok(())
    })?;
    netns.within(|| {
        netlink::set_mac("eth0", [0x0a, 0x58, 10, 244, 0, number])?;
        for address in addresses {
            let prefix = match (layout, address.is_ipv4()) {
                (Layout::Bridge, true) => 24,
                (Layout::Bridge, false) => 64,
                (_, true) => 32,
                (_, false) => 128,
            };
            netlink::add_address("eth0", *address, prefix)?;
        }
        netlink::set_up("eth0")?;
        let (gateway_v4, gateway_v6) = match layout {
            Layout::Bridge => (bridge_v4(), bridge_v6()),
            Layout::PointToPoint | Layout::Elsewhere => (GATEWAY_V4.into(), GATEWAY_V6.into()),
        };
        netlink::add_route(Ipv4Addr::UNSPECIFIED.into(), 0, Some(gateway_v4), "eth0")?;
        netlink::add_route(Ipv6Addr::UNSPECIFIED.into(), 0, Some(gateway_v6), "eth0").context("cannot route from the pod")
    })
}
