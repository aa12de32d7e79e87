//! A node in a box.
