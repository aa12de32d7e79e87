//! Where records go beside the API: sinks, each a reader of the book with its own line in the ledger.
//!
//! Nouns. A *sink* takes records in order and says how many arrived. A *runner* is the thread that feeds one sink from its reader. A sink
//! that cannot write loses its own stream, counted as [`WRITE_ERROR`]; it never holds up the book or another sink.

mod jsonl;
mod runner;

pub use jsonl::{JsonLines, JsonLinesError, Rotation, Target};
pub use runner::{Runner, spawn};

use crate::flow::{Header, Record};

/// Cause of loss: the sink could not write.
pub const WRITE_ERROR: &str = "write_error";

/// What a sink did with a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many of the batch arrived, counted from its first.
    pub delivered: u64,
    /// How many are given up; the rest stays the sink's and is settled later.
    pub lost: u64,
}

/// Takes records.
pub trait Sink: Send {
    /// Name in the ledger.
    fn name(&self) -> &str;
    /// Takes a batch. Must settle every record of it, in order: `delivered + lost` is its length.
    fn write(&mut self, batch: &[Record], header: &Header) -> Outcome;
    /// Called when there is nothing to write, and at least every 100 ms, so that nothing stays in a buffer.
    fn flush(&mut self);
}
