//! Counters that the kernel programs keep, one slot each in the per-CPU array `COUNTERS`.
//!
//! The ledger's kernel part is made of them: `CREATED = START_SENT + SUMMARISED + sum of LOST_*`.

macro_rules! counters {
    ($($(#[$meta:meta])* $name:ident = $value:literal $text:literal,)*) => {
        $($(#[$meta])* pub const $name: u32 = $value;)*
        /// Slots in `COUNTERS`.
        pub const COUNT: u32 = 0 $(+ { let _ = $value; 1 })*;
        /// `(slot, name)` of every counter.
        pub const NAMES: [(u32, &str); COUNT as usize] = [$(($name, $text)),*];
    };
}

counters! {
    /// Flows judged, packets judged without state included.
    CREATED = 0 "created",
    /// Starts written to a ring.
    START_SENT = 1 "start_sent",
    /// Starts kept back by an endpoint's event budget.
    SUMMARISED = 2 "summarised",
    /// Starts lost to a full ring.
    LOST_RING_FULL = 3 "ring_full",
    /// Starts lost because the flow could not be inserted.
    LOST_INSERT_FAILED = 4 "insert_failed",
    /// Starts lost because the endpoint inserts too fast.
    LOST_INSERT_LIMITED = 5 "insert_limited",
    /// Packets judged without state (contained in the causes above).
    STATELESS = 6 "stateless",
    /// Ends lost to a full ring.
    END_LOST = 7 "end_lost",
    /// Ends written to a ring.
    END_SENT = 8 "end_sent",
    /// Evidence of refusals lost to a full ring or the event budget.
    REFUSED_LOST = 9 "refused_lost",
    /// Promotions refused because the table is full.
    PROMOTE_FAILED = 10 "promote_failed",
    /// Promotions refused because the endpoint is at its cap.
    PROMOTE_CAPPED = 11 "promote_capped",
    /// Packets of unknown interfaces, passed.
    NO_ENDPOINT = 12 "no_endpoint",
    /// Always-allowed packets: ARP, neighbour discovery, DHCP and their like.
    EXEMPT = 13 "exempt",
    /// Packets whose headers could not be read.
    MALFORMED = 14 "malformed",
    /// Packets with a header chain that cannot be judged.
    UNSUPPORTED = 15 "unsupported",
    /// Later fragments whose first was not seen.
    FRAGMENT_ORPHAN = 16 "fragment_orphan",
    /// Flows of packets that the endpoint sends in another's name.
    SPOOFED = 17 "spoofed",
    /// Packets of a second local address that met a live key of the first.
    COLLISION = 18 "collision",
    /// Packets dropped.
    DROPPED = 19 "dropped",
    /// Closed flows removed by the kernel after their linger.
    REAPED = 20 "reaped",
    /// Closed flows removed without their linger: their pod's share of the queue, or all of it, was in use.
    CLOSING_FULL = 21 "closing_full",
    /// Flows judged again with another outcome.
    VERDICT_CHANGED = 22 "verdict_changed",
    /// Non-IP frames other than ARP: dropped where the pod is isolated.
    NON_IP = 23 "non_ip",
    /// TCP without SYN that belongs to no flow and was dropped.
    NO_CONNECTION = 24 "no_connection",
    /// Packets of pods whose policy is not in force yet, dropped.
    HELD = 25 "held",
    /// Packets of pods whose policy is not in force yet, passed unjudged.
    UNJUDGED = 26 "unjudged",
    /// Unicast frames for another station that a bridge flooded to the pod.
    FLOODED = 27 "flooded",
}
