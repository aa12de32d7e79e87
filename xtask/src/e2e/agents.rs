//! The agents, asked as an operator would: by `kubectl exec`.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::pods::is_ready;
use super::{NAMESPACE, Stage};
use crate::cluster::{Client, processes_of_pod};

/// What to look at when agents do not become ready.
pub(super) fn describe(client: &Client) -> String {
    let mut text = String::new();
    for words in [&["get", "pods", "-o", "wide"][..], &["logs", "--prefix", "--tail=15", "-l", "app.kubernetes.io/name=sekisho"]] {
        let mut command = vec!["-n", NAMESPACE];
        command.extend(words);
        text += &client.try_run(&command).ok().flatten().unwrap_or_default();
    }
    text
}

impl Stage {
    /// Every agent makes way for a new one; returns when all are ready.
    pub(super) fn replace_agents(&self) -> Result<()> {
        self.client.run(&["-n", NAMESPACE, "rollout", "restart", "daemonset/sekisho"])?;
        self.agents_are_rolled_out()
    }

    /// Returns when every agent is one of the DaemonSet's last word.
    pub(super) fn agents_are_rolled_out(&self) -> Result<()> {
        self.client.run(&["-n", NAMESPACE, "rollout", "status", "daemonset/sekisho", "--timeout=120s"]).map(drop)
    }

    /// The agents' pods by node.
    pub(super) fn agents(&self) -> Result<Vec<(String, String)>> {
        let pods = self.api.list(&format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/name=sekisho"))?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let live = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let mut found: Vec<(String, String)> = live.map(|pod| (text(&pod["spec"]["nodeName"]), text(&pod["metadata"]["name"]))).collect();
        found.sort();
        Ok(found)
    }

    /// Runs `sekisho ARGUMENTS` in a node's agent.
    pub(super) fn sekisho(&self, node: &str, arguments: &[&str]) -> Result<String> {
        let agents = self.agents()?;
        let (_, pod) = agents.iter().find(|(on, _)| on == node).with_context(|| format!("no agent is on {node}"))?;
        let mut words = vec!["-n", NAMESPACE, "exec", pod, "--", "/sekisho"];
        words.extend(arguments);
        self.client.run(&words)
    }

    /// A node's `sekisho status`.
    pub(super) fn status(&self, node: &str) -> Result<Value> {
        let agents = self.agents()?;
        let (_, pod) = agents.iter().find(|(on, _)| on == node).with_context(|| format!("no agent is on {node}"))?;
        // It ends with 1 while it is not ready, and prints all the same.
        let words = ["-n", NAMESPACE, "exec", pod, "--", "/sekisho", "status", "-o", "json"];
        let answer = self.client.kubectl(&words).output().context("kubectl does not start")?;
        serde_json::from_slice(&answer.stdout).with_context(|| format!("no status: {}", String::from_utf8_lossy(&answer.stderr)))
    }

    /// Every record in a node's memory.
    pub(super) fn records(&self, node: &str) -> Result<Vec<Value>> {
        let text = self.sekisho(node, &["observe", "--last", "all", "-o", "json"])?;
        text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
    }

    /// The number of the newest record on a node.
    pub(super) fn last_record(&self, node: &str) -> Result<u64> {
        Ok(self.records(node)?.iter().filter_map(|record| record["seq"].as_u64()).max().unwrap_or(0))
    }

    /// Waits until every node's agent is ready, and so are their pods.
    pub(super) fn agents_ready(&self, limit: Duration) -> Result<()> {
        let path = format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/name=sekisho");
        self.client
            .wait(limit, "every agent is ready", |_| {
                let pods = self.api.list(&path)?;
                Ok(pods.len() == usize::from(self.plan.nodes) && pods.iter().all(is_ready))
            })
            .with_context(|| describe(&self.client))
    }

    /// Fails unless every agent says that it is ready, covers exactly the pods that run on its node, and has
    /// refused nothing.
    pub(super) fn covered(&self, limit: Duration) -> Result<()> {
        let mut why = String::new();
        let outcome = self.client.wait(limit, "every pod is covered, and no other", |_| {
            why = self.uncovered()?;
            Ok(why.is_empty())
        });
        outcome.with_context(|| why.clone())
    }

    fn uncovered(&self) -> Result<String> {
        let pods = self.api.list("/api/v1/pods")?;
        for (node, _) in self.agents()? {
            let status = self.status(&node)?;
            let mut wanted: Vec<&str> =
                pods.iter().filter(|pod| pod["spec"]["nodeName"] == node.as_str() && lives(pod)).filter_map(uid).collect();
            let mut known: Vec<&str> =
                status["endpoints"].as_array().into_iter().flatten().filter_map(|endpoint| endpoint["pod"]["uid"].as_str()).collect();
            wanted.sort_unstable();
            known.sort_unstable();
            if known != wanted {
                return Ok(format!("{node} should cover {wanted:?} and covers {known:?}"));
            }
            if status["ready"] != true {
                return Ok(format!("{node} is not ready: {}", status["unready"]));
            }
        }
        Ok(String::new())
    }

    /// Ends an agent's process, as an out-of-memory kill would do it.
    pub(super) fn kill_agent(&self, node: &str) -> Result<()> {
        let agents = self.agents()?;
        let (_, name) = agents.iter().find(|(on, _)| on == node).with_context(|| format!("no agent is on {node}"))?;
        let pod = self.api.must("GET", &format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}"), None)?.body;
        let uid = uid(&pod).context("the agent's pod has no uid")?;
        let pid = processes_of_pod(node, uid)?
            .into_iter()
            .find(|pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == "sekisho"));
        let Some(pid) = pid else { bail!("no process of the agent's is in the control group of {name}") };
        sekisho_lab::kill(pid, 9).context("cannot end the agent")
    }
}

fn uid(pod: &Value) -> Option<&str> {
    pod["metadata"]["uid"].as_str()
}

fn lives(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running" && pod["metadata"]["deletionTimestamp"].is_null()
}
