//! Builds for looking into the programs themselves: rare paths say what they met, usual ones say nothing.

use sekisho_core::layout::{Config, Endpoint, EndpointState, mode};
use sekisho_lab::programs::{Programs, Skb, object, talking_object};

use super::frames::{self, Who};

#[test]
fn rare_paths_say_what_they_met() {
    let mut programs = Programs::load(&talking_object().expect("builds"), 1 << 16, &[]).expect("the verifier agrees");
    let mut listener = programs.listen().expect("has a voice");
    programs.put("CONFIG", &0u32, &Config { epoch: 1, mode: mode::ENFORCE, hz: 250, ..Config::ZERO }).expect("writes");
    programs.put("ENDPOINT_STATES", &0u32, &EndpointState::ZERO).expect("writes");
    programs.put("ENDPOINTS", &1u32, &Endpoint::ZERO).expect("writes");
    let run = |packet: &[u8]| programs.run("pod_egress", &frames::frame(true, packet), Skb::default(), 1).expect("runs");

    let (from, to) = (Who::Pod.address(false), Who::Peer.address(false));
    let whole = frames::ip(from, to, 17, &frames::datagram(5000, 53, 32));
    run(&whole);
    assert_eq!(listener.said(), [""; 0], "an ordinary packet is no news");

    let mut broken = whole;
    // A header of four bytes.
    broken[0] = 0x41;
    run(&broken);
    let said = listener.said();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("endpoint 1: ") && said[0].ends_with(" bytes that cannot be read"), "{said:?}");
}

#[test]
fn what_is_released_has_no_voice() {
    let mut programs = Programs::load_some(&object().expect("builds"), &["clock"], 1 << 16, &[]).expect("loads");
    assert!(programs.listen().is_err());
}
