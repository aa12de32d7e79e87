//! The API server is away for a minute, and has forgotten its history when it returns. Meanwhile nothing may change at
//! any pod; after its return everything must that was changed before it went and that no agent had heard of.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use sekisho_lab::{Heading, Sniffer};
use serde_json::{Value, json};

use super::Stage;
use super::pods::{Pod, server};
use super::probe::{PATIENCE, Protocol, SILENCE, answered, answered_from};
use super::scenarios::policy;
use super::upgrade::Crossing;
use crate::cluster::{Cut, PROBE, compact_history, kill_api_server, node_name, processes_of_pod, restart_api_server, static_pods};

/// How long the API server is away.
const AWAY: Duration = Duration::from_mins(1);
/// How soon after its return a change must be in force.
const BACK: Duration = Duration::from_secs(5);
/// How long a connection may take while it is not known yet whether it will be allowed.
const UNSURE: Duration = Duration::from_millis(800);
/// How often a pod appears and another goes while no API server knows of it.
const CHURN: Duration = Duration::from_secs(8);

/// Ends the API server and lets it return after `away` without streaming lists, as servers before 1.34 are.
pub(super) fn return_without_streaming(stage: &Stage, away: Duration) -> Result<()> {
    kill_api_server()?;
    std::thread::sleep(away);
    back_without_streaming(stage)
}

fn back_without_streaming(stage: &Stage) -> Result<()> {
    restart_api_server(&["--feature-gates=WatchList=false"])?;
    stage
        .client
        .wait(Duration::from_secs(60), "the API server is back", |client| Ok(client.try_run(&["get", "--raw", "/readyz"])?.is_some()))
}

/// Nothing changes while it is away, and what changed behind the agents' backs before is in force soon after its return. It
/// returns with a compacted history and without streaming lists, so agents have to list everything anew.
pub(super) fn without_api_server_verdicts_stay(stage: &Stage) -> Result<()> {
    let crossing = Crossing::make(stage, "e2e-away")?;
    let town = Town::make(stage)?;
    let pods = stage.ready("e2e-away", 3)?;
    let agents = stage.agents()?;
    let sniffer = Sniffer::start(&pods[1].netns(), "eth0").context("cannot count at the server")?;
    let seen = crossing.watch(|| {
        // It runs once more for a moment, and no node reaches it: so there is something that no agent has heard of.
        kill_api_server()?;
        let cut = Cut::from_api_server(stage.plan)?;
        back_without_streaming(stage)?;
        Town::change(stage)?;
        kill_api_server()?;
        compact_history()?;
        // From here on agents are refused, and not just unanswered.
        drop(cut);
        town.without_api_server(stage, pods[1].addresses[0])?;
        back_without_streaming(stage)?;
        town.changed(Instant::now())
    })?;
    seen.no_gap()?;
    no_strangers(&sniffer.stop()?, &pods)?;
    later_changes_arrive(stage, &pods)?;
    ensure!(agents == stage.agents()?, "agents were replaced meanwhile");
    for (node, _) in &agents {
        let status = stage.status(node)?;
        ensure!(status["source"]["stale_since"].is_null() && status["source"]["staleSince"].is_null(), "{node}: {}", status["source"]);
    }
    stage.client.wait(Duration::from_secs(120), "every node is ready again", |client| {
        Ok(client.lines(&["get", "nodes", "--no-headers"])?.iter().all(|line| line.contains(" Ready ")))
    })?;
    stage.forget(&["e2e-away", TOWN])
}

/// The stranger becomes the friend.
fn later_changes_arrive(stage: &Stage, pods: &[Pod]) -> Result<()> {
    let since = Instant::now();
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "stranger"}}}]}],
    });
    stage.api.put_policy(&policy("e2e-away", "server", &spec))?;
    let [friend, server, stranger] = pods else { bail!("three pods were made") };
    for address in &server.addresses {
        stage
            .client
            .wait(BACK, "the change is in force", |_| answered_from(&stranger.netns(), Protocol::Tcp, *address, 80, SILENCE))
            .context("after the API server's return")?;
        ensure!(!answered_from(&friend.netns(), Protocol::Tcp, *address, 80, SILENCE)?, "the old policy is still in force");
        ensure!(answered_from(&stranger.netns(), Protocol::Tcp, *address, 80, PATIENCE)?, "the new policy is in force now and then");
    }
    eprintln!("    a later change is in force {:.1} s after it was made", since.elapsed().as_secs_f64());
    Ok(())
}

/// Pods that nobody but their kubelet knew of had no right to send the server anything.
fn no_strangers(seen: &std::collections::BTreeMap<sekisho_lab::Flow, sekisho_lab::Count>, pods: &[Pod]) -> Result<()> {
    let server = &pods[1].addresses;
    let leaked: Vec<_> =
        seen.keys().filter(|flow| flow.heading == Heading::In && flow.protocol == 17 && server.contains(&flow.destination.0)).collect();
    ensure!(leaked.is_empty(), "datagrams of pods that may not send them arrived: {leaked:?}");
    Ok(())
}

const TOWN: &str = "e2e-town";

/// Pods and policies of which every kind of change is made while no agent hears of it.
struct Town {
    pods: Vec<Pod>,
}

/// Who connects to whom, and whether that is allowed before and after [`Town::change`].
const ROADS: [(&str, &str, bool, bool); 6] = [
    ("ann", "ledger", true, false),
    ("bob", "ledger", false, true),
    ("ann", "closed", false, true),
    ("bob", "closed", false, true),
    ("ann", "open", true, false),
    ("bob", "club", false, true),
];

impl Town {
    fn make(stage: &Stage) -> Result<Self> {
        stage.namespace(TOWN)?;
        let far = if stage.plan.nodes > 1 { "node-2" } else { "node-1" };
        for (name, node) in [("ann", "node-1"), ("bob", far), ("closed", far), ("club", "node-1"), ("ledger", "node-1"), ("open", far)] {
            stage.make(&server(TOWN, name, Some(node), &json!({"app": name})))?;
        }
        for (of, from) in [
            ("ledger", json!([{"from": [{"podSelector": {"matchLabels": {"app": "ann"}}}]}])),
            ("closed", json!([])),
            ("club", json!([{"from": [{"podSelector": {"matchLabels": {"may": "yes"}}}]}])),
        ] {
            stage.api.put_policy(&ingress(of, &from))?;
        }
        let town = Self { pods: stage.ready(TOWN, 6)? };
        std::thread::sleep(Duration::from_millis(500));
        town.as_before().context("before anything happens")?;
        Ok(town)
    }

    /// One policy altered, one removed, one new, one pod labelled; and enough besides that there is a history.
    fn change(stage: &Stage) -> Result<()> {
        stage.api.put_policy(&ingress("ledger", &json!([{"from": [{"podSelector": {"matchLabels": {"app": "bob"}}}]}])))?;
        stage.api.must("DELETE", &format!("/apis/networking.k8s.io/v1/namespaces/{TOWN}/networkpolicies/closed"), None)?;
        stage.api.put_policy(&ingress("open", &json!([])))?;
        stage.api.must("PATCH", &format!("/api/v1/namespaces/{TOWN}/pods/bob"), Some(&json!({"metadata": {"labels": {"may": "yes"}}})))?;
        for round in 0..100 {
            let spec = json!({"podSelector": {"matchLabels": {"round": round.to_string()}}});
            stage.api.put_policy(&policy(TOWN, "noise", &spec))?;
        }
        Ok(())
    }

    /// Whether each road is open, tried at the same time over both families; none where the families disagree.
    fn roads(&self) -> Result<Vec<Option<bool>>> {
        let pod = |name: &str| self.pods.iter().find(|pod| pod.name == name).context("a pod of the town");
        std::thread::scope(|scope| {
            let tries: Vec<_> = ROADS
                .iter()
                .map(|(from, to, ..)| {
                    let (from, to) = (pod(from)?, pod(to)?);
                    let try_both =
                        move || from.netns().within(|| Ok([0, 1].map(|family| answered(Protocol::Tcp, to.addresses[family], 80, UNSURE))));
                    Ok(scope.spawn(try_both))
                })
                .collect::<Result<_>>()?;
            tries
                .into_iter()
                .map(|one| Ok(Some(one.join().expect("a try does not panic")?).filter(|[v4, v6]| v4 == v6).map(|[v4, _]| v4)))
                .collect()
        })
    }

    fn as_before(&self) -> Result<()> {
        let roads = self.roads()?;
        for ((from, to, before, _), road) in ROADS.iter().zip(&roads) {
            ensure!(*road == Some(*before), "{from} -> {to} should be {before} and is {road:?}");
        }
        Ok(())
    }

    /// Old verdicts stay while the API server is away, and pods come and go.
    fn without_api_server(&self, stage: &Stage, target: std::net::IpAddr) -> Result<()> {
        let end = Instant::now() + AWAY;
        let mut born = 0u32;
        while Instant::now() < end {
            let next = Instant::now() + CHURN;
            let node = node_name(u8::try_from(born % u32::from(stage.plan.nodes))? + 1);
            let file = static_pods(&node).join("churn.json");
            fs::write(&file, knocking(born, target).to_string()).context("cannot make a static pod")?;
            born += 1;
            if born == 2 {
                self.crash("club")?;
            }
            while Instant::now() < next.min(end) {
                self.as_before().or_else(|_| self.as_before()).context("while the API server is away")?;
                std::thread::sleep(Duration::from_millis(200));
            }
        }
        for number in stage.plan.numbers() {
            // The last one on each node; a node may have had none.
            let _absent = fs::remove_file(static_pods(&node_name(number)).join("churn.json"));
        }
        eprintln!("    {born} pods came and went without an API server, one crashed; every verdict stayed");
        Ok(())
    }

    /// Ends the server in a pod; its kubelet starts another.
    fn crash(&self, name: &str) -> Result<()> {
        let pod = self.pods.iter().find(|pod| pod.name == name).context("a pod of the town")?;
        let serves = |pid: &u32| fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|words| words.windows(5).any(|word| word == b"serve"));
        let pid = processes_of_pod(&pod.node, &pod.uid)?.into_iter().find(serves).context("no process of the pod serves")?;
        sekisho_lab::kill(pid, 9).context("cannot end a pod's process")
    }

    /// All changes are in force soon after `back`.
    fn changed(&self, back: Instant) -> Result<()> {
        loop {
            let asked = back.elapsed();
            let roads = self.roads()?;
            if ROADS.iter().zip(&roads).all(|((.., after), road)| *road == Some(*after)) {
                eprintln!("    every change made behind the agents' backs was in force {:.1} s after its return", asked.as_secs_f64());
                return Ok(());
            }
            ensure!(asked <= BACK, "{:.1} s after its return the roads {ROADS:?} are {roads:?}", asked.as_secs_f64());
        }
    }
}

fn ingress(of: &str, from: &Value) -> Value {
    policy(TOWN, of, &json!({"podSelector": {"matchLabels": {"app": of}}, "policyTypes": ["Ingress"], "ingress": from}))
}

/// A pod that only its kubelet knows of, which claims to be the server's friend and sends from its first moment on.
fn knocking(number: u32, target: std::net::IpAddr) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("churn-{number}"), "namespace": "e2e-away", "labels": {"app": "friend"}},
        "spec": {
            "terminationGracePeriodSeconds": 1, "enableServiceLinks": false,
            "containers": [{
                "name": "sender", "image": PROBE, "imagePullPolicy": "Never", "args": ["knock", format!("{target}:80"), "100000", "50"],
            }],
        },
    })
}
