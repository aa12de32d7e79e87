//! A client's filter, checked once and then applied to every record before it is projected.
//!
//! A *pattern* is one checked filter. A *selection* is the pattern that a record has to match, and those that it must not match.

mod ends;
mod pattern;

use std::sync::Arc;

use sekisho_proto as proto;

use crate::flow::{self, Record};

use pattern::Pattern;

/// A filter that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Neither address nor CIDR.
    #[error("`{0}` is neither an address nor a CIDR")]
    Network(String),
    /// No pod's name.
    #[error("`{0}` is not NAMESPACE/POD")]
    Pod(String),
    /// No name of a Service or policy.
    #[error("`{0}` is not NAMESPACE/NAME")]
    Name(String),
    /// No workload's name.
    #[error("a workload needs a name")]
    Workload,
    /// No label selector.
    #[error(transparent)]
    Selector(#[from] crate::inventory::SelectorError),
    /// No port.
    #[error("{0} is not a port")]
    Port(u32),
    /// No protocol.
    #[error("`{0}` is not a protocol: give TCP, UDP, SCTP, ICMP, ICMPv4, ICMPv6 or a number")]
    Protocol(String),
    /// A number without meaning.
    #[error("{0} is not a kind of record, a verdict or a reason")]
    Unknown(i32),
}

/// Filters, ready for use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    wanted: Pattern,
    unwanted: Vec<Pattern>,
    /// Nothing made later than this moment, nanoseconds since 1970 UTC.
    until: Option<u64>,
}

impl Selection {
    /// Checks a filter.
    pub fn new(filter: &proto::Filter) -> Result<Self, FilterError> {
        Ok(Self { wanted: Pattern::new(filter)?, ..Self::default() })
    }

    /// Without what matches one of these filters.
    pub fn without(self, filters: &[proto::Filter]) -> Result<Self, FilterError> {
        Ok(Self { unwanted: filters.iter().map(Pattern::new).collect::<Result<_, _>>()?, ..self })
    }

    /// Of alerts alone, whatever kinds the filter names.
    #[must_use]
    pub fn of_alerts(self) -> Self {
        Self { wanted: self.wanted.of_alerts(), ..self }
    }

    /// Nothing made later than a moment, nanoseconds since 1970 UTC.
    #[must_use]
    pub fn until(self, until: Option<u64>) -> Self {
        Self { until, ..self }
    }

    /// The filter as the book takes it; `None` where everything passes.
    pub fn filter(self) -> Option<flow::Filter> {
        if self == Self::default() { None } else { Some(Arc::new(move |record| self.passes(record))) }
    }

    /// Whether a record passes.
    pub fn passes(&self, record: &Record) -> bool {
        self.until.is_none_or(|until| record.time_ns <= until)
            && self.wanted.wants(record)
            && !self.unwanted.iter().any(|pattern| pattern.describes(record))
    }
}
