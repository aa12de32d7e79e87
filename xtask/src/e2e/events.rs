//! What an operator finds by `kubectl get events`: alerts at their pods, policies that cannot be honoured, annotations that
//! are not used. Repeats are counted under one Event.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Stage;
use super::pods::{Pod, server};
use super::probe::{Protocol, answered_from};
use super::scenarios::deny_all;

const NAMESPACE: &str = "e2e-events";
const SOON: Duration = Duration::from_secs(30);

pub(super) fn what_an_operator_should_know_is_an_event(stage: &Stage) -> Result<()> {
    stage.namespace(NAMESPACE)?;
    for name in ["scanner", "target"] {
        stage.make(&server(NAMESPACE, name, Some("node-1"), &json!({"app": name})))?;
    }
    let mut host = server(NAMESPACE, "on-the-host", Some("node-1"), &json!({"app": "host"}));
    host["spec"]["hostNetwork"] = true.into();
    host["spec"]["containers"][0]["args"] = json!(["pause"]);
    host["spec"]["containers"][0]["ports"] = json!([]);
    host["spec"]["containers"][0]["readinessProbe"] = Value::Null;
    stage.make(&host)?;
    let mut odd = server(NAMESPACE, "odd", Some("node-1"), &json!({"app": "odd"}));
    odd["metadata"]["annotations"] = json!({"sekisho.dev/allow-sources": "all of them"});
    stage.make(&odd)?;
    let (scanner, target) = (stage.ready_pod(NAMESPACE, "scanner")?, stage.ready_pod(NAMESPACE, "target")?);

    // Who may annotate a pod cannot hide it: it is isolated as everyone.
    let odd = stage.ready_pod(NAMESPACE, "odd")?;
    let event = found(stage, "AnnotationIgnored", "Pod", "odd")?;
    ensure!(event["regarding"]["uid"] == odd.uid.as_str(), "{event:#}");
    ensure!(event["note"].as_str().is_some_and(|note| note.contains("sekisho.dev/allow-sources")), "{event:#}");

    scanned(stage, &scanner, &target)?;

    stage.api.put_policy(&deny_all(NAMESPACE, "Ingress"))?;
    let event = found(stage, "PodsNotCovered", "NetworkPolicy", "deny-all")?;
    ensure!(event["regarding"]["uid"].is_string() && event["note"].as_str().is_some_and(|note| note.contains("on-the-host")), "{event:#}");
    stage.client.wait(SOON, "the odd pod is isolated", |_| {
        Ok(!answered_from(&scanner.netns(), Protocol::Tcp, odd.addresses[0], 80, super::probe::SILENCE)?)
    })?;
    stage.forget(&[NAMESPACE])
}

/// A scan is one Event at the scanner, and its going on is counted in it.
fn scanned(stage: &Stage, scanner: &Pod, target: &Pod) -> Result<()> {
    let mut event = Value::Null;
    let mut port = 1000;
    let outcome = stage.client.wait(Duration::from_secs(90), "the scan is an Event that is counted", |_| {
        for _ in 0..200 {
            port += 1;
            answered_from(&scanner.netns(), Protocol::Tcp, target.addresses[0], port, Duration::from_millis(50))?;
        }
        event = scan_events(stage)?.into_iter().next().unwrap_or_default();
        Ok(event["series"]["count"].as_u64() >= Some(2))
    });
    outcome.with_context(|| format!("{event:#}"))?;
    ensure!(event["regarding"]["uid"] == scanner.uid.as_str() && event["type"] == "Warning", "{event:#}");
    ensure!(event["reportingInstance"] == "node-1" && event["reportingController"] == "sekisho.dev/agent", "{event:#}");
    let all = scan_events(stage)?;
    ensure!(all.len() == 1, "one scan is {} Events", all.len());
    let described = stage.client.run(&["-n", NAMESPACE, "describe", "pod", "scanner"])?;
    ensure!(described.contains("ScanVertical"), "kubectl describe does not show it: {described}");
    Ok(())
}

fn scan_events(stage: &Stage) -> Result<Vec<Value>> {
    let events = stage.api.list(&format!("/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events"))?;
    Ok(events.into_iter().filter(|event| event["reason"] == "ScanVertical" && event["regarding"]["name"] == "scanner").collect())
}

/// The Event of a reason at an object, once it is there.
fn found(stage: &Stage, reason: &str, kind: &str, name: &str) -> Result<Value> {
    let mut found = None;
    stage.client.wait(SOON, &format!("there is an Event {reason} at {kind} {name}"), |_| {
        let events = stage.api.list(&format!("/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events"))?;
        found = events
            .into_iter()
            .find(|event| event["reason"] == reason && event["regarding"]["kind"] == kind && event["regarding"]["name"] == name);
        Ok(found.is_some())
    })?;
    found.context("just found")
}
