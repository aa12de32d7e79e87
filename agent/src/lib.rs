//! The agent: everything of Sekisho that runs in user space on a node.
//!
//! Dependencies point one way: `cli, api, export, detect -> flow -> inventory`, `datapath -> core`,
//! and `daemon` wires them. `policy` and `detect` know neither tokio nor aya.

pub mod api;
pub mod cli;
pub mod daemon;
pub mod datapath;
pub mod detect;
pub mod doctor;
pub mod export;
pub mod flow;
pub mod inventory;
pub mod policy;
pub mod version;
