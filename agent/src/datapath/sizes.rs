//! How one memory budget becomes the sizes of all maps.
//!
//! Map memory counts against the container's limit, so one number bounds it. Flow tables get most of it. An estimate
//! per entry includes the kernel's element header and the bucket.

/// Bytes per entry of a flow table: header, key, value, bucket, rounded as the allocator does.
const FLOW: u64 = 272;
/// LRU maps keep free lists per CPU: below this per CPU they evict what is in use.
const LRU_PER_CPU: u64 = 256;
/// Endpoints of one node.
pub(super) const ENDPOINTS: u32 = 1024;
/// The least budget that makes sense.
pub const LEAST_BUDGET: u64 = 8 << 20;

/// Sizes of all maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    /// `(map, maximum of entries)`.
    pub(super) entries: Vec<(&'static str, u32)>,
    /// Bytes of each CPU's ring: a power of two.
    pub(super) ring: u32,
    /// Established IPv4 flows; caps per endpoint are parts of it.
    pub(super) established: u32,
    /// Answered IPv4 flows.
    pub(super) answered: u32,
}

impl Sizes {
    /// Denied flows per second that one endpoint may have remembered, for what it sends and for what others send. They share a
    /// table with flows that wait for their answer: whoever floods a pod takes four seconds to go once through the smaller one.
    pub(super) fn denied_rate(&self) -> u32 {
        self.of("EMBRYONIC6") / 4
    }

    /// How many of them at once.
    pub(super) fn denied_burst(&self) -> u32 {
        self.of("EMBRYONIC6") / 2
    }

    /// Closed flows of one endpoint that may wait for their removal at a time.
    pub(super) fn closing_share(&self) -> u32 {
        self.of("CLOSING") / 4
    }

    fn of(&self, map: &str) -> u32 {
        self.entries.iter().find(|(name, _)| *name == map).map_or(0, |(_, entries)| *entries)
    }
}

/// Divides `budget` bytes among the maps of a machine with `cpus` possible CPUs.
pub(super) fn plan(budget: u64, cpus: u32, page: u32) -> Sizes {
    let budget = budget.max(LEAST_BUDGET);
    let share = |percent: u64, bytes: u64| budget / 100 * percent / bytes;
    let lru = |percent, bytes| clamp(share(percent, bytes).max(LRU_PER_CPU * u64::from(cpus)));
    let hash = |percent, bytes| clamp(share(percent, bytes).max(1024));
    let established = hash(23, FLOW);
    let answered = lru(9, FLOW);
    let entries = vec![
        ("EMBRYONIC4", lru(12, FLOW)),
        ("EMBRYONIC6", lru(4, FLOW)),
        ("ESTABLISHED4", established),
        ("ESTABLISHED6", hash(11, FLOW)),
        ("ANSWERED4", answered),
        ("ANSWERED6", lru(5, FLOW)),
        ("FRAGMENTS", lru(1, 112)),
        ("ENDPOINTS", ENDPOINTS),
        ("ENDPOINT_STATES", ENDPOINTS),
        ("ENDPOINT_SWEPT", ENDPOINTS),
        ("CONTACTS", ENDPOINTS),
        ("CG_ENDPOINTS", ENDPOINTS),
        // Pods that are gone leave a little later than new ones come.
        ("LIVE", 2 * ENDPOINTS),
        // One connection each, for as long as a system call takes.
        ("HELD_SOCKETS", lru(0, 88)),
        // Two families of 50,000 pods at 128 MiB; beyond that the compiler leaves out whom no policy tells apart.
        ("ADDRESSES", hash(8, 112)),
        ("CIDRS", hash(2, 80)),
        ("VIPS", hash(2, 112)),
        // Only those that go on against what their Service has become.
        ("BACKENDS", hash(1, 128)),
        ("RULES", hash(4, 112)),
        ("PORTS", hash(2, 80)),
        ("SOCKETS", lru(4, 112)),
        ("LISTENERS", lru(1, 112)),
        ("CLOSING", clamp(share(1, 48).max(4096))),
        ("JOURNAL", hash(3, 584)),
        ("OWNED", ENDPOINTS),
    ];
    Sizes { entries, ring: ring(budget / 100 * 7 / u64::from(cpus.max(1)), page), established, answered }
}

fn clamp(entries: u64) -> u32 {
    u32::try_from(entries.min(1 << 24)).unwrap_or(1 << 24)
}

/// The power of two at or below `bytes`, within what a ring may reasonably be.
fn ring(bytes: u64, page: u32) -> u32 {
    let bytes = u32::try_from(bytes.clamp(64 << 10, 4 << 20)).unwrap_or(4 << 20);
    (1 << bytes.ilog2()).max(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(sizes: &Sizes, name: &str) -> u32 {
        sizes.entries.iter().find(|(map, _)| *map == name).unwrap().1
    }

    #[test]
    fn flow_tables_stay_within_their_share_of_the_budget() {
        let sizes = plan(128 << 20, 2, 4096);
        let flows: u64 = ["EMBRYONIC4", "EMBRYONIC6", "ESTABLISHED4", "ESTABLISHED6", "ANSWERED4", "ANSWERED6"]
            .iter()
            .map(|name| u64::from(entries(&sizes, name)) * FLOW)
            .sum();
        assert!(flows <= (128 << 20) * 69 / 100, "{flows}");
        assert_eq!(sizes.ring, 4 << 20);
    }

    #[test]
    fn a_tiny_budget_still_gives_usable_maps() {
        let sizes = plan(0, 128, 4096);
        assert!(sizes.entries.iter().all(|(_, entries)| *entries >= 1024));
        assert!(entries(&sizes, "EMBRYONIC4") >= 256 * 128);
        assert_eq!(sizes.ring, 64 << 10);
    }
}
