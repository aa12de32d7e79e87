//! The kernel programs on the real kernel, packet by packet. Needs root.

mod connections;
mod diagnostics;
mod epochs;
mod errors;
mod forged;
mod frames;
mod headers;
mod limits;
mod neighbours;
mod node;
mod pieces;
mod senders;
mod sockets;

use sekisho_core::layout::{Process, SocketFrame};
use sekisho_lab::programs::Skb;
use zerocopy::{FromZeros, IntoBytes};

#[test]
fn every_program_loads() {
    let node = node::empty();
    for name in node.names() {
        let verified = node.verified(&name).expect("has info");
        println!("{name}: {verified} instructions verified");
        // Each kernel's verifier counts for itself: 6.1 finds some 3 % more than 6.18, for which `cargo xtask bench datapath` has the bar.
        assert!(verified < 31_500, "{name}: {verified} instructions verified");
    }
    assert_eq!(node.names().len(), 19);
    let outcome = node.run("clock", &[0; 64], Skb::default(), 1).expect("runs");
    assert_eq!(outcome.code, 0);
    let clock: sekisho_core::layout::Clock = node.get("CLOCK", &0u32).expect("reads").expect("is there");
    assert!(clock.boot_ns > 0 && clock.jiffies > 0);
}

/// Whole frames and parts of one: the odd sockets are known.
#[test]
fn sockets_are_named_by_the_frame() {
    let node = node::empty();
    let user =
        |cookie: u64| Process { cgroup: 7, pid: u32::try_from(cookie).expect("small") + 100, uid: 3, comm: *b"somebody\0\0\0\0\0\0\0\0" };
    let mut frame = SocketFrame::new_zeroed();
    for (cookie, query) in (1..).zip(&mut frame.queries) {
        query.cookie = cookie;
        if cookie % 2 == 1 {
            node.put("SOCKETS", &cookie, &user(cookie)).expect("fits");
        }
    }
    let head = size_of_val(&frame.link);
    for count in [1, 7, frame.queries.len()] {
        let asked = &frame.as_bytes()[..head + count * size_of_val(&frame.queries[0])];
        let mut told = SocketFrame::new_zeroed();
        told.as_mut_bytes()[..asked.len()].copy_from_slice(&node.rewritten("sockets", asked).expect("runs"));
        for (cookie, query) in (1..).zip(&told.queries[..count]) {
            let expected = if cookie % 2 == 1 { user(cookie) } else { Process::ZERO };
            assert_eq!((query.cookie, query.process), (cookie, expected));
        }
    }
}
