//! What the rest of the agent may know about an endpoint.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// How an endpoint is attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Attach {
    /// Not (yet).
    #[default]
    None,
    /// TCX links on the host side of its veth.
    Tcx,
    /// clsact filters on the host side of its veth.
    Clsact,
    /// cgroup_skb on its control group.
    Cgroup,
}

impl Attach {
    /// As status names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
            Self::Cgroup => "cgroup",
        }
    }
}

/// What of an endpoint's traffic passes our hooks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Coverage {
    /// Nothing: not attached.
    #[default]
    Unseen,
    /// Both directions.
    Full,
    /// One direction passes by unseen, and there is no other place to attach.
    OneWay,
}

impl Coverage {
    /// As status names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unseen => "unseen",
            Self::Full => "full",
            Self::OneWay => "one_way",
        }
    }
}

/// A local pod as the data path sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent of one another")]
pub struct EndpointInfo {
    /// Pod UID.
    pub uid: Arc<str>,
    /// Number in flow keys: interface index, or `CGROUP_ENDPOINT` and the index; 0 while it has not been found.
    pub number: u32,
    /// Slot in the kernel's arrays.
    pub index: u32,
    /// Host-side interface; absent for cgroup endpoints.
    pub interface: Option<Arc<str>>,
    /// Addresses that its namespace holds on the judged interface, or status says.
    pub addresses: Vec<IpAddr>,
    /// MAC of the judged interface, inside.
    pub mac: Option<[u8; 6]>,
    /// Link-local address of the judged interface, inside, as it was when the pod was found.
    pub link_local: Option<Ipv6Addr>,
    /// Networks beside that it may speak for, as its annotation says.
    pub sources: Vec<ipnet::IpNet>,
    /// What its namespace calls the node's, plus one; 0 where it has no number for it.
    pub node_netns: u8,
    /// How it is attached.
    pub attach: Attach,
    /// Programs are attached to its control group as well as to its interface: packets to it bypass the interface.
    pub paired: bool,
    /// Which packets show that; one sentence.
    pub evidence: Option<String>,
    /// Its pod is not known any more, and what it is watched at is still there: it stays under its policy.
    pub orphaned: bool,
    /// What is seen.
    pub coverage: Coverage,
    /// Control groups: the pod's own first.
    pub cgroups: Vec<u64>,
    /// Shares the node's network namespace.
    pub host_network: bool,
    /// Policy set in force; 0 where nothing isolates it.
    pub set: u32,
    /// Isolated, `[egress, ingress]`.
    pub isolated: [bool; 2],
    /// Its policy is in the kernel and programs run at both directions.
    pub ready: bool,
    /// What a person should know.
    pub message: Option<String>,
}

impl EndpointInfo {
    /// How it is attached, as status names it.
    pub fn attach_name(&self) -> &'static str {
        match (self.attach, self.paired) {
            (Attach::Tcx, true) => "tcx+cgroup",
            (Attach::Clsact, true) => "clsact+cgroup",
            (attach, _) => attach.name(),
        }
    }

    /// What a person should know, and what shows it.
    pub fn remarks(&self) -> Option<String> {
        let texts: Vec<&str> = [&self.message, &self.evidence].into_iter().flatten().map(String::as_str).collect();
        (!texts.is_empty()).then(|| texts.join("; "))
    }
}

/// An endpoint that a former agent left at work, and whose pod is not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// Endpoint number.
    pub number: u32,
    /// Pod instance.
    pub instance: u32,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Isolated, `[egress, ingress]`.
    pub isolated: [bool; 2],
}

/// What happened to an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointChange {
    /// Pod UID.
    pub uid: Arc<str>,
    /// Its number, the last one where it is gone.
    pub number: u32,
    /// What.
    pub kind: ChangeKind,
}

/// Kinds of [`EndpointChange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// Found; its addresses are known.
    Found,
    /// Addresses, interface or way of attaching are others now.
    Changed,
    /// Its pod or its interface is gone; its flows end with reason `endpoint_gone`.
    Gone,
}

/// Something about what is seen changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoverageEvent {
    /// Pod UID.
    pub uid: Arc<str>,
    /// Endpoint number.
    pub number: u32,
    /// `reattached`, `one_way`, `attached`, `attach_failed`.
    pub event: &'static str,
    /// How it is attached now.
    pub attach: &'static str,
    /// Host-side interface.
    pub interface: Option<Arc<str>>,
    /// One sentence.
    pub message: String,
}

/// Who listens on a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerInfo {
    /// Thread group id, as the node counts.
    pub pid: u32,
    /// User id.
    pub uid: Option<u32>,
    /// Command name.
    pub comm: Arc<str>,
    /// Container id.
    pub container_id: Option<Arc<str>>,
}

/// How full a map is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapStatus {
    /// Name.
    pub name: &'static str,
    /// Entries in it.
    pub entries: u64,
    /// Entries that fit.
    pub max: u64,
    /// Bytes that the kernel charges for it.
    pub bytes: u64,
}

/// The clocks read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// `CLOCK_BOOTTIME`, nanoseconds.
    pub boot_ns: u64,
    /// Nanoseconds since 1970 UTC.
    pub wall_ns: u64,
    /// The kernel's 64-bit jiffies.
    pub jiffies: u64,
    /// Jiffies per second.
    pub hz: u32,
}

/// Addresses as the boundary has them.
pub(super) fn boundary(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}
