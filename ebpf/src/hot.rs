//! The way of nearly every packet: a known flow costs one hash look-up.
//!
//! What is not that simple goes to [`slow`](crate::slow), with the headers already read where they were simple.

use aya_ebpf::bindings::__sk_buff;
use sekisho_core::counters;
use sekisho_core::layout::{CGROUP_ENDPOINT, Config, EGRESS, FlowKey4, FlowKey6, INGRESS, mode, verdict};
use sekisho_core::parse::{self, Fast, Window, neighbour, protocol};
use sekisho_core::tcp::{self, state};

use crate::budget::config;
use crate::emit::count;
use crate::kernel::{Direct, Skb, answer, jiffies};
use crate::scratch::{self, Scratch};
use crate::slow;
use crate::tables::{self, Entry, Family, V4, V6, table};

/// What a hook does with a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// On to whatever comes next.
    Pass,
    /// Gone.
    Drop,
}

/// How a hook shows packets.
pub(crate) trait Hook {
    /// Bytes before the IP header.
    const LINK: usize;
    /// [`mac_tag`](neighbour::mac_tag) of the frame's sender; 0 where there is no frame.
    fn sender(window: &Direct) -> u32;
    /// The IP version in `window`; 0 = not IP, or not at once to be seen.
    fn version(window: &Direct) -> u8;
    /// The number that keys bear.
    fn endpoint(skb: Skb) -> Option<u32>;
    /// Whether another program of ours has met the packet at this hook already; asked only where there may be two.
    fn met(skb: Skb, endpoint: u32, direction: u8) -> bool;
    /// Whether the endpoint's interface judges what passes in this direction, and this hook need not.
    fn yields(endpoint: u32, direction: u8) -> bool;
    /// 0 where the packet has been judged and counted at the endpoint's interface; noted there only where some endpoint has both
    /// hooks (`paired`). A number to be compared where it matters, or the verifier would walk both ways from here.
    fn uncounted(skb: Skb, endpoint: u32, direction: u8, paired: bool) -> u32;
    /// Memory for the slow path.
    fn scratch() -> Option<&'static mut Scratch>;
    /// Gives it back.
    fn release(slot: u32);
}

/// tc, on the host side of a pod's veth.
pub(crate) struct Tc;
/// A control group.
pub(crate) struct Cgroup;

impl Hook for Tc {
    const LINK: usize = 14;

    #[inline(always)]
    fn sender(window: &Direct) -> u32 {
        window.sender().map_or(0, |(high, low)| neighbour::tag_of(high, low))
    }

    #[inline(always)]
    fn version(window: &Direct) -> u8 {
        match window.get::<2>(12) {
            Some([0x08, 0x00]) => 4,
            Some([0x86, 0xdd]) => 6,
            _ => 0,
        }
    }

    #[inline(always)]
    fn endpoint(skb: Skb) -> Option<u32> {
        Some(skb.ifindex())
    }

    /// A TCX program runs before a filter, and what it writes into the packet's control block is still there then.
    #[inline(always)]
    fn met(skb: Skb, endpoint: u32, direction: u8) -> bool {
        const MARK: u32 = 0x5345_4b00;
        let marks = [endpoint, MARK | u32::from(direction)];
        let met = skb.marks() == marks;
        skb.mark(if met { [0; 2] } else { marks });
        met
    }

    #[inline(always)]
    fn yields(_: u32, _: u8) -> bool {
        false
    }

    /// The control block does not survive the way into the pod, `tc_index` does. It decides on nothing but counting: whoever
    /// rules the pod's namespace can write it. What a pod sends loses what the pod may have written.
    #[inline(always)]
    fn uncounted(skb: Skb, endpoint: u32, direction: u8, paired: bool) -> u32 {
        if paired {
            skb.set_tc_index(if direction == INGRESS { stamp(endpoint) } else { 0 });
        }
        1
    }

    #[inline(always)]
    fn scratch() -> Option<&'static mut Scratch> {
        scratch::of_tc()
    }

    #[inline(always)]
    fn release(_: u32) {}
}

impl Hook for Cgroup {
    const LINK: usize = 0;

    #[inline(always)]
    fn sender(_: &Direct) -> u32 {
        0
    }

    #[inline(always)]
    fn version(window: &Direct) -> u8 {
        window.get::<1>(0).map_or(0, |[first]| first >> 4)
    }

    #[inline(always)]
    fn endpoint(skb: Skb) -> Option<u32> {
        crate::cgroup::endpoint(skb)
    }

    #[inline(always)]
    fn met(_: Skb, _: u32, _: u8) -> bool {
        false
    }

    /// The number of an interface: that endpoint is watched at both, and all that it sends passes its interface.
    #[inline(always)]
    fn yields(endpoint: u32, direction: u8) -> bool {
        direction == EGRESS && endpoint & CGROUP_ENDPOINT == 0
    }

    #[inline(always)]
    fn uncounted(skb: Skb, endpoint: u32, _: u8, _: bool) -> u32 {
        (skb.tc_index() ^ stamp(endpoint)) | (endpoint & CGROUP_ENDPOINT)
    }

    #[inline(always)]
    fn scratch() -> Option<&'static mut Scratch> {
        scratch::claim()
    }

    #[inline(always)]
    fn release(slot: u32) {
        scratch::release(slot);
    }
}

/// What a packet bears in `tc_index` on its way from an endpoint's interface to its sockets. Never 0.
#[inline(always)]
fn stamp(endpoint: u32) -> u32 {
    endpoint & 0x7fff | 0x8000
}

/// What the hit path needs of a packet.
struct Hit {
    /// See [`Hook::uncounted`].
    uncounted: u32,
    direction: u8,
    /// See [`Hook::sender`]; 0 of what the endpoint receives.
    sender: u32,
    epoch: u32,
    protocol: u8,
    flags: u8,
    total: u32,
    headers: u32,
}

/// Judges a packet.
#[inline(always)]
pub(crate) fn packet<H: Hook>(ctx: *mut __sk_buff, direction: u8) -> Fate {
    let skb = Skb(ctx);
    let Some(config) = config() else { return Fate::Pass };
    let Some(endpoint) = H::endpoint(skb) else {
        count(counters::NO_ENDPOINT);
        return Fate::Pass;
    };
    if H::yields(endpoint, direction) {
        return Fate::Pass;
    }
    if config.settling == endpoint && H::met(skb, endpoint, direction) {
        return Fate::Pass;
    }
    let uncounted = H::uncounted(skb, endpoint, direction, config.paired != 0);
    let window = Direct::new(skb);
    let sender = if direction == EGRESS { H::sender(&window) } else { 0 };
    let mut found = Found { entry: None, table: 0 };
    // One way into the slow path.
    let scratch = 'read: {
        match H::version(&window) {
            4 => {
                if let Some(fast) = parse::fast4(&window, H::LINK) {
                    let hit = Hit::of(&fast, (direction, sender), config.epoch, uncounted);
                    let (local, remote, local_port, remote_port) = sides(&fast, direction);
                    let key =
                        Key4 { endpoint, remote: u32::from_ne_bytes(remote), local_port, remote_port, protocol: u32::from(fast.protocol) };
                    let local = u32::from_ne_bytes(local);
                    let known = known::<V4>(skb, key.as_key(), &hit, |entry| {
                        let bytes = &entry.local;
                        local == u32::from_ne_bytes([bytes[12], bytes[13], bytes[14], bytes[15]])
                    });
                    found = match known {
                        Ok(fate) => return fate,
                        Err(found) => found,
                    };
                    let Some(scratch) = H::scratch() else { return crowded(config) };
                    scratch.ends.local = parse::mapped(local.to_ne_bytes());
                    scratch.ends.remote = parse::mapped(remote);
                    scratch.packet.family = 4;
                    simple(scratch, &fast, local_port, remote_port);
                    break 'read scratch;
                }
            }
            6 => {
                if let Some(fast) = parse::fast6(&window, H::LINK) {
                    let hit = Hit::of(&fast, (direction, sender), config.epoch, uncounted);
                    let (local, remote, local_port, remote_port) = sides(&fast, direction);
                    let key = Key6 { remote: words(&remote), endpoint, local_port, remote_port, protocol: u32::from(fast.protocol) };
                    let known = known::<V6>(skb, key.as_key(), &hit, |entry| equal(&entry.local, &local));
                    found = match known {
                        Ok(fate) => return fate,
                        Err(found) => found,
                    };
                    let Some(scratch) = H::scratch() else { return crowded(config) };
                    scratch.ends.local = local;
                    scratch.ends.remote = remote;
                    scratch.packet.family = 6;
                    simple(scratch, &fast, local_port, remote_port);
                    break 'read scratch;
                }
            }
            _ => {}
        }
        let Some(scratch) = H::scratch() else { return crowded(config) };
        scratch.packet.family = 0;
        scratch
    };
    scratch.endpoint = endpoint;
    scratch.direction = direction;
    scratch.link = H::LINK as u8;
    scratch.met = u8::from(uncounted == 0);
    scratch.sender = sender;
    scratch.table = found.table;
    let slot = scratch.slot;
    let fate = answer(slow::packet(skb.0, slot, tables::pointer(found.entry)));
    H::release(slot);
    if fate == 0 { Fate::Pass } else { Fate::Drop }
}

/// More control group programs cut into one another on this CPU than there is memory for.
#[inline(always)]
fn crowded(config: &Config) -> Fate {
    if config.mode != mode::ENFORCE {
        return Fate::Pass;
    }
    count(counters::DROPPED);
    Fate::Drop
}

impl Hit {
    #[inline(always)]
    fn of<const N: usize>(fast: &Fast<N>, (direction, sender): (u8, u32), epoch: u32, uncounted: u32) -> Self {
        let (protocol, flags, total, headers) = (fast.protocol, fast.tcp_flags, fast.total, fast.headers);
        Self { uncounted, direction, sender, epoch, protocol, flags, total, headers }
    }
}

/// `(local, remote, local port, remote port)`.
#[inline(always)]
fn sides<const N: usize>(fast: &Fast<N>, direction: u8) -> ([u8; N], [u8; N], u16, u16) {
    if direction == INGRESS {
        (fast.destination, fast.source, fast.destination_port, fast.source_port)
    } else {
        (fast.source, fast.destination, fast.source_port, fast.destination_port)
    }
}

/// [`FlowKey4`] in words: the stack takes only aligned stores.
#[repr(C, align(8))]
struct Key4 {
    endpoint: u32,
    remote: u32,
    local_port: u16,
    remote_port: u16,
    protocol: u32,
}

/// [`FlowKey6`] in words.
#[repr(C, align(8))]
struct Key6 {
    remote: [u64; 2],
    endpoint: u32,
    local_port: u16,
    remote_port: u16,
    protocol: u32,
}

const _: () = assert!(size_of::<Key4>() == size_of::<FlowKey4>() && size_of::<Key6>() >= size_of::<FlowKey6>());

impl Key4 {
    #[inline(always)]
    fn as_key(&self) -> &FlowKey4 {
        // SAFETY: the same fields at the same offsets; little-endian, the protocol's upper bytes are the padding.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }
}

impl Key6 {
    #[inline(always)]
    fn as_key(&self) -> &FlowKey6 {
        // SAFETY: as for `Key4`.
        unsafe { &*core::ptr::from_ref(self).cast() }
    }
}

#[inline(always)]
pub(crate) fn words(address: &[u8; 16]) -> [u64; 2] {
    // SAFETY: 16 readable bytes.
    unsafe { core::ptr::from_ref(address).cast::<[u64; 2]>().read_unaligned() }
}

/// Compares addresses by words.
#[inline(always)]
pub(crate) fn equal(a: &[u8; 16], b: &[u8; 16]) -> bool {
    let (a, b) = (words(a), words(b));
    (a[0] ^ b[0]) | (a[1] ^ b[1]) == 0
}

/// What the tables know of a packet that is not settled by it, and where.
struct Found {
    entry: Option<Entry>,
    table: u8,
}

/// A packet that changes nothing but counters; else what there is to look at closer.
///
/// The second look-up follows the first at once: both wait for memory then, together.
#[inline(always)]
fn known<F: Family>(skb: Skb, key: &F::Key, hit: &Hit, local: impl Fn(Entry) -> bool) -> Result<Fate, Found> {
    let is_tcp = hit.protocol == protocol::TCP;
    if is_tcp {
        let Some(entry) = F::find(key, table::ESTABLISHED) else {
            return Err(Found { entry: F::find(key, table::EMBRYONIC), table: table::EMBRYONIC });
        };
        let quiet = hit.flags & (tcp::SYN | tcp::FIN | tcp::RST) == 0 && entry.state == state::ESTABLISHED;
        if !quiet || entry.epoch != hit.epoch || !local(entry) || !entry.bears(hit.sender) {
            return Err(Found { entry: Some(entry), table: table::ESTABLISHED });
        }
        if hit.uncounted != 0 {
            let (segments, bytes) = skb.measure(hit.total, hit.headers);
            entry.count(entry.side(hit.direction), segments, bytes, hit.flags, jiffies());
        }
        return Ok(Fate::Pass);
    }
    let (entry, table) = if let Some(entry) = F::find(key, table::ANSWERED) {
        (entry, table::ANSWERED)
    } else if let Some(entry) = F::find(key, table::EMBRYONIC) {
        (entry, table::EMBRYONIC)
    } else {
        return Err(Found { entry: None, table: table::EMBRYONIC });
    };
    let side = entry.side(hit.direction);
    // The first reply promotes.
    if entry.epoch != hit.epoch || !local(entry) || !entry.bears(hit.sender) || (side == 1 && table != table::ANSWERED) {
        return Err(Found { entry: Some(entry), table });
    }
    if hit.uncounted != 0 {
        let (segments, bytes) = skb.measure(hit.total, hit.headers);
        entry.count(side, segments, bytes, 0, jiffies());
    }
    if entry.verdict == verdict::DENIED {
        count(counters::DROPPED);
        return Ok(Fate::Drop);
    }
    Ok(Fate::Pass)
}

/// The part of a simple packet that both families share. What only a careful reader finds out is not there, and
/// nobody asks for its addresses: its ends are known.
#[inline(always)]
fn simple<const N: usize>(scratch: &mut Scratch, fast: &Fast<N>, local_port: u16, remote_port: u16) {
    let ends = &mut scratch.ends;
    ends.local_port = local_port;
    ends.remote_port = remote_port;
    ends.protocol = fast.protocol;
    let packet = &mut scratch.packet;
    packet.protocol = fast.protocol;
    packet.tcp_flags = fast.tcp_flags;
    packet.total = fast.total;
    packet.headers = fast.headers as u16;
    packet.fragment = parse::fragment::WHOLE;
    packet.icmp = [0; 2];
    packet.echo = parse::echo::NONE;
}
