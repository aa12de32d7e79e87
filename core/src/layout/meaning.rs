//! What the numbers and bits in the boundary's types mean, for the kernel programs, and with their names for records.

/// Declares numbered constants with their names, for kernel and user space alike.
macro_rules! numbers {
    ($(#[$meta:meta])* pub mod $module:ident: $ty:ty { $($(#[$cmeta:meta])* $name:ident = $value:literal $text:literal,)* }) => {
        $(#[$meta])*
        pub mod $module {
            $($(#[$cmeta])* pub const $name: $ty = $value;)*
            /// The name used in records; `None` for a number that no constant has.
            pub const fn name(number: $ty) -> Option<&'static str> {
                match number { $($name => Some($text),)* _ => None }
            }
        }
    };
}

pub(crate) use numbers;

numbers! {
    /// What was decided.
    pub mod verdict: u8 {
        /// Passed on to the next program.
        ALLOWED = 0 "allowed",
        /// Dropped.
        DENIED = 1 "denied",
        /// Passed, but would be dropped in mode enforce.
        AUDIT = 2 "audit",
    }
}
numbers! {
    /// Why a flow was denied.
    pub mod reason: u8 {
        /// A rule denies it.
        POLICY = 1 "policy",
        /// Isolated, and no rule allows it.
        DEFAULT_DENY = 2 "default_deny",
        /// The source, or who the packet claims to be otherwise, is not the endpoint.
        SPOOFED_SOURCE = 3 "spoofed_source",
        /// A later fragment without its first.
        FRAGMENT = 4 "fragment",
        /// Headers that cannot be read.
        MALFORMED = 5 "malformed",
        /// A header chain or protocol that cannot be judged.
        UNSUPPORTED = 6 "unsupported",
        /// TCP without SYN, or an ICMP error, that belongs to no flow.
        NO_CONNECTION = 7 "no_connection",
        /// The endpoint's policy is not live yet.
        NOT_READY = 8 "not_ready",
        /// A policy map is full.
        MAP_FULL = 9 "map_full",
        /// A router's advertisement, a redirect or a DHCP server's message, from a pod.
        ROGUE_MESSAGE = 10 "rogue_message",
    }
}
numbers! {
    /// Why a flow ended.
    pub mod end_reason: u8 {
        /// Both sides said FIN.
        FIN = 1 "fin",
        /// One side said RST.
        RST = 2 "rst",
        /// Nothing passed for the idle time.
        IDLE = 3 "idle",
        /// Never answered.
        TIMEOUT = 4 "timeout",
        /// Pushed out of its table.
        EVICTED = 5 "evicted",
        /// The pod or its interface is gone.
        ENDPOINT_GONE = 6 "endpoint_gone",
        /// Judged again with another outcome; it starts again with the same id.
        VERDICT_CHANGED = 7 "verdict_changed",
        /// A denied flow fell silent.
        DENIED = 8 "denied",
        /// The agent ended.
        SHUTDOWN = 9 "shutdown",
        /// A SYN re-used the addresses and ports of a closed flow. Shown as the reason it had closed for.
        REPLACED = 10 "fin",
    }
}
numbers! {
    /// Kinds of [`FlowEvent`](crate::layout::FlowEvent).
    pub mod event: u8 {
        /// A flow was judged for the first time, or again with another verdict.
        START = 1 "start",
        /// A flow ended; the totals are final.
        END = 2 "end",
        /// A contact failed (RST or ICMP unreachable): evidence for detections, not a record.
        REFUSED = 3 "refused",
    }
}
numbers! {
    /// How a contact failed.
    pub mod contact: u8 {
        /// RST or ICMP unreachable.
        REFUSED = 1 "refused",
        /// Denied by policy here.
        DENIED = 2 "denied",
    }
}
numbers! {
    /// Mode of the whole agent.
    pub mod mode: u32 {
        /// Watch; judge nothing.
        OBSERVE = 0 "observe",
        /// Judge, record what would be denied, drop nothing.
        AUDIT = 1 "audit",
        /// Judge and drop.
        ENFORCE = 2 "enforce",
    }
}

numbers! {
    /// [`Hold::on`].
    pub mod hold: u32 {
        /// What pods send and get before their policy is in force passes unseen.
        OFF = 0 "off",
        /// It is held.
        HELD = 1 "held",
        /// It passes, counted.
        COUNTED = 2 "counted",
    }
}

numbers! {
    /// [`Flow::basis`](crate::layout::Flow::basis): what shows who opened the flow, and so whose right to open it is judged.
    pub mod basis: u32 {
        /// The opener was seen, or a kernel named it. Where [`Flow::opened`](crate::layout::Flow::opened) is unknown, either may be.
        PROVEN = 0 "proven",
        /// Nothing: the endpoint sent the first packet, and must be allowed to open.
        SENT = 1 "sent",
        /// Nothing: the remote sent the first packet, and must be allowed to open.
        RECEIVED = 2 "received",
        /// What the first packet or the endpoint's sockets say, which whoever profits from it can forge. Both must be allowed.
        BOTH = 3 "both",
    }
}
/// In [`RuleKey::direction`](super::RuleKey::direction): a pod that is itself behind a Service, and may use it as if it were not.
/// `set` is the pod's instance there, and a row allows also where it names no rule.
pub const HAIRPIN: u8 = 2;

/// Bits of [`Flow::flags`].
pub mod flow_flags {
    /// A policy isolates the endpoint in the judged direction.
    pub const ISOLATED: u8 = 1;
    /// The flow began before we watched.
    pub const ADOPTED: u8 = 2;
    /// The remote is a node address without a local socket: the client is hidden by SNAT.
    pub const HIDDEN_BY_SNAT: u8 = 4;
    /// The endpoint's own node, exempt from judgement.
    pub const OWN_NODE: u8 = 8;
    /// The remote is a Service address.
    pub const SERVICE: u8 = 16;
    /// An ICMP error answered it.
    pub const UNREACHABLE: u8 = 32;
    /// Judged in mode observe: no verdict was formed.
    pub const UNJUDGED: u8 = 64;
}

/// Bits of [`Endpoint::flags`].
pub mod endpoint_flags {
    /// Isolated for egress (bit = 1 << [`EGRESS`](super::EGRESS)).
    pub const ISOLATED_EGRESS: u32 = 1;
    /// Isolated for ingress (bit = 1 << [`INGRESS`](super::INGRESS)).
    pub const ISOLATED_INGRESS: u32 = 2;
    /// Shares the node's network namespace: any local address is its own, nothing is judged.
    pub const HOST_NETWORK: u32 = 4;
    /// Replies may pass unseen: failure-based evidence is off.
    pub const ONE_WAY: u32 = 8;
    /// May have a network stack of its own (gVisor, Kata): the kernel may not know its sockets.
    pub const OWN_STACK: u32 = 256;
}

/// Bits of [`AddressEntry::flags`].
pub mod address_flags {
    /// An address of this node.
    pub const NODE: u32 = 1;
    /// A pod.
    pub const POD: u32 = 2;
    /// A Service: look into `VIPS` with the port.
    pub const SERVICE: u32 = 4;
}
