//! Port tables: the ports that some rules allow, as prefixes for the kernel's longest-prefix map. Where ranges overlap, the
//! first rule wins, so the prefixes never disagree with the order of rules.

use std::collections::BTreeMap;

/// Ports of one protocol that a rule allows, inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PortRange {
    pub(super) protocol: u8,
    pub(super) first: u16,
    pub(super) last: u16,
}

/// `(protocol, first port of the prefix, bits of the port) -> rule`, ascending.
pub(super) type Table = Vec<(u8, u16, u8, u32)>;

/// The table for `rules`, in the order of their precedence.
pub(super) fn table(rules: &[(u32, Vec<PortRange>)]) -> Table {
    let mut table = Table::new();
    let mut by_protocol: BTreeMap<u8, Vec<(u32, u32, u32)>> = BTreeMap::new();
    for (rule, ranges) in rules {
        for range in ranges {
            let span = (u32::from(range.first), u32::from(range.last) + 1, *rule);
            by_protocol.entry(range.protocol).or_default().push(span);
        }
    }
    for (protocol, spans) in by_protocol {
        let segments = segments(&spans);
        let base = spans.iter().find(|(first, end, _)| *first == 0 && *end == 0x1_0000).map(|(.., rule)| *rule);
        if let Some(rule) = base {
            table.push((protocol, 0, 0, rule));
        }
        prefixes(&segments, 0, 0, base, &mut |port, bits, rule| table.push((protocol, port, bits, rule)));
    }
    table.sort_unstable();
    table.dedup();
    table
}

/// `(first, end, rule)` without overlap, ascending; of two rules the one earlier in `spans` has a port.
fn segments(spans: &[(u32, u32, u32)]) -> Vec<(u32, u32, u32)> {
    let mut edges: Vec<u32> = spans.iter().flat_map(|(first, end, _)| [*first, *end]).collect();
    edges.sort_unstable();
    edges.dedup();
    let mut segments: Vec<(u32, u32, u32)> = Vec::new();
    for pair in edges.windows(2) {
        let (first, end) = (pair[0], pair[1]);
        let Some((.., rule)) = spans.iter().find(|(f, e, _)| *f <= first && end <= *e) else { continue };
        match segments.last_mut() {
            Some(last) if last.1 == first && last.2 == *rule => last.1 = end,
            _ => segments.push((first, end, *rule)),
        }
    }
    segments
}

/// Covers the segments within the prefix `port/bits` with prefixes, leaving out what `inherited` says already.
fn prefixes(segments: &[(u32, u32, u32)], port: u32, bits: u8, inherited: Option<u32>, each: &mut dyn FnMut(u16, u8, u32)) {
    let (first, end) = (port, port + (0x1_0000 >> bits));
    let begin = segments.partition_point(|(_, e, _)| *e <= first);
    let within = &segments[begin..];
    let Some((f, e, rule)) = within.first().filter(|(f, ..)| *f < end) else { return };
    if *f <= first && end <= *e {
        if inherited != Some(*rule) {
            each(u16::try_from(port).unwrap_or_default(), bits, *rule);
        }
        return;
    }
    let half = 0x1_0000 >> (bits + 1);
    prefixes(within, port, bits + 1, inherited, each);
    prefixes(within, port + half, bits + 1, inherited, each);
}
