//! Every packet that is more than one look-up: first of its flow, changing a state, of an odd shape.

use core::ptr::NonNull;

use aya_ebpf::bindings::__sk_buff;
use sekisho_core::counters;
use sekisho_core::layout::{EGRESS, Flow, FragmentPorts, INGRESS, UNKNOWN, flow_flags, reason, verdict};
use sekisho_core::parse::{self, Kind, fragment, protocol};
use sekisho_core::tcp::{self, state};

use crate::budget::config;
use crate::diagnose::diagnose;
use crate::emit::{self, count};
use crate::hot::equal;
use crate::kernel::{Skb, add, copy16, jiffies};
use crate::maps::FRAGMENTS;
use crate::promote::promote;
use crate::scratch::{self, Scratch, task};
use crate::tables::{self, ANY, Entry, table};
use crate::{close, error, open, read, source};

/// Let it pass.
pub(crate) const PASS: u32 = 0;
/// Drop it.
pub(crate) const DROP: u32 = 1;
/// Drop it, whatever the tables would say.
pub(crate) const GONE: u32 = 4;
/// Another CPU changed the connection at the same time.
const MET: u32 = u32::MAX;
/// How often a packet tries then. Whoever comes in between has changed the state or the flags seen, of which there are few.
const STEPS: u32 = 4;

/// Judges a packet. Where `packet.family` is not 0 its headers are in the scratch already, and `found` is what the
/// tables know of it.
///
/// This and its like are global functions: the verifier walks each once, whoever calls it, and knows of their
/// arguments only what they check.
#[inline(never)]
#[unsafe(export_name = "slow_packet")]
pub(crate) extern "C" fn packet(ctx: *mut __sk_buff, slot: u32, found: *mut Flow) -> u32 {
    let (Some(config), Some(scratch)) = (config(), scratch::at(slot)) else { return PASS };
    let skb = Skb(ctx);
    scratch.epoch = config.epoch;
    scratch.mode = config.mode;
    scratch.jiffies = jiffies();
    scratch.now = 0;
    scratch.cause = 0;
    scratch.admitted = 0;
    scratch.forged = 0;
    scratch.exempt = 0;
    scratch.hidden = 0;
    scratch.behind = 0;
    scratch.length = skb.len();
    scratch.large = u8::from(skb.gso_size() != 0);
    scratch.own_node = u8::from(scratch.direction == INGRESS && made_here(skb, scratch));
    (scratch.segments, scratch.bytes) = skb.measure(scratch.packet.total, u32::from(scratch.packet.headers));
    let found = if scratch.packet.family == 0 {
        match odd(ctx, slot) {
            PASS => return PASS,
            GONE => return DROP,
            _ => {}
        }
        set_apart(scratch);
        lookup(scratch, scratch.packet.protocol)
    } else {
        key(scratch);
        NonNull::new(found).map(Entry)
    };
    flow(ctx, slot, tables::pointer(found))
}

/// Whether the node made a packet that goes to the pod, or the pod itself. The node: by a socket, where it came in nowhere.
/// Forwarded packets came in somewhere, whatever socket they carry: between ports of a bridge they keep their sender's. The pod: it
/// came in at the pod's own interface, where nothing else does, and goes back there, through a Service perhaps. The kernel writes that
/// number at every interface which a packet comes in at. In the pod, the numbers are of other interfaces and every packet has a
/// socket, its receiver's: there this says nothing.
#[inline(always)]
pub(crate) fn made_here(skb: Skb, scratch: &Scratch) -> bool {
    let came_in = skb.ingress_ifindex();
    scratch.link != 0 && if came_in == 0 { skb.has_socket() } else { came_in == scratch.endpoint }
}

/// Reads a packet of another shape than the common ones. [`PASS`] = no policy may stop it, or its flow let it pass; [`GONE`] = it
/// is dropped without a record.
#[inline(never)]
#[unsafe(export_name = "odd_packet")]
extern "C" fn odd(ctx: *mut __sk_buff, slot: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return PASS };
    let kind = read::packet(ctx, slot);
    if kind == Kind::Arp as u32 || kind == Kind::NonIp as u32 {
        return source::frame(ctx, slot, kind);
    }
    let trouble = kind == Kind::Malformed as u32 || kind == Kind::Unsupported as u32;
    scratch.hidden = u8::from(trouble && equal(&scratch.packet.source, &[0; 16]));
    if kind == Kind::Malformed as u32 {
        diagnose!("endpoint {}: {} bytes that cannot be read", scratch.endpoint, scratch.length);
        count(counters::MALFORMED);
        nameless(scratch, reason::MALFORMED);
    } else if kind == Kind::Unsupported as u32 {
        diagnose!("endpoint {}: a packet of protocol {}, which is not followed", scratch.endpoint, scratch.reading.protocol);
        count(counters::UNSUPPORTED);
        nameless(scratch, reason::UNSUPPORTED);
    }
    (scratch.segments, scratch.bytes) = Skb(ctx).measure(scratch.packet.total, u32::from(scratch.packet.headers));
    name(scratch);
    if scratch.direction == EGRESS {
        // Who sends comes before what is sent.
        if kind != Kind::Flow as u32 || parse::impersonates(&scratch.packet) {
            let fate = source::inspect(ctx, slot, kind);
            if fate != DROP || scratch.forged != 0 {
                return fate;
            }
        }
    } else if kind == Kind::Exempt as u32 {
        if !parse::gives_addresses(&scratch.packet) || source::expected(ctx, slot) != 0 {
            count(counters::EXEMPT);
            return PASS;
        }
    }
    if kind == Kind::IcmpError as u32 {
        if error::belongs(slot) != 0 {
            return PASS;
        }
        name(scratch);
        scratch.cause = reason::NO_CONNECTION;
    }
    if scratch.packet.fragment != fragment::WHOLE && scratch.cause == 0 {
        piece(scratch);
    }
    DROP
}

/// A packet whose headers ended in trouble: what follows the addresses does not count.
#[inline(always)]
pub(crate) fn nameless(scratch: &mut Scratch, cause: u8) {
    scratch.cause = cause;
    let packet = &mut scratch.packet;
    packet.source_port = 0;
    packet.destination_port = 0;
    packet.tcp_flags = 0;
    packet.echo = parse::echo::NONE;
    packet.headers = 0;
    packet.fragment = fragment::WHOLE;
    if packet.family == 0 {
        packet.family = 4;
        packet.source = parse::mapped([0; 4]);
        packet.destination = parse::mapped([0; 4]);
    }
    let there = scratch.length.saturating_sub(u32::from(scratch.link));
    if packet.total == 0 || packet.total > there {
        packet.total = there;
    }
}

/// Derives ends and keys from the packet.
#[inline(always)]
pub(crate) fn name(scratch: &mut Scratch) {
    scratch.ends.set(&scratch.packet, scratch.direction);
    key(scratch);
}

/// Derives keys from the ends.
#[inline(always)]
pub(crate) fn key(scratch: &mut Scratch) {
    scratch.ends.key4(scratch.endpoint, &mut scratch.key4);
    scratch.ends.key6(scratch.endpoint, &mut scratch.key6);
    // A forged packet's flow must not be that of the endpoint that it impersonates.
    let cause = if scratch.forged != 0 { reason::SPOOFED_SOURCE } else { 0 };
    scratch.key4.cause = cause;
    scratch.key6.cause = cause;
}

/// What is denied without asking the policy gets a key of its own: its entry must not answer for packets of the same ends
/// and protocol that can be judged, nor theirs for it.
#[inline(always)]
fn set_apart(scratch: &mut Scratch) {
    if scratch.forged == 0 {
        scratch.key4.cause = scratch.cause;
        scratch.key6.cause = scratch.cause;
    }
}

/// Fragments: the first one tells the ports, later ones ask for them. Without ports every piece shows what is judged.
#[inline(always)]
fn piece(scratch: &mut Scratch) {
    if !parse::named_by_ports(scratch.packet.protocol) {
        return;
    }
    let name = &mut scratch.fragment;
    name.endpoint = scratch.endpoint;
    name.id = scratch.packet.fragment_id;
    name.source = scratch.packet.source;
    name.destination = scratch.packet.destination;
    name.protocol = scratch.packet.protocol;
    if scratch.packet.fragment == fragment::FIRST {
        let ports = FragmentPorts { local_port: scratch.ends.local_port, remote_port: scratch.ends.remote_port };
        // Without room the later pieces are orphans, which are counted.
        let _ = FRAGMENTS.insert(name, &ports, ANY);
        return;
    }
    // SAFETY: read at once.
    match unsafe { FRAGMENTS.get(name) } {
        Some(ports) => {
            scratch.ends.local_port = ports.local_port;
            scratch.ends.remote_port = ports.remote_port;
            key(scratch);
        }
        None => {
            diagnose!("endpoint {}: a piece of datagram {} without its first", scratch.endpoint, scratch.packet.fragment_id);
            count(counters::FRAGMENT_ORPHAN);
            scratch.cause = reason::FRAGMENT;
        }
    }
}

/// Whether the packet shows TCP flags.
#[inline(always)]
pub(crate) fn is_tcp(scratch: &Scratch) -> bool {
    scratch.packet.protocol == protocol::TCP && scratch.packet.fragment != fragment::LATER && scratch.cause == 0
}

/// Finds the packet's flow and obeys it, or has it judged. By itself, or the verifier would walk it for packets of every shape.
#[inline(never)]
#[unsafe(export_name = "obey_flow")]
extern "C" fn flow(ctx: *mut __sk_buff, slot: u32, found: *mut Flow) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return PASS };
    let mut found = NonNull::new(found).map(Entry);
    scratch.counted = scratch.met;
    if found.is_none() && !(is_tcp(scratch) && tcp::opens(scratch.packet.tcp_flags)) {
        found = moved(scratch);
    }
    scratch.task = triage(slot, tables::pointer(found)) as u8;
    if scratch.admitted == 0 && (scratch.task != task::NONE || found.is_some_and(|entry| !entry.bears(scratch.sender))) {
        let fate = open::admit(ctx, slot);
        if fate != open::ADMITTED {
            return fate;
        }
        if scratch.forged != 0 {
            found = lookup(scratch, scratch.packet.protocol);
            scratch.task = triage(slot, tables::pointer(found)) as u8;
        } else if let Some(entry) = found
            && scratch.task == task::NONE
        {
            // The endpoint has another MAC by now.
            entry.mark(scratch.mac_tag);
        }
    }
    let mut refused = false;
    if scratch.task != task::NONE {
        let fate = open::packet(ctx, slot, tables::pointer(found));
        if fate != open::KEPT {
            return fate;
        }
        let place = scratch.table;
        found = tables::find(scratch, place);
        // What stands there may be another CPU's packet's, of which more is allowed than of this one; or nothing any more.
        refused = scratch.verdict == verdict::DENIED;
    }
    if let Some(entry) = found {
        if scratch.counted == 0 {
            entry.count(entry.side(scratch.direction), scratch.segments, scratch.bytes, scratch.packet.tcp_flags, scratch.jiffies);
        }
        refused |= entry.verdict == verdict::DENIED;
    }
    if refused {
        count(counters::DROPPED);
        return DROP;
    }
    let Some(entry) = found else { return PASS };
    let reply = entry.side(scratch.direction) == 1;
    let start_ns = entry.start_ns;
    let over = advance(slot, tables::pointer(Some(entry)), reply.into());
    if over != 0 {
        close::closed(slot, start_ns, over);
    }
    PASS
}

/// The scratch's task: whether the entry settles the packet's fate. By itself, or the verifier would follow its every answer.
#[inline(never)]
#[unsafe(export_name = "flow_task")]
extern "C" fn triage(slot: u32, found: *mut Flow) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return task::NONE.into() };
    settles(scratch, NonNull::new(found).map(Entry)).into()
}

#[inline(always)]
fn settles(scratch: &mut Scratch, found: Option<Entry>) -> u8 {
    let Some(entry) = found else { return task::OPEN };
    if !equal(&entry.local, &scratch.ends.local) {
        if scratch.forged != 0 {
            return task::INSTEAD;
        }
        diagnose!("endpoint {}: another of its addresses under the same key", scratch.endpoint);
        count(counters::COLLISION);
        return task::UNKEPT;
    }
    let side = entry.side(scratch.direction);
    let tcp = is_tcp(scratch);
    if tcp && tcp::opens(scratch.packet.tcp_flags) {
        // The opener again: it heard no answer. Anything else is another connection.
        let again = side == 0 && entry.opened != UNKNOWN && matches!(entry.state, state::SYN_SENT | state::SYN_RECEIVED);
        if !again {
            return task::INSTEAD;
        }
    }
    let denied = entry.verdict == verdict::DENIED;
    // A segment of something unknown was denied. The first one of the other side may show what it belongs to.
    let stray = denied && tcp && entry.reason == reason::NO_CONNECTION;
    let other = if side == 0 { entry.packets[0] } else { entry.packets[1] } == 0;
    // The node itself speaks, and what is denied was not its own.
    let node = denied && scratch.own_node != 0 && entry.flags & flow_flags::OWN_NODE == 0;
    if stray && (other || entry.epoch != scratch.epoch) || node {
        return task::INSTEAD;
    }
    if entry.epoch != scratch.epoch {
        return task::AGAIN;
    }
    // Nothing of a denied flow passed, so this is no reply to it.
    let reversed = denied && side == 1 && !tcp && entry.opened != UNKNOWN;
    if reversed { task::INSTEAD } else { task::NONE }
}

/// Where flows of an IP protocol are once both sides spoke.
#[inline(always)]
fn firm(number: u8) -> u8 {
    if number == protocol::TCP { table::ESTABLISHED } else { table::ANSWERED }
}

/// Looks the scratch's key up where a flow of `number` may be, and notes where it was.
#[inline(always)]
pub(crate) fn lookup(scratch: &mut Scratch, number: u8) -> Option<Entry> {
    let firm = firm(number);
    scratch.table = firm;
    if let Some(entry) = tables::find(scratch, firm) {
        return Some(entry);
    }
    scratch.table = table::EMBRYONIC;
    tables::find(scratch, table::EMBRYONIC)
}

/// A flow that neither table had may have moved from the second to the first between the two looks, where this processor was
/// held up: then it is in the first by now. Nothing moves that begins with this packet.
#[inline(always)]
fn moved(scratch: &mut Scratch) -> Option<Entry> {
    let firm = firm(scratch.packet.protocol);
    let entry = tables::find(scratch, firm)?;
    scratch.table = firm;
    Some(entry)
}

/// What an allowed packet, already counted, does to its flow's state. Where the connection is over by it, its state; else 0.
#[inline(never)]
#[unsafe(export_name = "advance_flow")]
extern "C" fn advance(slot: u32, entry: *mut Flow, reply: u32) -> u32 {
    let (Some(scratch), Some(entry), reply) = (scratch::at(slot), NonNull::new(entry).map(Entry), reply != 0) else { return 0 };
    if scratch.cause != 0 {
        return 0;
    }
    if is_tcp(scratch) {
        return step(scratch, entry, reply);
    }
    if reply && scratch.table == table::EMBRYONIC && scratch.packet.protocol != protocol::TCP {
        entry.raw().state = 1;
        promote(scratch.slot, tables::pointer(Some(entry)), table::ANSWERED.into());
    }
    0
}

/// Takes the step that a packet's flags make of the connection in `entry`: the state before, and in the second byte the one
/// after; or [`MET`]. By itself, or the verifier would walk all that follows for every state.
#[inline(never)]
#[unsafe(export_name = "connection_stepped")]
extern "C" fn stepped(entry: *mut Flow, reply: u32, flags: u32) -> u32 {
    let Some(entry) = NonNull::new(entry).map(Entry) else { return MET };
    match entry.step(|state| tcp::next(state, reply != 0, flags as u8)) {
        Some((before, after)) => u32::from(before) | u32::from(after) << 8,
        None => MET,
    }
}

#[inline(always)]
fn step(scratch: &mut Scratch, entry: Entry, reply: bool) -> u32 {
    let flags = scratch.packet.tcp_flags;
    let mut taken = MET;
    for _ in 0..STEPS {
        if taken == MET {
            taken = stepped(tables::pointer(Some(entry)), reply.into(), flags.into());
        }
    }
    if taken == MET {
        return 0;
    }
    let (before, after) = (taken as u8, (taken >> 8) as u8);
    if after == before {
        // The opener acknowledges an answer that this hook did not see.
        if before == state::SYN_SENT
            && !reply
            && flags & (tcp::SYN | tcp::ACK) == tcp::ACK
            && entry.opened == EGRESS
            && entry.packets[1] == 0
        {
            let began = entry.start_ns;
            one_way(scratch, began, false);
        }
        return 0;
    }
    let start_ns = entry.start_ns;
    if before == state::SYN_SENT && after == state::SYN_RECEIVED {
        let since = emit::clock(scratch).saturating_sub(start_ns) / 1000;
        entry.raw().rtt_us = since.min(u64::from(u32::MAX)) as u32;
    }
    if after == state::RESET && reply && matches!(before, state::SYN_SENT | state::PROBE) {
        emit::refused(scratch.slot, tables::pointer(Some(entry)));
    }
    if tcp::promotes(before, after, reply) && scratch.table == table::EMBRYONIC {
        promote(scratch.slot, tables::pointer(Some(entry)), table::ESTABLISHED.into());
    }
    if tcp::closed(after) { after.into() } else { 0 }
}

/// Evidence that packets to the endpoint bypass its interface: it replied (`answer`: with a SYN-ACK) in a connection that began at
/// `began_ns`, to a packet that was not seen. What may have passed before programs were attached to both directions is no
/// evidence, nor is a packet with another cause to be denied. A pod can forge all of this, so nothing may be opened because of it.
#[inline(always)]
pub(crate) fn one_way(scratch: &mut Scratch, began_ns: u64, answer: bool) {
    let Some(endpoint) = tables::endpoint(scratch.endpoint) else { return };
    let since = endpoint.since_ns;
    if scratch.link == 0 || scratch.cause != 0 || since == 0 || began_ns < since {
        return;
    }
    let Some(state) = tables::state(endpoint.index) else { return };
    let ends = &scratch.ends;
    let ports = [ends.local_port, ends.remote_port];
    // A connection counts once, however often it repeats itself.
    if state.one_way_ports == ports && equal(&state.one_way_remote, &ends.remote) {
        return;
    }
    state.one_way_ports = ports;
    copy16(&mut state.one_way_remote, &ends.remote);
    if answer {
        add(&mut state.one_way_answers, 1);
    }
    add(&mut state.one_way, 1);
}
