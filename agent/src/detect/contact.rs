//! One contact: who tried to reach whom at which port, and what came of it. What every window counts.

use std::net::IpAddr;
use std::sync::Arc;

use crate::flow::{Identity, Owner, ProcessInfo};

/// What came of a contact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Not known yet.
    Tried,
    /// It was accepted.
    Answered,
    /// RST or ICMP unreachable.
    Refused,
    /// A policy denied it.
    Denied,
    /// Nobody answered in time.
    Silent,
    /// The source used an address that is not its own; `Contact::claimed` has it.
    Spoofed,
    /// The source spoke as only routers and DHCP servers do.
    Rogue,
}

impl Outcome {
    /// Refused, denied or silent.
    pub fn failed(self) -> bool {
        matches!(self, Self::Refused | Self::Denied | Self::Silent)
    }

    /// Every outcome.
    pub(super) const ALL: [Self; 6] = [Self::Tried, Self::Answered, Self::Refused, Self::Denied, Self::Silent, Self::Spoofed];

    /// A bit of its own, for sets of outcomes.
    pub(super) fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// One side of a contact.
#[derive(Clone, Debug)]
pub struct Party {
    /// Its address.
    pub ip: IpAddr,
    /// Whose address it is.
    pub identity: Option<Arc<Identity>>,
}

impl Party {
    /// Whether it is a Service address.
    pub fn is_service(&self) -> bool {
        matches!(self.identity.as_deref().map(|i| &i.owner), Some(Owner::Service { .. }))
    }
}

/// See the module. Times are boottimes of the packets: windows run on them, so a recording can be replayed at any speed.
#[derive(Clone, Debug)]
pub struct Contact {
    /// Who tried.
    pub source: Party,
    /// Whom.
    pub target: Party,
    /// Port that was tried.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// What came of it.
    pub outcome: Outcome,
    /// When.
    pub time_ns: u64,
    /// The same on the wall clock.
    pub wall_ns: u64,
    /// TCP flags of the first packet.
    pub first_flags: Option<u8>,
    /// The flow.
    pub flow: Option<u64>,
    /// Who, on the source's side.
    pub process: Option<Arc<ProcessInfo>>,
    /// The address that a spoofed packet claimed, whose it is, and the MAC it came with.
    pub claimed: Option<(Party, [u8; 6])>,
}

impl Contact {
    /// A contact of which only that is known.
    pub(super) fn bare(source: &Party, outcome: Outcome) -> Self {
        Self {
            source: source.clone(),
            target: source.clone(),
            port: 0,
            protocol: 0,
            outcome,
            time_ns: 0,
            wall_ns: 0,
            first_flags: None,
            flow: None,
            process: None,
            claimed: None,
        }
    }
}
