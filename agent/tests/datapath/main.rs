//! The data path against the real kernel: found pods, programs at their hooks, adoption after a kill, nothing left behind.
//! Needs root; fails where it cannot run.

mod find;
mod hold;
mod remain;
mod settle;
mod watch;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::TcAttachType;
use aya::programs::tc::SchedClassifier;
use sekisho::datapath::{
    self, Attach, ChangeKind, Coverage, CoverageEvent, Datapath, DetachError, EndpointInfo, OpenError, Options, TcBackend,
};
use sekisho::inventory::{Labels, Pod as Manifest, Workload};
use sekisho::policy::{EndpointPolicy, Tables};
use sekisho_core::layout::{AddressEntry, RuleKey, Rules, address_flags};
use sekisho_lab::{CgroupLayout, Lab, Layout, Pod, PodSpec};

fn options(lab: &Lab, tc_backend: TcBackend) -> Options {
    Options { pin_dir: lab.pin_dir(), tc_backend, memory_budget: 32 << 20, node: "node-1".into(), adoption_window: Duration::from_mins(1) }
}

fn manifest(pod: &Pod, host_network: bool) -> Arc<Manifest> {
    Arc::new(Manifest {
        namespace: pod.namespace().into(),
        name: pod.pod_name().into(),
        uid: pod.uid().into(),
        labels: Labels::default(),
        node: Some("node-1".into()),
        ips: vec![pod.v4(), pod.v6()],
        announced: Box::default(),
        host_network,
        finished: false,
        service_account: None,
        workload: Workload { kind: "Pod".into(), name: pod.pod_name().into() },
        ports: Vec::new(),
        serves: Box::default(),
        config_hash: None,
        allow_sources: Vec::new(),
        runtime_class: None,
    })
}

/// Every pod isolated for ingress by its own set.
fn tables(pods: &[Arc<Manifest>]) -> Tables {
    let mut tables = Tables::default();
    for (number, pod) in (1u32..).zip(pods) {
        let policy = EndpointPolicy { set: number, instance: number, isolated: [false, !pod.host_network], host_network: pod.host_network };
        tables.endpoints.insert(Arc::clone(&pod.uid), policy);
        tables.rules.insert(RuleKey { set: number, class: number, direction: 1 }, Rules::new(number, 0));
        name_addresses(&mut tables, pod, number, number);
    }
    tables
}

/// A pod's addresses are its own.
fn name_addresses(tables: &mut Tables, pod: &Manifest, class: u32, instance: u32) {
    for ip in pod.ips.iter().filter(|_| !pod.host_network) {
        let entry = AddressEntry { class, instance, flags: address_flags::POD };
        tables.addresses.insert(sekisho::policy::mapped(*ip), entry);
    }
}

const NOTHING: [Vec<u32>; 2] = [Vec::new(), Vec::new()];

/// Program ids at both hooks of an interface.
fn tcx(interface: &str) -> Result<[Vec<u32>; 2]> {
    let name = std::ffi::CString::new(interface)?;
    let ids = |kind| -> Result<Vec<u32>> {
        let (_, programs) = SchedClassifier::query_tcx(name.as_c_str(), kind)?;
        Ok(programs.iter().map(aya::programs::ProgramInfo::id).collect())
    };
    Ok([ids(TcAttachType::Ingress)?, ids(TcAttachType::Egress)?])
}

fn tc(arguments: &[&str]) -> Result<String> {
    let output = Command::new("tc").args(arguments).output().context("tc (iproute2) does not start")?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn files(dir: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut all = Vec::new();
    for entry in entries.flatten() {
        all.push(entry.path().display().to_string());
        all.extend(files(&entry.path()));
    }
    all.sort();
    all
}

fn all(datapath: &Datapath) -> Vec<&EndpointInfo> {
    datapath.endpoints().collect()
}

/// A whole check.
fn check(datapath: &mut Datapath) -> Vec<CoverageEvent> {
    let mut events = Vec::new();
    loop {
        let check = datapath.check();
        events.extend(check.events);
        if check.through {
            return events;
        }
    }
}

#[test]
fn pods_of_every_layout_are_found_and_attached() -> Result<()> {
    let lab = Lab::new("dp-find")?;
    let bridge = lab.pod(PodSpec::new("shop", "bridge"))?;
    let routed = lab.pod(PodSpec::new("shop", "routed").layout(Layout::PointToPoint).cgroup(CgroupLayout::Systemd))?;
    let host = lab.pod(PodSpec::new("shop", "host").host_network())?;
    let pods = [manifest(&bridge, false), manifest(&routed, false), manifest(&host, true)];
    lab.node().netns().within(|| {
        let mut datapath = Datapath::open(&options(&lab, TcBackend::Auto))?;
        ensure!(!datapath.adopted(), "nothing was there");
        let changes = datapath.reconcile(&pods).changes;
        ensure!(changes.len() == 3 && changes.iter().all(|change| change.kind == ChangeKind::Found), "{changes:#?}");
        ensure!(datapath.endpoints().all(|endpoint| !endpoint.ready), "nothing judges before there is a policy");
        ensure!(datapath.apply(&tables(&pods))?.changed, "the first tables are a change");
        let found: HashMap<&str, _> = datapath.endpoints().map(|endpoint| (&*endpoint.uid, endpoint)).collect();
        for pod in [&bridge, &routed] {
            let endpoint = found[pod.uid()];
            ensure!(endpoint.ready && endpoint.attach == Attach::Tcx && endpoint.coverage == Coverage::Full, "{endpoint:#?}");
            ensure!(endpoint.interface.as_deref() == pod.interface(), "{endpoint:#?}");
            ensure!(endpoint.addresses.contains(&pod.v4()) && endpoint.addresses.contains(&pod.v6()), "{endpoint:#?}");
            ensure!(endpoint.mac.is_some(), "{endpoint:#?}");
            let attached = tcx(pod.interface().context("veth")?)?;
            ensure!(attached.iter().all(|ids| ids.len() == 1), "{attached:?}");
        }
        ensure!(found[host.uid()].attach == Attach::Cgroup, "{:#?}", found[host.uid()]);
        let again = datapath.reconcile(&pods).changes;
        ensure!(again.is_empty() && !datapath.apply(&tables(&pods))?.changed, "nothing changed: {again:?}");
        ensure!(check(&mut datapath).is_empty(), "all is well");
        let clock = datapath.clock();
        ensure!(clock.boot_ns > 0 && [100, 250, 300, 1000].contains(&clock.hz), "{clock:?}");
        ensure!(datapath.maps().iter().filter(|map| map.name.starts_with('E')).all(|map| map.bytes > 0), "{:#?}", datapath.maps());

        bridge.delete()?;
        let gone = datapath.reconcile(&pods[1..]).changes;
        ensure!(gone.len() == 1 && gone[0].kind == ChangeKind::Gone, "{gone:?}");
        ensure!(datapath.endpoints().count() == 2, "it is forgotten");
        datapath.leave(true)?;
        ensure!(!lab.pin_dir().exists(), "{:?}", files(&lab.pin_dir()));
        ensure!(tcx(routed.interface().context("veth")?)? == NOTHING, "nothing is attached any more");
        Ok(())
    })
}

#[test]
fn a_pod_without_a_control_group_is_found_by_its_addresses() -> Result<()> {
    let lab = Lab::new("dp-address")?;
    let pod = lab.pod(PodSpec::new("shop", "plain"))?;
    let mut stranger = (*manifest(&pod, false)).clone();
    stranger.uid = "11111111-2222-3333-4444-555555555555".into();
    lab.node().netns().within(|| {
        let mut datapath = Datapath::open(&options(&lab, TcBackend::Auto))?;
        let pods = [Arc::new(stranger)];
        datapath.reconcile(&pods);
        datapath.apply(&tables(&pods))?;
        let endpoint = datapath.endpoints().next().context("one endpoint")?;
        ensure!(endpoint.interface.as_deref() == pod.interface() && endpoint.ready, "{endpoint:#?}");
        Ok(())
    })
}

#[test]
fn a_successor_adopts_without_piling_up() -> Result<()> {
    let lab = Lab::new("dp-adopt")?;
    let pod = lab.pod(PodSpec::new("shop", "one"))?;
    let host = lab.pod(PodSpec::new("shop", "host").host_network())?;
    let pods = [manifest(&pod, false), manifest(&host, true)];
    let interface = pod.interface().context("veth")?.to_owned();
    lab.node().netns().within(|| {
        let mut first = Datapath::open(&options(&lab, TcBackend::Tcx))?;
        ensure!(matches!(Datapath::open(&options(&lab, TcBackend::Tcx)), Err(OpenError::PinsInUse { .. })), "a second agent is refused");
        ensure!(matches!(datapath::detach(&lab.pin_dir()), Err(DetachError::InUse { .. })), "detach refuses too");
        first.reconcile(&pods);
        first.apply(&tables(&pods))?;
        let epoch = first.set_mode(1)?;
        first.journal()?.put(7, b"who was who");
        let before = tcx(&interface)?;
        let pinned = files(&lab.pin_dir());
        let number = first.endpoints().find(|endpoint| endpoint.host_network).context("host endpoint")?.number;
        // As a kill does: the lock goes with the process, everything else stays.
        drop(first);
        ensure!(tcx(&interface)? == before, "it works on without an agent");
        for round in 0..5 {
            let mut next = Datapath::open(&options(&lab, TcBackend::Tcx)).with_context(|| format!("round {round}"))?;
            ensure!(next.adopted() && next.mode() == 1, "adopted");
            let attached = tcx(&interface)?;
            ensure!(attached.iter().all(|ids| ids.len() == 1) && attached != before, "swapped, not added: {attached:?}");
            ensure!(next.used_ids().set == 2 && next.used_ids().instance == 2, "{:?}", next.used_ids());
            next.reconcile(&pods);
            ensure!(next.apply(&tables(&pods))?.epoch >= epoch, "epochs go on");
            ensure!(next.endpoints().all(|endpoint| endpoint.ready), "{:#?}", all(&next));
            ensure!(next.endpoints().any(|endpoint| endpoint.number == number), "a cgroup endpoint keeps its number");
            ensure!(check(&mut next).is_empty(), "all is well");
            ensure!(next.journal()?.load() == [(7, b"who was who".to_vec())], "the journal survives");
            ensure!(files(&lab.pin_dir()) == pinned, "pins do not pile up: {pinned:#?} then {:#?}", files(&lab.pin_dir()));
        }
        let epoch = datapath::set_mode_on_pins(&lab.pin_dir(), 0)?;
        ensure!(Datapath::open(&options(&lab, TcBackend::Tcx))?.epoch() == epoch, "the kill switch works on the pins");
        let report = datapath::detach(&lab.pin_dir())?;
        ensure!(report.links == 10 && report.maps > 20, "{report:?}");
        ensure!(!lab.pin_dir().exists() && tcx(&interface)? == NOTHING, "nothing is left");
        ensure!(datapath::detach(&lab.pin_dir())? == datapath::DetachReport::default(), "nothing to do is fine");
        let mode = datapath::set_mode_on_pins(&lab.pin_dir(), 0);
        ensure!(matches!(mode, Err(datapath::ModeError::NoPins { .. })), "{mode:?}");
        Ok(())
    })
}

#[test]
fn another_memory_budget_takes_over_flows_and_links() -> Result<()> {
    let lab = Lab::new("dp-migrate")?;
    let pod = lab.pod(PodSpec::new("shop", "one"))?;
    let pods = [manifest(&pod, false)];
    let interface = pod.interface().context("veth")?.to_owned();
    lab.node().netns().within(|| {
        let mut first = Datapath::open(&options(&lab, TcBackend::Tcx))?;
        first.reconcile(&pods);
        first.apply(&tables(&pods))?;
        first.journal()?.put(1, b"kept");
        let before = tcx(&interface)?;
        drop(first);
        let larger = Options { memory_budget: 48 << 20, ..options(&lab, TcBackend::Tcx) };
        let mut next = Datapath::open(&larger)?;
        ensure!(next.adopted() && tcx(&interface)? == before, "the old programs judge until the new maps have the policy");
        ensure!(next.journal()?.load().len() == 1, "the journal is copied");
        next.reconcile(&pods);
        next.apply(&tables(&pods))?;
        let after = tcx(&interface)?;
        ensure!(after != before && after.iter().all(|ids| ids.len() == 1), "swapped: {after:?}");
        ensure!(std::fs::read_dir(lab.pin_dir())?.count() == 2, "both layouts are there until a check has seen all attached");
        ensure!(check(&mut next).is_empty(), "all is well");
        ensure!(std::fs::read_dir(lab.pin_dir())?.count() == 1, "the former layout is gone: {:#?}", files(&lab.pin_dir()));
        next.leave(true)?;
        Ok(())
    })
}

#[test]
fn clsact_is_found_again_and_leaves_what_is_not_ours() -> Result<()> {
    let lab = Lab::new("dp-clsact")?;
    let [ours, shared] = lab.pods("shop", ["ours", "shared"])?;
    let pods = [manifest(&ours, false), manifest(&shared, false)];
    let (mine, theirs) = (ours.interface().context("veth")?.to_owned(), shared.interface().context("veth")?.to_owned());
    lab.node().netns().within(|| {
        // Somebody else has a qdisc on one of them.
        tc(&["qdisc", "add", "dev", &theirs, "clsact"])?;
        for round in 0..3 {
            let mut datapath = Datapath::open(&options(&lab, TcBackend::Clsact))?;
            datapath.reconcile(&pods);
            datapath.apply(&tables(&pods))?;
            let attached = datapath.endpoints().all(|endpoint| endpoint.attach == Attach::Clsact && endpoint.ready);
            ensure!(attached, "{:#?}", all(&datapath));
            ensure!(check(&mut datapath).is_empty(), "round {round}: all is well");
            for interface in [&mine, &theirs] {
                for hook in ["ingress", "egress"] {
                    let shown = tc(&["filter", "show", "dev", interface, hook])?;
                    ensure!(shown.matches("sekisho_").count() == 1, "round {round}, {interface} {hook}: {shown}");
                }
            }
            tc(&["filter", "del", "dev", &mine, "ingress"])?;
            let events = check(&mut datapath);
            ensure!(events.len() == 1 && events[0].event == "reattached", "{events:#?}");
            ensure!(check(&mut datapath).is_empty(), "and stays attached");
        }
        let report = datapath::detach(&lab.pin_dir())?;
        ensure!(report.filters == 4, "{report:?}");
        ensure!(!tc(&["qdisc", "show", "dev", &mine])?.contains("clsact"), "the qdisc that we made is gone");
        ensure!(tc(&["qdisc", "show", "dev", &theirs])?.contains("clsact"), "the other one stays");
        ensure!(!tc(&["filter", "show", "dev", &theirs, "ingress"])?.contains("sekisho_"), "without our filter");
        Ok(())
    })
}

#[test]
fn a_detached_program_is_attached_again_and_a_pushed_back_one_comes_first() -> Result<()> {
    let lab = Lab::new("dp-check")?;
    let pod = lab.pod(PodSpec::new("shop", "one"))?;
    let pods = [manifest(&pod, false)];
    let interface = pod.interface().context("veth")?.to_owned();
    lab.node().netns().within(|| {
        let mut datapath = Datapath::open(&options(&lab, TcBackend::Tcx))?;
        datapath.reconcile(&pods);
        datapath.apply(&tables(&pods))?;
        for link in files(&lab.pin_dir()).into_iter().filter(|path| path.contains("/tcx-")) {
            std::fs::remove_file(&link)?;
        }
        // The kernel takes a link off its hook some time after its last name went.
        let begin = std::time::Instant::now();
        while tcx(&interface)? != NOTHING {
            ensure!(begin.elapsed().as_secs() < 5, "it is off");
        }
        let events = check(&mut datapath);
        ensure!(events.len() == 1 && events[0].event == "reattached", "{events:#?}");
        ensure!(tcx(&interface)?.iter().all(|ids| ids.len() == 1), "it is on");

        // A data path on other pins is somebody else, who wants to be first as well.
        let elsewhere = Options { pin_dir: lab.directory().join("bpf/other"), ..options(&lab, TcBackend::Tcx) };
        let mut other = Datapath::open(&elsewhere)?;
        other.reconcile(&pods);
        other.apply(&tables(&pods))?;
        let ahead = tcx(&interface)?;
        ensure!(ahead[0].len() == 2, "{ahead:?}");
        let events = check(&mut datapath);
        ensure!(events.len() == 1 && events[0].event == "reattached", "{events:#?}");
        let now = tcx(&interface)?;
        ensure!(now[0].len() == 2 && now[0][1] == ahead[0][0], "ours runs first, theirs second: {ahead:?} then {now:?}");
        other.leave(true)?;
        datapath.leave(true)?;
        Ok(())
    })
}

#[test]
fn what_is_wrong_with_the_machine_is_said_in_a_sentence() -> Result<()> {
    let lab = Lab::new("dp-wrong")?;
    let plain = Options { pin_dir: lab.directory().join("plain"), ..options(&lab, TcBackend::Auto) };
    let error = Datapath::open(&plain).err().context("a plain directory is refused")?.to_string();
    ensure!(error.contains("mount -t bpf") && error.lines().count() == 1, "{error}");
    ensure!(!plain.pin_dir.exists(), "and not made");
    lab.node().netns().within(|| {
        // A killed start leaves half a directory.
        drop(Datapath::open(&options(&lab, TcBackend::Auto))?);
        let lost = ["CONFIG", "RULES", "EVENTS", "root-"];
        for path in files(&lab.pin_dir()).iter().filter(|path| lost.iter().any(|name| path.contains(name))) {
            std::fs::remove_file(path)?;
        }
        let datapath = Datapath::open(&options(&lab, TcBackend::Auto))?;
        ensure!(!datapath.adopted(), "half a directory is no predecessor");
        datapath.leave(true)?;
        Ok(())
    })
}

/// Nobody is isolated; the node's addresses are known.
fn open_tables(lab: &Lab, pods: &[Arc<Manifest>]) -> Tables {
    let mut tables = Tables::default();
    for (instance, pod) in (1u32..).zip(pods) {
        let policy = EndpointPolicy { instance, host_network: pod.host_network, ..EndpointPolicy::default() };
        tables.endpoints.insert(Arc::clone(&pod.uid), policy);
        name_addresses(&mut tables, pod, 0, instance);
    }
    for ip in [lab.node_v4(), lab.node_v6(), lab.bridge_v4(), lab.bridge_v6()] {
        let address = sekisho::policy::mapped(ip);
        tables.addresses.insert(address, AddressEntry { class: 0, instance: 99, flags: address_flags::NODE });
    }
    tables
}

/// A pod of this node that does not start.
fn never_starting(like: &Pod) -> Arc<Manifest> {
    let uid = "11111111-2222-3333-4444-555555555555".into();
    Arc::new(Manifest { uid, name: "waiting".into(), ips: Vec::new(), ..(*manifest(like, false)).clone() })
}

#[test]
fn a_half_made_layout_is_in_nobodys_way() -> Result<()> {
    let lab = Lab::new("dp-half")?;
    let pod = lab.pod(PodSpec::new("shop", "one"))?;
    let pods = [manifest(&pod, false)];
    lab.node().netns().within(|| {
        drop(Datapath::open(&options(&lab, TcBackend::Auto))?);
        let lost = ["CONFIG", "FRAGMENTS", "EMBRYONIC", "COUNTERS", "TYPES"];
        for path in files(&lab.pin_dir()).iter().filter(|path| lost.iter().any(|name| path.contains(name))) {
            std::fs::remove_file(path)?;
        }
        let other = Options { memory_budget: 48 << 20, ..options(&lab, TcBackend::Auto) };
        let mut datapath = Datapath::open(&other)?;
        ensure!(!datapath.adopted(), "there was nobody");
        datapath.set_mode(sekisho_core::layout::mode::AUDIT)?;
        let epoch = datapath::set_mode_on_pins(&lab.pin_dir(), sekisho_core::layout::mode::OBSERVE)?;
        ensure!(datapath.notice_mode()? == Some(epoch), "the kill switch works");
        datapath.reconcile(&pods);
        datapath.apply(&tables(&pods))?;
        ensure!(check(&mut datapath).is_empty(), "all is well");
        ensure!(std::fs::read_dir(lab.pin_dir())?.count() == 1, "it is gone: {:#?}", files(&lab.pin_dir()));
        datapath.leave(true)?;
        Ok(())
    })
}

#[test]
fn a_layout_is_taken_over_without_the_maps_that_it_lacks_while_a_pod_waits() -> Result<()> {
    let lab = Lab::new("dp-lacks")?;
    let pod = lab.pod(PodSpec::new("shop", "one"))?;
    let pods = [manifest(&pod, false), never_starting(&pod)];
    let interface = pod.interface().context("veth")?.to_owned();
    lab.node().netns().within(|| {
        let mut first = Datapath::open(&options(&lab, TcBackend::Auto))?;
        first.reconcile(&pods);
        first.apply(&tables(&pods))?;
        first.journal()?.put(1, b"kept");
        let before = tcx(&interface)?;
        drop(first);
        // As an older version's, which had no such maps.
        let lacking = ["LIVE", "CONTACTS", "CLOSING", "COUNTERS"];
        for path in files(&lab.pin_dir()).iter().filter(|path| lacking.iter().any(|name| path.ends_with(name))) {
            std::fs::remove_file(path)?;
        }
        let mut next = Datapath::open(&Options { memory_budget: 48 << 20, ..options(&lab, TcBackend::Auto) })?;
        ensure!(next.adopted() && tcx(&interface)? == before, "the old programs judge until the new maps have the policy");
        ensure!(next.journal()?.load().len() == 1, "what is there is taken over");
        ensure!(check(&mut next).is_empty() && std::fs::read_dir(lab.pin_dir())?.count() == 2, "nothing is left to nobody");
        next.reconcile(&pods);
        next.apply(&tables(&pods))?;
        ensure!(check(&mut next).is_empty() && tcx(&interface)? != before, "all is well");
        ensure!(std::fs::read_dir(lab.pin_dir())?.count() == 1, "a waiting pod holds nothing up: {:#?}", files(&lab.pin_dir()));
        next.leave(true)?;
        Ok(())
    })
}

#[test]
fn an_interface_is_followed_while_it_is_set_up_and_kept_while_it_has_no_address() -> Result<()> {
    let lab = Lab::new("dp-follow")?;
    let pod = lab.pod(PodSpec::new("shop", "one"))?;
    let pods = [manifest(&pod, false)];
    let interface = pod.interface().context("veth")?.to_owned();
    let mut datapath = lab.node().netns().within(|| {
        let mut datapath = Datapath::open(&options(&lab, TcBackend::Auto))?;
        datapath.reconcile(&pods);
        datapath.apply(&tables(&pods))?;
        Ok(datapath)
    })?;
    let reconcile = |datapath: &mut Datapath| lab.node().netns().within(|| Ok(datapath.reconcile(&pods).changes));
    let ip = |arguments: &[&str]| -> Result<()> {
        let done = pod.run("ip", arguments)?;
        ensure!(done.success(), "{done:?}");
        Ok(())
    };

    // A plugin that is called after the one which gave the address.
    ip(&["link", "set", "eth0", "address", "02:00:00:00:be:ef"])?;
    let changes = reconcile(&mut datapath)?;
    ensure!(changes.len() == 1 && changes[0].kind == ChangeKind::Changed, "{changes:?}");
    ensure!(all(&datapath)[0].mac == Some([2, 0, 0, 0, 0xbe, 0xef]), "{:#?}", all(&datapath));
    let epoch = datapath.epoch();
    let applied = lab.node().netns().within(|| Ok(datapath.apply(&tables(&pods))?))?;
    ensure!(applied.epoch != epoch, "what was judged by the former MAC is judged again");
    ensure!(reconcile(&mut datapath)?.is_empty(), "and that is all");

    // Addresses go for a moment: its programs stay.
    ip(&["address", "flush", "dev", "eth0", "scope", "global"])?;
    ensure!(reconcile(&mut datapath)?.is_empty() && all(&datapath)[0].ready, "{:#?}", all(&datapath));
    lab.node().netns().within(|| {
        ensure!(tcx(&interface)?.iter().all(|ids| ids.len() == 1), "still attached");
        datapath.leave(true)?;
        Ok(())
    })
}
