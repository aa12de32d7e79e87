//! The protocol `sekisho.v1`: what leaves the agent, over gRPC and as JSON lines.
//!
//! The `.proto` files are the contract; [`json`] writes the same messages as JSON with the same names, and
//! [`Name`] is the one place where an enum's lower-case name is spelled. Nothing here decides or looks up anything.
#![forbid(unsafe_code)]

#[allow(
    missing_docs,
    clippy::pedantic,
    clippy::large_enum_variant,
    clippy::allow_attributes_without_reason,
    reason = "generated; the .proto files hold the comments"
)]
mod v1 {
    tonic::include_proto!("sekisho.v1");
}

mod explain;
pub mod json;
mod name;
pub mod schema;
mod time;

pub use json::{to_json, to_json_line, write_json};
pub use name::Name;
pub use time::{from_nanoseconds, rfc3339, to_nanoseconds};
pub use v1::*;

/// The compiled `.proto` files, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
