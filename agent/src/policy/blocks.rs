//! Which `ipBlock` peers an address matches: the CIDRs and their exceptions as one set of nested prefixes, each with the
//! list of selectors that hold for it. The longest prefix that contains an address has the answer.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

/// Selector ids, ascending.
pub(super) type List = Arc<[u32]>;

/// `(selector id, cidr, except)`.
pub(super) type Block<'a> = (u32, &'a IpNet, &'a [IpNet]);

/// By prefix: how many peers of a selector begin to hold there, less those that cease.
type Steps = HashMap<IpNet, Vec<(u32, i32)>>;

/// Prefixes of one compile.
#[derive(Default)]
pub(super) struct Blocks {
    lists: HashMap<IpNet, List>,
    /// Prefix lengths in use, longest first, `[IPv4, IPv6]`.
    lengths: [Vec<u8>; 2],
    nothing: List,
}

impl Blocks {
    /// Several blocks may have one id; it holds where one of them does.
    pub(super) fn of<'a>(blocks: impl Iterator<Item = Block<'a>>) -> Self {
        let mut steps = steps(blocks);
        // In the kernel's map all of IPv4 lies within IPv6, where a short IPv6 prefix would reach it.
        if steps.keys().any(|p| matches!(p, IpNet::V6(_))) {
            steps.entry(IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0))).or_default();
        }
        let mut lists: HashMap<IpNet, List> = HashMap::with_capacity(steps.len());
        let mut known: HashSet<List> = HashSet::new();
        walk(&steps, &mut |prefix, parent, changed, holding| {
            let list = match parent {
                Some(parent) if !changed => lists[&parent].clone(),
                _ => {
                    let list: List = holding.ids().collect();
                    known.get(&list).cloned().unwrap_or(list)
                }
            };
            known.insert(list.clone());
            lists.insert(prefix, list);
            true
        });
        let lengths = [false, true].map(|v6| {
            let mut lengths: Vec<u8> = lists.keys().filter(|p| p.addr().is_ipv6() == v6).map(IpNet::prefix_len).collect();
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
            lengths
        });
        Self { lists, lengths, nothing: List::default() }
    }

    /// The selectors that `address` matches.
    pub(super) fn of_address(&self, address: IpAddr) -> &List {
        for length in &self.lengths[usize::from(address.is_ipv6())] {
            let prefix = IpNet::new_assert(address, *length).trunc();
            if let Some(list) = self.lists.get(&prefix) {
                return list;
            }
        }
        &self.nothing
    }

    /// Every prefix with its selectors.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = (&IpNet, &List)> {
        self.lists.iter()
    }
}

/// What the distinct lists of these blocks weigh together, where each id weighs `weight` of it; no more than `limit` is looked at.
pub(super) fn weigh<'a>(blocks: impl Iterator<Item = Block<'a>>, weight: impl Fn(u32) -> usize, limit: usize) -> usize {
    let mut sum = 0;
    let mut known: HashSet<u64> = HashSet::new();
    walk(&steps(blocks), &mut |_, _, changed, holding| {
        if changed && known.insert(holding.hash) {
            sum += holding.ids().map(&weight).sum::<usize>();
        }
        sum <= limit
    });
    sum
}

fn steps<'a>(blocks: impl Iterator<Item = Block<'a>>) -> Steps {
    let mut steps = Steps::new();
    for (id, cidr, except) in blocks {
        steps.entry(*cidr).or_default().push((id, 1));
        for inner in outermost(except) {
            steps.entry(inner).or_default().push((id, -1));
        }
    }
    steps
}

/// Exceptions that lie in no other one.
fn outermost(except: &[IpNet]) -> Vec<IpNet> {
    let mut sorted = except.to_vec();
    sorted.sort_unstable_by_key(|p| (p.addr(), p.prefix_len()));
    let mut kept: Vec<IpNet> = Vec::with_capacity(sorted.len());
    for inner in sorted {
        if kept.last().is_none_or(|outer| !outer.contains(&inner)) {
            kept.push(inner);
        }
    }
    kept
}

/// Visits every prefix after those that contain it, until told to stop: the prefix, the next longer network around it, whether
/// anything holds there that does not hold around it or the other way round, and what holds.
fn walk(steps: &Steps, visit: &mut dyn FnMut(IpNet, Option<IpNet>, bool, &Holding) -> bool) {
    let mut prefixes: Vec<IpNet> = steps.keys().copied().collect();
    prefixes.sort_unstable_by_key(|p| (p.addr(), p.prefix_len()));
    let mut above: Vec<IpNet> = Vec::new();
    let mut holding = Holding::default();
    for prefix in prefixes {
        while let Some(parent) = above.pop_if(|parent| !parent.contains(&prefix)) {
            for (id, by) in &steps[&parent] {
                holding.step(*id, -by);
            }
        }
        let changed = steps[&prefix].iter().fold(false, |changed, (id, by)| holding.step(*id, *by) || changed);
        if !visit(prefix, above.last().copied(), changed, &holding) {
            return;
        }
        above.push(prefix);
    }
}

/// What holds at a prefix.
#[derive(Default)]
struct Holding {
    /// How many peers of each selector.
    peers: BTreeMap<u32, i32>,
    /// Of the ids.
    hash: u64,
    state: RandomState,
}

impl Holding {
    fn ids(&self) -> impl Iterator<Item = u32> {
        self.peers.iter().filter(|(_, peers)| **peers > 0).map(|(id, _)| *id)
    }

    /// More peers of a selector, or fewer. Whether it is the first one or was the last.
    fn step(&mut self, id: u32, by: i32) -> bool {
        let peers = self.peers.entry(id).or_insert(0);
        let held = *peers > 0;
        *peers += by;
        let changed = held != (*peers > 0);
        if *peers == 0 {
            self.peers.remove(&id);
        }
        if changed {
            self.hash ^= self.state.hash_one(id);
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn blocks(each: &[(u32, &str, &[&str])]) -> Blocks {
        let each: Vec<_> =
            each.iter().map(|(id, cidr, except)| (*id, network(cidr), except.iter().map(|e| network(e)).collect::<Vec<_>>())).collect();
        Blocks::of(each.iter().map(|(id, cidr, except)| (*id, cidr, &**except)))
    }

    fn at(blocks: &Blocks, address: &str) -> Vec<u32> {
        blocks.of_address(address.parse().unwrap()).to_vec()
    }

    #[test]
    fn an_exception_within_an_exception_changes_nothing() {
        let blocks = blocks(&[(1, "10.0.0.0/8", &["10.1.0.0/16", "10.1.2.0/24"]), (2, "10.1.2.0/25", &[])]);
        assert_eq!((at(&blocks, "10.0.0.1"), at(&blocks, "10.1.0.1")), (vec![1], vec![]));
        assert_eq!((at(&blocks, "10.1.2.200"), at(&blocks, "10.1.2.1")), (vec![], vec![2]));
        assert_eq!(at(&blocks, "10.2.0.1"), [1], "what lies behind it is as before");
    }

    #[test]
    fn of_several_peers_of_one_selector_one_is_enough() {
        let blocks =
            blocks(&[(1, "10.0.0.0/8", &["10.1.0.0/16"]), (1, "10.0.0.0/8", &["10.2.0.0/16", "10.1.1.0/24"]), (1, "10.2.3.0/24", &[])]);
        for (address, holds) in
            [("10.0.0.1", true), ("10.1.0.1", true), ("10.1.1.1", false), ("10.2.0.1", true), ("10.2.3.1", true), ("11.0.0.1", false)]
        {
            assert_eq!(at(&blocks, address), if holds { vec![1] } else { vec![] }, "{address}");
        }
    }

    #[test]
    fn lists_that_differ_weigh_what_is_in_them() {
        let (wide, narrow, other, within) = (network("10.0.0.0/8"), network("10.1.0.0/16"), network("10.2.0.0/16"), network("10.1.1.0/24"));
        let blocks = [(1, &wide, &[][..]), (2, &narrow, &[]), (2, &other, &[]), (2, &within, &[])];
        let weighed = |limit| weigh(blocks.into_iter(), |id| if id == 1 { 10 } else { 1 }, limit);
        assert_eq!(weighed(100), 10 + 11, "of the first alone, and of both");
        assert_eq!(weighed(9), 10, "that is enough to know");
    }

    /// A list of its own for every prefix would be 16 million numbers.
    #[test]
    fn equal_lists_are_kept_once() {
        let narrow: Vec<IpNet> = (0..4000u32).map(|n| IpNet::new_assert(IpAddr::V4((0x0a00_0000 + n * 256).into()), 24)).collect();
        let wide = network("0.0.0.0/0");
        let wide = (0..4000).map(|id| (id, &wide, &[][..]));
        let blocks = Blocks::of(wide.chain(narrow.iter().map(|narrow| (7, narrow, &[][..]))));
        let mut lists: Vec<*const u32> = blocks.prefixes().map(|(_, list)| list.as_ptr()).collect();
        lists.sort_unstable();
        lists.dedup();
        assert_eq!((blocks.prefixes().count(), lists.len()), (4001, 1));
    }
}
