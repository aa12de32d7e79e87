//! Lower-case names of the enums, as records, filters and the command line spell them.

use crate::{Direction, EndReason, Kind, Mismatch, Outcome, Reason, Verdict, Zone};

/// An enum whose values have one spelling everywhere outside of protobuf.
pub trait Name: Copy + Sized + 'static {
    /// Every value with its name, unspecified left out.
    const NAMES: &'static [(Self, &'static str)];

    /// The name; `None` for unspecified.
    fn name(self) -> Option<&'static str>;

    /// The value of a name, any case.
    fn from_name(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(_, known)| known.eq_ignore_ascii_case(name)).map(|(value, _)| *value)
    }

    /// The name of a value as it travels; `None` for unspecified and for values of a newer agent.
    fn name_of(number: i32) -> Option<&'static str>;
}

macro_rules! names {
    ($type:ident { $($variant:ident = $name:literal),+ $(,)? }) => {
        impl Name for $type {
            const NAMES: &'static [(Self, &'static str)] = &[$(($type::$variant, $name)),+];

            fn name(self) -> Option<&'static str> {
                match self {
                    $type::Unspecified => None,
                    $($type::$variant => Some($name),)+
                }
            }

            fn name_of(number: i32) -> Option<&'static str> {
                $type::try_from(number).ok().and_then(Self::name)
            }
        }
    };
}

names!(Kind {
    Start = "start",
    Update = "update",
    End = "end",
    Alert = "alert",
    Ledger = "ledger",
    Policy = "policy",
    Coverage = "coverage",
    Summarised = "summarised",
});

names!(Verdict { Allowed = "allowed", Denied = "denied", Audit = "audit" });

names!(Outcome { Allowed = "allowed", Denied = "denied", Audit = "audit", Undetermined = "undetermined" });

names!(Reason {
    Policy = "policy",
    DefaultDeny = "default_deny",
    SpoofedSource = "spoofed_source",
    Fragment = "fragment",
    Malformed = "malformed",
    Unsupported = "unsupported",
    NoConnection = "no_connection",
    NotReady = "not_ready",
    MapFull = "map_full",
    RogueMessage = "rogue_message",
});

names!(EndReason {
    Fin = "fin",
    Rst = "rst",
    Idle = "idle",
    Timeout = "timeout",
    Evicted = "evicted",
    EndpointGone = "endpoint_gone",
    VerdictChanged = "verdict_changed",
    Denied = "denied",
    Shutdown = "shutdown",
});

names!(Direction { Egress = "egress", Ingress = "ingress", Unknown = "unknown" });

names!(Mismatch { Peer = "peer", Port = "port", Protocol = "protocol" });

names!(Zone { Pod = "pod", Node = "node", Service = "service", World = "world" });

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_both_ways_and_unspecified_has_none() {
        for (kind, name) in Kind::NAMES {
            assert_eq!(kind.name(), Some(*name));
            assert_eq!(Kind::from_name(name), Some(*kind));
            assert_eq!(Kind::name_of(*kind as i32), Some(*name));
        }
        assert_eq!(Verdict::from_name("DENIED"), Some(Verdict::Denied));
        assert_eq!(Verdict::from_name("unspecified"), None);
        assert_eq!(Reason::name_of(0), None);
        assert_eq!(Reason::name_of(4711), None);
    }
}
