//! Whether what a pod sends is its own: its addresses, its MAC, and what it says of itself to its neighbours.
//!
//! This is asked before anything else may let a packet pass. Flows of packets that are not the pod's own lie under keys of
//! their own, where they neither disturb nor use what is known of the one that they impersonate.

use aya_ebpf::bindings::__sk_buff;
use sekisho_core::counters;
use sekisho_core::layout::{AddressEntry, EGRESS, Endpoint, INGRESS, address_flags, endpoint_flags, mode, reason};
use sekisho_core::parse::neighbour::{self, Claims, kind};
use sekisho_core::parse::{self, Kind, Window, link_local, protocol};
use sekisho_core::verdict::isolated;

use crate::budget::config;
use crate::emit::count;
use crate::hot::{equal, words};
use crate::kernel::{Direct, Skb, jiffies};
use crate::maps::ADDRESSES;
use crate::open::{self, owns};
use crate::scratch::{self, Scratch};
use crate::slow::{self, DROP, GONE, PASS};
use crate::{read, tables};

/// Seconds that a DHCP server may take for its answer.
const PATIENCE: u32 = 30;

/// Whether the endpoint sends the scratch's packet in another's name.
#[inline(always)]
pub(crate) fn forged(ctx: *mut __sk_buff, scratch: &Scratch, endpoint: &Endpoint) -> bool {
    if foreign_mac(ctx, scratch, endpoint) {
        return true;
    }
    // Headers that end before the addresses claim nothing.
    scratch.hidden == 0 && speaks_for(scratch, endpoint) == 0
}

/// Whether the endpoint may use the packet's source address: 1 = yes.
#[inline(always)]
fn speaks_for(scratch: &Scratch, endpoint: &Endpoint) -> u32 {
    let local = &scratch.ends.local;
    // Nobody's address: while the pod has none yet, and only to ask for one or to join a group.
    let nobody = scratch.exempt != 0 && unspecified(local);
    if owns(endpoint, local) || link_local(local) || nobody {
        return 1;
    }
    lent(endpoint, local)
}

/// Whether the endpoint may speak for an address that is not its own: 1 = yes. What belongs to another pod, a node or a Service
/// is never lent.
#[inline(never)]
pub(crate) fn lent(endpoint: &Endpoint, address: &[u8; 16]) -> u32 {
    let wanted = words(address);
    for (source, mask) in endpoint.sources.iter().zip(&endpoint.masks) {
        let (source, mask) = (words(source), words(mask));
        if ((wanted[0] ^ source[0]) & mask[0]) | ((wanted[1] ^ source[1]) & mask[1]) == 0 {
            return u32::from(!held_by(address, address_flags::POD | address_flags::NODE | address_flags::SERVICE));
        }
    }
    0
}

/// Whether somebody known, of one of the kinds `flags`, has an address.
#[inline(always)]
fn held_by(address: &[u8; 16], flags: u32) -> bool {
    // SAFETY: read at once; user space replaces entries whole.
    let known: Option<&AddressEntry> = unsafe { ADDRESSES.get(address) };
    known.is_some_and(|entry| entry.flags & flags != 0)
}

/// Whether the frame bears another MAC than the pod's.
#[inline(always)]
fn foreign_mac(ctx: *mut __sk_buff, scratch: &Scratch, endpoint: &Endpoint) -> bool {
    let own = endpoint.mac;
    if scratch.link == 0 || own == [0; 6] {
        return false;
    }
    Direct::new(Skb(ctx)).get::<6>(6).is_some_and(|mac| mac != own)
}

/// Whether the frame is another station's, which a bridge that does not know where that one is sends to every port. Pods that
/// route for others get frames for other addresses, but at their own MAC.
#[inline(always)]
pub(crate) fn flooded(ctx: *mut __sk_buff, scratch: &Scratch, endpoint: &Endpoint) -> bool {
    let own = endpoint.mac;
    if scratch.link == 0 || own == [0; 6] {
        return false;
    }
    let Some(mac) = Direct::new(Skb(ctx)).get::<6>(0) else { return false };
    mac[0] & 1 == 0 && mac != own && !owns(endpoint, &scratch.ends.local) && lent(endpoint, &scratch.ends.local) == 0
}

/// What becomes of such a frame: the pod's interface ignores it, unless somebody listens to all that passes.
#[inline(always)]
pub(crate) fn overheard(flags: u32) -> u32 {
    count(counters::FLOODED);
    if !isolated(flags, INGRESS) || config().is_none_or(|config| config.mode != mode::ENFORCE) {
        return PASS;
    }
    count(counters::DROPPED);
    DROP
}

/// 0.0.0.0 and ::.
#[inline(always)]
fn unspecified(address: &[u8; 16]) -> bool {
    equal(address, &[0; 16]) || equal(address, &parse::mapped([0; 4]))
}

/// A packet that the endpoint sends, of a kind that is not simply judged. [`PASS`] = let it; [`DROP`] = to be judged, with
/// `scratch.cause` as it is then; [`GONE`] = drop it.
#[inline(never)]
#[unsafe(export_name = "inspect_sent")]
pub(crate) extern "C" fn inspect(ctx: *mut __sk_buff, slot: u32, kind: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return PASS };
    scratch.exempt = u8::from(kind == Kind::Exempt as u32);
    match open::admit(ctx, slot) {
        open::ADMITTED => {}
        PASS => return PASS,
        _ => return GONE,
    }
    let host = scratch.endpoint_flags & endpoint_flags::HOST_NETWORK != 0;
    if scratch.cause == 0 && !host && parse::impersonates(&scratch.packet) {
        open::forge(scratch, reason::ROGUE_MESSAGE);
    }
    if kind != Kind::Exempt as u32 || scratch.forged != 0 {
        return DROP;
    }
    if !host && scratch.packet.protocol == protocol::ICMP6 && scratch.packet.hops == 255 {
        let told = told(slot);
        if told != EXEMPT {
            if told != 0 {
                open::forge(scratch, told as u8);
            }
            return DROP;
        }
    }
    if parse::asks_for_address(&scratch.packet)
        && let Some(state) = tables::state(scratch.index)
    {
        state.asked = scratch.jiffies | 1;
    }
    count(counters::EXEMPT);
    PASS
}

/// A true message of neighbour discovery, as such a message is.
const EXEMPT: u32 = u32::MAX;

/// What the endpoint tells its neighbours: [`EXEMPT`], the reason why it may not, or 0 where policy is to judge it.
#[inline(never)]
#[unsafe(export_name = "neighbour_told")]
extern "C" fn told(slot: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    let Some(endpoint) = tables::endpoint(scratch.endpoint) else { return 0 };
    clear(&mut scratch.claims);
    if !neighbour::discovery(&read::window(scratch), &scratch.packet, &mut scratch.claims) {
        return 0;
    }
    let (claims, local, remote) = (&scratch.claims, &scratch.ends.local, &scratch.ends.remote);
    let spoofed = u32::from(reason::SPOOFED_SOURCE);
    let anonymous = unspecified(local);
    if names_another(claims, endpoint) || (link_local(local) && !own_link_local(endpoint, local)) {
        return spoofed;
    }
    let near = parse::on_link(remote) || neighbours(endpoint, remote);
    match scratch.packet.icmp[0] {
        kind::ROUTER_SOLICITATION if parse::on_link(remote) => EXEMPT,
        kind::SOLICITATION if !near || !neighbour::asks_for(remote, &claims.target) => 0,
        // It is about to take the address.
        kind::SOLICITATION if anonymous && takes(endpoint, &claims.target) => spoofed,
        kind::SOLICITATION => EXEMPT,
        kind::ADVERTISEMENT if claims_own(slot) == 0 => spoofed,
        kind::ADVERTISEMENT if near && !anonymous => EXEMPT,
        _ => 0,
    }
}

/// Whether the message names another MAC for its sender.
#[inline(always)]
fn names_another(claims: &Claims, endpoint: &Endpoint) -> bool {
    claims.mac != [0; 6] && endpoint.mac != [0; 6] && claims.mac != endpoint.mac
}

/// Whether the address that the message claims may be the endpoint's in an answer to its neighbours: 1 = yes.
#[inline(never)]
#[unsafe(export_name = "claims_its_own")]
extern "C" fn claims_own(slot: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    let Some(endpoint) = tables::endpoint(scratch.endpoint) else { return 0 };
    let target = &scratch.claims.target;
    u32::from(owns(endpoint, target) || (link_local(target) && own_link_local(endpoint, target)) || lent(endpoint, target) != 0)
}

/// Whether an address that the endpoint is about to take is known to be another's.
#[inline(always)]
fn takes(endpoint: &Endpoint, target: &[u8; 16]) -> bool {
    !owns(endpoint, target) && held_by(target, address_flags::POD | address_flags::NODE | address_flags::SERVICE)
}

/// Whether a link-local address is the endpoint's, as far as that is known.
#[inline(always)]
fn own_link_local(endpoint: &Endpoint, address: &[u8; 16]) -> bool {
    let own = u64::from_ne_bytes(endpoint.link_local);
    own == 0 || own == words(address)[1]
}

/// Whether an address is reached without a router: in the /64 of one of the endpoint's own, which no link's prefix exceeds, or
/// the node's.
#[inline(always)]
fn neighbours(endpoint: &Endpoint, address: &[u8; 16]) -> bool {
    let prefix = words(address)[0];
    let count = endpoint.address_count;
    let [first, second, ..] = &endpoint.addresses;
    (count > 0 && words(first)[0] == prefix) || (count > 1 && words(second)[0] == prefix) || held_by(address, address_flags::NODE)
}

/// Reads the ARP message at `at` of the frame: 1 = one that a host sends. Apart, or the verifier would follow the headers for every
/// place that it may have.
#[inline(never)]
#[unsafe(export_name = "read_arp")]
extern "C" fn arp(slot: u32, at: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    u32::from(neighbour::arp(&read::window(scratch), at as usize, &mut scratch.packet, &mut scratch.claims))
}

/// A frame that is not IP. [`PASS`] = let it; [`DROP`] = to be judged; [`GONE`] = drop it.
#[inline(never)]
#[unsafe(export_name = "judge_frame")]
pub(crate) extern "C" fn frame(ctx: *mut __sk_buff, slot: u32, kind: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return PASS };
    let is_arp = kind == Kind::Arp as u32;
    let counter = if is_arp { counters::EXEMPT } else { counters::NON_IP };
    count(counter);
    scratch.hidden = 1;
    scratch.exempt = 1;
    clear(&mut scratch.claims);
    let sound = is_arp && arp(slot, neighbour::arp_at(&Direct::new(Skb(ctx))) as u32) != 0;
    slow::nameless(scratch, 0);
    (scratch.segments, scratch.bytes) = Skb(ctx).measure(scratch.packet.total, u32::from(scratch.packet.headers));
    slow::name(scratch);
    if scratch.direction != EGRESS {
        return received(ctx, scratch, is_arp);
    }
    if open::admit(ctx, slot) != open::ADMITTED {
        return PASS;
    }
    if scratch.forged != 0 {
        return DROP;
    }
    let Some(endpoint) = tables::endpoint(scratch.endpoint) else { return PASS };
    if is_arp {
        let lies = !sound || names_another(&scratch.claims, endpoint) || speaks_for(scratch, endpoint) == 0;
        if !lies || scratch.endpoint_flags & endpoint_flags::HOST_NETWORK != 0 {
            return PASS;
        }
        open::forge(scratch, reason::SPOOFED_SOURCE);
        return DROP;
    }
    unknown(scratch, EGRESS)
}

/// A frame that is not IP and not for a pod's stack: none that policy can judge, so none that an isolated pod exchanges.
#[inline(always)]
fn unknown(scratch: &mut Scratch, direction: u8) -> u32 {
    if !isolated(scratch.endpoint_flags, direction) {
        return PASS;
    }
    scratch.cause = reason::UNSUPPORTED;
    DROP
}

#[inline(always)]
fn received(ctx: *mut __sk_buff, scratch: &mut Scratch, is_arp: bool) -> u32 {
    let Some(endpoint) = tables::endpoint(scratch.endpoint).filter(|_| !is_arp) else { return PASS };
    scratch.endpoint_flags = endpoint.flags;
    if unknown(scratch, INGRESS) == PASS {
        return PASS;
    }
    // What bridges and switches say to each other (IEEE 802.1D, 7.12.6) is worth no record.
    match Direct::new(Skb(ctx)).get::<6>(0) {
        Some([0x01, 0x80, 0xc2, 0, 0, last]) if last < 16 => {
            if config().is_none_or(|config| config.mode != mode::ENFORCE) {
                return PASS;
            }
            count(counters::DROPPED);
            GONE
        }
        _ => DROP,
    }
}

/// Whether a DHCP server's message to the pod is wanted, 1 = yes: the node's own, sent to everybody on the link, or an answer.
#[inline(never)]
#[unsafe(export_name = "address_expected")]
pub(crate) extern "C" fn expected(ctx: *mut __sk_buff, slot: u32) -> u32 {
    let (Some(config), Some(scratch)) = (config(), scratch::at(slot)) else { return 0 };
    if Skb(ctx).ingress_ifindex() == 0 || parse::is_broadcast(&scratch.ends.local) || held_by(&scratch.ends.remote, address_flags::NODE) {
        return 1;
    }
    let Some(state) = tables::endpoint(scratch.endpoint).and_then(|endpoint| tables::state(endpoint.index)) else { return 0 };
    // Both with the lowest bit set, so that the difference is never below zero.
    u32::from(state.asked != 0 && (jiffies() | 1).wrapping_sub(state.asked) <= PATIENCE * config.hz)
}

#[inline(always)]
fn clear(claims: &mut Claims) {
    let parts = core::ptr::from_mut(claims).cast::<u32>();
    for part in 0..size_of::<Claims>() / 4 {
        // SAFETY: within the claims, which are plain numbers. Volatile, or the compiler would call a function that goes byte by byte.
        unsafe { parts.add(part).write_volatile(0) };
    }
}
