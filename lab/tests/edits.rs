//! Policy is what lies in the folder: edits take effect at once, broken ones not at all. Needs root.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sekisho_lab::{Agent, Lab, Pod, app, edit_delays};
use serde_json::json;

struct Pair {
    lab: Lab,
    server: Pod,
    client: Pod,
}

fn pair(name: &str) -> Result<Pair> {
    let lab = Lab::new(name)?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    lab.admit("shop", "server", &json!([{"from": [app("client")]}]))?;
    Ok(Pair { lab, server, client })
}

/// A hundred edits, alternately allowing and denying an open flow of datagrams. The slowest of them are for
/// `cargo xtask bench edits` to judge: what else the machine does shows in them.
#[test]
fn an_edit_is_in_the_kernel_within_50_ms() -> Result<()> {
    let delays = edit_delays(100)?;
    let median = delays[delays.len() / 2];
    ensure!(median <= Duration::from_millis(50), "the median is {median:?}: {delays:?}");
    Ok(())
}

/// An open connection that is no longer allowed stops at its next packet, and its record says so.
#[test]
fn an_open_connection_stops() -> Result<()> {
    let Pair { lab, server, client } = pair("edits-open")?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    // One connection after the other waits 3 s for an answer before it counts as broken.
    let held = client.start(&["hold", &format!("{}:80", server.v4()), "3", "15"])?;
    std::thread::sleep(Duration::from_secs(1));
    lab.admit("shop", "server", &json!([{"from": [app("nobody")]}]))?;
    let result = held.finish(Duration::from_secs(60))?.json()?;
    ensure!(result["broken"] == 3, "every connection stops: {result}");
    let end = agent.record("the end of the allowed part", Duration::from_secs(5), |record| {
        record["kind"] == "end" && record["end_reason"] == "verdict_changed" && record["direction"] == "ingress"
    })?;
    let again = agent.record("the denied part", Duration::from_secs(5), |record| {
        record["kind"] == "start" && record["flow_id"] == end["flow_id"] && record["verdict"] == "denied"
    })?;
    ensure!(again["isolated_by"][0]["name"] == "server", "{again:#}");
    Ok(())
}

/// Whatever is wrong with a manifest: the previous policy stays, the agent lives and names what is wrong.
#[test]
fn broken_manifests_change_nothing() -> Result<()> {
    let Pair { lab, server, client } = pair("edits-broken")?;
    lab.remove_manifest("policy-shop-server.json")?;
    let head = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: server, namespace: shop}\n";
    let good = format!(
        "{head}spec:\n  podSelector: {{matchLabels: {{app: server}}}}\n  ingress:\n  - from: [{{podSelector: {{matchLabels: {{app: client}}}}}}]\n"
    );
    let closed = format!("{head}spec: {{podSelector: {{}}, policyTypes: [Ingress]}}\n");
    lab.write_manifest("policy.yaml", &good)?;
    let _serving = server.serve("tcp", 80)?;
    let mut agent = Agent::start(&lab, &[])?;
    let spec = |spec: &str| format!("{head}spec: {spec}\n");
    let broken: [(&str, Vec<u8>, &str); 9] = [
        ("unknown field", spec("{podSelector: {}, ingres: []}").into(), "ingres"),
        ("wrong type", spec("{podSelector: {}, ingress: yes}").into(), "ingress"),
        (
            "except outside",
            spec("{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [192.168.0.0/16]}}]}]}").into(),
            "except",
        ),
        ("endPort below port", spec("{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 79}]}]}").into(), "endPort"),
        ("unknown operator", spec("{podSelector: {matchExpressions: [{key: a, operator: Near, values: [b]}]}}").into(), "Near"),
        ("twice", format!("{good}---\n{closed}").into(), "server"),
        ("good, then broken", format!("{closed}---\n{}", spec("{podSelector: 7}")).into(), "podSelector"),
        ("not YAML", b"kind: [\n".to_vec(), "policy.yaml"),
        ("not UTF-8", [closed.as_bytes(), b"# \xff\xfe\n"].concat(), "UTF-8"),
    ];
    for (what, bytes, named) in broken {
        let seen = agent.log().len();
        let draft = lab.directory().join("draft");
        std::fs::write(&draft, bytes)?;
        std::fs::rename(&draft, lab.manifests().join("policy.yaml"))?;
        agent
            .until_status(what, Duration::from_secs(5), |status| {
                status["refused"].as_array().is_some_and(|refused| {
                    refused.iter().any(|text| text.to_string().contains("policy.yaml") && text.to_string().contains(named))
                })
            })
            .with_context(|| format!("{what}: the status names policy.yaml and {named}"))?;
        ensure!(agent.log()[seen..].contains(named), "{what}: the log names {named}: {}", &agent.log()[seen..]);
        ensure!(client.reaches("tcp", server.v4(), 80)?, "{what}: the previous policy stays");
        ensure!(agent.status()?["ready"] == true, "{what}: a broken manifest does not make it unready");
        lab.write_manifest("policy.yaml", &good)?;
        agent.until_status("the next good edit works", Duration::from_secs(5), |status| {
            status["refused"].as_array().is_none_or(Vec::is_empty)
        })?;
    }
    lab.write_manifest("policy.yaml", &closed)?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(!client.reaches("tcp", server.v4(), 80)?, "a good edit takes effect");
    lab.remove_manifest("policy.yaml")?;
    std::thread::sleep(Duration::from_millis(300));
    ensure!(client.reaches("tcp", server.v4(), 80)?, "without its file a policy is gone");
    ensure!(agent.alive()?);
    Ok(())
}
