//! ICMP errors belong to the flow of the header inside them.

use sekisho_core::layout::{flow_flags, verdict};
use sekisho_core::parse::{Kind, fits_error, fragment, protocol};
use sekisho_core::tcp::state;

use crate::emit;
use crate::hot::equal;
use crate::scratch::{self, Scratch};
use crate::tables::{self, table};
use crate::{read, slow};

/// Whether the ICMP error in the scratch belongs to an allowed flow: 1 = yes, and the flow knows of it now.
#[inline(never)]
#[unsafe(export_name = "icmp_error")]
pub(crate) extern "C" fn belongs(slot: u32) -> u32 {
    let Some(scratch) = scratch::at(slot) else { return 0 };
    let packet = &scratch.packet;
    if packet.fragment != fragment::WHOLE || !fits_error(packet.family, packet.total) || scratch.large != 0 {
        return 0;
    }
    if read::quoted(slot) != Kind::Flow as u32 || scratch.reading.family != scratch.packet.family {
        return 0;
    }
    // Nobody else may be sent a quote: it would reach addresses that no policy allows.
    if !equal(&scratch.packet.destination, &scratch.reading.source) {
        return 0;
    }
    // Who gets the error sent what it quotes.
    scratch.ends.set(&scratch.reading, 1 - (scratch.direction & 1));
    slow::key(scratch);
    let Some(entry) = slow::lookup(scratch, scratch.reading.protocol) else { return 0 };
    if !equal(&entry.local, &scratch.ends.local) || entry.verdict == verdict::DENIED {
        return 0;
    }
    if unreachable(scratch) {
        entry.raw().flags |= flow_flags::UNREACHABLE;
        let unanswered = if scratch.reading.protocol == protocol::TCP {
            entry.state == state::SYN_SENT
        } else {
            entry.state == 0 && scratch.table == table::EMBRYONIC
        };
        if unanswered && entry.side(scratch.direction) == 1 {
            emit::refused(slot, tables::pointer(Some(entry)));
        }
    }
    1
}

/// Destination unreachable, "fragmentation needed" apart, which is no refusal.
#[inline(always)]
fn unreachable(scratch: &Scratch) -> bool {
    match scratch.packet.icmp {
        [3, code] if scratch.packet.family == 4 => code != 4,
        [1, _] => scratch.packet.family == 6,
        _ => false,
    }
}
