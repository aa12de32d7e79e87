//! What is said of what was found; the looking itself is tested on the real kernel.

use std::collections::BTreeMap;

use super::*;
use crate::datapath::probe::{Interface, Neighbour, ProgramOwner};
use crate::inventory::kube::Right;

fn interface(name: &str) -> Interface {
    Interface { name: name.to_owned(), kind: "veth".to_owned(), leads_out: true }
}

fn neighbour(first: bool) -> Neighbour {
    Neighbour { interface: "veth1".to_owned(), hook: "tcx", program: "cil_from_container".to_owned(), first, owner: ProgramOwner::Foreign }
}

#[test]
fn old_kernels_cannot_run_it_and_untested_ones_are_named() {
    assert_eq!(kernel::version(Some((5, 14)), "5.14.0").state, State::Fatal);
    assert_eq!(kernel::version(Some((5, 15)), "5.15.0").state, State::Note);
    assert_eq!(kernel::version(Some((6, 1)), "6.1.0").state, State::Good);
    assert_eq!(kernel::version(None, "x").state, State::Note);
}

#[test]
fn missing_capabilities_are_named_and_sys_admin_stands_for_two() {
    let of = |mask: &str| kernel::missing(&format!("Name:\tsekisho\nCapEff:\t{mask}\n"));
    assert_eq!(of("0000000000000000"), ["BPF", "PERFMON", "NET_ADMIN"]);
    assert_eq!(of("000001ffffffffff"), [""; 0]);
    assert_eq!(of("000000c000001000"), [""; 0]);
    assert_eq!(of("0000000000200000"), ["NET_ADMIN"]);
    assert_eq!(of("0000008000001000"), ["PERFMON"]);
}

#[test]
fn a_profile_that_holds_this_process_is_named() {
    assert_eq!(kernel::apparmor("unconfined\n"), None);
    assert_eq!(kernel::apparmor(""), None);
    assert_eq!(kernel::apparmor("mine (complain)\n"), None);
    let lack = kernel::apparmor("cri-containerd.apparmor.d (enforce)\n").expect("a finding");
    assert!(lack.state == State::Lack && lack.found.contains("cri-containerd.apparmor.d"), "{lack:?}");
}

#[test]
fn a_cni_is_known_by_configuration_interface_or_process() {
    let none = BTreeMap::new();
    let by_interface = cni::recognised(None, &[interface("cilium_host")], &none);
    assert!(by_interface[0].found.starts_with("Cilium") && by_interface[0].cost.as_ref().is_some_and(|cost| cost.contains("one_way")));
    let processes = BTreeMap::from([("flanneld".to_owned(), 1)]);
    let found = cni::recognised(None, &[interface("lo")], &processes);
    assert_eq!((found.len(), found[0].state), (1, State::Good));
    let configured = ("10-x.conflist".to_owned(), vec!["calico".to_owned(), "portmap".to_owned()]);
    assert!(cni::recognised(Some(&configured), &[], &none)[0].found.contains("Calico, by /etc/cni/net.d/10-x.conflist"));
    let both = cni::recognised(Some(&configured), &[interface("bpfin.cali")], &none);
    assert!(both.len() == 1 && both[0].found.starts_with("Calico with eBPF"), "{both:?}");
    assert!(cni::recognised(None, &[], &none)[0].found.contains("none is recognised"));
}

#[test]
fn the_first_configuration_counts() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("00-broken.conflist"), "{").expect("written");
    std::fs::write(folder.path().join("20-b.conflist"), r#"{"plugins":[{"type":"ptp"}]}"#).expect("written");
    std::fs::write(folder.path().join("10-a.conflist"), r#"{"plugins":[{"type":"bridge"},{"type":"portmap"}]}"#).expect("written");
    std::fs::write(folder.path().join("05-note.txt"), r#"{"type":"calico"}"#).expect("written");
    let found = cni::types(folder.path()).expect("one");
    assert_eq!(found, ("10-a.conflist".to_owned(), vec!["bridge".to_owned(), "portmap".to_owned()]));
}

#[test]
fn programs_before_ours_cost_something_and_those_behind_are_named() {
    assert_eq!(cni::others(&[]).state, State::Good);
    assert_eq!(cni::others(&[neighbour(false)]).state, State::Note);
    let before = cni::others(&[neighbour(false), neighbour(true)]);
    assert!(before.state == State::Lack && before.found.contains("cil_from_container (tcx) on veth1"), "{before:?}");
}

#[test]
fn another_agent_of_ours_is_named_by_its_pins_and_is_no_lack() {
    let of = |pins: Option<&str>, interface: &str| Neighbour {
        interface: interface.to_owned(),
        program: "pod_egress".to_owned(),
        owner: ProgramOwner::Sekisho(pins.map(Into::into)),
        ..neighbour(true)
    };
    let found = cni::siblings(&[of(Some("/sys/fs/bpf/b"), "veth1"), of(Some("/sys/fs/bpf/b"), "veth2"), of(None, "veth1")]);
    assert!(found.len() == 2 && found.iter().all(|finding| finding.state == State::Note), "{found:?}");
    assert!(found[0].found.contains("whose pins are not visible here, has programs on veth1"), "{found:?}");
    assert!(found[1].found.contains("another Sekisho agent, with pin dir /sys/fs/bpf/b, has programs on 2 interfaces"), "{found:?}");
}

#[test]
fn a_missing_right_is_named_with_what_it_costs() {
    let right = |verb, resource: &str, granted| Right { verb, resource: resource.to_owned(), granted };
    assert_eq!(rights::judge(&[right("list", "pods", true)]).state, State::Good);
    let lack = rights::judge(&[right("list", "pods", true), right("watch", "jobs.batch", false)]);
    assert!(lack.found.ends_with("watch jobs.batch") && lack.cost.is_some_and(|cost| cost.contains("CronJob")));
}
