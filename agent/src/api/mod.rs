//! What a running agent tells over gRPC: `sekisho.v1`, health and reflection.
//!
//! Nouns. An *agent* is what answers; the daemon implements it. *Listeners* are the bound sockets: the Unix socket, which may do
//! everything, and optionally TCP, which may only ask: in plain on loopback, elsewhere under TLS with client certificates. A *selection* is a client's filter, applied here so that a
//! client is sent only what it wants. Every open stream is a reader of the book with a line of its own in the ledger.
//!
//! *Probes* are what a kubelet and Prometheus ask over HTTP: alive, ready, metrics.
//!
//! It decides nothing: what it says comes from the agent and from the book.

mod end;
mod listen;
mod metrics;
mod probes;
mod selection;
mod serve;
mod service;
#[cfg(test)]
mod tests;
mod tls;

use std::sync::Arc;

use sekisho_proto as proto;

use crate::flow::{Book, Header};

pub use end::End;
pub use listen::{BindError, Listeners, bind, check_loopback};
pub use probes::{ProbeError, Probes};
pub use selection::{FilterError, Selection};
pub use serve::{ServeError, serve};
pub use tls::{Tls, TlsError, TlsFiles};

/// What answers. Methods may block for a moment; they are called where that is allowed.
pub trait Agent: Send + Sync + 'static {
    /// Whether every pod is covered and the policy is in force. Cheap: asked every second.
    fn ready(&self) -> bool;
    /// Everything that `sekisho status` shows.
    fn status(&self) -> Result<proto::StatusResponse, Refusal>;
    /// What would be decided, at both ends, and why.
    fn explain(&self, request: &proto::ExplainRequest) -> Result<proto::ExplainResponse, Refusal>;
    /// Names of objects that are known.
    fn names(&self, request: &proto::NamesRequest) -> Result<proto::NamesResponse, Refusal>;
    /// The mode in force.
    fn mode(&self) -> Result<proto::ModeResponse, Refusal>;
    /// Sets the mode.
    fn set_mode(&self, mode: &str) -> Result<proto::ModeResponse, Refusal>;
    /// Every record of this run.
    fn book(&self) -> Arc<Book>;
    /// What every record of this run begins with.
    fn header(&self) -> Arc<Header>;
}

/// Why the agent does not answer a question.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// What was asked about does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The question makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// It cannot be answered now.
    #[error("{0}")]
    Unavailable(String),
}

impl From<Refusal> for tonic::Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotFound(text) => Self::not_found(text),
            Refusal::Invalid(text) => Self::invalid_argument(text),
            Refusal::Unavailable(text) => Self::unavailable(text),
        }
    }
}
