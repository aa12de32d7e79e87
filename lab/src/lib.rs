//! A node in a box.

pub mod programs;
