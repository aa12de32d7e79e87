//! The record: who talked to whom, judged how and why, enriched once and frozen.
//!
//! Nouns. An *identity* is what was true of an address' owner at capture. The *journal* numbers identities
//! (instances) and survives restarts in a pinned map. The *book* is the numbered sequence of all records, a ring in memory that every
//! sink and client reads at its own pace. The *ledger* proves that nothing is missing.

mod attribution;
mod book;
mod clock;
mod community;
mod conn_state;
mod directory;
mod engine;
mod idle;
mod journal;
mod journal_entry;
mod ledger;
mod number;
mod project;
mod recent;
mod record;
mod slots;
mod sweep;
mod tally;
mod waiting;
mod written;

pub use attribution::{Explainer, Kernel, address, destination_port, has_ports};
pub use book::{Book, DEFAULT_CAPACITY, Filter, Line, Past, Reader, SLOW, SinkTotals, Start};
pub use clock::Now;
pub use community::{Side, community_id};
pub use conn_state::{conn_state, flag, letters};
pub use directory::{Directory, Holding, LATE_NS, TOMBSTONE_NS};
pub use engine::{Context, EndpointView, Engine, Settings, Sighting, Witness};
pub use idle::{Idle, UDP_NS, UDP_STREAM_NS};
pub use journal::Journal;
pub use journal_entry::{RunState, StoredIdentity};
pub use ledger::{FlowTally, KernelTally, Ledger, imbalance};
pub use number::{BootSeed, NumberHasher, NumberMap};
pub use project::{Header, flow_id_text, mac_text, pod, policy_ref, policy_rule, process, project, protocol_name, timestamp};
pub use record::{Body, Explanation, FlowRecord, Identity, Moment, Owner, ProcessInfo, Record};
pub use sekisho_core::flows::{Sweep, Table};
pub use tally::{Family, Key, Labels, Tally, Volume};
pub use waiting::{Dialled, NAME_NS, Translated};
pub use written::JournalStore;

#[cfg(test)]
mod attribution_tests;
#[cfg(test)]
mod book_tests;
#[cfg(test)]
mod engine_tests;
#[cfg(test)]
mod journal_tests;
#[cfg(test)]
mod judged_again_tests;
#[cfg(test)]
mod project_tests;
#[cfg(test)]
mod tally_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod waiting_tests;
