//! Port tables: the ports that some rules allow, as prefixes for the kernel's longest-prefix map. Where ranges overlap, the
//! first rule wins, so the prefixes never disagree with the order of rules.

use std::collections::{BTreeMap, BTreeSet};

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
    let begins = spans.iter().enumerate().map(|(index, (first, ..))| (*first, true, index));
    let ends = spans.iter().enumerate().map(|(index, (_, end, _))| (*end, false, index));
    let mut edges: Vec<(u32, bool, usize)> = begins.chain(ends).collect();
    edges.sort_unstable();
    let mut segments: Vec<(u32, u32, u32)> = Vec::new();
    let mut open: BTreeSet<usize> = BTreeSet::new();
    let mut from = 0;
    for (port, begins, index) in edges {
        if from < port
            && let Some(first) = open.first()
        {
            let (.., rule) = spans[*first];
            match segments.last_mut() {
                Some(last) if last.1 == from && last.2 == rule => last.1 = port,
                _ => segments.push((from, port, rule)),
            }
        }
        from = port;
        if begins {
            open.insert(index);
        } else {
            open.remove(&index);
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_first_rule_has_a_port(spans in proptest::collection::vec((0u32..40, 1u32..12), 0..12)) {
            let spans: Vec<_> = (1..).zip(spans).map(|(rule, (first, length))| (first, first + length, rule)).collect();
            let segments = segments(&spans);
            for port in 0..60 {
                let holds = |(first, end, _): &&(u32, u32, u32)| (*first..*end).contains(&port);
                let said: Vec<_> = segments.iter().filter(holds).map(|(.., rule)| *rule).collect();
                prop_assert_eq!(said, spans.iter().find(holds).map(|(.., rule)| *rule).into_iter().collect::<Vec<_>>(), "{}", port);
            }
            prop_assert!(segments.windows(2).all(|pair| pair[0].1 <= pair[1].0));
        }
    }

    /// Whoever may write policies must not be able to keep the node busy: this is ten policies as large as the API server takes.
    #[test]
    fn hundreds_of_thousands_of_ports_take_no_time() {
        let ports = |rule: u16| (0..40_000).map(|n: u16| PortRange { protocol: 6, first: n + rule, last: n + rule }).collect();
        let rules: Vec<_> = (1..=10).map(|rule| (u32::from(rule), ports(rule))).collect();
        let began = std::time::Instant::now();
        let table = table(&rules);
        assert!(!table.is_empty() && began.elapsed() < std::time::Duration::from_secs(10), "{:?}", began.elapsed());
    }
}
