//! One set of rules for what an object is, whoever brought it: a manifest on disk or the API server.
//!
//! A document is a [`Value`](value::Value); a *decoder* reads it into an inventory type, with the API server's defaulting and
//! validation, and names the field of what it refuses. *Owners* lead from a pod to the workload that a person knows.

pub(super) mod json;
pub(super) mod metadata;
pub(super) mod names;
pub(super) mod network_policy;
pub(super) mod object;
pub(super) mod owners;
mod serves;
pub(super) mod value;
