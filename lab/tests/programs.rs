//! The kernel programs on the real kernel, packet by packet. Needs root.

use sekisho_lab::programs::{Programs, Skb, object};

#[test]
fn every_program_loads() {
    let programs = Programs::load(&object().expect("builds"), 1 << 16, &[]).expect("loads");
    for name in programs.names() {
        println!("{name}: {} instructions verified", programs.verified(&name).expect("has info"));
    }
    assert_eq!(programs.names().len(), 11);
    let outcome = programs.run("clock", &[0; 64], Skb::default(), 1).expect("runs");
    assert_eq!(outcome.code, 0);
    let clock: sekisho_core::layout::Clock = programs.get("CLOCK", &0u32).expect("reads").expect("is there");
    assert!(clock.boot_ns > 0 && clock.jiffies > 0);
}
