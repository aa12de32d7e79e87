//! The IP header and what may stand between it and the transport header.

use super::{Kind, Packet, Window, fragment, is_mapped, mapped, short};

/// Extension headers that are followed.
const EXTENSIONS: usize = 6;
/// Bytes of IPv4 options.
const OPTIONS: usize = 40;

/// Reads IPv4 or IPv6 at `at` and returns the offset of the transport header. `truncated`: the packet is
/// the quote in an ICMP error, so its length is not that of the bytes at hand.
#[inline(always)]
pub fn walk<W: Window>(window: &W, at: usize, packet: &mut Packet, truncated: bool) -> Result<usize, Kind> {
    let Some([first]) = window.get::<1>(at) else { return Err(short(window, at, 1)) };
    match first >> 4 {
        4 => walk4(window, at, packet, truncated),
        6 => walk6(window, at, packet, truncated),
        _ => Err(Kind::Malformed),
    }
}

#[inline(always)]
fn walk4<W: Window>(window: &W, at: usize, packet: &mut Packet, truncated: bool) -> Result<usize, Kind> {
    packet.family = 4;
    let Some(ip) = window.get::<20>(at) else { return Err(short(window, at, 20)) };
    packet.source = mapped([ip[12], ip[13], ip[14], ip[15]]);
    packet.destination = mapped([ip[16], ip[17], ip[18], ip[19]]);
    packet.protocol = ip[9];
    packet.hops = ip[8];
    let header = usize::from(ip[0] & 15) * 4;
    let said = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
    packet.total = total(window, at, said, truncated)?;
    if header < 20 || (header > packet.total as usize) {
        return Err(Kind::Malformed);
    }
    let offset = u16::from_be_bytes([ip[6] & 0x1f, ip[7]]);
    let more = ip[6] & 0x20 != 0;
    packet.fragment_id = u32::from(u16::from_be_bytes([ip[4], ip[5]]));
    packet.fragment = piece(offset != 0, more);
    if header > 20 {
        options(window, at + 20, at + header)?;
    }
    Ok(at + header)
}

/// The packet's length: what the header says, if that many bytes are there.
#[inline(always)]
fn total<W: Window>(window: &W, at: usize, said: usize, truncated: bool) -> Result<u32, Kind> {
    let there = window.length().saturating_sub(at);
    let total = if said == 0 && window.large() { there } else { said };
    if total > there && !truncated {
        return Err(Kind::Malformed);
    }
    u32::try_from(total).map_err(|_| Kind::Malformed)
}

const fn piece(later: bool, more: bool) -> u8 {
    match (later, more) {
        (true, _) => fragment::LATER,
        (false, true) => fragment::FIRST,
        (false, false) => fragment::WHOLE,
    }
}

/// Options are passed over, but a source route hides where the packet goes.
#[inline(always)]
fn options<W: Window>(window: &W, from: usize, end: usize) -> Result<(), Kind> {
    let end = window.forget(end);
    let mut at = from;
    for _ in 0..OPTIONS {
        at = window.forget(at);
        if at >= end {
            return Ok(());
        }
        let Some([kind]) = window.get::<1>(at) else { return Err(short(window, at, 1)) };
        match kind {
            0 => return Ok(()),
            1 => {
                at += 1;
                continue;
            }
            131 | 137 => return Err(Kind::Unsupported),
            _ => {}
        }
        let Some([length]) = window.get::<1>(at + 1) else { return Err(short(window, at, 2)) };
        if length < 2 || at + usize::from(length) > end {
            return Err(Kind::Malformed);
        }
        at += usize::from(length);
    }
    Ok(())
}

#[inline(always)]
fn walk6<W: Window>(window: &W, at: usize, packet: &mut Packet, truncated: bool) -> Result<usize, Kind> {
    packet.family = 6;
    let Some(ip) = window.get::<40>(at) else { return Err(short(window, at, 40)) };
    packet.source.copy_from_slice(&ip[8..24]);
    packet.destination.copy_from_slice(&ip[24..40]);
    packet.hops = ip[7];
    let payload = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    let said = if payload == 0 && window.large() { 0 } else { payload + 40 };
    packet.total = total(window, at, said, truncated)?;
    if is_mapped(&packet.source) || is_mapped(&packet.destination) {
        return Err(Kind::Malformed);
    }
    extensions(window, at + 40, ip[6], packet)
}

#[inline(always)]
fn extensions<W: Window>(window: &W, from: usize, first: u8, packet: &mut Packet) -> Result<usize, Kind> {
    let mut at = from;
    let mut next = first;
    for step in 0..=EXTENSIONS {
        at = window.forget(at);
        #[expect(clippy::cast_possible_truncation, reason = "it went in as u8 and comes out as it was")]
        let known = window.forget(usize::from(next)) as u8;
        next = known;
        packet.protocol = next;
        let is_extension = matches!(next, 0 | 43 | 44 | 51 | 60);
        if !is_extension {
            // No next header, mobility, host identity, shim6: nothing that could be judged follows.
            return if matches!(next, 59 | 135 | 139 | 140) { Err(Kind::Unsupported) } else { Ok(at) };
        }
        // Behind a later fragment's header lies the middle of something.
        if step == EXTENSIONS || packet.fragment == fragment::LATER {
            return Err(Kind::Unsupported);
        }
        let Some(head) = window.get::<8>(at) else { return Err(short(window, at, 8)) };
        let mut length = (usize::from(head[1]) + 1) * 8;
        match next {
            // Hop-by-hop is the first or wrong.
            0 if step != 0 => return Err(Kind::Malformed),
            // Segments left: the destination is not where the packet goes.
            43 if head[3] != 0 => return Err(Kind::Unsupported),
            44 => {
                if packet.fragment != fragment::WHOLE {
                    return Err(Kind::Malformed);
                }
                let offset = u16::from_be_bytes([head[2], head[3]]);
                packet.fragment = piece(offset & 0xfff8 != 0, offset & 1 != 0);
                packet.fragment_id = u32::from_be_bytes([head[4], head[5], head[6], head[7]]);
                length = 8;
            }
            51 => length = (usize::from(head[1]) + 2) * 4,
            _ => {}
        }
        next = head[0];
        at += length;
    }
    Err(Kind::Unsupported)
}
