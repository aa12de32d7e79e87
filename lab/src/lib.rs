//! A node in a box: real namespaces, veths, addresses, cgroups and processes, made for one test or demo and
//! removed with it.
//!
//! Nouns: a [`Lab`] is one node with its uplink, its bpffs directory, its cgroups and its manifests folder. A
//! [`Place`] is somewhere a process can run: the node, the outside, or a [`Pod`]. An [`Agent`] is the real
//! binary started on the node; a [`Sniffer`] counts what really passed at one end. The programs that run
//! inside the places (servers, clients, scanners) are subcommands of this crate's own binary, see [`tool`].
//!
//! Nothing here imitates the kernel, and nothing here knows how the agent is built: it is driven through its
//! command line alone. Everything has the lab's name in it and lies below two directories, so that
//! [`sweep`] can remove what a killed test left behind.

mod agent;
pub mod cgroup;
mod edits;
mod lab;
mod manifest;
pub mod netlink;
mod netns;
mod place;
mod pod;
pub mod programs;
pub mod raw;
mod short_cut;
mod sniffer;
mod starts;
pub mod sweep;
mod sys;
pub mod tool;
mod witness;

pub use agent::use_programs;
pub use agent::{Agent, AgentOptions};
pub use edits::edit_delays;
pub use lab::{Lab, NODE_NAME, app};
pub use netns::Netns;
pub use place::{Finished, Place, Running, until};
pub use pod::{CgroupLayout, Layout, Pod, PodSpec};
pub use short_cut::ShortCut;
pub use sniffer::{Count, Flow, Heading, Sniffer, counts_are_the_wires, sum};
pub use starts::{Start, Starts, first, newcomer, starts};
pub use sys::{asking, go_first, insmod, interrupted, is_root, kill, mount, on_interrupt, power_off};
pub use witness::Witness;
