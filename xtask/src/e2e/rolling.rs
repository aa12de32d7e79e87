//! Rolling updates of a Deployment behind a Service, under load: what fails with Sekisho is what fails without it.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Stage;
use super::pods::{Pod, server};
use super::probe::{PATIENCE, Protocol, answered_from};

const SPACE: &str = "e2e-rolling";
/// Updates with the policy in force, and as many where nothing is.
const UPDATES: u32 = 20;
const REPLICAS: u32 = 2;
const LIMIT: Duration = Duration::from_secs(5);

/// Connections of one run.
#[derive(Debug, Default)]
struct Load {
    made: u32,
    failed: Vec<String>,
}

/// A Deployment that lets a pod serve on until everybody has heard that it goes.
fn deployment() -> Value {
    let mut template = server(SPACE, "web", None, &json!({}))["spec"].clone();
    template["terminationGracePeriodSeconds"] = 4.into();
    template["containers"][0]["lifecycle"] = json!({"preStop": {"sleep": {"seconds": 2}}});
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "namespace": SPACE},
        "spec": {
            "replicas": REPLICAS,
            "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": template},
        },
    })
}

pub(super) fn rolling_updates_fail_no_connection_of_ours(stage: &Stage) -> Result<()> {
    stage.namespace(SPACE)?;
    stage.api.must("POST", &format!("/apis/apps/v1/namespaces/{SPACE}/deployments"), Some(&deployment()))?;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": SPACE},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "protocol": "TCP"}]},
    });
    let made = stage.api.must("POST", &format!("/api/v1/namespaces/{SPACE}/services"), Some(&service))?;
    let address: Ipv4Addr = made.body["spec"]["clusterIP"].as_str().unwrap_or_default().parse().context("the Service's address")?;
    stage.make(&server(SPACE, "client", Some("node-1"), &json!({"app": "client"})))?;
    let client = stage.ready_pod(SPACE, "client")?;
    for (name, from, to) in [("web", "client", "web"), ("client", "client", "web")] {
        let direction = if name == "web" { "Ingress" } else { "Egress" };
        let peers = if name == "web" {
            json!({"ingress": [{"from": [{"podSelector": {"matchLabels": {"app": from}}}], "ports": [{"port": 80}]}]})
        } else {
            json!({"egress": [{"to": [{"podSelector": {"matchLabels": {"app": to}}}], "ports": [{"port": 80}]}]})
        };
        let mut spec = json!({"podSelector": {"matchLabels": {"app": name}}, "policyTypes": [direction]});
        spec.as_object_mut().context("an object")?.extend(peers.as_object().cloned().unwrap_or_default());
        stage.api.put_policy(&super::scenarios::policy(SPACE, name, &spec))?;
    }
    stage.ready(SPACE, REPLICAS as usize + 1)?;
    stage.covered(Duration::from_secs(20))?;
    // kube-proxy refuses for a Service until it has heard of its first backend.
    stage.client.wait(Duration::from_secs(20), "the Service is served", |_| {
        answered_from(&client.netns(), Protocol::Tcp, address.into(), 80, PATIENCE)
    })?;
    let with = updates(stage, &client, address.into())?;
    eprintln!("    {UPDATES} updates: {} connections, {} failed", with.made, with.failed.len());
    if !with.failed.is_empty() {
        // Whether it is ours: the same where nothing is dropped.
        stage.mode("observe")?;
        let without = updates(stage, &client, address.into());
        stage.mode("enforce")?;
        let without = without?;
        eprintln!("    where nothing is dropped: {} connections, {} failed", without.made, without.failed.len());
        ensure!(with.failed.len() <= without.failed.len(), "in force {:?}, in mode observe {:?}", with.failed, without.failed);
    }
    ensure!(with.made > 1000, "only {} connections were made", with.made);
    stage.forget(&[SPACE])
}

/// Updates one after the other while connections are made all the time.
fn updates(stage: &Stage, client: &Pod, address: IpAddr) -> Result<Load> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| client.netns().within(|| Ok(connect(SocketAddr::new(address, 80), &stop))));
        let done = (0..UPDATES).try_for_each(|_| {
            let begin = Instant::now();
            stage.client.run(&["-n", SPACE, "rollout", "restart", "deployment/web"])?;
            stage.client.run(&["-n", SPACE, "rollout", "status", "deployment/web", "--timeout=120s"])?;
            // kubectl restarts once a second at most.
            std::thread::sleep(Duration::from_millis(1100).saturating_sub(begin.elapsed()));
            Ok(())
        });
        stop.store(true, Ordering::Relaxed);
        let load = load.join().expect("the load does not panic");
        done.and(load)
    })
}

/// A connection with one exchange every ten milliseconds.
fn connect(target: SocketAddr, stop: &AtomicBool) -> Load {
    let mut load = Load::default();
    let begin = Instant::now();
    while !stop.load(Ordering::Relaxed) {
        load.made += 1;
        if let Err(error) = exchange(target) {
            load.failed.push(format!("{:.1} s: {error}", begin.elapsed().as_secs_f64()));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    load
}

fn exchange(target: SocketAddr) -> std::io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&target, LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(b"probe")?;
    stream.read_exact(&mut [0; 5])
}

impl Stage {
    /// Sets every agent's mode.
    fn mode(&self, mode: &str) -> Result<()> {
        self.agents()?.iter().try_for_each(|(node, _)| self.sekisho(node, &["mode", mode]).map(drop))
    }
}
