//! One line of the book, as the agent keeps it: small, shared by reference, projected only when it leaves.

use std::net::IpAddr;
use std::sync::Arc;

use sekisho_core::layout::{Flow, FlowKey6};
use sekisho_proto as proto;

use super::waiting::Translated;
use crate::inventory::{Labels, Workload};
use crate::policy::{Mismatch, RuleRef};

/// One record. `seq` is given by the book.
#[derive(Clone, Debug)]
pub struct Record {
    /// +1 per record of this run; the first is 1.
    pub seq: u64,
    /// When the agent made it, nanoseconds since 1970 UTC.
    pub time_ns: u64,
    /// What it says.
    pub body: Body,
}

/// What a record says.
#[derive(Clone, Debug)]
pub enum Body {
    /// start, update or end of a flow.
    Flow(Arc<FlowRecord>),
    /// An alert.
    Alert(Arc<proto::Alert>),
    /// The ledger.
    Ledger(Arc<proto::Ledger>),
    /// The policy in force changed, or could not.
    Policy(Arc<proto::PolicyChange>),
    /// Something about what is seen changed.
    Coverage(Arc<proto::Coverage>),
    /// What an endpoint produced beyond its event budget.
    Summary(Arc<proto::Summary>),
}

/// Which moment of a flow's life a record tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Moment {
    /// First packet.
    Start,
    /// Still there.
    Update,
    /// Over, with a [`end_reason`](sekisho_core::layout::end_reason) number.
    End(u8),
}

/// A flow at one endpoint.
#[derive(Clone, Debug)]
pub struct FlowRecord {
    /// Which moment.
    pub moment: Moment,
    /// Hash of boot id, endpoint, tuple and first start.
    pub flow_id: u64,
    /// Key, IPv4 v4-mapped.
    pub key: FlowKey6,
    /// 4 or 6.
    pub family: u8,
    /// As the kernel kept it: totals, verdict, flags.
    pub flow: Flow,
    /// First and last packet, nanoseconds since 1970 UTC.
    pub start_ns: u64,
    /// Last packet.
    pub last_ns: u64,
    /// `[[forward, reply] packets, [forward, reply] bytes]` since the flow's last record; `None` where that is not known.
    pub delta: Option<[[u64; 2]; 2]>,
    /// The endpoint, frozen at capture.
    pub local: Option<Arc<Identity>>,
    /// The other side, frozen at capture.
    pub remote: Option<Arc<Identity>>,
    /// The name of `remote` came after the verdict.
    pub late_identity: bool,
    /// Of a flow to a Service: what stands behind its address, where that was found out.
    pub translated: Option<Arc<Translated>>,
    /// Rule and, for default deny, its explanation.
    pub decision: Option<Arc<Explanation>>,
    /// Of the endpoint's side: who connected (flows that it opened).
    pub process: Option<Arc<ProcessInfo>>,
    /// Of the endpoint's side: who listens (flows opened by the peer).
    pub listener: Option<Arc<ProcessInfo>>,
    /// Host-side interface; absent for cgroup endpoints.
    pub interface: Option<Arc<str>>,
}

/// Why a flow was decided as it was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The rule that decided.
    pub rule: Option<RuleRef>,
    /// Default deny: who isolates.
    pub isolated_by: Vec<RuleRef>,
    /// Default deny: nearest rule.
    pub nearest: Option<RuleRef>,
    /// What failed in it.
    pub mismatch: Vec<Mismatch>,
}

/// The owner of an address at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Instance number.
    pub instance: u32,
    /// What it is.
    pub owner: Owner,
    /// Addresses it had.
    pub ips: Vec<IpAddr>,
    /// Stable hash of namespace and policy-relevant labels, equal on all nodes.
    pub number: Option<u64>,
}

/// What an identity is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A pod.
    Pod {
        /// Namespace.
        namespace: Arc<str>,
        /// Name.
        name: Arc<str>,
        /// UID.
        uid: Arc<str>,
        /// Labels.
        labels: Labels,
        /// Top owner.
        workload: Workload,
        /// Service account.
        service_account: Option<Arc<str>>,
        /// Node.
        node: Option<Arc<str>>,
    },
    /// A Service port.
    Service {
        /// Namespace.
        namespace: Arc<str>,
        /// Name.
        name: Arc<str>,
        /// Port's name or number.
        port: Arc<str>,
    },
    /// A node.
    Node {
        /// Name.
        name: Arc<str>,
    },
}

/// A process of the endpoint's side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessInfo {
    /// Thread group id, as the node counts.
    pub pid: u32,
    /// Command name.
    pub comm: Arc<str>,
    /// User id.
    pub uid: Option<u32>,
    /// Container id, from the cgroup's name.
    pub container_id: Option<Arc<str>>,
    /// Path of the executable, where it could be read.
    pub exe: Option<Arc<str>>,
}
