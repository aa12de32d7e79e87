//! Pods that are held until their policy is in force.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use sekisho::datapath::{Datapath, TcBackend};
use sekisho_lab::{CgroupLayout, Lab, Pod, PodSpec};

use super::{Manifest, all, check, files, manifest, never_starting, open_tables, options, tables};

/// In what lab a test is to run that another one starts.
const NAME_OF_LAB: &str = "SEKISHO_TEST_LAB";

/// A container has a cgroup namespace of its own, from which the node's groups are seen as above the root.
#[test]
fn pods_are_held_by_an_agent_in_a_container() -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).and_then(|line| line.split(' ').nth(4)).context("cgroup v2")?;
    let container = Path::new(mount).join(format!("sekisho-dp-container-{}/deeper", std::process::id()));
    std::fs::create_dir_all(&container)?;
    let enter = "echo $$ > \"$0/cgroup.procs\" && exec unshare --cgroup \"$@\"";
    let test = "hold::pods_are_held_until_their_policy_is_in_force_with_and_without_an_agent";
    let output = Command::new("sh")
        .args(["-c", enter])
        .arg(&container)
        .arg(std::env::current_exe()?)
        .args(["--exact", test])
        .env(NAME_OF_LAB, "dp-hold-ns")
        .output();
    for group in [Some(container.as_path()), container.parent()].into_iter().flatten() {
        std::fs::remove_dir(group)?;
    }
    let output = output.context("unshare (util-linux) does not start")?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success() && told.contains("1 passed"), "{told}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn pods_are_held_until_their_policy_is_in_force_with_and_without_an_agent() -> Result<()> {
    let lab = Lab::new(&std::env::var(NAME_OF_LAB).unwrap_or_else(|_| "dp-hold".into()))?;
    let server = lab.pod(PodSpec::new("shop", "server"))?;
    let (v4, v6) = (server.v4(), server.v6());
    let _served = [server.serve("tcp", 80)?, server.serve("udp", 53)?];
    let reaches =
        |pod: &Pod| -> Result<[bool; 3]> { Ok([pod.reaches("tcp", v4, 80)?, pod.reaches("tcp", v6, 80)?, pod.reaches("udp", v4, 53)?]) };
    let agent = |pods: &[Arc<Manifest>]| -> Result<Datapath> {
        lab.node().netns().within(|| {
            let mut datapath = Datapath::open(&options(&lab, TcBackend::Auto))?;
            datapath.reconcile(pods);
            datapath.apply(&open_tables(&lab, pods))?;
            datapath.set_hold(true);
            ensure!(datapath.endpoints().all(|endpoint| endpoint.ready), "{:#?}", all(&datapath));
            Ok(datapath)
        })
    };
    let mut pods = vec![manifest(&server, false)];
    let mut datapath = agent(&pods)?;

    let new = lab.pod(PodSpec::new("shop", "new").cgroup(CgroupLayout::Cgroupfs))?;
    ensure!(reaches(&new)? == [false; 3], "held before anybody knows it");
    let held = datapath.counters()[sekisho_core::counters::HELD as usize];
    ensure!(held > 0, "and counted");
    let host = lab.pod(PodSpec::new("shop", "host").host_network())?;
    ensure!(reaches(&host)? == [true; 3], "a pod on the node's own addresses is never held");
    pods.push(manifest(&new, false));
    let mut tables = open_tables(&lab, &pods);
    let named = std::mem::replace(&mut tables.addresses, open_tables(&lab, &pods[..1]).addresses);
    lab.node().netns().within(|| {
        datapath.reconcile(&pods);
        datapath.apply(&tables)?;
        Ok(())
    })?;
    ensure!(datapath.endpoints().all(|endpoint| endpoint.ready), "{:#?}", all(&datapath));
    ensure!(reaches(&new)? == [false; 3], "held as long as nobody would know who speaks");
    tables.addresses = named;
    lab.node().netns().within(|| Ok(datapath.apply(&tables)?))?;
    ensure!(reaches(&new)? == [true; 3], "live: {:#?}", all(&datapath));

    // No agent: what was live stays so, what comes is held.
    drop(datapath);
    let late = lab.pod(PodSpec::new("shop", "late"))?;
    ensure!(reaches(&new)? == [true; 3] && reaches(&late)? == [false; 3], "without an agent");
    pods.push(manifest(&late, false));
    let mut datapath = agent(&pods)?;
    ensure!(reaches(&new)? == [true; 3] && reaches(&late)? == [true; 3], "the next agent lets it go");

    let unknown = lab.pod(PodSpec::new("shop", "unknown"))?;
    ensure!(reaches(&unknown)? == [false; 3], "still holding");
    for link in files(&lab.pin_dir()).into_iter().filter(|path| path.contains("/hold-")) {
        std::fs::remove_file(&link)?;
    }
    lab.node().netns().within(|| {
        check(&mut datapath);
        check(&mut datapath);
        Ok(())
    })?;
    ensure!(reaches(&unknown)? == [false; 3], "holding again");
    lab.node().netns().within(|| {
        datapath.set_mode(sekisho_core::layout::mode::AUDIT)?;
        Ok(())
    })?;
    ensure!(reaches(&unknown)? == [true; 3], "nothing is dropped but in mode enforce");
    lab.node().netns().within(|| {
        datapath.set_mode(sekisho_core::layout::mode::ENFORCE)?;
        datapath.set_hold(false);
        Ok(())
    })?;
    ensure!(reaches(&unknown)? == [true; 3], "posture open");
    ensure!(datapath.counters()[sekisho_core::counters::UNJUDGED as usize] > 0, "what passes unjudged is counted");
    Ok(())
}

#[test]
fn groups_of_pods_that_are_gone_make_room_while_a_pod_waits() -> Result<()> {
    let lab = Lab::new("dp-live")?;
    let [staying, going] = lab.pods("shop", ["staying", "going"])?;
    let pods = [manifest(&staying, false), never_starting(&staying), manifest(&going, false)];
    let live = |datapath: &Datapath| datapath.maps().iter().find(|map| map.name == "LIVE").map(|map| map.entries);
    lab.node().netns().within(|| {
        let mut datapath = Datapath::open(&options(&lab, TcBackend::Auto))?;
        datapath.reconcile(&pods);
        datapath.apply(&tables(&pods))?;
        datapath.set_hold(true);
        ensure!(live(&datapath) == Some(2), "{:?}", live(&datapath));
        going.delete()?;
        datapath.reconcile(&pods[..2]);
        ensure!(live(&datapath) == Some(1), "{:?}", live(&datapath));
        datapath.leave(true)?;
        Ok(())
    })
}
