//! The life of a TCP connection as a bystander sees it: from flags alone, never from sequence numbers.
//!
//! Nouns: the *opener* sent the SYN; *forward* is from the opener, *reply* to it. An *adopted* connection began
//! before it was watched; where nothing shows who opened it, its forward is what the endpoint sends. Pure functions over numbers, so that the kernel
//! keeps a byte and user space names it.

use crate::layout::numbers;

/// FIN.
pub const FIN: u8 = 1;
/// SYN.
pub const SYN: u8 = 2;
/// RST.
pub const RST: u8 = 4;
/// ACK.
pub const ACK: u8 = 16;

numbers! {
    /// [`Flow::state`](crate::layout::Flow::state) of a TCP flow.
    pub mod state: u8 {
        /// The opener sent a SYN.
        SYN_SENT = 1 "syn_sent",
        /// The other side answered with SYN and ACK.
        SYN_RECEIVED = 2 "syn_received",
        /// The opener acknowledged.
        ESTABLISHED = 3 "established",
        /// The opener is done sending.
        FIN_FORWARD = 4 "fin_forward",
        /// The other side is done sending.
        FIN_REPLY = 5 "fin_reply",
        /// Both are done; the opener must still acknowledge.
        LAST_ACK_FORWARD = 6 "last_ack_forward",
        /// Both are done; the other side must still acknowledge.
        LAST_ACK_REPLY = 7 "last_ack_reply",
        /// Both are done and know it.
        CLOSED = 8 "closed",
        /// One side refused or broke it off.
        RESET = 9 "reset",
        /// Begun before we watched; only forward packets seen so far.
        ADOPTED_FORWARD = 10 "adopted_forward",
        /// Begun before we watched; only reply packets seen so far.
        ADOPTED_REPLY = 11 "adopted_reply",
        /// A packet that neither opens nor continues anything: NULL, FIN and XMAS scans.
        PROBE = 12 "probe",
    }
}

/// What the first packet that is seen of a connection says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum First {
    /// Its sender opens.
    Open,
    /// Its receiver opened.
    Accept,
    /// One of them opened, earlier.
    Middle,
    /// It breaks off something that is not known.
    Reset,
    /// Its sender pokes.
    Probe,
}

/// Reads the flags of a packet that belongs to no known connection.
#[inline(always)]
pub const fn first(flags: u8) -> First {
    if flags & RST != 0 {
        First::Reset
    } else if flags & SYN != 0 {
        if flags & ACK == 0 { First::Open } else { First::Accept }
    } else if flags & ACK != 0 {
        First::Middle
    } else {
        First::Probe
    }
}

/// Whether a packet asks for a new connection, whatever is known of its ports.
#[inline(always)]
pub const fn opens(flags: u8) -> bool {
    flags & (SYN | ACK | RST) == SYN
}

/// The state after a packet with `flags`, sent by the opener or (`reply`) the other side.
#[inline(always)]
pub const fn next(state: u8, reply: bool, flags: u8) -> u8 {
    if closed(state) {
        return state;
    }
    if flags & RST != 0 {
        return state::RESET;
    }
    let ack = flags & ACK != 0;
    let fin = flags & FIN != 0;
    match state {
        state::SYN_SENT if reply && ack && flags & SYN != 0 => state::SYN_RECEIVED,
        state::SYN_RECEIVED if !reply && ack && flags & SYN == 0 => {
            if fin {
                state::FIN_FORWARD
            } else {
                state::ESTABLISHED
            }
        }
        state::ESTABLISHED if fin => {
            if reply {
                state::FIN_REPLY
            } else {
                state::FIN_FORWARD
            }
        }
        state::ADOPTED_FORWARD | state::ADOPTED_REPLY if ack => {
            let other = reply == (state == state::ADOPTED_FORWARD);
            match (other, fin) {
                (true, false) => state::ESTABLISHED,
                (_, true) if reply => state::FIN_REPLY,
                (_, true) => state::FIN_FORWARD,
                (false, false) => state,
            }
        }
        state::FIN_FORWARD if reply && fin => state::LAST_ACK_FORWARD,
        state::FIN_REPLY if !reply && fin => state::LAST_ACK_REPLY,
        state::LAST_ACK_FORWARD if !reply && ack && !fin => state::CLOSED,
        state::LAST_ACK_REPLY if reply && ack && !fin => state::CLOSED,
        _ => state,
    }
}

/// Whether the connection is over.
#[inline(always)]
pub const fn closed(state: u8) -> bool {
    matches!(state, state::CLOSED | state::RESET)
}

/// Whether both sides have been heard, so that the flow belongs into `established`.
#[inline(always)]
pub const fn established(state: u8) -> bool {
    matches!(state, state::ESTABLISHED..=state::LAST_ACK_REPLY)
}

/// Whether a step by a packet of the given side proves that both sides talk: the time to promote.
/// Never by RST; an adopted connection needs a packet of the side that had been silent.
#[inline(always)]
pub const fn promotes(before: u8, after: u8, reply: bool) -> bool {
    established(after)
        && match before {
            state::SYN_RECEIVED | state::ADOPTED_REPLY => !reply,
            state::ADOPTED_FORWARD => reply,
            _ => false,
        }
}

#[cfg(test)]
mod tests;
