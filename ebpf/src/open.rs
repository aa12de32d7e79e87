//! A packet without a flow: who is it, may it pass, and what is to be remembered.

use core::ptr::NonNull;

use aya_ebpf::bindings::__sk_buff;
use sekisho_core::counters;
use sekisho_core::layout::{
    EGRESS, Endpoint, Flow, INGRESS, UNKNOWN, basis, contact, end_reason, endpoint_flags, flow_flags, mode, reason, verdict,
};
use sekisho_core::parse::neighbour::mac_tag;
use sekisho_core::parse::{Window, fragment, protocol};
use sekisho_core::tcp::{self, state};
use sekisho_core::verdict::{Question, isolated, judge, settle};

use crate::budget::{self, config};
use crate::emit::{self, count, stateless};
use crate::hot::equal;
use crate::kernel::{Direct, Skb, add, zero};
use crate::promote::left;
use crate::scratch::{self, Scratch, task};
use crate::slow::{DROP, PASS, is_tcp, one_way};
use crate::sockets::{self, bound};
use crate::tables::{self, EEXIST, Entry, Maps, NOEXIST, OVER, table};
use crate::{change, close, origin, own_node, slow, source};

/// The packet's fate is up to the flow that is now in its table.
pub(crate) const KEPT: u32 = 2;
/// The endpoint is ours.
pub(crate) const ADMITTED: u32 = 3;
/// Every namespace's loopback interface.
const LOOPBACK: u32 = 1;

/// Judges the packet and does the scratch's task; `found` is the entry under its key.
#[inline(never)]
#[unsafe(export_name = "open_flow")]
pub(crate) extern "C" fn packet(ctx: *mut __sk_buff, slot: u32, found: *mut Flow) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return PASS };
    let found = NonNull::new(found).map(Entry);
    seen(scratch);
    match found {
        Some(entry) if scratch.task == task::AGAIN => change::recall(scratch, entry),
        _ if scratch.forged != 0 => forged(scratch),
        _ => {
            origin::find(ctx, slot, tables::pointer(found));
        }
    }
    let allowed = ask(ctx, slot) != 0;
    let allowed = if scratch.behind == 0 { allowed } else { change::restore(scratch, found, allowed) };
    if scratch.cause != 0 && scratch.forged == 0 && allowed {
        return PASS;
    }
    outcome(scratch, allowed);
    if scratch.task == task::AGAIN {
        return change::packet(slot, tables::pointer(found));
    }
    answer_alone(scratch);
    if scratch.state == state::RESET {
        return lone_reset(scratch);
    }
    build(ctx, slot);
    keep(slot, tables::pointer(found))
}

/// Counts the packet as the endpoint's.
#[inline(always)]
fn seen(scratch: &Scratch) {
    if let Some(state) = tables::state(scratch.index) {
        let seen = if scratch.direction == INGRESS { &mut state.packets[1] } else { &mut state.packets[0] };
        add(seen, scratch.segments);
    }
}

/// What is sent in another's name is the endpoint's doing, whatever its flags say.
#[inline(always)]
fn forged(scratch: &mut Scratch) {
    scratch.opened = EGRESS;
    scratch.state = match scratch.packet.protocol {
        protocol::TCP if tcp::opens(scratch.packet.tcp_flags) => state::SYN_SENT,
        protocol::TCP => state::PROBE,
        _ => 0,
    };
}

/// Nothing to remember: the connection is over, and was not known.
#[inline(always)]
fn lone_reset(scratch: &Scratch) -> u32 {
    if scratch.verdict != verdict::DENIED {
        return PASS;
    }
    count(counters::NO_CONNECTION);
    count(counters::DROPPED);
    DROP
}

/// Puts the scratch's flow where the task wants it. By itself, or the verifier would walk it for every way to a verdict.
#[inline(never)]
#[unsafe(export_name = "keep_flow")]
extern "C" fn keep(slot: u32, found: *mut Flow) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return PASS };
    let found = NonNull::new(found).map(Entry);
    if let Some(entry) = found {
        if scratch.task == task::UNKEPT || !yields(scratch, entry) {
            evidence(scratch);
            stateless(counters::LOST_INSERT_FAILED);
            return dispose(scratch);
        }
        if scratch.task == task::NONE {
            return dispose(scratch);
        }
    }
    evidence(scratch);
    if !budget::insert(scratch) {
        stateless(counters::LOST_INSERT_LIMITED);
        return dispose(scratch);
    }
    if let Some(entry) = found {
        clear_away(scratch, entry);
    }
    match tables::write(scratch, table::EMBRYONIC, NOEXIST) {
        0 => {
            hold_on(scratch);
            emit::start(scratch.slot);
        }
        EEXIST => {
            // Another CPU opened the same flow first: the packet is of that one.
            scratch.table = table::EMBRYONIC;
            return KEPT;
        }
        _ => stateless(counters::LOST_INSERT_FAILED),
    }
    dispose(scratch)
}

/// A pod that is isolated on ingress gets the answer to its own datagram only where the datagram is still remembered, while
/// anyone may have entries made by sending to the pod. The table evicts what was never looked up first: so this one is, once. It costs
/// a look-up, and only during a flood it may be worth that.
#[inline(always)]
fn hold_on(scratch: &mut Scratch) {
    let flow = &scratch.flow;
    if scratch.packet.protocol != protocol::TCP
        && flow.verdict != verdict::DENIED
        && budget::own(scratch)
        && isolated(scratch.endpoint_flags, INGRESS)
        && budget::flooded(scratch)
    {
        let _looked_up = tables::find(scratch, table::EMBRYONIC);
    }
}

/// Whether the flow in `entry` makes room for the scratch's. Sets the task to none where one record is enough.
#[inline(always)]
fn yields(scratch: &mut Scratch, entry: Entry) -> bool {
    // Another source under the same key.
    if scratch.forged != 0 {
        return true;
    }
    let denied = scratch.flow.verdict == verdict::DENIED;
    let opens = is_tcp(scratch) && tcp::opens(scratch.packet.tcp_flags);
    if denied && entry.verdict == verdict::DENIED && !opens {
        // Denied in both directions, or still.
        entry.count(entry.side(scratch.direction), scratch.segments, scratch.bytes, scratch.packet.tcp_flags, scratch.jiffies);
        entry.raw().epoch = scratch.epoch;
        scratch.task = task::NONE;
        return true;
    }
    // A forged SYN must not end a live connection's record.
    !denied || entry.verdict == verdict::DENIED || (is_tcp(scratch) && tcp::closed(entry.state))
}

/// Ends the flow whose place is taken.
#[inline(always)]
fn clear_away(scratch: &mut Scratch, entry: Entry) {
    let cause = if entry.verdict == verdict::DENIED {
        end_reason::DENIED
    } else if is_tcp(scratch) && tcp::closed(entry.state) {
        close::reason(entry.state)
    } else {
        end_reason::REPLACED
    };
    let place = scratch.table;
    if entry.claims(OVER) && emit::take_out(scratch.slot, tables::pointer(Some(entry)), place.into(), cause.into()) != 0 {
        left(scratch.index, place);
    }
}

/// A denied contact of the endpoint's own is evidence.
#[inline(always)]
fn evidence(scratch: &mut Scratch) {
    let flow = &scratch.flow;
    if flow.verdict == verdict::DENIED
        && flow.opened == EGRESS
        && flow.flags & flow_flags::ADOPTED == 0
        && matches!(flow.reason, reason::DEFAULT_DENY | reason::POLICY)
    {
        let instance = flow.remote_instance;
        emit::failed(scratch.slot, contact::DENIED.into(), instance);
    }
}

/// Does what the verdict says.
#[inline(always)]
fn dispose(scratch: &Scratch) -> u32 {
    if scratch.flow.verdict != verdict::DENIED {
        return PASS;
    }
    count(counters::DROPPED);
    if scratch.flow.reason == reason::NO_CONNECTION {
        count(counters::NO_CONNECTION);
    }
    DROP
}

/// Fetches the endpoint and checks who speaks: [`ADMITTED`], or [`PASS`] where the packet is no business of ours, or [`DROP`].
#[inline(never)]
#[unsafe(export_name = "admit_packet")]
pub(crate) extern "C" fn admit(ctx: *mut __sk_buff, slot: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return PASS };
    scratch.admitted = 1;
    let Some(endpoint) = tables::endpoint(scratch.endpoint) else {
        count(counters::NO_ENDPOINT);
        return PASS;
    };
    scratch.index = endpoint.index;
    scratch.set = endpoint.set;
    scratch.instance = endpoint.instance;
    scratch.endpoint_flags = endpoint.flags;
    scratch.mac_tag = if scratch.link == 0 { 0 } else { mac_tag(endpoint.mac) };
    let host = endpoint.flags & endpoint_flags::HOST_NETWORK != 0;
    let ends = &scratch.ends;
    // What goes over a pod's loopback interface stays in the pod, whatever its addresses say. It makes no flow: the pod can send there in
    // anyone's name, and so would open for itself what the other one may open. From elsewhere, who claims to be the receiver lies.
    let within = if host { loopback(&ends.remote) || equal(&ends.local, &ends.remote) } else { Skb(ctx).ifindex() == LOOPBACK };
    if scratch.link == 0 && within {
        return PASS;
    }
    if host {
        return ADMITTED;
    }
    if scratch.direction == INGRESS {
        // A pod's own packet that came back. Anyone may forge that source: believe only where the packet was made.
        if slow::made_here(Skb(ctx), scratch) && owns(endpoint, &ends.remote) {
            return PASS;
        }
        if source::flooded(ctx, scratch, endpoint) {
            return source::overheard(endpoint.flags);
        }
        if scratch.link == 0 && endpoint.node_netns != 0 && isolated(endpoint.flags, INGRESS) {
            scratch.own_node = own_node::connected(ctx, scratch.slot, u32::from(endpoint.node_netns - 1)) as u8;
        }
        return ADMITTED;
    }
    if source::forged(ctx, scratch, endpoint) {
        forge(scratch, reason::SPOOFED_SOURCE);
    } else if owns(endpoint, &scratch.ends.remote) {
        return PASS;
    }
    ADMITTED
}

/// The packet is not the endpoint's to send, for `cause`: nothing that is known under its key is about it.
#[inline(always)]
pub(crate) fn forge(scratch: &mut Scratch, cause: u8) {
    scratch.cause = cause;
    scratch.forged = 1;
    slow::key(scratch);
}

/// Whether an address is one of the endpoint's.
#[inline(always)]
pub(crate) fn owns(endpoint: &Endpoint, address: &[u8; 16]) -> bool {
    owned(endpoint, address) != 0
}

/// The same, 1 = yes. By itself, or the verifier would walk all that follows for each of the addresses.
#[inline(never)]
#[unsafe(export_name = "address_owned")]
extern "C" fn owned(endpoint: *const Endpoint, address: *const [u8; 16]) -> u32 {
    // SAFETY: null or map memory, as the verifier makes sure.
    let (Some(endpoint), Some(address)) = (unsafe { endpoint.as_ref() }, unsafe { address.as_ref() }) else { return 0 };
    let count = endpoint.address_count;
    for (index, own) in endpoint.addresses.iter().enumerate() {
        if index as u8 >= count {
            break;
        }
        if equal(own, address) {
            return 1;
        }
    }
    0
}

/// 127.0.0.0/8 and ::1.
#[inline(always)]
fn loopback(address: &[u8; 16]) -> bool {
    let v4 = equal(address, &sekisho_core::parse::mapped([127, address[13], address[14], address[15]]));
    v4 || equal(address, &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
}

/// Time after the attachment in which a SYN-ACK may answer a SYN from before.
const HANDSHAKE_NS: u64 = 1_000_000_000;

/// The pod answers what this hook did not see come in. Where next to nothing comes in, that is evidence. After the verdict, which
/// does not matter: a pod that policy closes is bypassed as well.
#[inline(always)]
fn answer_alone(scratch: &mut Scratch) {
    if scratch.direction != EGRESS || scratch.opened != INGRESS || scratch.state != state::SYN_RECEIVED {
        return;
    }
    if let Some(state) = tables::state(scratch.index)
        && state.packets[1] <= state.packets[0] / 16
    {
        let began = emit::clock(scratch).saturating_sub(HANDSHAKE_NS);
        one_way(scratch, began, true);
    }
}

/// Asks the tables about the scratch's flow; 1 = allowed.
#[inline(never)]
#[unsafe(export_name = "ask_tables")]
extern "C" fn ask(ctx: *mut __sk_buff, slot: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    if !matches!(scratch.cause, 0 | reason::SPOOFED_SOURCE) {
        let held = isolated(scratch.endpoint_flags, scratch.direction);
        scratch.judgement.rule = 0;
        scratch.judgement.class = 0;
        scratch.judgement.remote_instance = 0;
        scratch.judgement.flags = if held { flow_flags::ISOLATED } else { 0 };
        // A later fragment without its first names no port: it may pass where its sender may reach every port.
        if !held || scratch.cause != reason::FRAGMENT {
            return u32::from(!held);
        }
    }
    let mut direction = match (scratch.opened, u32::from(scratch.basis)) {
        (UNKNOWN, basis::RECEIVED) => INGRESS,
        (UNKNOWN, _) => EGRESS,
        // The sender first: what denies it is its own.
        (opened, basis::BOTH) => 1 - (opened & 1),
        (opened, _) => opened,
    };
    // What is said here counts, not the scratch: the compiler may not see that the function writes there.
    let mut allowed = 0;
    for round in 0..2 {
        allowed = one(scratch.slot, direction.into());
        if round == 1 || !asks_more(ctx, scratch, direction, allowed != 0) {
            break;
        }
        direction = 1 - (direction & 1);
    }
    allowed
}

/// Whether the other direction has a say as well, after what the tables said of this one.
#[inline(always)]
fn asks_more(ctx: *mut __sk_buff, scratch: &mut Scratch, direction: u8, allowed: bool) -> bool {
    match u32::from(scratch.basis) {
        basis::BOTH if allowed => true,
        basis::BOTH => {
            // Not the answer it says it is, but its sender's own.
            if scratch.packet.protocol == protocol::TCP {
                (scratch.opened, scratch.basis) = (UNKNOWN, basis::SENT as u8);
            } else {
                (scratch.opened, scratch.basis) = (direction, basis::PROVEN as u8);
            }
            false
        }
        basis::PROVEN if scratch.opened == UNKNOWN => !allowed,
        _ => !allowed && direction == INGRESS && answered(ctx, scratch),
    }
}

/// Whether a datagram that nobody may open comes to a socket of the pod's that is connected to its sender: the answer to a
/// question of which nothing is known any more.
#[inline(always)]
fn answered(ctx: *mut __sk_buff, scratch: &mut Scratch) -> bool {
    let whole = scratch.packet.fragment != fragment::LATER;
    if scratch.packet.protocol != protocol::UDP || !whole || scratch.cause != 0 || scratch.task == task::AGAIN || origin::serves(scratch) {
        return false;
    }
    let Some(netns) = sockets::pod(scratch).netns else { return false };
    let connected = sockets::udp(ctx, scratch.slot, netns) == bound::CONNECTED;
    if connected {
        scratch.opened = EGRESS;
    }
    connected
}

/// Asks the tables about one direction; 1 = allowed. A global function, or the verifier would walk it again for the second one.
#[inline(never)]
#[unsafe(export_name = "judge_direction")]
extern "C" fn one(slot: u32, direction: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    let direction = direction as u8;
    let port = if direction == EGRESS { scratch.ends.remote_port } else { scratch.ends.local_port };
    let question = Question {
        set: scratch.set,
        instance: scratch.instance,
        endpoint_flags: scratch.endpoint_flags,
        remote: &scratch.ends.remote,
        protocol: scratch.ends.protocol,
        port,
        direction,
        own_node: scratch.own_node != 0,
    };
    let answer = judge(&Maps { room: &mut scratch.keys }, &question);
    scratch.judgement.rule = answer.rule;
    scratch.judgement.class = answer.class;
    scratch.judgement.remote_instance = answer.remote_instance;
    scratch.judgement.allowed = answer.allowed;
    scratch.judgement.flags = answer.flags;
    u32::from(answer.allowed)
}

/// Verdict and reason of what the tables said, in the present mode.
#[inline(always)]
fn outcome(scratch: &mut Scratch, allowed: bool) {
    (scratch.verdict, scratch.why) = if scratch.forged != 0 {
        match scratch.mode {
            mode::OBSERVE => (verdict::ALLOWED, 0),
            mode::ENFORCE if !allowed || config().is_some_and(|config| config.spoof_enforce != 0) => (verdict::DENIED, scratch.cause),
            _ => (verdict::AUDIT, scratch.cause),
        }
    } else {
        let why = if scratch.cause == 0 && scratch.opened == UNKNOWN { reason::NO_CONNECTION } else { scratch.cause };
        settle(allowed, why, scratch.mode)
    };
}

/// Bits of a flow's flags that the judgement gives.
#[inline(always)]
pub(crate) fn flags(scratch: &Scratch) -> u8 {
    let unjudged = if scratch.mode == mode::OBSERVE { flow_flags::UNJUDGED } else { 0 };
    scratch.judgement.flags | unjudged
}

/// Writes the flow of the scratch's packet.
#[inline(never)]
#[unsafe(export_name = "build_flow")]
extern "C" fn build(ctx: *mut __sk_buff, slot: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    let opened = scratch.opened;
    let now = emit::clock(scratch);
    let cookie = Skb(ctx).cookie();
    let adopted = if opened == UNKNOWN || scratch.adopted != 0 { flow_flags::ADOPTED } else { 0 };
    let flags = flags(scratch) | adopted;
    let observed = scratch.mode == mode::OBSERVE;
    let flow = &mut scratch.flow;
    // Every field is written.
    let forward = (opened ^ scratch.direction) & 1 == 0;
    let (segments, bytes, seen) = (scratch.segments, scratch.bytes, scratch.packet.tcp_flags);
    flow.packets = if forward { [segments, 0] } else { [0, segments] };
    flow.bytes = if forward { [bytes, 0] } else { [0, bytes] };
    flow.tcp_flags = if forward { [seen, 0] } else { [0, seen] };
    flow.epoch = scratch.epoch;
    flow.last = scratch.jiffies;
    flow.local = scratch.ends.local;
    flow.state = scratch.state;
    flow.verdict = scratch.verdict;
    flow.reason = scratch.why;
    flow.opened = opened;
    flow.flags = flags;
    flow.first_flags = scratch.packet.tcp_flags;
    flow.start_ns = now;
    flow.born_ns = now;
    flow.cookie = cookie;
    flow.set = scratch.set;
    flow.local_instance = scratch.instance;
    flow.remote_instance = scratch.judgement.remote_instance;
    flow.class = scratch.judgement.class;
    flow.rule = if observed { 0 } else { scratch.judgement.rule };
    flow.icmp = scratch.packet.icmp;
    flow.mac.as_chunks_mut::<2>().0.iter_mut().for_each(zero);
    zero(&mut flow.rtt_us);
    zero(&mut flow.claim);
    flow.basis = scratch.basis;
    let [first, second, third, _] = scratch.mac_tag.to_le_bytes();
    flow.mac_tag = [first, second, third];
    if scratch.forged != 0 && scratch.why != 0 {
        count(counters::SPOOFED);
        if scratch.link != 0
            && let Some(mac) = Direct::new(Skb(ctx)).get::<6>(6)
        {
            scratch.flow.mac = mac;
        }
    }
    0
}
