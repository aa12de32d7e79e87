//! What user space calls the flow tables, whichever family, and what may become of an entry.

/// A table of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Table {
    /// Not answered yet, and denied flows. Evicts.
    Embryonic,
    /// TCP. Does not evict.
    Established,
    /// Datagrams that got a reply. Evicts.
    Answered,
}

/// What becomes of a table's entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sweep {
    /// It stays.
    Keep,
    /// It is over: to be removed, and its final totals told.
    Remove,
}
