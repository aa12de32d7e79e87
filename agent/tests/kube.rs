//! The source `kube` against a real kube-apiserver with a real etcd behind it: the same snapshot as from files, away and back
//! with compacted history, bad objects, many objects.
//!
//! Needs the binaries of `cargo xtask cluster` and openssl; tests that run the agent need root, and that of silence nft as well. Run by `cargo xtask e2e`, or by
//! `cargo test -p sekisho --test kube -- --ignored`; fails where it cannot run.

#[path = "kube_server/agent.rs"]
mod agent;
mod kube_server;
#[path = "kube_server/silence.rs"]
mod silence;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube_server::{Cluster, Objects};
use sekisho::inventory::kube::{Access, Source};
use sekisho::inventory::{About, Notice, Snapshot, files};
use serde_json::{Value, json};

/// Waits until `is` holds of the newest snapshot.
fn until(source: &Source, limit: Duration, is: impl Fn(&Snapshot) -> bool) -> Result<Arc<Snapshot>> {
    let end = Instant::now() + limit;
    let mut snapshot = source.current();
    while !(source.state().synced && is(&snapshot)) {
        let left = end.saturating_duration_since(Instant::now());
        ensure!(
            !left.is_zero(),
            "not within {limit:?}: {:?}, {} pods, {} policies",
            source.state(),
            snapshot.pods.len(),
            snapshot.policies.len()
        );
        snapshot = source.changed(snapshot.generation, left.min(Duration::from_millis(20)));
    }
    Ok(snapshot)
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}}})
}

fn pod(namespace: &str, name: &str, ip: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": {"app": name}, "annotations": {"note": "x"}},
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]},
    })
}

fn policy(namespace: &str, name: &str, app: &str) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "podSelector": {"matchLabels": {"app": app}},
            "ingress": [{"from": [{"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "In", "values": ["a", "b"]}]}}],
                         "ports": [{"port": "http"}, {"port": 53, "endPort": 60, "protocol": "UDP"}]}],
            "egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.9.0.0/16"]}}]}],
        },
    })
}

/// What the API server holds, as one manifest.
fn dump(objects: &Objects) -> Result<String> {
    let kinds = [
        ("v1", "Namespace"),
        ("v1", "Pod"),
        ("v1", "Node"),
        ("v1", "Service"),
        ("discovery.k8s.io/v1", "EndpointSlice"),
        ("networking.k8s.io/v1", "NetworkPolicy"),
        ("apps/v1", "ReplicaSet"),
        ("batch/v1", "Job"),
    ];
    let mut documents = Vec::new();
    for (version, kind) in kinds {
        for mut object in objects.list(version, kind)? {
            object["apiVersion"] = version.into();
            object["kind"] = kind.into();
            documents.push(object.to_string());
        }
    }
    Ok(documents.join("\n---\n"))
}

fn ensure_same(source: &Snapshot, manifests: &Snapshot) -> Result<()> {
    ensure!(manifests.refused.is_empty() && source.refused.is_empty(), "refused: {:?} {:?}", manifests.refused, source.refused);
    ensure!(source.namespaces == manifests.namespaces, "namespaces: {:?}\n{:?}", source.namespaces, manifests.namespaces);
    ensure!(source.pods == manifests.pods, "pods: {:?}\n{:?}", source.pods, manifests.pods);
    ensure!(source.nodes == manifests.nodes, "nodes");
    ensure!(source.services == manifests.services, "services: {:?}\n{:?}", source.services, manifests.services);
    ensure!(source.endpoint_slices == manifests.endpoint_slices, "slices");
    ensure!(source.policies == manifests.policies, "policies: {:?}\n{:?}", source.policies, manifests.policies);
    Ok(())
}

/// Waits until the source has what the server has. The server writes objects of its own as well when it starts.
fn in_step(source: &Source, objects: &Objects) -> Result<Arc<Snapshot>> {
    let begin = Instant::now();
    loop {
        let snapshot = source.current();
        match ensure_same(&snapshot, &files::snapshot_of(&dump(objects)?)) {
            Ok(()) => return Ok(snapshot),
            Err(error) => ensure!(begin.elapsed() < Duration::from_secs(5), "not in step: {error}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn shop() -> Vec<Value> {
    let owned = |kind: &str, name: &str| json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": "1", "controller": true}]);
    let template = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    let mut web = pod("a", "web-1", "10.0.0.1");
    web["metadata"]["ownerReferences"] = owned("ReplicaSet", "web");
    let mut nightly = pod("b", "report-1", "fd00::2");
    nightly["metadata"]["ownerReferences"] = owned("Job", "report");
    nightly["status"]["phase"] = "Succeeded".into();
    vec![
        namespace("a"),
        namespace("b"),
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "192.168.7.1"}, {"type": "Hostname", "address": "n1"}]}}),
        json!({"apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"namespace": "a", "name": "web", "ownerReferences": owned("Deployment", "shop-web")},
            "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": template}}),
        json!({"apiVersion": "batch/v1", "kind": "Job",
            "metadata": {"namespace": "b", "name": "report", "ownerReferences": owned("CronJob", "nightly")},
            "spec": {"template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i"}]}}}}),
        web,
        nightly,
        pod("a", "db", "10.0.0.3"),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "a", "name": "web"},
            "spec": {"type": "NodePort", "selector": {"app": "web"}, "internalTrafficPolicy": "Local",
                "ports": [{"name": "x", "port": 80, "targetPort": "http"}, {"name": "y", "port": 53, "protocol": "UDP"}]}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "a", "name": "headless"},
            "spec": {"clusterIP": "None", "ports": [{"port": 80}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "a", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}},
            "ports": [{"name": "x", "port": 8080}],
            "endpoints": [{"addresses": ["10.0.0.1"], "nodeName": "n1", "conditions": {"ready": false, "serving": true, "terminating": true},
                "targetRef": {"kind": "Pod", "namespace": "a", "name": "web-1"}}]}),
        policy("a", "web", "web"),
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "b", "name": "deny"},
            "spec": {"podSelector": {}, "egress": []}}),
    ]
}

#[test]
#[ignore = "needs etcd and kube-apiserver; run by `cargo xtask test`"]
fn the_api_server_and_the_same_manifests_give_the_same_snapshot() -> Result<()> {
    let cluster = Cluster::start()?;
    let objects = cluster.objects()?;
    // One half before the first list, the other by watch.
    let (before, after): (Vec<_>, Vec<_>) = shop().into_iter().enumerate().partition(|(index, _)| *index < 7);
    for (_, object) in &before {
        objects.create(object)?;
    }
    let source = Source::start(&Access::Kubeconfig(cluster.config()?), "n1")?;
    until(&source, Duration::from_secs(20), |_| true)?;
    for (_, object) in &after {
        objects.create(object)?;
    }
    until(&source, Duration::from_secs(10), |s| s.policies.len() == 2)?;
    let snapshot = in_step(&source, &objects)?;
    let workload = |name: &str, namespace: &str| snapshot.pods[&(namespace.into(), name.into())].workload.clone();
    ensure!((&*workload("web-1", "a").kind, &*workload("web-1", "a").name) == ("Deployment", "shop-web"));
    ensure!((&*workload("report-1", "b").kind, &*workload("report-1", "b").name) == ("CronJob", "nightly"));

    // Changes: as fast as they come, the snapshot follows.
    let mut delays = Vec::new();
    let web = policy("a", "web", "web");
    for round in 0..50u32 {
        let label = format!("web{round}");
        objects.patch(&web, &json!({"spec": {"podSelector": {"matchLabels": {"app": label}}}}))?;
        let answered = Instant::now();
        until(&source, Duration::from_secs(5), |s| {
            let text = format!("{:?}", s.policies[&("a".into(), "web".into())].pod_selector);
            text.contains(&format!("\"{label}\""))
        })?;
        delays.push(answered.elapsed());
    }
    delays.sort_unstable();
    println!("from the API's answer to the snapshot: median {:?}, p99 {:?}", delays[25], delays[49]);
    ensure!(delays[25] < Duration::from_millis(50), "median {:?}", delays[25]);
    Ok(())
}

#[test]
#[ignore = "needs etcd and kube-apiserver; run by `cargo xtask test`"]
fn a_server_that_was_away_and_lost_its_history_is_caught_up_with() -> Result<()> {
    let mut cluster = Cluster::start()?;
    let objects = cluster.objects()?;
    for object in shop() {
        objects.create(&object)?;
    }
    let source = Source::start(&Access::Kubeconfig(cluster.config()?), "n1")?;
    let before = until(&source, Duration::from_secs(20), |s| s.policies.len() == 2)?;
    ensure!(source.state().stale_since.is_none(), "{:?}", source.state());

    cluster.kill_api();
    let since = Instant::now();
    while source.state().stale_since.is_none() {
        ensure!(since.elapsed() < Duration::from_secs(5), "not noticed");
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("away was noticed after {:?}: {:?}", since.elapsed(), source.state());
    cluster.with_another(|other| {
        other.delete(&policy("b", "deny", ""))?;
        other.delete(&pod("a", "db", ""))?;
        other.create(&pod("a", "new", "10.0.0.3"))?;
        other.create(&policy("a", "new", "new"))
    })?;
    cluster.compact()?;
    let meanwhile = source.current();
    ensure!(meanwhile.generation == before.generation, "the last known state stays");

    cluster.start_api()?;
    let back = Instant::now();
    let after = until(&source, Duration::from_secs(8), |s| s.policies.contains_key(&("a".into(), "new".into())) && s.policies.len() == 2)?;
    let after = if after.pods.contains_key(&("a".into(), "new".into())) {
        after
    } else {
        until(&source, Duration::from_secs(5), |s| s.pods.contains_key(&("a".into(), "new".into())))?
    };
    println!("caught up {:?} after the server answered", back.elapsed());
    ensure!(!after.pods.contains_key(&("a".into(), "db".into())), "gone meanwhile");
    while source.state().stale_since.is_some() {
        ensure!(back.elapsed() < Duration::from_secs(10), "still stale: {:?}", source.state());
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("in step {:?} after the server answered", back.elapsed());
    in_step(&source, &objects)?;
    // And it goes on by watch.
    objects.create(&policy("b", "later", "x"))?;
    until(&source, Duration::from_secs(5), |s| s.policies.len() == 3)?;
    Ok(())
}

#[test]
#[ignore = "needs etcd and kube-apiserver; run by `cargo xtask test`"]
fn an_unreachable_server_is_said_and_waited_for() -> Result<()> {
    let mut cluster = Cluster::start()?;
    let config = cluster.config()?;
    cluster.kill_api();
    let source = Source::start(&Access::Kubeconfig(config), "n1")?;
    std::thread::sleep(Duration::from_secs(1));
    let state = source.state();
    ensure!(!state.synced && state.stale_since.is_some() && state.error.is_some(), "{state:?}");
    println!("{state:?}");
    cluster.start_api()?;
    until(&source, Duration::from_secs(8), |s| s.namespaces.contains_key("default"))?;
    Ok(())
}

#[test]
#[ignore = "needs etcd and kube-apiserver; run by `cargo xtask test`"]
fn notices_become_events_and_repeats_are_counted() -> Result<()> {
    let cluster = Cluster::start()?;
    let objects = cluster.objects()?;
    for object in shop() {
        objects.create(&object)?;
    }
    let source = Source::start(&Access::Kubeconfig(cluster.config()?), "n1")?;
    let second = Source::start(&Access::Kubeconfig(cluster.config()?), "n2")?;
    until(&source, Duration::from_secs(20), |s| s.policies.len() == 2)?;
    let about = |kind, namespace: &str, name: &str| About { kind, namespace: namespace.into(), name: name.into(), uid: Some("u1".into()) };
    let notice = |about, reason: &str, shared| Notice {
        about,
        reason: reason.to_owned(),
        action: "Test",
        text: "関所 ".repeat(500),
        series: String::new(),
        shared,
    };
    for _ in 0..3 {
        source.notify(notice(about("Pod", "a", "db"), "ScanVertical", false));
    }
    // Every node says it, and it is there once.
    for source in [&source, &second] {
        source.notify(notice(about("NetworkPolicy", "b", "deny"), "Refused", true));
        source.notify(notice(about("Node", "", "n1"), "PolicyNotInForce", false));
    }
    // Nobody minds that this namespace is not there.
    source.notify(notice(about("Pod", "nowhere", "db"), "ScanVertical", false));
    let count = |name: &str| source.notices().iter().find(|(outcome, _)| *outcome == name).map_or(0, |(_, n)| *n);
    let since = Instant::now();
    while count("written") < 4 || count("failed") < 1 || second.notices()[0].1 < 2 {
        ensure!(since.elapsed() < Duration::from_secs(20), "{:?} {:?}", source.notices(), second.notices());
        std::thread::sleep(Duration::from_millis(50));
    }
    let events = objects.list("events.k8s.io/v1", "Event")?;
    let of = |reason: &str| events.iter().filter(|event| event["reason"] == reason).collect::<Vec<_>>();
    let scans = of("ScanVertical");
    ensure!(scans.len() == 1 && scans[0]["series"]["count"] == 2, "{scans:#?}");
    ensure!(scans[0]["regarding"]["uid"] == "u1" && scans[0]["metadata"]["namespace"] == "a", "{scans:#?}");
    ensure!(of("Refused").len() == 1 && of("PolicyNotInForce").len() == 2, "{events:#?}");
    Ok(())
}

#[test]
#[ignore = "needs etcd and kube-apiserver, and root; run by `cargo xtask test`"]
fn objects_beyond_all_measure_are_read_and_put_in_force() -> Result<()> {
    let cluster = Cluster::start()?;
    let objects = cluster.objects()?;
    for object in shop() {
        objects.create(&object)?;
    }
    let agent = agent::Running::start(&cluster.config()?, "n1")?;
    agent.until(Duration::from_secs(30), |status| status["source"]["synced"] == true && status["policy"]["policies"] == 2)?;
    let labels: serde_json::Map<String, Value> = (0..5000).map(|n| (format!("label-{n:04}"), "x".repeat(63).into())).collect();
    let mut large = pod("a", "large", "10.0.0.9");
    large["metadata"]["labels"] = Value::Object(labels);
    objects.create(&large)?;
    let ports: Vec<Value> = (1..=10_000).map(|n| json!({"port": n * 3, "protocol": if n % 2 == 0 { "TCP" } else { "UDP" }})).collect();
    let mut wide = policy("a", "wide", "db");
    wide["spec"]["podSelector"] = json!({});
    wide["spec"]["ingress"][0]["ports"] = Value::Array(ports);
    objects.create(&wide)?;
    let mut all = policy("a", "all", "db");
    let everyone = json!({"from": [{"namespaceSelector": {}, "podSelector": {}}, {"ipBlock": {"cidr": "0.0.0.0/0"}}]});
    all["spec"] = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": vec![everyone; 1000]});
    objects.create(&all)?;
    let mut odd = pod("a", "odd", "10.0.0.10");
    odd["metadata"]["annotations"] = json!({"sekisho.dev/allow-sources": "x".repeat(100_000)});
    objects.create(&odd)?;
    let status = agent.until(Duration::from_secs(30), |status| {
        status["policy"]["policies"] == 4 && status["endpoints"].as_array().is_some_and(|all| all.len() == 4)
    })?;
    let refused = status["refused"].as_array().map(Vec::as_slice).unwrap_or_default();
    ensure!(refused.len() == 1, "{refused:?}");
    let text = refused[0].as_str().unwrap_or_default();
    ensure!(text.starts_with("Pod a/odd, metadata.annotations[sekisho.dev/allow-sources]") && text.len() < 500, "{text}");
    // In force or not, never half: what cannot be is said of the node.
    let unready: Vec<&str> = status["unready"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    ensure!(
        unready.iter().all(|why| why.starts_with("a/") || why.starts_with("b/")),
        "only pods without processes are not ready: {unready:?}"
    );
    let ignored = |objects: &Objects| -> Result<usize> {
        Ok(objects.list("events.k8s.io/v1", "Event")?.iter().filter(|event| event["reason"] == "AnnotationIgnored").count())
    };
    let since = Instant::now();
    while ignored(&objects)? != 1 {
        ensure!(since.elapsed() < Duration::from_secs(10), "no Event says that the annotation is not used");
        std::thread::sleep(Duration::from_millis(100));
    }
    for object in [&large, &wide, &all, &odd] {
        objects.delete(object)?;
    }
    agent.until(Duration::from_secs(30), |status| {
        status["policy"]["policies"] == 2 && status["refused"].as_array().is_some_and(Vec::is_empty)
    })?;
    agent.stop()
}

/// Memory of this process now, in bytes.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    text.split_whitespace().nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// How many pods there are, one after the other.
const PODS: [usize; 3] = [5_000, 10_000, 20_000];
/// Services and policies beside them, as many as 5,000 nodes have.
const SERVICES: usize = 2_000;
const POLICIES: usize = 1_000;
/// For so many the memory is projected.
const LARGEST: u64 = 150_000;

#[test]
#[ignore = "needs etcd and kube-apiserver, root, and some minutes; run by `cargo xtask e2e`"]
fn twenty_thousand_pods_are_read_in_time_and_kept_small() -> Result<()> {
    let cluster = Cluster::start()?;
    let objects = cluster.objects()?;
    objects.create_all(&(0..100).map(|n| namespace(&format!("ns{n}"))).collect::<Vec<_>>())?;
    objects.create_all(&(0..SERVICES).flat_map(large_service).collect::<Vec<_>>())?;
    objects.create_all(
        &(0..POLICIES).map(|n| policy(&format!("ns{}", n % 100), &format!("p{n}"), &format!("app{}", n % 40))).collect::<Vec<_>>(),
    )?;
    let (mut written, mut weights) = (0, Vec::new());
    for pods in PODS {
        let started = Instant::now();
        objects.create_all(&(written..pods).map(large_pod).collect::<Vec<_>>())?;
        println!("{} pods written in {:?}", pods - written, started.elapsed());
        written = pods;
        weights.push(weigh(&cluster, pods)?);
    }
    let per_pod = (weights[2] - weights[0]) / (PODS[2] - PODS[0]) as u64;
    let projected = weights[2] + per_pod * (LARGEST - PODS[2] as u64);
    println!("agent: {per_pod} bytes of its memory per pod; with {LARGEST} pods it would have {} MiB", projected >> 20);

    let bar = if cfg!(debug_assertions) { Duration::from_secs(60) } else { Duration::from_secs(20) };
    source_alone(&cluster, bar)?;
    whole_agent(&cluster, &objects)
}

/// The memory that the agent keeps with so many pods.
fn weigh(cluster: &Cluster, pods: usize) -> Result<u64> {
    let (agent, took) = synced_agent(cluster)?;
    std::thread::sleep(Duration::from_secs(5));
    let (resident, peak) = (agent.resident()?, agent.peak()?);
    println!("agent: {pods} pods: policy in force after {took:?}, {} KiB resident, {} KiB at the peak", resident >> 10, peak >> 10);
    agent.stop()?;
    Ok(resident)
}

fn source_alone(cluster: &Cluster, bar: Duration) -> Result<()> {
    let before = resident();
    let started = Instant::now();
    let source = Source::start(&Access::Kubeconfig(cluster.config()?), "n1")?;
    let snapshot = until(&source, Duration::from_secs(120), |_| true)?;
    let (took, grown) = (started.elapsed(), resident().saturating_sub(before));
    ensure!(snapshot.pods.len() == PODS[2] && snapshot.policies.len() == POLICIES, "{} pods", snapshot.pods.len());
    println!("read in {took:?}; the source takes {} KiB, {} bytes per pod", grown >> 10, grown / PODS[2] as u64);
    ensure!(took < bar, "{took:?}");
    Ok(())
}

/// An agent of a node whose pods have no process here, so that it judges nobody; and how long its policy took.
fn synced_agent(cluster: &Cluster) -> Result<(agent::Running, Duration)> {
    let agent = agent::Running::start(&cluster.config()?, "node-707")?;
    let started = Instant::now();
    agent.until(Duration::from_secs(120), |status| status["source"]["synced"] == true && status["policy"]["policies"] == POLICIES)?;
    Ok((agent, started.elapsed()))
}

/// The agent itself on these objects: memory, the time until its policy is in force, and what quiet and change cost it. The
/// bars hold for the agent as it is shipped.
fn whole_agent(cluster: &Cluster, objects: &Objects) -> Result<()> {
    let (agent, took) = synced_agent(cluster)?;
    std::thread::sleep(Duration::from_secs(5));
    let quiet = agent.cpu_over(Duration::from_secs(20))?;
    println!("agent: in force after {took:?}; {quiet:?} of processor time in 20 s of quiet, {} KiB resident", agent.resident()? >> 10);

    let begun = (agent.cpu()?, Instant::now());
    for n in 0..200 {
        objects.patch(&large_pod(n), &json!({"metadata": {"labels": {"tier": format!("t{n}")}}}))?;
    }
    let used = agent.cpu()?.saturating_sub(begun.0);
    let peak = agent.peak()?;
    println!("agent: 200 changes of remote pods within {:?} cost {used:?}; {} KiB at the peak", begun.1.elapsed(), peak >> 10);
    agent.stop()?;
    if !cfg!(debug_assertions) || std::env::var_os("SEKISHO_BINARY").is_some() {
        ensure!(took < Duration::from_secs(20), "{took:?}");
        ensure!(peak <= 120 << 20, "{} KiB", peak >> 10);
        ensure!(quiet < Duration::from_secs(1), "{quiet:?}");
    }
    Ok(())
}

fn large_pod(n: usize) -> Value {
    let (namespace, app) = (format!("ns{}", n % 100), format!("app{}", n / 100 % 40));
    let mut pod = pod(&namespace, &format!("{app}-6d4cf56db6-{n:05}"), &format!("10.{}.{}.{}", 128 + n / 65536, n / 256 % 256, n % 256));
    pod["metadata"]["labels"] = json!({"app": app, "pod-template-hash": "6d4cf56db6", "app.kubernetes.io/name": app, "tier": "backend"});
    pod["metadata"]["ownerReferences"] =
        json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-6d4cf56db6"), "uid": "1", "controller": true}]);
    pod["spec"]["nodeName"] = format!("node-{}", n % 5000).into();
    pod
}

fn large_service(n: usize) -> [Value; 2] {
    let (namespace, name) = (format!("ns{}", n % 100), format!("svc{n}"));
    let endpoints: Vec<Value> = (0..10)
        .map(|i| (n * 10 + i) % 20_000)
        .map(|p| json!({"addresses": [format!("10.{}.{}.{}", 128 + p / 65536, p / 256 % 256, p % 256)], "nodeName": format!("node-{}", p % 5000)}))
        .collect();
    [
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": namespace, "name": name}, "spec": {"ports": [{"port": 80}]}}),
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": namespace, "name": format!("{name}-x"), "labels": {"kubernetes.io/service-name": name}},
            "ports": [{"port": 8080}], "endpoints": endpoints}),
    ]
}
