//! The kernel programs on the real kernel, packet by packet. Needs root.

mod connections;
mod diagnostics;
mod epochs;
mod errors;
mod forged;
mod frames;
mod headers;
mod limits;
mod node;
mod pieces;

use sekisho_lab::programs::Skb;

#[test]
fn every_program_loads() {
    let node = node::empty();
    for name in node.names() {
        println!("{name}: {} instructions verified", node.verified(&name).expect("has info"));
    }
    assert_eq!(node.names().len(), 15);
    let outcome = node.run("clock", &[0; 64], Skb::default(), 1).expect("runs");
    assert_eq!(outcome.code, 0);
    let clock: sekisho_core::layout::Clock = node.get("CLOCK", &0u32).expect("reads").expect("is there");
    assert!(clock.boot_ns > 0 && clock.jiffies > 0);
}
