//! ICMP errors belong to the flow of the header inside them.

use sekisho_core::layout::{flow_flags, verdict};
use sekisho_core::parse::{self, Kind, Packet, protocol};
use sekisho_core::tcp::state;

use crate::emit;
use crate::hot::equal;
use crate::scratch::{Copied, Scratch};
use crate::slow;
use crate::tables::table;

/// Whether the ICMP error in the scratch belongs to an allowed flow: 1 = yes, and the flow knows of it now.
#[inline(never)]
pub(crate) fn belongs(scratch: &mut Scratch) -> u32 {
    if quoted(scratch) != Kind::Flow as u32 || scratch.inner.family != scratch.packet.family {
        return 0;
    }
    // Who gets the error sent what it quotes.
    scratch.ends.set(&scratch.inner, 1 - (scratch.direction & 1));
    slow::key(scratch);
    let Some(entry) = slow::lookup(scratch, scratch.inner.protocol) else { return 0 };
    if !equal(&entry.local, &scratch.ends.local) || entry.verdict == verdict::DENIED {
        return 0;
    }
    if unreachable(scratch) {
        entry.raw().flags |= flow_flags::UNREACHABLE;
        let unanswered = if scratch.inner.protocol == protocol::TCP {
            entry.state == state::SYN_SENT
        } else {
            entry.state == 0 && scratch.table == table::EMBRYONIC
        };
        if unanswered && entry.side(scratch.direction) == 1 {
            emit::refused(scratch, entry);
        }
    }
    1
}

/// Reads the quoted header.
#[inline(never)]
fn quoted(scratch: &mut Scratch) -> u32 {
    scratch.inner = Packet::EMPTY;
    let window = Copied { buffer: &scratch.buffer, cursor: &raw mut scratch.cursor, held: scratch.held as usize, length: scratch.length as usize, large: false };
    parse::inner(&window, usize::from(scratch.packet.payload), &mut scratch.inner) as u32
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
