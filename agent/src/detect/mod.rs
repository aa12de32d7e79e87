//! Detections: contacts in, alerts out. What no NetworkPolicy can see.
//!
//! Nouns. A *contact* is one attempt of a source to reach a target at a port and what came of it; it *failed* if it was
//! refused, denied or stayed silent. A *source* is a workload, never an address, or an address that no workload has. A *kind* is a row of data and
//! one small function. An *incident* is everything that one alert is about, from its opening until it was quiet for long; its id stays.
//!
//! The node that hosts the source decides; a target's node only where the source is outside, a node, or a pod of its own, whose contacts
//! are a set, so that both ends may tell the same. Everything runs on packet time. No tokio, no aya, no I/O.

mod contact;
mod declared;
mod engine;
mod handover;
mod history;
mod incident;
mod keyed;
mod kinds;
mod processes;
mod state;
mod ulid;
mod walk;
mod window;
mod witness;

pub use contact::{Contact, Outcome, Party};
pub use engine::Detector;
pub use state::State;

/// Name of every kind of alert.
pub fn rules() -> impl Iterator<Item = &'static str> {
    kinds::KINDS.iter().map(|kind| kind.name)
}

#[cfg(test)]
mod client_tests;
#[cfg(test)]
mod handover_tests;
#[cfg(test)]
mod tests;
