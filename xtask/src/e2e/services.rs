//! Services under an egress policy. At a pod's interface a packet still shows the Service's address; what counts is
//! which pods stand behind it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Stage;
use super::pods::{Pod, server};
use super::probe::{PATIENCE, Protocol, SILENCE, answered_from};
use super::scenarios::policy;

const NAMESPACE: &str = "e2e-services";
/// At which the Services are; their pods serve at others.
const PORT: u16 = 8080;

/// The client may reach pods labelled `tier: open` and nobody else.
pub(super) fn a_service_is_judged_by_its_backends(stage: &Stage) -> Result<()> {
    stage.namespace(NAMESPACE)?;
    let far = if stage.plan.nodes > 1 { "node-2" } else { "node-1" };
    for (name, node, labels) in [
        ("client", "node-1", json!({"app": "client"})),
        ("closed", far, json!({"app": "closed", "tier": "closed", "any": "yes"})),
        ("open-far", far, json!({"app": "open", "tier": "open", "any": "yes"})),
        ("open-near", "node-1", json!({"app": "open", "tier": "open", "any": "yes"})),
    ] {
        stage.make(&server(NAMESPACE, name, Some(node), &labels))?;
    }
    let open = service(stage, "open", &json!({"app": "open"}), false)?;
    let closed = service(stage, "closed", &json!({"app": "closed"}), false)?;
    let mixed = service(stage, "mixed", &json!({"any": "yes"}), false)?;
    service(stage, "headless", &json!({"app": "open"}), true)?;
    let pods = stage.ready(NAMESPACE, 4)?;
    let client = &pods[0];
    for addresses in [&open, &closed, &mixed] {
        await_service(stage, client, addresses)?;
    }
    let spec = json!({
        "podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"tier": "open"}}}]}],
    });
    stage.api.put_policy(&policy(NAMESPACE, "client", &spec))?;
    std::thread::sleep(Duration::from_millis(500));
    expect(client, (&open, PORT), true, "a Service of pods that are allowed")?;
    expect(client, (&closed, PORT), false, "a Service of a pod that is not allowed")?;
    expect(client, (&mixed, PORT), false, "a Service of both")?;
    for pod in &pods[2..] {
        expect(client, (&pod.addresses, 80), true, &format!("{} itself, as a headless Service gives it", pod.name))?;
    }
    expect(client, (&pods[1].addresses, 80), false, "the pod that is not allowed itself")?;
    records_join(stage, client, &open)?;
    a_backend_moves(stage, client, &closed, &mixed)?;
    stage.forget(&[NAMESPACE])
}

/// Every connection to a Service is recorded with what stands behind, and by the translated Community ID it is the one
/// that the backend's end has recorded, on whichever node.
fn records_join(stage: &Stage, client: &Pod, open: &[IpAddr]) -> Result<()> {
    let book = stage.last_record(&client.node)?;
    for address in open {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            ensure!(answered_from(&client.netns(), protocol, *address, PORT, PATIENCE)?, "{address} over {}", protocol.name());
        }
    }
    std::thread::sleep(Duration::from_secs(1));
    let mut at_servers = Vec::new();
    for (node, _) in stage.agents()? {
        at_servers.extend(stage.records(&node)?.into_iter().filter(|record| record["direction"] == "ingress"));
    }
    let mut joined = 0;
    for record in stage.records(&client.node)? {
        let to_service = open.iter().any(|address| record["destination"]["ip"] == address.to_string());
        let new = record["kind"] == "start" && record["seq"].as_u64() > Some(book);
        if !new || !to_service || record["source"]["pod"]["uid"] != client.uid.as_str() {
            continue;
        }
        let behind = &record["destination"]["translated"];
        let why = || format!("{record:#}, {}", stage.status(&client.node).map(|status| status["translations"].clone()).unwrap_or_default());
        ensure!(behind["pod"]["name"].as_str().is_some_and(|name| name.starts_with("open-")) && behind["port"] == 80, "{}", why());
        let server = at_servers.iter().find(|at| at["community_id"] == record["community_id_translated"]);
        let server = server.with_context(|| format!("no server's record joins with {record:#}"))?;
        ensure!(server["destination"]["pod"]["uid"] == behind["pod"]["uid"], "{record:#} joins with {server:#}");
        joined += 1;
    }
    ensure!(joined >= open.len() * 2, "only {joined} records of connections to Services");
    eprintln!("    {joined} connections to Services joined with their servers' records");
    Ok(())
}

/// A backend that gets the label that is allowed makes its Services allowed.
fn a_backend_moves(stage: &Stage, client: &Pod, closed: &[IpAddr], mixed: &[IpAddr]) -> Result<()> {
    let path = format!("/api/v1/namespaces/{NAMESPACE}/pods/closed");
    stage.api.must("PATCH", &path, Some(&json!({"metadata": {"labels": {"tier": "open"}}})))?;
    std::thread::sleep(Duration::from_millis(500));
    expect(client, (closed, PORT), true, "a Service whose backend is allowed now")?;
    expect(client, (mixed, PORT), true, "a Service whose backends are all allowed now")
}

/// Makes a Service of both families; returns its addresses.
fn service(stage: &Stage, name: &str, selector: &Value, headless: bool) -> Result<Vec<IpAddr>> {
    let mut spec = json!({
        "selector": selector, "ipFamilyPolicy": "RequireDualStack",
        "ports": [{"name": "tcp", "port": PORT, "targetPort": "http"}, {"name": "udp", "protocol": "UDP", "port": PORT, "targetPort": 80}],
    });
    if headless {
        spec["clusterIP"] = "None".into();
    }
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec});
    let made = stage.api.must("POST", &format!("/api/v1/namespaces/{NAMESPACE}/services"), Some(&service))?.body;
    let addresses = made["spec"]["clusterIPs"].as_array().into_iter().flatten().filter_map(Value::as_str);
    addresses.filter(|address| *address != "None").map(|address| address.parse().context("a Service's address")).collect()
}

/// Waits until kube-proxy on the client's node has it.
fn await_service(stage: &Stage, client: &Pod, addresses: &[IpAddr]) -> Result<()> {
    stage.client.wait(Duration::from_secs(20), "the Service answers", |_| {
        let all = addresses.iter().map(|address| answered_from(&client.netns(), Protocol::Tcp, *address, PORT, SILENCE));
        Ok(all.collect::<Result<Vec<_>>>()?.into_iter().all(|answered| answered))
    })
}

/// Several attempts each: kube-proxy takes one backend or another.
fn expect(client: &Pod, (addresses, port): (&[IpAddr], u16), wanted: bool, what: &str) -> Result<()> {
    for address in addresses {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for _ in 0..4 {
                let answered = answered_from(&client.netns(), protocol, *address, port, if wanted { PATIENCE } else { SILENCE })?;
                ensure!(answered == wanted, "{what}, {address} over {}: answered={answered}", protocol.name());
            }
        }
    }
    Ok(())
}
