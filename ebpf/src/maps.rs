//! Every map of the data path.
//!
//! The sizes here are what a test gets; the agent sets its own at load time, from its memory budget. None is
//! pinned by name here: the agent pins them all, so that one object serves any pin directory.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{ArrayOfMaps, RingBuf};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, Queue};
use sekisho_core::counters;
use sekisho_core::layout::{
    Address, AddressEntry, Backend, CidrKey, Clock, Closing, Config, Contacts, Endpoint, EndpointState, EndpointSwept, Flow, FlowEvent,
    FlowKey4, FlowKey6, FragmentKey, FragmentPorts, Hold, ListenerKey, Merge, PortKey, Process, RuleKey, Rules, Vip, VipKey,
};

const FLOWS: u32 = 1 << 16;
const ENDPOINT_SLOTS: u32 = 1024;

/// IPv4 flows that nobody answered yet, denied ones among them.
#[map]
pub(crate) static EMBRYONIC4: LruHashMap<FlowKey4, Flow> = LruHashMap::with_max_entries(FLOWS, 0);
/// IPv6 flows that nobody answered yet, denied ones among them.
#[map]
pub(crate) static EMBRYONIC6: LruHashMap<FlowKey6, Flow> = LruHashMap::with_max_entries(FLOWS, 0);
/// IPv4 TCP connections.
#[map]
pub(crate) static ESTABLISHED4: HashMap<FlowKey4, Flow> = HashMap::with_max_entries(FLOWS, BPF_F_NO_PREALLOC);
/// IPv6 TCP connections.
#[map]
pub(crate) static ESTABLISHED6: HashMap<FlowKey6, Flow> = HashMap::with_max_entries(FLOWS, BPF_F_NO_PREALLOC);
/// IPv4 datagram flows that got a reply.
#[map]
pub(crate) static ANSWERED4: LruHashMap<FlowKey4, Flow> = LruHashMap::with_max_entries(FLOWS, 0);
/// IPv6 datagram flows that got a reply.
#[map]
pub(crate) static ANSWERED6: LruHashMap<FlowKey6, Flow> = LruHashMap::with_max_entries(FLOWS, 0);
/// Ports of datagrams in fragments.
#[map]
pub(crate) static FRAGMENTS: LruHashMap<FragmentKey, FragmentPorts> = LruHashMap::with_max_entries(8192, 0);

/// By interface index, or [`CGROUP_ENDPOINT`](sekisho_core::layout::CGROUP_ENDPOINT) and an index.
#[map]
pub(crate) static ENDPOINTS: HashMap<u32, Endpoint> = HashMap::with_max_entries(ENDPOINT_SLOTS, BPF_F_NO_PREALLOC);
/// By [`Endpoint::index`].
#[map]
pub(crate) static ENDPOINT_STATES: Array<EndpointState> = Array::with_max_entries(ENDPOINT_SLOTS, 0);
/// By [`Endpoint::index`]; written by user space.
#[map]
pub(crate) static ENDPOINT_SWEPT: Array<EndpointSwept> = Array::with_max_entries(ENDPOINT_SLOTS, 0);
/// By [`Endpoint::index`].
#[map]
pub(crate) static CONTACTS: Array<Contacts> = Array::with_max_entries(ENDPOINT_SLOTS, 0);
/// Control group id to endpoint number.
#[map]
pub(crate) static CG_ENDPOINTS: HashMap<u64, u32> = HashMap::with_max_entries(ENDPOINT_SLOTS, BPF_F_NO_PREALLOC);

/// Whether pods are held until their policy is in force.
#[map]
pub(crate) static HOLD: Array<Hold> = Array::with_max_entries(1, 0);
/// Control groups of pods whose policy is in force.
#[map]
pub(crate) static LIVE: HashMap<u64, u32> = HashMap::with_max_entries(ENDPOINT_SLOTS, BPF_F_NO_PREALLOC);

/// Cookies of sockets whose connection began while their pod was held.
#[map]
pub(crate) static HELD_SOCKETS: LruHashMap<u64, u32> = LruHashMap::with_max_entries(1024, 0);

/// Run-time switches.
#[map]
pub(crate) static CONFIG: Array<Config> = Array::with_max_entries(1, 0);
/// Exact remote addresses.
#[map]
pub(crate) static ADDRESSES: HashMap<Address, AddressEntry> = HashMap::with_max_entries(FLOWS, BPF_F_NO_PREALLOC);
/// Remote networks to classes.
#[map]
pub(crate) static CIDRS: LpmTrie<CidrKey, u32> = LpmTrie::with_max_entries(16384, BPF_F_NO_PREALLOC);
/// Service ports.
#[map]
pub(crate) static VIPS: HashMap<VipKey, Vip> = HashMap::with_max_entries(16384, BPF_F_NO_PREALLOC);
/// Backends of open flows to Services, where they are not to be judged by all that stand behind their Service.
#[map]
pub(crate) static BACKENDS: HashMap<FlowKey6, Backend> = HashMap::with_max_entries(16384, BPF_F_NO_PREALLOC);
/// What policy sets say about classes.
#[map]
pub(crate) static RULES: HashMap<RuleKey, Rules> = HashMap::with_max_entries(FLOWS, BPF_F_NO_PREALLOC);
/// Port tables to rules.
#[map]
pub(crate) static PORTS: LpmTrie<PortKey, u32> = LpmTrie::with_max_entries(FLOWS, BPF_F_NO_PREALLOC);

/// Socket cookie to the process that used the socket.
#[map]
pub(crate) static SOCKETS: LruHashMap<u64, Process> = LruHashMap::with_max_entries(FLOWS, 0);
/// Bound ports to the process that bound them.
#[map]
pub(crate) static LISTENERS: LruHashMap<ListenerKey, Process> = LruHashMap::with_max_entries(8192, 0);

/// Closed connections that wait out their linger.
#[map]
pub(crate) static CLOSING: Queue<Closing> = Queue::with_max_entries(FLOWS, 0);
/// One slot per counter of [`counters`].
#[map]
pub(crate) static COUNTERS: PerCpuArray<u64> = PerCpuArray::with_max_entries(counters::COUNT, 0);
/// What the agent must know after a restart; the programs never touch it.
#[map]
pub(crate) static JOURNAL: HashMap<u64, [u8; 512]> = HashMap::with_max_entries(32768, BPF_F_NO_PREALLOC);
/// Interfaces whose clsact qdisc the agent made; the programs never touch it.
#[map]
pub(crate) static OWNED: HashMap<u32, u32> = HashMap::with_max_entries(ENDPOINT_SLOTS, BPF_F_NO_PREALLOC);
/// Written by the program `clock`.
#[map]
pub(crate) static CLOCK: Array<Clock> = Array::with_max_entries(1, 0);
/// Read by the program `merge`.
#[map]
pub(crate) static MERGE: Array<Merge> = Array::with_max_entries(1, 0);

/// A ring of [`FlowEvent`] per CPU. The agent makes the rings and puts them in.
#[btf_map]
pub(crate) static EVENTS: ArrayOfMaps<RingBuf<FlowEvent, { 1 << 20 }>, 1024> = ArrayOfMaps::new();
