//! The protocol `sekisho.v1`: what leaves the agent, over gRPC and as JSON lines.
#![forbid(unsafe_code)]

#[allow(missing_docs, clippy::pedantic, reason = "generated; the .proto files hold the comments")]
mod v1 {
    tonic::include_proto!("sekisho.v1");
}

pub use v1::*;

/// The compiled `.proto` files, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
