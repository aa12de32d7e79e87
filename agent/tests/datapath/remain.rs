//! Programs stay where a pod's traffic is: when its end of the veth moves, when its addresses move to something behind it, and when
//! its pod is not known any more.

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sekisho::datapath::{Attach, ChangeKind, Coverage, Datapath, Options, TcBackend};
use sekisho_lab::{Lab, Layout, Netns, Pod, PodSpec};

use super::{Manifest, NOTHING, all, check, files, manifest, options, tables, tcx};

/// After that a look is at all pods.
const WHOLE: Duration = Duration::from_millis(150);

fn run(pod: &Pod, arguments: &[&str]) -> Result<()> {
    let done = pod.run("ip", arguments)?;
    ensure!(done.success(), "ip {arguments:?}: {done:?}");
    Ok(())
}

fn on_node(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output()?;
    ensure!(output.status.success(), "ip {arguments:?}: {output:?}");
    Ok(())
}

fn open(lab: &Lab, pods: &[Arc<Manifest>]) -> Result<Datapath> {
    let mut datapath = Datapath::open(&options(lab, TcBackend::Tcx))?;
    datapath.reconcile(pods);
    datapath.apply(&tables(pods))?;
    Ok(datapath)
}

#[test]
fn an_interface_that_leads_elsewhere_keeps_its_programs() -> Result<()> {
    for layout in [Layout::Bridge, Layout::PointToPoint] {
        let lab = Lab::new(if layout == Layout::Bridge { "dp-nested" } else { "dp-nested-ptp" })?;
        let pod = lab.pod(PodSpec::new("shop", "one").layout(layout))?;
        let pods = [manifest(&pod, false)];
        let interface = pod.interface().context("veth")?.to_owned();
        let nested = Netns::create(&lab.directory().join("ns/nested"))?;
        lab.node().netns().within(|| {
            let mut datapath = open(&lab, &pods)?;
            let before = tcx(&interface)?;
            run(&pod, &["link", "set", "eth0", "netns", &nested.path().display().to_string()])?;
            for _ in 0..3 {
                std::thread::sleep(WHOLE);
                let changes = datapath.reconcile(&pods).changes;
                ensure!(changes.is_empty() && tcx(&interface)? == before, "{layout:?}: {changes:?}, {:#?}", all(&datapath));
            }
            let endpoint = all(&datapath)[0];
            ensure!(endpoint.ready && endpoint.interface.as_deref() == Some(&interface) && endpoint.message.is_some(), "{endpoint:#?}");
            ensure!(check(&mut datapath).is_empty(), "all is well");
            drop(datapath);
            let mut next = open(&lab, &pods)?;
            let endpoint = all(&next)[0];
            ensure!(endpoint.ready && endpoint.attach == Attach::Tcx && endpoint.mac.is_some(), "{endpoint:#?}");
            ensure!(endpoint.addresses.contains(&pod.v4()) && endpoint.addresses.contains(&pod.v6()), "{endpoint:#?}");
            std::thread::sleep(WHOLE);
            next.reconcile(&pods);
            ensure!(tcx(&interface)?.iter().all(|ids| ids.len() == 1), "{:#?}", all(&next));
            next.leave(true)?;
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_machine_behind_a_bridge_in_its_pod_is_judged_at_the_pods_interface() -> Result<()> {
    for held in [false, true] {
        let lab = Lab::new(if held { "dp-machine-held" } else { "dp-machine" })?;
        let pod = lab.pod(PodSpec::new("shop", "machine"))?;
        let pods = [manifest(&pod, false)];
        let known = pods[0].ips.clone();
        let interface = pod.interface().context("veth")?.to_owned();
        lab.node().netns().within(|| {
            run(&pod, &["address", "flush", "dev", "eth0"])?;
            run(&pod, &["link", "add", "k6t-eth0", "type", "bridge"])?;
            run(&pod, &["link", "set", "eth0", "master", "k6t-eth0"])?;
            run(&pod, &["link", "set", "k6t-eth0", "up"])?;
            if held {
                run(&pod, &["link", "add", "pod0", "type", "bridge"])?;
                run(&pod, &["address", "add", &format!("{}/32", pod.v4()), "dev", "pod0"])?;
            }
            let mut datapath = open(&lab, &pods)?;
            let endpoint = all(&datapath)[0];
            ensure!(endpoint.ready && endpoint.attach == Attach::Tcx && endpoint.addresses == known, "{endpoint:#?}");
            ensure!(endpoint.mac.is_none() && tcx(&interface)?.iter().all(|ids| ids.len() == 1), "{endpoint:#?}");
            // Its network is made anew under another address, before the status says so.
            run(&pod, &["link", "set", "eth0", "nomaster"])?;
            run(&pod, &["address", "add", "10.244.1.99/24", "dev", "eth0"])?;
            std::thread::sleep(WHOLE);
            datapath.reconcile(&pods);
            let endpoint = all(&datapath)[0];
            ensure!(held || endpoint.addresses.contains(&"10.244.1.99".parse()?), "{endpoint:#?}");
            datapath.leave(true)?;
            Ok(())
        })?;
    }
    Ok(())
}

/// Who takes its addresses off its interface does not get rid of its MAC.
#[test]
fn a_mac_stays_while_addresses_are_away() -> Result<()> {
    let lab = Lab::new("dp-mac")?;
    let pod = lab.pod(PodSpec::new("shop", "one"))?;
    let pods = [manifest(&pod, false)];
    lab.node().netns().within(|| {
        let mut datapath = open(&lab, &pods)?;
        let mac = all(&datapath)[0].mac;
        ensure!(mac.is_some());
        run(&pod, &["address", "flush", "dev", "eth0"])?;
        std::thread::sleep(WHOLE);
        datapath.reconcile(&pods);
        ensure!(all(&datapath)[0].mac == mac && all(&datapath)[0].ready, "{:#?}", all(&datapath));
        drop(datapath);
        let next = open(&lab, &pods)?;
        ensure!(all(&next)[0].mac == mac && all(&next)[0].ready, "{:#?}", all(&next));
        next.leave(true)?;
        Ok(())
    })
}

#[test]
fn a_device_without_ethernet_headers_is_said_to_be_unseen() -> Result<()> {
    let lab = Lab::new("dp-tun")?;
    let like = lab.pod(PodSpec::new("shop", "like"))?;
    let uid = "11111111-2222-3333-4444-555555555555".into();
    let ips = vec!["10.99.0.9".parse()?];
    let pods = [Arc::new(Manifest { uid, ips, name: "tunnelled".into(), ..(*manifest(&like, false)).clone() })];
    lab.node().netns().within(|| {
        for (mode, device) in [("tun", "tun9"), ("tap", "tap9")] {
            on_node(&["tuntap", "add", "dev", device, "mode", mode])?;
            on_node(&["link", "set", device, "up"])?;
            on_node(&["route", "replace", "10.99.0.9/32", "dev", device])?;
            let mut datapath = open(&lab, &pods)?;
            // It leads into no namespace, so it counts as new, and new interfaces are attached in haste.
            datapath.settle_one();
            let endpoint = all(&datapath)[0];
            let unseen = endpoint.number == 0 && !endpoint.ready && endpoint.coverage == Coverage::Unseen;
            ensure!(unseen == (mode == "tun"), "{mode}: {endpoint:#?}");
            let said = endpoint.message.as_deref().is_some_and(|message| message.contains("unseen") && message.contains(device));
            ensure!(said == unseen, "{endpoint:#?}");
            let programs = tcx(device)?;
            ensure!(programs.iter().all(|ids| ids.is_empty() == unseen), "{mode}: {programs:?}, {endpoint:#?}");
            datapath.leave(true)?;
        }
        Ok(())
    })
}

#[test]
fn a_pod_that_is_not_known_any_more_stays_under_its_policy() -> Result<()> {
    let lab = Lab::new("dp-orphan")?;
    let pod = lab.pod(PodSpec::new("shop", "one"))?;
    let pods = [manifest(&pod, false)];
    let interface = pod.interface().context("veth")?.to_owned();
    lab.node().netns().within(|| {
        let mut datapath = open(&lab, &pods)?;
        let before = tcx(&interface)?;
        let changes = datapath.reconcile(&[]).changes;
        datapath.apply(&tables(&[]))?;
        let endpoint = all(&datapath)[0];
        ensure!(
            changes.is_empty() && endpoint.orphaned && endpoint.ready && endpoint.isolated == [false, true],
            "{changes:?} {endpoint:#?}"
        );
        ensure!(tcx(&interface)? == before, "its programs stay");
        let changes = datapath.reconcile(&pods).changes;
        ensure!(changes.is_empty() && !all(&datapath)[0].orphaned && all(&datapath)[0].message.is_none(), "it is known again: {changes:?}");
        // Another pod takes its place, and its interface.
        let heir = [Arc::new(Manifest { uid: "11111111-2222-3333-4444-555555555555".into(), ..(*pods[0]).clone() })];
        datapath.reconcile(&[]);
        let kinds: Vec<ChangeKind> = datapath.reconcile(&heir).changes.into_iter().map(|change| change.kind).collect();
        datapath.apply(&tables(&heir))?;
        ensure!(kinds == [ChangeKind::Gone, ChangeKind::Found] && tcx(&interface)? == before, "{kinds:?}, {:#?}", all(&datapath));
        ensure!(all(&datapath).len() == 1 && all(&datapath)[0].ready, "{:#?}", all(&datapath));
        drop(datapath);

        // Nobody is known to the next agents, the second of which has another layout.
        for budget in [32 << 20, 48 << 20] {
            let mut next = Datapath::open(&Options { memory_budget: budget, ..options(&lab, TcBackend::Tcx) })?;
            for _ in 0..2 {
                next.reconcile(&[]);
                next.apply(&tables(&[]))?;
                check(&mut next);
            }
            let strangers = next.strangers();
            ensure!(strangers.len() == 1 && strangers[0].isolated == [false, true], "{strangers:#?}");
            ensure!(strangers[0].addresses == heir[0].ips, "{strangers:#?}");
            ensure!(tcx(&interface)?.iter().all(|ids| ids.len() == 1) && tcx(&interface)? != before, "its programs are this agent's");
            ensure!(std::fs::read_dir(lab.pin_dir())?.count() == 1, "{:#?}", files(&lab.pin_dir()));
            drop(next);
        }
        let mut last = Datapath::open(&Options { memory_budget: 48 << 20, ..options(&lab, TcBackend::Tcx) })?;
        on_node(&["link", "delete", &interface])?;
        last.reconcile(&[]);
        ensure!(last.strangers().is_empty(), "{:#?}", last.strangers());
        last.leave(true)?;
        Ok(())
    })
}

#[test]
fn a_pod_whose_interface_is_gone_is_forgotten() -> Result<()> {
    let lab = Lab::new("dp-forgotten")?;
    let pod = lab.pod(PodSpec::new("shop", "one"))?;
    let pods = [manifest(&pod, false)];
    let interface = pod.interface().context("veth")?.to_owned();
    lab.node().netns().within(|| {
        let mut datapath = open(&lab, &pods)?;
        datapath.reconcile(&[]);
        ensure!(all(&datapath)[0].orphaned && tcx(&interface)? != NOTHING, "{:#?}", all(&datapath));
        on_node(&["link", "delete", &interface])?;
        let changes = datapath.reconcile(&[]).changes;
        ensure!(changes.len() == 1 && changes[0].kind == ChangeKind::Gone && all(&datapath).is_empty(), "{changes:?}");
        datapath.leave(true)?;
        Ok(())
    })
}
