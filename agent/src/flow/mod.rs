//! The record: who talked to whom, judged how and why, enriched once and frozen.
//!
//! Nouns. An *identity* is what was true of an address' owner at capture. The *journal* numbers identities
//! (instances) and survives restarts in a pinned map. The *book* is the numbered sequence of all records, a ring in memory that every
//! sink and client reads at its own pace. The *ledger* proves that nothing is missing.

mod record;

pub use record::{Body, Explanation, FlowRecord, Identity, Moment, Owner, ProcessInfo, Record};
