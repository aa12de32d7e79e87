//! What is missing on this node, and what that costs: looked at, said, and nothing changed.
//!
//! Nouns. A *finding* is one thing that was looked at, with what was found. Its *state* says whether it is as it should be. What
//! cannot be looked at with the rights at hand is a finding as well, never a guess.

mod cni;
mod kernel;
mod node;
mod rights;
#[cfg(test)]
mod tests;

use std::path::Path;

use crate::inventory::kube::Access;

/// Whether a thing is as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// It is.
    Good,
    /// Worth knowing; nothing is lost.
    Note,
    /// Something is missing that costs something.
    Lack,
    /// The agent cannot run here.
    Fatal,
}

impl State {
    /// One word.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Note => "note",
            Self::Lack => "lack",
            Self::Fatal => "fatal",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What: `kernel`, `btf`, ...
    pub check: &'static str,
    /// How it is.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What it costs.
    pub cost: Option<String>,
    /// What to do.
    pub remedy: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn good(check: &'static str, found: impl Into<String>) -> Self {
        Self { check, state: State::Good, found: found.into(), cost: None, remedy: None }
    }

    /// Worth knowing.
    pub fn note(check: &'static str, found: impl Into<String>) -> Self {
        Self { state: State::Note, ..Self::good(check, found) }
    }

    /// Something is missing, and costs this.
    pub fn lack(check: &'static str, found: impl Into<String>, cost: impl Into<String>) -> Self {
        Self { state: State::Lack, cost: Some(cost.into()), ..Self::good(check, found) }
    }

    /// The agent cannot run here.
    pub fn fatal(check: &'static str, found: impl Into<String>, cost: impl Into<String>) -> Self {
        Self { state: State::Fatal, ..Self::lack(check, found, cost) }
    }

    /// With what to do.
    #[must_use]
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }
}

/// Everything that can be seen without asking the agent.
pub fn examine(pin_dir: &Path, access: Option<&Access>) -> Vec<Finding> {
    let mut findings = kernel::examine();
    findings.extend(node::examine(pin_dir));
    findings.extend(cni::examine(pin_dir));
    findings.extend(rights::examine(access));
    findings
}
