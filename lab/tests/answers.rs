//! What the agent says of its decisions: `explain` where it cannot know, refusals in `status`, and what allows a flow after its policy
//! was replaced. Needs root.

use std::time::Duration;

use anyhow::{Result, ensure};
use sekisho_lab::{Agent, Lab, PodSpec, app};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(8);

fn explain(agent: &Agent, from: &str, to: &str, port: u16) -> Result<Value> {
    let port = format!("{port}/TCP");
    agent.command(&["explain", "--from", from, "--to", to, "--port", &port, "-o", "json"])?.json()
}

#[test]
fn explain_says_what_it_cannot_know() -> Result<()> {
    let lab = Lab::new("answers-explain")?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    let host = lab.pod(PodSpec::new("shop", "host").host_network())?;
    lab.admit("shop", "server", &json!([{"from": [app("client")], "ports": [{"port": 80}]}]))?;
    let far = |name: &str, address: &str, host_network: bool| {
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": name, "uid": name, "labels": {"app": name}},
            "spec": {"nodeName": "node-2", "hostNetwork": host_network, "containers": []},
            "status": {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}})
    };
    lab.manifest("far", &far("far", "10.99.0.7", false))?;
    lab.manifest("far-host", &far("far-host", "10.98.0.2", true))?;
    lab.manifest(
        "service",
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIP": "10.96.7.7", "clusterIPs": ["10.96.7.7"], "ports": [{"port": 80}]}}),
    )?;
    lab.manifest(
        "slice",
        &json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": "shop", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"}}, "addressType": "IPv4",
            "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.99.0.7"], "conditions": {"ready": true}, "nodeName": "node-2",
                "targetRef": {"kind": "Pod", "namespace": "shop", "name": "far"}}]}),
    )?;
    let serving = server.serve("tcp", 81)?;
    let agent = Agent::start(&lab, &[])?;
    // What a hostNetwork pod of this node does is what the node does.
    ensure!(host.reaches("tcp", server.v4(), 81)?, "the node reaches its pods");
    drop(serving);
    let node = lab.node_v4().to_string();
    let cases = [
        ("shop/client", "shop/server", 80, "allowed"),
        ("shop/client", "shop/server", 81, "denied"),
        ("shop/host", "shop/server", 81, "allowed"),
        ("shop/client", "shop/host", 81, "allowed"),
        (&*node, "shop/server", 81, "undetermined"),
        ("shop/client", "shop/far", 80, "undetermined"),
        ("shop/far", "shop/server", 80, "denied"),
        ("shop/client", "shop/far-host", 80, "allowed"),
        ("shop/client", "10.96.7.7", 80, "undetermined"),
        ("shop/client", "203.0.113.7", 80, "allowed"),
    ];
    for (from, to, port, verdict) in cases {
        let answer = explain(&agent, from, to, port)?;
        ensure!(answer["verdict"] == verdict && answer["enforced"] == verdict, "{from} to {to} port {port}: {answer:#}");
    }
    let text = agent.command(&["explain", "--from", "shop/client", "--to", "shop/far", "--port", "80", "-o", "compact"])?;
    ensure!(
        text.code == Some(0) && text.stdout.contains("UNDETERMINED HERE") && text.stdout.contains("the agent of node node-2"),
        "{text:?}"
    );
    for mode in ["observe", "audit"] {
        agent.set_mode(mode)?;
        let answer = explain(&agent, "shop/client", "shop/server", 81)?;
        ensure!(answer["enforced"] == "denied" && answer["verdict"] != "denied", "{answer:#}");
        let text = agent.command(&["explain", "--from", "shop/client", "--to", "shop/server", "--port", "81", "-o", "compact"])?.stdout;
        ensure!(
            text.starts_with("WOULD BE DENIED") && !text.contains("ALLOWED") && text.contains("would be denied in mode enforce"),
            "{text}"
        );
    }
    let _client = client;
    Ok(())
}

#[test]
fn an_object_that_was_never_applied_is_called_so() -> Result<()> {
    let lab = Lab::new("answers-refused")?;
    let [_server] = lab.pods("shop", ["server"])?;
    let agent = Agent::start(&lab, &[])?;
    let status = agent.command(&["status", "-o", "compact"])?;
    ensure!(status.code == Some(0) && !status.stdout.contains("with warnings"), "{status:?}");
    lab.policy("shop", "good", &app("server"))?;
    lab.policy("shop", "new", &json!({"podSelector": {}, "sector": {}}))?;
    agent.until_status("it is refused", SOON, |status| status["refused"].as_array().is_some_and(|refused| refused.len() == 1))?;
    lab.policy("shop", "good", &json!({"podSelector": {}, "sector": {}}))?;
    agent.until_status("both are", SOON, |status| status["refused"].as_array().is_some_and(|refused| refused.len() == 2))?;
    let said = agent.status()?;
    let of = |file: &str| said["refused"].as_array().and_then(|all| all.iter().filter_map(Value::as_str).find(|text| text.contains(file)));
    ensure!(of("policy-shop-new").is_some_and(|text| text.ends_with("never applied: nothing of it is in force")), "{said:#}");
    ensure!(of("policy-shop-good").is_some_and(|text| text.ends_with("its previous version stays in force")), "{said:#}");
    let status = agent.command(&["status", "-o", "compact"])?;
    ensure!(status.code == Some(0) && status.stdout.contains("Ready    yes, with warnings"), "{status:?}");
    ensure!(status.stdout.contains("2 objects are refused; 1 of them never applied"), "{status:?}");
    Ok(())
}

/// A connection whose policy is deleted and replaced names the new one in its next update and at its end.
#[test]
fn a_flow_names_the_policy_that_allows_it_now() -> Result<()> {
    let lab = Lab::new("answers-replaced")?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    let rule = |policy: &str| {
        lab.policy(
            "shop",
            policy,
            &json!({"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress"],
        "ingress": [{"from": [app("client")]}]}),
        )
    };
    rule("first")?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &["--first-update", "1s", "--update-interval", "1s"])?;
    let sender = client.start(&["hold", &format!("{}:80", server.v4()), "1", "14"])?;
    let is = |record: &Value, kind: &str, policy: &str| {
        record["kind"] == kind
            && record["direction"] == "ingress"
            && record["destination"]["port"] == 80
            && record["policy"]["name"] == policy
    };
    agent.record("the first policy is named", SOON, |record| is(record, "update", "first"))?;
    rule("second")?;
    lab.remove_manifest("policy-shop-first.json")?;
    agent.record("the second policy is named", SOON, |record| is(record, "update", "second"))?;
    let update = agent.records()?.into_iter().rfind(|record| record["kind"] == "update" && record["direction"] == "ingress");
    ensure!(update.as_ref().is_some_and(|update| is(update, "update", "second")), "the last one names it still: {update:#?}");
    ensure!(sender.finish(Duration::from_secs(20))?.success(), "the connection was never cut");
    agent.record("the end names it", SOON, |record| is(record, "end", "second"))?;
    Ok(())
}
