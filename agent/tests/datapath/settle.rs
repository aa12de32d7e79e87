//! Links that take the place of filters, and links that come in front of others' programs.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use sekisho::datapath::{Attach, Datapath, Options, TcBackend};
use sekisho_core::layout::mode;
use sekisho_lab::{Heading, Lab, PodSpec, Sniffer, tool};

use super::{check, manifest, options, tables, tcx};

const TURNS: usize = 10;

#[test]
fn nothing_passes_unjudged_while_links_are_moved_to_the_front() -> Result<()> {
    let lab = Lab::new("dp-front")?;
    let (pod, stranger) = (lab.pod(PodSpec::new("shop", "one"))?, lab.pod(PodSpec::new("shop", "stranger"))?);
    let pods = [manifest(&pod, false)];
    let interface = pod.interface().context("veth")?.to_owned();
    lab.node().netns().within(|| {
        let mut ours = Datapath::open(&options(&lab, TcBackend::Tcx))?;
        ours.reconcile(&pods);
        ours.apply(&tables(&pods))?;
        // Somebody else, who wants to be first as well and lets everything pass.
        let mut other = Datapath::open(&Options { pin_dir: lab.directory().join("bpf/other"), ..options(&lab, TcBackend::Tcx) })?;
        other.set_mode(mode::OBSERVE)?;
        other.reconcile(&pods);
        other.apply(&tables(&pods))?;
        let wire = Sniffer::start(pod.netns(), "eth0")?;
        let sending = stranger.spawn(tool::binary()?, &["knock", &format!("{}:53", pod.v4()), "1000000", "20000"])?;
        let before = ours.counters()[sekisho_core::counters::DROPPED as usize];
        let mut first = tcx(&interface)?;
        for _ in 0..TURNS {
            for datapath in [&mut ours, &mut other] {
                ensure!(check(datapath).len() == 1, "it was not in front, and is");
                let now = tcx(&interface)?;
                ensure!(now[0].len() == 2 && now[0][0] != first[0][0], "{first:?} then {now:?}");
                first = now;
            }
        }
        drop(sending);
        let arrived = wire.total(|flow| flow.heading == Heading::In && flow.protocol == 17 && flow.source.0 == stranger.v4())?;
        let denied = ours.counters()[sekisho_core::counters::DROPPED as usize] - before;
        ensure!(arrived.packets == 0 && denied > 1000, "{arrived:?} arrived, {denied} were denied");
        other.leave(true)?;
        ours.leave(true)?;
        Ok(())
    })
}

#[test]
fn a_pod_that_cannot_settle_keeps_nobody_waiting() -> Result<()> {
    let lab = Lab::new("dp-settle")?;
    lab.node().netns().within(|| {
        let mut datapath = Datapath::open(&options(&lab, TcBackend::Tcx))?;
        // What was there before would get links at once.
        datapath.reconcile(&[]);
        let [stuck, waiting] = lab.pods("shop", ["stuck", "waiting"])?;
        let pods = [manifest(&stuck, false), manifest(&waiting, false)];
        datapath.reconcile(&pods);
        datapath.apply(&tables(&pods))?;
        let attached = |datapath: &Datapath, uid: &str| datapath.endpoints().find(|e| &*e.uid == uid).map(|e| e.attach);
        for pod in [&stuck, &waiting] {
            ensure!(attached(&datapath, pod.uid()) == Some(Attach::Clsact), "it came in a hurry");
        }
        let gone = Command::new("ip").args(["link", "delete", stuck.interface().context("veth")?]).status()?;
        ensure!(gone.success(), "{gone}");
        datapath.settle_one();
        ensure!(attached(&datapath, waiting.uid()) == Some(Attach::Clsact), "it was the other's turn");
        datapath.settle_one();
        ensure!(attached(&datapath, stuck.uid()) == Some(Attach::Clsact), "there is nothing to attach to");
        ensure!(attached(&datapath, waiting.uid()) == Some(Attach::Tcx), "it is its turn");
        datapath.leave(true)?;
        Ok(())
    })
}
