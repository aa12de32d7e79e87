//! What Sekisho knows about packets, flows and verdicts, without knowing where it runs.
//!
//! The same functions run in the kernel (called by the thin shells in `ebpf/`), in user space, and
//! under property tests. Nothing here allocates, knows aya, tokio or Kubernetes, or uses `unsafe`.
//!
//! Nouns: an *endpoint* is one pod as seen at one hook; a *flow* is one conversation of an endpoint,
//! written from the endpoint's side (local, remote); *egress* is what the endpoint sends.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![allow(
    clippy::inline_always,
    reason = "the verifier must see every bound: a function that is not inlined is verified by itself, and may take no packet pointer"
)]

pub mod counters;
pub mod ends;
pub mod flows;
pub mod layout;
pub mod parse;
pub mod tcp;
pub mod verdict;
