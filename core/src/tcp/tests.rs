//! Every step of every state, and the ways through them.

use super::state::{self, *};
use super::{ACK, FIN, First, RST, SYN, closed, established, first, next, opens, promotes};

fn walk(from: u8, steps: &[(bool, u8)]) -> u8 {
    steps.iter().fold(from, |at, &(reply, flags)| next(at, reply, flags))
}

#[test]
fn a_connection_opens_and_closes() {
    let open = [(true, SYN | ACK), (false, ACK), (true, ACK)];
    assert_eq!(walk(SYN_SENT, &open), ESTABLISHED);
    assert_eq!(walk(ESTABLISHED, &[(false, FIN | ACK), (true, ACK), (true, FIN | ACK), (false, ACK)]), CLOSED);
    assert_eq!(walk(ESTABLISHED, &[(true, FIN | ACK), (false, FIN | ACK), (true, ACK)]), CLOSED);
    assert_eq!(walk(SYN_SENT, &[(true, RST | ACK)]), RESET);
}

#[test]
fn only_answers_promote() {
    assert!(promotes(SYN_RECEIVED, ESTABLISHED, false));
    assert!(!promotes(SYN_RECEIVED, RESET, false));
    assert_eq!(walk(SYN_SENT, &[(false, ACK), (false, ACK), (true, ACK)]), SYN_SENT, "no SYN-ACK, no connection");
    assert!(promotes(ADOPTED_FORWARD, next(ADOPTED_FORWARD, true, ACK), true));
    assert_eq!(next(ADOPTED_FORWARD, false, ACK), ADOPTED_FORWARD);
}

#[test]
fn every_flag_in_every_state_leads_to_a_named_state_and_closed_stays() {
    for at in SYN_SENT..=PROBE {
        for flags in 0..=u8::MAX {
            for reply in [false, true] {
                let to = next(at, reply, flags);
                assert!(state::name(to).is_some(), "{at} {flags} {reply} -> {to}");
                if closed(at) {
                    assert_eq!(to, at);
                } else if flags & RST != 0 {
                    assert_eq!(to, RESET);
                }
                if promotes(at, to, reply) {
                    assert!(established(to) && flags & RST == 0 && flags & ACK != 0);
                }
            }
        }
    }
}

#[test]
fn first_packets_are_told_apart() {
    for flags in 0..=u8::MAX {
        assert_eq!(opens(flags), first(flags) == First::Open);
    }
    assert_eq!(first(SYN | ACK), First::Accept);
    assert_eq!(first(0), First::Probe);
    assert_eq!(first(FIN | 8 | 32), First::Probe);
    assert_eq!(first(FIN | ACK), First::Middle);
    assert_eq!(first(RST | SYN), First::Reset);
}
