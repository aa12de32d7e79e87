//! Judgements over small tables.

use std::collections::HashMap;

use super::{Question, Tables, judge, settle};
use crate::layout::{
    Address, AddressEntry, EGRESS, HAIRPIN, INGRESS, Rules, Vip, address_flags, endpoint_flags, flow_flags, mode, reason, verdict,
};
use crate::parse::{mapped, protocol};

#[derive(Default)]
struct Small {
    addresses: HashMap<Address, AddressEntry>,
    rules: HashMap<(u32, u32, u8), Rules>,
    ports: HashMap<(u32, u8, u16), u32>,
    vips: HashMap<(Address, u16, u8), Vip>,
    everywhere: u32,
}

impl Tables for Small {
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        self.addresses.get(address).copied()
    }
    fn cidr(&self, _: &Address) -> Option<u32> {
        Some(self.everywhere)
    }
    fn vip(&self, address: &Address, port: u16, protocol: u8) -> Option<Vip> {
        self.vips.get(&(*address, port, protocol)).copied()
    }
    fn rules(&self, set: u32, class: u32, direction: u8) -> Option<Rules> {
        self.rules.get(&(set, class, direction)).copied()
    }
    fn port(&self, table: u32, protocol: u8, port: u16) -> Option<u32> {
        self.ports.get(&(table, protocol, port)).copied()
    }
}

const PEER: Address = mapped([10, 0, 0, 9]);

fn question(direction: u8, number: u8, port: u16) -> Question<'static> {
    let both = endpoint_flags::ISOLATED_EGRESS | endpoint_flags::ISOLATED_INGRESS;
    Question { set: 1, instance: 7, endpoint_flags: both, remote: &PEER, protocol: number, port, direction, own_node: false }
}

#[test]
fn ports_match_only_protocols_that_have_them() {
    let mut tables = Small::default();
    tables.addresses.insert(PEER, AddressEntry { class: 4, instance: 8, flags: address_flags::POD });
    tables.rules.insert((1, 4, EGRESS), Rules::new(0, 2));
    tables.ports.insert((2, protocol::TCP, 80), 11);
    tables.ports.insert((2, protocol::ICMP4, 0), 12);
    assert_eq!(judge(&tables, &question(EGRESS, protocol::TCP, 80)).rule, 11);
    assert_eq!(judge(&tables, &question(EGRESS, protocol::TCP, 81)).allowed, 0);
    assert_eq!(judge(&tables, &question(EGRESS, protocol::ICMP4, 0)).allowed, 0);
    assert_eq!(judge(&tables, &question(INGRESS, protocol::TCP, 80)).allowed, 0);
    let free = Question { endpoint_flags: 0, ..question(INGRESS, protocol::TCP, 80) };
    assert_eq!((judge(&tables, &free).allowed, judge(&tables, &free).remote_instance), (1, 8));
}

#[test]
fn ports_in_the_row_come_before_the_port_table() {
    let mut tables = Small::default();
    tables.addresses.insert(PEER, AddressEntry { class: 4, instance: 8, flags: address_flags::POD });
    let rules = Rules { rule: [11, 12], port: [80, 53], protocol: [protocol::TCP, protocol::UDP], ..Rules::new(0, 2) };
    tables.rules.insert((1, 4, EGRESS), rules);
    tables.ports.insert((2, protocol::TCP, 80), 99);
    tables.ports.insert((2, protocol::TCP, 443), 13);
    let rule = |number, port| judge(&tables, &question(EGRESS, number, port)).rule;
    assert_eq!([rule(protocol::TCP, 80), rule(protocol::UDP, 53), rule(protocol::TCP, 443)], [11, 12, 13]);
    assert_eq!([rule(protocol::UDP, 80), rule(protocol::TCP, 53), rule(protocol::ICMP4, 0)], [0; 3]);
}

#[test]
fn the_own_node_reaches_its_pods_and_nobody_borrows_that() {
    let mut tables = Small::default();
    tables.addresses.insert(PEER, AddressEntry { class: 0, instance: 3, flags: address_flags::NODE });
    let forwarded = judge(&tables, &question(INGRESS, protocol::TCP, 80));
    assert_eq!((forwarded.allowed, forwarded.flags & flow_flags::HIDDEN_BY_SNAT), (0, flow_flags::HIDDEN_BY_SNAT));
    let local = Question { own_node: true, ..question(INGRESS, protocol::TCP, 80) };
    assert_eq!((judge(&tables, &local).allowed, judge(&tables, &local).flags & flow_flags::OWN_NODE), (1, flow_flags::OWN_NODE));
    let out = Question { own_node: true, ..question(EGRESS, protocol::TCP, 80) };
    assert_eq!(judge(&tables, &out).allowed, 0, "egress to the own node is judged");
}

#[test]
fn a_service_is_judged_as_its_backends() {
    let mut tables = Small::default();
    tables.addresses.insert(PEER, AddressEntry { class: 0, instance: 0, flags: address_flags::SERVICE });
    tables.vips.insert((PEER, 80, protocol::TCP), Vip { class: 6, instance: 30 });
    tables.rules.insert((1, 6, EGRESS), Rules::new(21, 0));
    let answer = judge(&tables, &question(EGRESS, protocol::TCP, 80));
    assert_eq!((answer.rule, answer.remote_instance, answer.class), (21, 30, 6));
    assert_eq!(judge(&tables, &question(EGRESS, protocol::TCP, 81)).allowed, 0);
}

#[test]
fn modes_soften_denials() {
    assert_eq!(settle(false, 0, mode::ENFORCE), (verdict::DENIED, reason::DEFAULT_DENY));
    assert_eq!(settle(false, 0, mode::AUDIT), (verdict::AUDIT, reason::DEFAULT_DENY));
    assert_eq!(settle(false, 0, mode::OBSERVE), (verdict::ALLOWED, 0));
    assert_eq!(settle(true, reason::FRAGMENT, mode::ENFORCE), (verdict::ALLOWED, 0));
}

/// The row is the pod's own: neither another pod of its set has it, nor does it hold for an address that is no Service's.
#[test]
fn a_pod_may_use_a_service_that_it_is_behind_itself() {
    let mut tables = Small::default();
    tables.addresses.insert(PEER, AddressEntry { class: 0, instance: 0, flags: address_flags::SERVICE });
    tables.vips.insert((PEER, 80, protocol::TCP), Vip { class: 5, instance: 9 });
    tables.rules.insert((7, 5, HAIRPIN), Rules::new(0, 0));
    let own = judge(&tables, &question(EGRESS, protocol::TCP, 80));
    assert_eq!((own.allowed, own.rule, own.flags & flow_flags::SERVICE), (1, 0, flow_flags::SERVICE));
    let other = Question { instance: 8, ..question(EGRESS, protocol::TCP, 80) };
    assert_eq!(judge(&tables, &other).allowed, 0);
    assert_eq!(judge(&tables, &question(EGRESS, protocol::TCP, 81)).allowed, 0);
    assert_eq!(judge(&tables, &question(INGRESS, protocol::TCP, 80)).allowed, 0);
    tables.rules.insert((7, 5, HAIRPIN), Rules::new(3, 0));
    assert_eq!(judge(&tables, &question(EGRESS, protocol::TCP, 80)).rule, 3, "of the others behind it");
    tables.addresses.insert(PEER, AddressEntry { class: 5, instance: 9, flags: address_flags::POD });
    assert_eq!(judge(&tables, &question(EGRESS, protocol::TCP, 80)).allowed, 0);
}

#[test]
fn of_a_class_that_no_rule_names_the_rules_for_everyone_hold() {
    let mut tables = Small::default();
    tables.addresses.insert(PEER, AddressEntry { class: 4, instance: 8, flags: address_flags::POD });
    tables.rules.insert((1, 0, EGRESS), Rules::new(6, 0));
    assert_eq!(judge(&tables, &question(EGRESS, protocol::TCP, 80)).rule, 6);
    assert_eq!(judge(&tables, &question(INGRESS, protocol::TCP, 80)).allowed, 0);
    tables.rules.insert((1, 4, EGRESS), Rules::new(5, 0));
    assert_eq!(judge(&tables, &question(EGRESS, protocol::TCP, 80)).rule, 5, "a row of its own says all");
    tables.rules.insert((1, 4, EGRESS), Rules::new(0, 0));
    assert_eq!(judge(&tables, &question(EGRESS, protocol::TCP, 80)).allowed, 0, "also that there is nothing");
}
