//! Where a pod is, and where it is not.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use sekisho::datapath::{ChangeKind, Datapath, TcBackend};
use sekisho_lab::{Lab, PodSpec};

use super::{Manifest, all, files, manifest, options, tables};

/// A container's first process is in the pod's group before it enters the pod's namespace.
#[test]
fn a_container_that_still_is_in_the_nodes_namespace_is_not_taken_for_the_pod() -> Result<()> {
    let lab = Lab::new("dp-begin")?;
    let (there, begins) = (lab.pod(PodSpec::new("shop", "there"))?, lab.pod(PodSpec::new("shop", "begins").host_network())?);
    let begins = Arc::new(Manifest { ips: Vec::new(), ..(*manifest(&begins, false)).clone() });
    let pods = [manifest(&there, false), begins];
    lab.node().netns().within(|| {
        let mut datapath = Datapath::open(&options(&lab, TcBackend::Auto))?;
        // By the second look the node has a number in its own namespace: the look at the first pod's interface gives it one.
        for _ in 0..2 {
            datapath.reconcile(&pods);
            for endpoint in all(&datapath) {
                let is_there = endpoint.uid == pods[0].uid;
                ensure!((endpoint.number != 0) == is_there && endpoint.addresses.is_empty() != is_there, "{endpoint:#?}");
            }
        }
        datapath.leave(true)?;
        Ok(())
    })
}

/// A look that is not at all pods passes over those that have their place. Under a new group's name nobody has one yet.
#[test]
fn a_group_that_is_made_anew_is_not_passed_over() -> Result<()> {
    const TURNS: usize = 50;
    let lab = Lab::new("dp-anew")?;
    let pod = lab.pod(PodSpec::new("shop", "host").host_network())?;
    let pods = [manifest(&pod, true)];
    let group = pod.cgroup().parent().context("a container's group is in its pod's")?;
    let watched = || -> Result<bool> {
        let name = format!("/cg-{}-", fs::metadata(group)?.ino());
        Ok(files(&lab.pin_dir()).iter().filter(|path| path.contains(&name)).count() == 2)
    };
    lab.node().netns().within(|| {
        let mut datapath = Datapath::open(&options(&lab, TcBackend::Auto))?;
        datapath.reconcile(&pods);
        datapath.apply(&tables(&pods))?;
        ensure!(watched()?, "{:#?}", files(&lab.pin_dir()));
        // A look at all pods comes by time: it may come between.
        for _ in 0..TURNS {
            std::thread::sleep(Duration::from_millis(150));
            datapath.reconcile(&pods);
            sekisho_lab::cgroup::remove(group)?;
            fs::create_dir_all(pod.cgroup())?;
            let _process = pod.start(&["pause"])?;
            let look = datapath.reconcile(&pods);
            ensure!(watched()?, "{look:?} {:#?}", all(&datapath));
            if !look.whole {
                datapath.leave(true)?;
                return Ok(());
            }
        }
        bail!("all looks were at all pods")
    })
}

/// Who may change its network might give itself another pod's address, and be taken for it.
#[test]
fn an_address_that_a_pod_gives_itself_is_not_its_own() -> Result<()> {
    let lab = Lab::new("dp-own")?;
    let pod = lab.pod(PodSpec::new("shop", "one"))?;
    let of_others: IpAddr = "10.244.1.200".parse()?;
    let ip = |arguments: &[&str]| -> Result<()> {
        let done = pod.run("ip", arguments)?;
        ensure!(done.success(), "{done:?}");
        Ok(())
    };
    let named = [manifest(&pod, false)];
    let nameless = [Arc::new(Manifest { ips: Vec::new(), ..(*named[0]).clone() })];
    let mut datapath = lab.node().netns().within(|| Ok(Datapath::open(&options(&lab, TcBackend::Auto))?))?;
    let mut look = |pods: &[Arc<Manifest>]| -> Result<(Vec<ChangeKind>, Vec<IpAddr>)> {
        std::thread::sleep(Duration::from_millis(150));
        let changes = lab.node().netns().within(|| Ok(datapath.reconcile(pods).changes))?;
        Ok((changes.into_iter().map(|change| change.kind).collect(), all(&datapath)[0].addresses.clone()))
    };
    let own = named[0].ips.clone();
    ensure!(look(&nameless)? == (vec![ChangeKind::Found], own.clone()), "before there is a status, what it holds is true");
    ip(&["address", "add", "10.244.1.200/24", "dev", "eth0"])?;
    let (changes, addresses) = look(&nameless)?;
    ensure!(changes == [ChangeKind::Changed] && addresses.contains(&of_others), "{changes:?} {addresses:?}");
    ensure!(look(&named)? == (vec![ChangeKind::Changed], own.clone()), "its status says which are its own");
    ip(&["address", "flush", "dev", "eth0", "scope", "global"])?;
    ip(&["address", "add", "10.244.1.200/24", "dev", "eth0"])?;
    ensure!(look(&named)? == (vec![], own.clone()), "it did not become another");
    ensure!(look(&nameless)? == (vec![], own), "nor where the status is taken back");
    // A cluster of one family may give its pods the other for themselves.
    let four = [Arc::new(Manifest { ips: vec![of_others], ..(*named[0]).clone() })];
    ip(&["address", "add", "fd00:9::9/64", "dev", "eth0", "nodad"])?;
    let both = vec![of_others, "fd00:9::9".parse()?];
    ensure!(look(&four)? == (vec![ChangeKind::Changed], both), "a status that says nothing of a family takes nothing of it");
    Ok(())
}
