//! May this endpoint talk with that address? From the tables that the policy compiler filled.
//!
//! Nouns: *isolated*: some policy selects the endpoint in that direction, so what no rule allows is denied.
//! A *judgement* is what the tables say; the *mode* then makes a verdict of it.
//!
//! The tables are a trait: maps in the kernel, hash maps under test. Nothing here keeps state.

use crate::layout::{
    Address, AddressEntry, EGRESS, HAIRPIN, INGRESS, Rules, Vip, address_flags, endpoint_flags, flow_flags, mode, reason, verdict,
};
use crate::parse::protocol;

/// What a judgement asks. Plain arguments, so that an implementation builds its keys where it likes.
pub trait Tables {
    /// Who has exactly this address.
    fn address(&self, address: &Address) -> Option<AddressEntry>;
    /// The class of the longest prefix that holds it.
    fn cidr(&self, address: &Address) -> Option<u32>;
    /// What a Service port stands for.
    fn vip(&self, address: &Address, port: u16, protocol: u8) -> Option<Vip>;
    /// What a set says about a class in one direction.
    fn rules(&self, set: u32, class: u32, direction: u8) -> Option<Rules>;
    /// The rule of the longest prefix that holds this port in a port table.
    fn port(&self, table: u32, protocol: u8, port: u16) -> Option<u32>;
}

impl Rules {
    /// Without ports of its own.
    pub const fn new(any: u32, ports: u32) -> Self {
        Self { any, ports, rule: [0; 2], port: [0; 2], protocol: [0; 2], pad: [0; 2] }
    }

    /// The rule of a port that stands here; 0 = none.
    #[inline(always)]
    pub const fn near(&self, protocol: u8, port: u16) -> u32 {
        if self.port[0] == port && self.protocol[0] == protocol {
            self.rule[0]
        } else if self.port[1] == port && self.protocol[1] == protocol {
            self.rule[1]
        } else {
            0
        }
    }
}

/// The question.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The endpoint's policy set.
    pub set: u32,
    /// Its instance.
    pub instance: u32,
    /// Bits of [`endpoint_flags`].
    pub endpoint_flags: u32,
    /// Who the other end is.
    pub remote: &'a Address,
    /// IP protocol number.
    pub protocol: u8,
    /// Port of whoever is dialled.
    pub port: u16,
    /// [`EGRESS`] if the endpoint dials, [`INGRESS`] if it is dialled.
    pub direction: u8,
    /// The packet carries a socket of the endpoint's own node.
    pub own_node: bool,
}

/// The answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Judgement {
    /// Rule that allows; 0 = none.
    pub rule: u32,
    /// Class of the remote.
    pub class: u32,
    /// Instance of the remote; 0 = not known.
    pub remote_instance: u32,
    /// 1 = may pass.
    pub allowed: u8,
    /// Bits of [`flow_flags`].
    pub flags: u8,
    /// Zero.
    pub pad: [u8; 2],
}

/// Who the remote is, for endpoints that are judged and those that are not.
#[inline(always)]
fn identify<T: Tables>(tables: &T, question: &Question<'_>) -> Judgement {
    let mut answer = Judgement::default();
    let Some(entry) = tables.address(question.remote) else {
        answer.class = tables.cidr(question.remote).unwrap_or(0);
        return answer;
    };
    answer.class = entry.class;
    answer.remote_instance = entry.instance;
    if question.direction == EGRESS
        && entry.flags & address_flags::SERVICE != 0
        && let Some(vip) = tables.vip(question.remote, question.port, question.protocol)
    {
        answer.class = vip.class;
        answer.remote_instance = vip.instance;
        answer.flags |= flow_flags::SERVICE;
    }
    if question.direction == INGRESS && entry.flags & address_flags::NODE != 0 {
        answer.flags |= if question.own_node { flow_flags::OWN_NODE } else { flow_flags::HIDDEN_BY_SNAT };
    }
    answer
}

/// Judges one direction.
#[inline(always)]
pub fn judge<T: Tables>(tables: &T, question: &Question<'_>) -> Judgement {
    let mut answer = identify(tables, question);
    let host = question.endpoint_flags & endpoint_flags::HOST_NETWORK != 0;
    if host || !isolated(question.endpoint_flags, question.direction) {
        answer.allowed = 1;
        return answer;
    }
    answer.flags |= flow_flags::ISOLATED;
    if answer.flags & flow_flags::OWN_NODE != 0 {
        answer.allowed = 1;
        return answer;
    }
    let rules = tables.rules(question.set, answer.class, question.direction);
    // Of a class that none of its rules names, a set says what it says of everyone.
    let rules = if rules.is_none() && answer.class != 0 { tables.rules(question.set, 0, question.direction) } else { rules };
    if let Some(rules) = rules {
        answer.rule = rules.any;
        // Only these have ports that a policy can name.
        let ported = matches!(question.protocol, protocol::TCP | protocol::UDP | protocol::SCTP);
        if answer.rule == 0 && ported {
            answer.rule = rules.near(question.protocol, question.port);
            if answer.rule == 0 && rules.ports != 0 {
                answer.rule = tables.port(rules.ports, question.protocol, question.port).unwrap_or(0);
            }
        }
    }
    answer.allowed = u8::from(answer.rule != 0);
    // A pod may always meet itself: behind a Service it counts as if it were not there.
    if answer.rule == 0
        && answer.flags & flow_flags::SERVICE != 0
        && let Some(others) = tables.rules(question.instance, answer.class, HAIRPIN)
    {
        answer.rule = others.any;
        answer.allowed = 1;
    }
    answer
}

/// Whether a policy selects the endpoint in that direction.
#[inline(always)]
pub const fn isolated(flags: u32, direction: u8) -> bool {
    flags & (1 << (direction & 1)) != 0 && flags & endpoint_flags::HOST_NETWORK == 0
}

/// What the mode makes of a denial: dropped, or only noted.
#[inline(always)]
pub const fn denied_in(mode: u32) -> u8 {
    if mode == mode::ENFORCE { verdict::DENIED } else { verdict::AUDIT }
}

/// `(verdict, reason)` of a judgement in a mode; `cause` is the reason of a denial that is not the tables' doing, or 0.
#[inline(always)]
pub const fn settle(allowed: bool, cause: u8, mode: u32) -> (u8, u8) {
    if allowed || mode == mode::OBSERVE {
        return (verdict::ALLOWED, 0);
    }
    (denied_in(mode), if cause == 0 { reason::DEFAULT_DENY } else { cause })
}

#[cfg(test)]
mod tests;
