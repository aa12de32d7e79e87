//! Pods of the tests: their manifests, and what is found out about them once they run.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sekisho_lab::Netns;
use serde_json::{Value, json};

use super::Stage;
use crate::cluster::{PROBE, processes_of_pod};

/// The ports at which every server of the tests listens.
pub(super) const PORTS: [&str; 3] = ["tcp:80", "tcp:81", "udp:80"];

/// A pod that runs.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    pub(super) node: String,
    pub(super) addresses: Vec<IpAddr>,
    netns: PathBuf,
}

/// A pod that serves [`PORTS`].
pub(super) fn server(namespace: &str, name: &str, node: Option<&str>, labels: &Value) -> Value {
    let mut words = vec!["serve", "many"];
    words.extend(PORTS);
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "containers": [{
                "name": "server", "image": PROBE, "imagePullPolicy": "Never", "args": words,
                "ports": [{"name": "http", "containerPort": 80}],
                "readinessProbe": {"tcpSocket": {"port": 80}, "periodSeconds": 1, "failureThreshold": 2},
            }],
        },
    });
    if let Some(node) = node {
        pod["spec"]["nodeName"] = node.into();
    }
    pod
}

impl Stage {
    /// Makes a pod.
    pub(super) fn make(&self, pod: &Value) -> Result<()> {
        let namespace = pod["metadata"]["namespace"].as_str().unwrap_or_default();
        self.api.must("POST", &format!("/api/v1/namespaces/{namespace}/pods"), Some(pod)).map(drop)
    }

    /// Waits until every pod that a selector picks in a namespace is ready, `count` of them, and returns them by name.
    pub(super) fn ready(&self, namespace: &str, count: usize) -> Result<Vec<Pod>> {
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let mut pods = Vec::new();
        let mut seen: Vec<Value> = Vec::new();
        let outcome = self.client.wait(Duration::from_secs(90), "every pod is ready", |_| {
            pods = self.api.list(&path)?;
            pods.retain(|pod| pod["metadata"]["deletionTimestamp"].is_null());
            seen = pods.iter().map(|pod| json!({"pod": pod["metadata"]["name"], "status": pod["status"]})).collect();
            Ok(pods.len() == count && pods.iter().all(is_ready))
        });
        outcome.with_context(|| format!("{count} pods in {namespace}: {}", json!(seen)))?;
        let mut found = pods.iter().map(Pod::of).collect::<Result<Vec<_>>>()?;
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// The pod of this name, once it is ready.
    pub(super) fn ready_pod(&self, namespace: &str, name: &str) -> Result<Pod> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let mut pod = Value::Null;
        self.client
            .wait(Duration::from_secs(60), "the pod is ready", |_| {
                pod = self.api.ask("GET", &path, None)?.body;
                Ok(is_ready(&pod))
            })
            .with_context(|| format!("{namespace}/{name}: {}", pod["status"]))?;
        Pod::of(&pod)
    }

    /// Deletes a pod and waits until the API server has forgotten it.
    pub(super) fn remove(&self, namespace: &str, name: &str) -> Result<()> {
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        self.api.must("DELETE", &path, Some(&json!({"gracePeriodSeconds": 1})))?;
        self.client.wait(Duration::from_secs(30), "the pod is gone", |_| Ok(self.api.ask("GET", &path, None)?.status == 404))
    }
}

/// Whether a pod says of itself that it is ready.
pub(super) fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"]
        .as_array()
        .is_some_and(|conditions| conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True"))
}

impl Pod {
    fn of(pod: &Value) -> Result<Self> {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let addresses = pod["status"]["podIPs"].as_array().cloned().unwrap_or_default();
        let addresses = addresses.iter().map(|ip| text(&ip["ip"]).parse().context("a pod's address")).collect::<Result<Vec<IpAddr>>>()?;
        if addresses.len() != 2 {
            bail!("{} has not one address of each family: {addresses:?}", pod["metadata"]["name"]);
        }
        let (uid, node) = (text(&pod["metadata"]["uid"]), text(&pod["spec"]["nodeName"]));
        let pid = *processes_of_pod(&node, &uid)?.first().with_context(|| format!("no process of the pod {uid} is on {node}"))?;
        let netns = PathBuf::from(format!("/proc/{pid}/ns/net"));
        Ok(Self { namespace: text(&pod["metadata"]["namespace"]), name: text(&pod["metadata"]["name"]), uid, node, addresses, netns })
    }

    /// Its network, as long as it lives.
    pub(super) fn netns(&self) -> Netns {
        Netns::at(&self.netns)
    }
}
