//! Policy as a pure function: a [`Snapshot`](crate::inventory::Snapshot) in, verdict tables out.
//!
//! Nouns. A *selector id* numbers one distinct peer in use by a local pod's policy. A *class* is the set of selector ids that
//! an address matches, one for all that rules in use do not tell apart; class 0 matches none. A *set* is one pod's whole list
//! of rules, content-addressed, immutable: pods with equal rules share it. A *rule id* names policy, direction and index. A
//! *share* is what one namespace's policies may take of the kernel's tables. Numbers never change meaning within the life of
//! the kernel's maps: the [`Compiler`] interns them and only ever counts up.
//!
//! No I/O, no clock, no tokio, no aya.

mod addresses;
mod alike;
mod blocks;
mod compiler;
mod explain;
mod identity;
mod interner;
mod lending;
mod peers;
mod ports;
mod ranges;
mod room;
mod round;
mod rows;
mod services;
mod sets;
mod share;
mod usage;
mod warning;

#[cfg(test)]
mod tests;

pub use compiler::{Compiled, Compiler, Stats};
pub use identity::{Relevant, identity_number};
pub use lending::{Lending, lends};
pub use round::Passing;
pub use warning::Warning;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use sekisho_core::layout::{Address, AddressEntry, PortKey, RuleKey, Rules, Vip, VipKey};

use crate::inventory::{ObjectName, Snapshot};

/// What the policy compiler needs beside the snapshot.
pub struct Input<'a> {
    /// The cluster.
    pub snapshot: &'a Snapshot,
    /// This node's name: its pods are the local ones.
    pub node: &'a str,
    /// Addresses of the node's own interfaces, `kube-ipvs0` left out.
    pub node_addresses: &'a [IpAddr],
    /// Addresses that the datapath found in local pods' namespaces, by pod UID; they win over status.
    pub found: &'a HashMap<Arc<str>, Vec<IpAddr>>,
    /// What the kernel's tables hold.
    pub in_kernel: &'a Tables,
    /// How many addresses the kernel's table holds.
    pub room_for_addresses: usize,
    /// How many rows of rules its table holds.
    pub room_for_rules: usize,
    /// How many Service ports the kernel's table holds.
    pub room_for_services: usize,
    /// How many networks its table holds, and that of ports at least as many prefixes of them.
    pub room_for_networks: usize,
    /// Whose annotation `sekisho.dev/allow-sources` counts.
    pub lending: &'a [Lending],
    /// Instance number of everything that may be a remote or local end.
    pub instances: &'a dyn Instances,
}

/// Numbers for those who own addresses. Implemented by the flow room's journal; numbers are never given twice.
pub trait Instances {
    /// Number of a pod, by UID.
    fn pod(&self, uid: &str) -> u32;
    /// Number of a Service port (`port` is its name or number).
    fn service(&self, service: &ObjectName, port: &str) -> u32;
    /// Number of a node, by name.
    fn node(&self, name: &str) -> u32;
}

/// Highest numbers that the kernel's maps still hold from before; a new compiler begins above them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsedIds {
    /// Policy sets.
    pub set: u32,
    /// Classes.
    pub class: u32,
    /// Port tables.
    pub table: u32,
    /// Rules.
    pub rule: u32,
    /// Instances; given by the journal, not by the compiler.
    pub instance: u32,
}

/// The verdict tables as the kernel shall hold them. A value, swapped whole; the datapath writes the difference.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tables {
    /// By pod UID, local pods only (hostNetwork ones with set 0, not isolated).
    pub endpoints: HashMap<Arc<str>, EndpointPolicy>,
    /// Exact addresses: pods (all nodes), Services, nodes.
    pub addresses: HashMap<Address, AddressEntry>,
    /// CIDRs, `(network, prefix length counted in 128 bits) -> class`.
    pub cidrs: HashMap<(Address, u8), u32>,
    /// Service ports.
    pub vips: HashMap<VipKey, Vip>,
    /// What sets say about classes.
    pub rules: HashMap<RuleKey, Rules>,
    /// Port tables, `(key, prefix length in bits: 40 + 0..=16) -> rule id`.
    pub ports: HashMap<(PortKey, u8), u32>,
    /// What of it is only for the moment of a change.
    pub passing: Passing,
}

/// What a local pod's endpoint points at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EndpointPolicy {
    /// Set; 0 where nothing isolates it.
    pub set: u32,
    /// Instance of the pod.
    pub instance: u32,
    /// `[egress, ingress]`.
    pub isolated: [bool; 2],
    /// Neither judged nor counted against policy.
    pub host_network: bool,
}

/// An address as the kernel's tables hold it: IPv4 v4-mapped.
pub fn mapped(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The address that the kernel's tables hold as `address`.
pub fn unmapped(address: &Address) -> IpAddr {
    IpAddr::from(*address).to_canonical()
}

/// A policy's rule, as records name it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RuleRef {
    /// `NetworkPolicy`.
    pub kind: &'static str,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// UID of the policy object.
    pub uid: Option<Arc<str>>,
    /// [`EGRESS`](sekisho_core::layout::EGRESS) or [`INGRESS`](sekisho_core::layout::INGRESS).
    pub direction: u8,
    /// Index within `ingress` or `egress`.
    pub index: u32,
}

/// What failed in the nearest rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Mismatch {
    /// The peer.
    Peer,
    /// The port.
    Port,
    /// The protocol.
    Protocol,
}

/// One end's decision with its reason, for records and `sekisho explain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Whether it may pass.
    pub allowed: bool,
    /// Whether any policy isolates the endpoint in that direction.
    pub isolated: bool,
    /// The rule that allows it.
    pub rule: Option<RuleRef>,
    /// Default deny: the policies that isolate (their `index` means nothing).
    pub isolated_by: Vec<RuleRef>,
    /// Default deny: the rule with most of peer, port and protocol right.
    pub nearest: Option<RuleRef>,
    /// What failed in `nearest`.
    pub mismatch: Vec<Mismatch>,
    /// Something a person should know, such as a Service with backends of different verdicts.
    pub warning: Option<String>,
}

/// A question to the explainer: may `local` talk in `direction` with `remote`?
#[derive(Clone, Debug)]
pub struct Question {
    /// The local pod's `(namespace, name)`.
    pub local: ObjectName,
    /// Its direction.
    pub direction: u8,
    /// The remote address (a pod, a Service address, a node, anyone).
    pub remote: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// The destination's port; `None` for protocols without.
    pub port: Option<u16>,
}
