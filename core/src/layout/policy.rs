//! Types of the tables by which the kernel programs judge: who has an address, what a Service stands for, what a policy set allows.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Address;
use super::described::{Field, Type, boundary};

boundary! {
    /// Who has an address.
    pub struct AddressEntry {
        /// Class for rules; 0 = none matches.
        pub class: u32,
        /// Instance: pod, node or service.
        pub instance: u32,
        /// Bits of [`address_flags`](super::address_flags).
        pub flags: u32,
    } = 12;

    /// Key of the longest-prefix map `CIDRS`, without the prefix length that aya adds.
    pub struct CidrKey {
        /// Network address, IPv4 v4-mapped (prefix lengths then count from 96).
        pub address: Address,
    } = 16;

    /// A Service port as pods dial it.
    pub struct VipKey {
        /// ClusterIP or another address of the Service.
        pub address: Address,
        /// Service port.
        pub port: u16,
        /// IP protocol number.
        pub protocol: u8,
        /// Zero.
        pub pad: u8,
    } = 20;

    /// What a Service port stands for.
    pub struct Vip {
        /// Class made of its backends; immutable, a change of backends is another class.
        pub class: u32,
        /// Instance of the Service port.
        pub instance: u32,
    } = 8;

    /// The backend of a flow to a Service, by which it is judged again.
    pub struct Backend {
        /// [`Flow::born_ns`](super::Flow::born_ns): under the same key another birth is another flow.
        pub born_ns: u64,
        /// Its address.
        pub address: Address,
        /// Its port.
        pub port: u16,
        /// Zero.
        pub pad: [u8; 6],
    } = 32;

    /// Key of `RULES`: what a set says about a class in one direction.
    pub struct RuleKey {
        /// Policy set.
        pub set: u32,
        /// Class of the remote address.
        pub class: u32,
        /// [`EGRESS`](super::EGRESS), [`INGRESS`](super::INGRESS) or [`HAIRPIN`](super::HAIRPIN).
        pub direction: u32,
    } = 12;

    /// What a set says about a class in one direction.
    pub struct Rules {
        /// Rule that allows every protocol and port; 0 = none.
        pub any: u32,
        /// Port table; 0 = none.
        pub ports: u32,
        /// Rules of the ports that stand here, so that most policies cost no look-up in a port table; 0 = none.
        pub rule: [u32; 2],
        /// Those ports.
        pub port: [u16; 2],
        /// Their IP protocol numbers.
        pub protocol: [u8; 2],
        /// Zero.
        pub pad: [u8; 2],
    } = 24;

    /// Key of the longest-prefix map `PORTS`, without the prefix length that aya adds: 40 bits match a
    /// protocol, 40 + n the first n bits of the port.
    pub struct PortKey {
        /// Port table, big-endian.
        pub table: [u8; 4],
        /// IP protocol number.
        pub protocol: u8,
        /// Port, big-endian: the peer's for egress, the endpoint's own for ingress.
        pub port: [u8; 2],
    } = 7;
}
