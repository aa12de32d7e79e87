//! Types that cross the kernel boundary: map keys, map values and ring-buffer events.
//!
//! They are a wire format. Every type is `repr(C)`, padded by hand (the zerocopy derives refuse implicit padding) and its size is
//! asserted. [`LAYOUT`] hashes them; the pin directory bears that hash, so an agent never adopts maps of another shape.
//!
//! Conventions: addresses are 16 bytes, IPv4 in its v4-mapped form (RFC 4291, 2.5.5.2), except in [`FlowKey4`]; ports are in host
//! order except in [`PortKey`], an LPM key, where they are big-endian; `direction` is [`EGRESS`] or [`INGRESS`]; times are
//! nanoseconds of `CLOCK_BOOTTIME` or the low 32 bits of jiffies, as named.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// An address of either family, IPv4 as v4-mapped IPv6.
pub type Address = [u8; 16];

mod described;
mod frame;
mod meaning;
mod policy;

use described::boundary;
pub use described::{Field, Type};
pub use frame::{SocketFrame, SocketQuery};
pub(crate) use meaning::numbers;
pub use meaning::{HAIRPIN, address_flags, basis, contact, end_reason, endpoint_flags, event, flow_flags, hold, mode, reason, verdict};
pub use policy::{AddressEntry, Backend, CidrKey, PortKey, RuleKey, Rules, Vip, VipKey};

/// What the endpoint sends: the index 0 of everything kept per direction of the endpoint.
pub const EGRESS: u8 = 0;
/// What the endpoint receives.
pub const INGRESS: u8 = 1;
/// Who opened the flow is not known: it began before we watched.
pub const UNKNOWN: u8 = 2;

/// An endpoint number with this bit set names a cgroup endpoint (the rest is [`Endpoint::index`]);
/// without it, it is the interface index of the pod's host-side veth.
pub const CGROUP_ENDPOINT: u32 = 0x8000_0000;

/// Bytes that the types of the upgrade test's build have more: fields of a next version, which nothing uses.
const NEXT: usize = if cfg!(feature = "next-layout") { 8 } else { 0 };

/// Every boundary type. An agent writes them down beside its maps, so that another build can take over field by field what they hold.
pub const TYPES: &[Type] = &described::joined::<{ DECLARED.len() + policy::DECLARED.len() }>(DECLARED, policy::DECLARED);

/// FNV-1a over the names, types and offsets of every boundary type.
pub const LAYOUT: u64 = described::hash(TYPES);

boundary! {
    /// Key of an IPv4 flow, written from the endpoint's side so that both directions share it.
    pub struct FlowKey4 {
        /// Interface index, or [`CGROUP_ENDPOINT`] and an index.
        pub endpoint: u32,
        /// Remote address, network order.
        pub remote: [u8; 4],
        /// Local port; the echo id where the endpoint asked.
        pub local_port: u16,
        /// Remote port; the echo id where the peer asked.
        pub remote_port: u16,
        /// IP protocol number.
        pub protocol: u8,
        /// [`reason`] of packets that are denied without asking the policy, forged ones included; 0 = policy judges. They have
        /// flows of their own: what is remembered of them says nothing about packets that can be judged, nor about those of
        /// the endpoint that they impersonate.
        pub cause: u8,
        /// Zero.
        pub pad: [u8; 2],
    } = 16;

    /// Key of an IPv6 flow; also the family-neutral form in events and queues (IPv4 v4-mapped).
    pub struct FlowKey6 {
        /// Remote address.
        pub remote: Address,
        /// See [`FlowKey4::endpoint`].
        pub endpoint: u32,
        /// See [`FlowKey4::local_port`].
        pub local_port: u16,
        /// See [`FlowKey4::remote_port`].
        pub remote_port: u16,
        /// IP protocol number (1 and 58 for the two ICMPs).
        pub protocol: u8,
        /// See [`FlowKey4::cause`].
        pub cause: u8,
        /// Zero.
        pub pad: [u8; 2],
    } = 28;

    /// One flow. The first 64 bytes are touched by every packet, the rest is written at insert.
    pub struct Flow {
        /// What the layout of a next version could have, for the upgrade test.
        #[cfg(feature = "next-layout")]
        pub next: u64,
        /// Wire packets, `[forward, reply]`; forward is from who opened the flow ([`EGRESS`] where unknown).
        pub packets: [u64; 2],
        /// IP bytes with every segment's headers, `[forward, reply]`.
        pub bytes: [u64; 2],
        /// Policy epoch of the cached verdict.
        pub epoch: u32,
        /// Low 32 bits of jiffies at the last packet.
        pub last: u32,
        /// The endpoint's own address, compared with every packet.
        pub local: Address,
        /// TCP flags seen, `[forward, reply]`, bits as on the wire (FIN=1 .. CWR=128).
        pub tcp_flags: [u8; 2],
        /// [`tcp::state`](crate::tcp::state) for TCP, else 0 = unanswered, 1 = answered.
        pub state: u8,
        /// [`verdict`](crate::layout::verdict) number.
        pub verdict: u8,
        /// [`EGRESS`], [`INGRESS`] or [`UNKNOWN`].
        pub opened: u8,
        /// [`mac_tag`](crate::parse::neighbour::mac_tag) of the endpoint's MAC, little-endian; zero = not checked.
        pub mac_tag: [u8; 3],
        /// First packet of this life of the flow, boottime.
        pub start_ns: u64,
        /// First packet of its first life; survives a change of verdict and seeds `flow_id`.
        pub born_ns: u64,
        /// Socket cookie on the first packet; 0 = none. The pod's own only where the pod opened the flow.
        pub cookie: u64,
        /// Policy set that judged.
        pub set: u32,
        /// Pod instance of the endpoint.
        pub local_instance: u32,
        /// Instance of the remote (pod, service or node); 0 = not known.
        pub remote_instance: u32,
        /// Class of the remote that judged.
        pub class: u32,
        /// Rule that decided; 0 = none (not isolated, or default deny).
        pub rule: u32,
        /// ICMP type and code of the first packet.
        pub icmp: [u8; 2],
        /// Source MAC where the packet was forged, else zero.
        pub mac: [u8; 6],
        /// SYN to SYN-ACK in microseconds; 0 = not measured.
        pub rtt_us: u32,
        /// Epoch for which one CPU has claimed the change of verdict; all ones where one takes the flow out.
        pub claim: u32,
        /// Bits of [`flow_flags`].
        pub flags: u8,
        /// [`reason`](crate::layout::reason) number; 0 where not denied.
        pub reason: u8,
        /// TCP flags of the first packet.
        pub first_flags: u8,
        /// [`basis`](crate::layout::basis) number.
        pub basis: u8,
    } = 128 + NEXT;

    /// What the kernel programs say over the ring buffers.
    pub struct FlowEvent {
        /// The flow, IPv4 remote v4-mapped.
        pub key: FlowKey6,
        /// [`event`](crate::layout::event) number.
        pub kind: u8,
        /// 4 or 6.
        pub family: u8,
        /// [`end_reason`](crate::layout::end_reason) number for [`event::END`], else 0.
        pub end_reason: u8,
        /// Zero.
        pub pad: u8,
        /// When the event was written, boottime nanoseconds.
        pub time_ns: u64,
        /// The flow as it stood.
        pub flow: Flow,
    } = 168 + NEXT;

    /// A closed TCP flow that waits out its linger in the `CLOSING` queue.
    pub struct Closing {
        /// The flow, IPv4 remote v4-mapped.
        pub key: FlowKey6,
        /// Low 32 bits of jiffies from which it may be removed.
        pub deadline: u32,
        /// [`Flow::start_ns`] of the flow that closed: another start is another flow.
        pub start_ns: u64,
        /// 4 or 6.
        pub family: u8,
        /// [`end_reason`](crate::layout::end_reason) number.
        pub end_reason: u8,
        /// 1 = it lies in `established`, 0 = in `embryonic`.
        pub established: u8,
        /// Zero.
        pub pad: [u8; 5],
    } = 48;

    /// An endpoint as user space configures it; replaced whole, so no packet sees half of it.
    pub struct Endpoint {
        /// Slot in the arrays `ENDPOINT_STATES` and `CONTACTS`.
        pub index: u32,
        /// Policy set; 0 = none.
        pub set: u32,
        /// Pod instance.
        pub instance: u32,
        /// Bits of [`endpoint_flags`].
        pub flags: u32,
        /// Established flows this endpoint may hold.
        pub established_cap: u32,
        /// Answered datagram flows this endpoint may hold.
        pub answered_cap: u32,
        /// The pod's MAC; zero = not checked.
        pub mac: [u8; 6],
        /// How many of `addresses` are in use.
        pub address_count: u8,
        /// What the pod's namespace calls the node's, plus one; 0 = it has no number for it. Where control groups
        /// are watched, the node's own sockets are looked for there.
        pub node_netns: u8,
        /// The pod's own addresses.
        pub addresses: [Address; 8],
        /// Networks that it may speak for beside; an unused one is all ones, which no source is.
        pub sources: [Address; 4],
        /// Their masks, IPv4 ones beginning with 96 bits; an unused one is all ones.
        pub masks: [Address; 4],
        /// Boottime from which programs have been attached to both directions of its interface; 0 = not yet. What began before
        /// is no evidence that packets bypass the interface.
        pub since_ns: u64,
        /// The node's number for the pod's network namespace, plus one; 0 = none is known. Its sockets are looked for there.
        pub netns: u32,
        /// Boottime in seconds until which the endpoint may have connections older than its attachment; 0 = it has none.
        pub adopts_until: u32,
        /// Last half of the pod's own link-local address; zero = not checked.
        pub link_local: [u8; 8],
    } = 312;

    /// What the kernel keeps per endpoint, in `ENDPOINT_STATES`. Only the kernel writes it.
    pub struct EndpointState {
        /// Event tokens left, in 1/1024 of an event: of flows that the endpoint opened, of all others.
        pub event_tokens: [u64; 2],
        /// Insert tokens left, in 1/1024 of an insert: of allowed flows that the endpoint opened, of all other allowed
        /// ones; the same of denied flows.
        pub insert_tokens: [u64; 4],
        /// Low 32 bits of jiffies of the last refill.
        pub refilled: u32,
        /// Low 32 bits of jiffies, the lowest set, at which the pod last asked for an address by DHCP; 0 = never.
        pub asked: u32,
        /// Entries that entered `established`, both families.
        pub established_in: u64,
        /// Entries that the kernel removed from `established`.
        pub established_out: u64,
        /// Entries that entered `answered`.
        pub answered_in: u64,
        /// Entries that the kernel removed from `answered`.
        pub answered_out: u64,
        /// Flows that show that packets to the endpoint bypass its interface.
        pub one_way: u64,
        /// Flows whose start was not sent because the event budget was used up.
        pub summarised: u64,
        /// Packets seen, `[egress, ingress]`.
        pub packets: [u64; 2],
        /// Next slot in this endpoint's `CONTACTS`.
        pub contact_head: u64,
        /// Closed flows of this endpoint that the kernel queued in `CLOSING`, less those that it took out.
        pub closing: u64,
        /// Of `one_way`: SYN-ACKs of the endpoint to a SYN that was not seen. The others are ACKs to a SYN-ACK that was not seen.
        pub one_way_answers: u64,
        /// Remote address of the last packet in `one_way`.
        pub one_way_remote: Address,
        /// Its local and remote port.
        pub one_way_ports: [u16; 2],
        /// Zero.
        pub one_way_pad: [u8; 4],
    } = 168;

    /// What user space took out of an endpoint's tables, in `ENDPOINT_SWEPT`. Only user space writes it;
    /// an endpoint holds `in - out - swept` entries.
    pub struct EndpointSwept {
        /// Entries that user space removed from `established`.
        pub established: u64,
        /// Entries that user space removed from `answered`, or found evicted.
        pub answered: u64,
        /// Entries that user space took out of `CLOSING`.
        pub closing: u64,
    } = 24;

    /// A failed contact of an endpoint, kept apart from the rings so that no overflow loses it.
    pub struct Contact {
        /// Who was contacted.
        pub remote: Address,
        /// When, boottime nanoseconds; 0 = empty slot.
        pub time_ns: u64,
        /// Port that was contacted.
        pub remote_port: u16,
        /// IP protocol number.
        pub protocol: u8,
        /// [`contact`](crate::layout::contact) number.
        pub result: u8,
        /// Instance of the remote; 0 = not known.
        pub remote_instance: u32,
    } = 32;

    /// The last failed contacts of one endpoint, a ring.
    pub struct Contacts {
        /// Slot `EndpointState::contact_head % 32` is written next.
        pub slots: [Contact; 32],
    } = 1024;

    /// Run-time switches, one entry. User space writes it whole.
    pub struct Config {
        /// See [`Flow::next`].
        #[cfg(feature = "next-layout")]
        pub next: u64,
        /// Policy epoch; a cached verdict of another epoch is judged again.
        pub epoch: u32,
        /// [`mode`](crate::layout::mode) number.
        pub mode: u32,
        /// Bit n: some endpoint's cgroup lies n levels below the root.
        pub cgroup_levels: u32,
        /// Jiffies that a closed TCP flow lingers.
        pub linger: u32,
        /// Jiffies per second.
        pub hz: u32,
        /// Events per second and endpoint, for flows that it opened and for all others; 0 = no limit.
        pub event_rate: u32,
        /// Burst of each.
        pub event_burst: u32,
        /// Inserts of allowed flows per second and endpoint, for those that it opened and for all others; 0 = no limit.
        pub insert_rate: u32,
        /// Burst of each.
        pub insert_burst: u32,
        /// 1 = a spoofed source is dropped in mode enforce, 0 = only recorded.
        pub spoof_enforce: u32,
        /// Index of an interface at which programs may stand at both kinds of hook for a moment, so that a packet meets two;
        /// 0 = none.
        pub settling: u32,
        /// Closed flows of one endpoint that may wait in `CLOSING` at a time; 0 = no limit.
        pub closing_share: u32,
        /// Inserts of denied flows per second and endpoint, for those that it opened and for all others; 0 = no limit.
        pub denied_rate: u32,
        /// Burst of each.
        pub denied_burst: u32,
        /// 1 = some endpoint is watched at its interface and at its control group.
        pub paired: u32,
        /// Padding.
        pub pad: u32,
    } = 64 + NEXT;

    /// Whether pods are held until their policy is in force, one entry.
    pub struct Hold {
        /// [`hold`](crate::layout::hold) number.
        pub on: u32,
        /// Bit n: pods' cgroups lie n levels below the root.
        pub levels: u32,
    } = 8;

    /// Names the datagram that a later fragment belongs to.
    pub struct FragmentKey {
        /// As in the flow's key.
        pub endpoint: u32,
        /// Identification field (IPv4 widened).
        pub id: u32,
        /// Source address.
        pub source: Address,
        /// Destination address.
        pub destination: Address,
        /// IP protocol number.
        pub protocol: u8,
        /// Zero.
        pub pad: [u8; 3],
    } = 44;

    /// The ports that the first fragment showed.
    pub struct FragmentPorts {
        /// As in the flow's key.
        pub local_port: u16,
        /// As in the flow's key.
        pub remote_port: u16,
    } = 4;

    /// A process as a cgroup hook saw it.
    pub struct Process {
        /// Control group (v2) of the process.
        pub cgroup: u64,
        /// Thread group id, as the node counts.
        pub pid: u32,
        /// User id.
        pub uid: u32,
        /// Command name, zero-terminated.
        pub comm: [u8; 16],
    } = 32;

    /// A port that a process of a control group has bound.
    pub struct ListenerKey {
        /// See [`Flow::next`].
        #[cfg(feature = "next-layout")]
        pub next: u64,
        /// Control group (v2) of the binder.
        pub cgroup: u64,
        /// Local port.
        pub port: u16,
        /// IP protocol number.
        pub protocol: u8,
        /// Zero.
        pub pad: [u8; 5],
    } = 16 + NEXT;

    /// What a former layout's programs counted after their flow, or their endpoint's state, was copied, in the one
    /// entry of `MERGE`. User space writes it, and runs the program `merge`.
    pub struct Merge {
        /// The flow, IPv4 remote v4-mapped.
        pub key: FlowKey6,
        /// Slot of the endpoint's state.
        pub index: u32,
        /// The flow as copied: another start is another flow.
        pub start_ns: u64,
        /// Wire packets to add.
        pub packets: [u64; 2],
        /// Bytes to add.
        pub bytes: [u64; 2],
        /// TCP flags to add.
        pub tcp_flags: [u8; 2],
        /// [`Flow::flags`] to add.
        pub flags: u8,
        /// State that the flow was copied with.
        pub state_from: u8,
        /// State that it went on to.
        pub state_to: u8,
        /// 4 or 6; 0 = `state` is to be added, not a flow.
        pub family: u8,
        /// 0 = `embryonic`, 1 = `established`, 2 = `answered`.
        pub table: u8,
        /// Zero.
        pub pad: u8,
        /// What the endpoint's state has more than its copy.
        pub state: EndpointState,
    } = 248;

    /// The kernel's clocks read together, in the one entry of `CLOCK`.
    pub struct Clock {
        /// `bpf_ktime_get_boot_ns`.
        pub boot_ns: u64,
        /// `bpf_jiffies64`.
        pub jiffies: u64,
    } = 16;
}
