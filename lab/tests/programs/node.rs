//! A pod on loopback with a policy set, and what may be asked of it.
//!
//! The programs are loaded once, since that takes longest, and every test begins with empty tables.

use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sekisho_core::counters as c;
use sekisho_core::layout::*;
use sekisho_core::parse::mapped;
use sekisho_lab::programs::{Programs, Skb, object};

use super::frames::{POD_MAC, Who};

pub(super) const PASS: i32 = -1;
pub(super) const DROP: i32 = 2;

static PROGRAMS: Mutex<Option<Programs>> = Mutex::new(None);

pub(super) fn config(epoch: u32) -> Config {
    Config { epoch, mode: mode::ENFORCE, hz: 250, linger: 250, ..Config::ZERO }
}

pub(super) const fn key_of(direction: u8) -> RuleKey {
    RuleKey { set: 7, class: 5, direction: direction as u32 }
}

/// An address as the maps have it.
pub(super) fn address(who: Who, v6: bool) -> Address {
    match who.address(v6) {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The programs, with a pod's tables in them.
pub(super) struct Node {
    programs: MutexGuard<'static, Option<Programs>>,
    /// Counters only grow, so these are what they were at the start.
    before: Vec<u64>,
}

impl Deref for Node {
    type Target = Programs;

    fn deref(&self) -> &Programs {
        self.programs.as_ref().expect("loaded at the start")
    }
}

impl DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Programs {
        self.programs.as_mut().expect("loaded at the start")
    }
}

/// The programs, with nothing in their tables.
pub(super) fn empty() -> Node {
    // A failed test poisons the lock and no map.
    let mut programs = PROGRAMS.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = programs.get_or_insert_with(|| Programs::load(&object().expect("builds"), 1 << 20, &[]).expect("loads"));
    loaded.clear().expect("clears");
    loaded.events();
    let before = loaded.counters().expect("reads");
    Node { programs, before }
}

/// The pod is isolated in `isolated` (bits of `endpoint_flags`); set 7 allows the peer (class 5) TCP 80 and UDP 53.
pub(super) fn start(isolated: u32) -> Node {
    let node = empty();
    fill(&node, isolated);
    node
}

/// Writes the pod's tables.
pub(super) fn fill(programs: &Programs, isolated: u32) {
    programs.put("CONFIG", &0u32, &config(1)).expect("writes");
    programs.put("ENDPOINTS", &1u32, &endpoint(isolated)).expect("writes");
    for v6 in [false, true] {
        for (who, class, instance, flags) in [(Who::Peer, 5, 9, address_flags::POD), (Who::Node, 0, 4, address_flags::NODE)] {
            programs.put("ADDRESSES", &address(who, v6), &AddressEntry { class, instance, flags }).expect("writes");
        }
    }
    for direction in [EGRESS, INGRESS] {
        programs.put("RULES", &key_of(direction), &Rules::new(0, 3)).expect("writes");
    }
    for (protocol, port, rule) in [(6, 80u16, 42u32), (17, 53, 43)] {
        programs.put("PORTS", &port_key(protocol, port), &rule).expect("writes");
    }
}

/// A port of the set's port table.
pub(super) fn port_key(protocol: u8, port: u16) -> [u8; 11] {
    let mut key = [0u8; 11];
    key[..4].copy_from_slice(&56u32.to_ne_bytes());
    key[4..8].copy_from_slice(&3u32.to_be_bytes());
    key[8] = protocol;
    key[9..].copy_from_slice(&port.to_be_bytes());
    key
}

/// The pod.
pub(super) fn endpoint(flags: u32) -> Endpoint {
    let mut endpoint = Endpoint {
        set: 7,
        instance: 1,
        flags,
        established_cap: 10,
        answered_cap: 10,
        mac: POD_MAC,
        address_count: 2,
        sources: [[0xff; 16]; 4],
        masks: [[0xff; 16]; 4],
        ..Endpoint::ZERO
    };
    endpoint.addresses[0] = address(Who::Pod, false);
    endpoint.addresses[1] = address(Who::Pod, true);
    endpoint
}

pub(super) const BOTH: u32 = endpoint_flags::ISOLATED_EGRESS | endpoint_flags::ISOLATED_INGRESS;

pub(super) fn egress(programs: &Programs, frame: &[u8]) -> i32 {
    programs.run("pod_egress", frame, Skb::default(), 1).expect("runs").code
}

pub(super) fn ingress(programs: &Programs, frame: &[u8]) -> i32 {
    programs.run("pod_ingress", frame, Skb::default(), 1).expect("runs").code
}

/// Sends a frame on its way: out of the pod or into it.
pub(super) fn send(programs: &Programs, egresses: bool, frame: &[u8]) -> i32 {
    if egresses { egress(programs, frame) } else { ingress(programs, frame) }
}

/// An IPv4 flow with the peer.
pub(super) fn flow(programs: &Programs, table: &str, pod_port: u16, peer_port: u16, protocol: u8) -> Option<Flow> {
    flow_with(programs, table, Who::Peer, false, (pod_port, peer_port, protocol))
}

/// A flow in `table` (its name without the family) with somebody: `(pod's port, other's port, protocol)`. What was denied for a
/// cause of its own counts too.
pub(super) fn flow_with(programs: &Programs, table: &str, who: Who, v6: bool, ends: (u16, u16, u8)) -> Option<Flow> {
    let causes = [0, reason::MALFORMED, reason::UNSUPPORTED, reason::FRAGMENT, reason::NO_CONNECTION];
    causes.into_iter().find_map(|cause| flow_for(programs, table, who, v6, ends, cause))
}

/// The same, with the cause that its key bears; 0 = it was judged.
fn flow_for(
    programs: &Programs,
    table: &str,
    who: Who,
    v6: bool,
    (local_port, remote_port, protocol): (u16, u16, u8),
    cause: u8,
) -> Option<Flow> {
    let table = table.trim_end_matches('4');
    let found = if v6 {
        let key = FlowKey6 { endpoint: 1, remote: who.v6(), local_port, remote_port, protocol, cause, pad: [0; 2] };
        programs.get(&format!("{table}6"), &key)
    } else {
        let key = FlowKey4 { endpoint: 1, remote: who.v4(), local_port, remote_port, protocol, cause, pad: [0; 2] };
        programs.get(&format!("{table}4"), &key)
    };
    found.expect("reads")
}

/// The ledger's equation.
pub(super) fn balances(n: &[u64]) {
    let of = |slot: u32| n[slot as usize];
    let told = of(c::START_SENT) + of(c::SUMMARISED) + of(c::LOST_RING_FULL) + of(c::LOST_INSERT_FAILED) + of(c::LOST_INSERT_LIMITED);
    assert_eq!(of(c::CREATED), told, "created = start_sent + summarised + lost: {n:?}");
}

impl Node {
    /// Counters since the start. The ledger's equation holds at every moment.
    pub(super) fn counted(&self) -> Vec<u64> {
        let n: Vec<u64> = self.counters().expect("reads").iter().zip(&self.before).map(|(now, before)| now - before).collect();
        balances(&n);
        n
    }

    /// One counter since the start.
    pub(super) fn count(&self, slot: u32) -> u64 {
        self.counted()[slot as usize]
    }

    /// Takes every event out of the rings, in the order of time.
    pub(super) fn told(&mut self) -> Vec<FlowEvent> {
        let mut events = self.events();
        events.sort_by_key(|event| event.time_ns);
        events
    }
}
