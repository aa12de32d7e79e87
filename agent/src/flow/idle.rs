//! How long a flow may be idle before it is over.

use sekisho_core::flows::Table;
use sekisho_core::layout::{Flow, FlowKey6, verdict};
use sekisho_core::tcp::state;

use super::sweep::{closed, closing};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

const SECOND: u64 = 1_000_000_000;

/// What Linux's connection tracking gives UDP by default, unanswered and answered. RFC 4787 (REQ-5) asks for 120 seconds of the latter.
pub const UDP_NS: u64 = 30 * SECOND;
/// See [`UDP_NS`].
pub const UDP_STREAM_NS: u64 = 120 * SECOND;

/// Idle times, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Idle {
    /// UDP without an answer.
    pub udp_ns: u64,
    /// UDP with answers.
    pub udp_stream_ns: u64,
    /// ICMP.
    pub icmp_ns: u64,
    /// Other protocols with answers, as connection tracking has it.
    pub other_ns: u64,
    /// Other flows without an answer, and denied ones.
    pub unanswered_ns: u64,
    /// A TCP connection that was cut after it had begun: longer than the longest time between two retransmissions
    /// (`TCP_RTO_MAX`, 120 s), so that the next one finds the denial still there.
    pub cut_ns: u64,
    /// TCP, established.
    pub established_ns: u64,
    /// TCP, one side has said FIN.
    pub closing_ns: u64,
    /// TCP, closed, and not removed by the kernel.
    pub closed_ns: u64,
}

impl Default for Idle {
    fn default() -> Self {
        Self {
            udp_ns: UDP_NS,
            udp_stream_ns: UDP_STREAM_NS,
            icmp_ns: 30 * SECOND,
            other_ns: 600 * SECOND,
            unanswered_ns: 30 * SECOND,
            cut_ns: 150 * SECOND,
            established_ns: 7200 * SECOND,
            closing_ns: 600 * SECOND,
            closed_ns: 10 * SECOND,
        }
    }
}

impl Idle {
    /// How long this flow may be idle.
    pub(super) fn of(&self, table: Table, key: &FlowKey6, flow: &Flow) -> u64 {
        match (key.protocol, table) {
            (TCP, _) if flow.verdict == verdict::DENIED && begun(flow) => self.cut_ns,
            _ if flow.verdict == verdict::DENIED => self.unanswered_ns,
            (TCP, _) if closed(flow).is_some() => self.closed_ns,
            (ICMP | ICMPV6, _) => self.icmp_ns,
            (UDP, Table::Embryonic) => self.udp_ns,
            (UDP, _) => self.udp_stream_ns,
            (_, Table::Embryonic) => self.unanswered_ns,
            (_, Table::Answered) => self.other_ns,
            (_, Table::Established) if closing(flow) => self.closing_ns,
            (_, Table::Established) => self.established_ns,
        }
    }
}

/// Whether a TCP flow is of a connection that had begun. A SYN that comes again is judged again in any case.
fn begun(flow: &Flow) -> bool {
    !matches!(flow.state, state::SYN_SENT | state::PROBE | 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idles(protocol: u8, table: Table, flow: &Flow) -> u64 {
        Idle::default().of(table, &FlowKey6 { protocol, ..FlowKey6::ZERO }, flow) / SECOND
    }

    #[test]
    fn what_is_answered_idles_longer() {
        let flow = Flow::ZERO;
        assert_eq!([Table::Embryonic, Table::Answered].map(|table| idles(UDP, table, &flow)), [30, 120]);
        assert_eq!([Table::Embryonic, Table::Answered].map(|table| idles(132, table, &flow)), [30, 600]);
        assert_eq!([Table::Embryonic, Table::Answered].map(|table| idles(ICMPV6, table, &flow)), [30, 30]);
        assert_eq!([Table::Embryonic, Table::Established].map(|table| idles(TCP, table, &flow)), [30, 7200]);
    }

    #[test]
    fn a_denied_connection_outlives_its_retransmissions() {
        let denied = Flow { verdict: verdict::DENIED, state: state::ESTABLISHED, ..Flow::ZERO };
        // Also where it was cut after a reset or a FIN.
        for tcp_flags in [[0, 0], [0x04, 0], [0x11, 0x11]] {
            assert!(idles(TCP, Table::Embryonic, &Flow { tcp_flags, ..denied }) > 120);
        }
        assert_eq!(idles(UDP, Table::Embryonic, &denied), 30);
        let refused = Flow { state: state::SYN_SENT, ..denied };
        assert_eq!(idles(TCP, Table::Embryonic, &refused), 30);
    }
}
