//! What the agents may do. At the API server: the audit log is the evidence; a right that was not used is one too
//! many, a request that was refused is a right too few. In the kernel: without any one of its capabilities an agent
//! does not start, and says which one it lacks.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::outage::return_without_streaming;
use super::{NAMESPACE, Stage};
use crate::cluster::audit_log;

/// Verb, group and resource.
type Right = (String, String, String);

pub(super) fn used_and_granted_are_the_same(stage: &Stage) -> Result<()> {
    let granted = granted(stage)?;
    let used_so_far = used()?.0;
    if granted.difference(&used_so_far).any(|(verb, ..)| verb == "list") {
        // A server with streaming lists is asked to watch alone. Agents also serve one without, of which new ones have to
        // list every kind.
        return_without_streaming(stage, Duration::from_secs(1))?;
        stage.replace_agents()?;
        // What is not used by then is told below.
        let lists = |used: &BTreeSet<Right>| !granted.difference(used).any(|(verb, ..)| verb == "list");
        let _used = stage.client.wait(Duration::from_secs(20), "agents list", |_| Ok(lists(&used()?.0)));
    }
    if !used_so_far.iter().any(|(_, _, resource)| resource == "events") {
        super::events::what_an_operator_should_know_is_an_event(stage)?;
    }
    let (used, refused) = used()?;
    ensure!(!used.is_empty(), "the audit log knows nothing of the agents");
    compare(&granted, &used, &refused)?;
    eprintln!("    {} rights, all used, none missing", granted.len());
    Ok(())
}

/// Fails unless what was granted is what was used, and nothing was refused.
fn compare(granted: &BTreeSet<Right>, used: &BTreeSet<Right>, refused: &BTreeSet<Right>) -> Result<()> {
    let tell = |rights: &mut dyn Iterator<Item = &Right>| {
        rights.map(|(verb, group, resource)| format!("{verb} {resource}.{group}")).collect::<Vec<_>>().join(", ")
    };
    let all = [
        ("the agents were refused", tell(&mut refused.iter())),
        ("granted and never used", tell(&mut granted.difference(used))),
        ("used and not granted by the chart", tell(&mut used.difference(granted))),
    ];
    let wrong: Vec<String> =
        all.iter().filter(|(_, rights)| !rights.is_empty()).map(|(what, rights)| format!("{what}: {rights}")).collect();
    if !wrong.is_empty() {
        bail!("{}", wrong.join("; "));
    }
    Ok(())
}

/// What the chart's ClusterRole says.
fn granted(stage: &Stage) -> Result<BTreeSet<Right>> {
    let role = stage.api.must("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/sekisho", None)?.body;
    let texts =
        |value: &Value| -> Vec<String> { value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect() };
    let mut rights = BTreeSet::new();
    for rule in role["rules"].as_array().context("the role has no rules")? {
        for verb in texts(&rule["verbs"]) {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    rights.insert((verb.clone(), group.clone(), resource));
                }
            }
        }
    }
    Ok(rights)
}

/// What the agents asked for and got, and what they never got.
fn used() -> Result<(BTreeSet<Right>, BTreeSet<Right>)> {
    let log = fs::read_to_string(audit_log()).context("cannot read the audit log")?;
    let user = format!("system:serviceaccount:{NAMESPACE}:sekisho");
    let (mut used, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for line in log.lines().filter(|line| line.contains(&user)) {
        let event: Value = serde_json::from_str(line).context("the audit log is not JSON")?;
        if event["user"]["username"] != user.as_str() || event["objectRef"].is_null() {
            continue;
        }
        // What everybody may ask about himself, as the doctor does, is no right of the chart's.
        if event["objectRef"]["apiGroup"] == "authorization.k8s.io" {
            continue;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let mut resource = text(&event["objectRef"]["resource"]);
        if let Some(part) = event["objectRef"]["subresource"].as_str() {
            resource = format!("{resource}/{part}");
        }
        let right = (text(&event["verb"]), text(&event["objectRef"]["apiGroup"]), resource);
        if event["responseStatus"]["code"] == 403 {
            refused.insert(right);
        } else {
            used.insert(right);
        }
    }
    // A server that has just started refuses everything until it knows its roles.
    refused.retain(|right| !used.contains(right));
    Ok((used, refused))
}

/// In an agent's pod the doctor finds nothing missing; a right that is taken away it names, with what that costs.
pub(super) fn the_doctor_names_a_missing_right(stage: &Stage) -> Result<()> {
    let path = "/apis/rbac.authorization.k8s.io/v1/clusterroles/sekisho";
    let doctor = || -> Result<(Option<i32>, Value)> {
        let agents = stage.agents()?;
        let (_, pod) = agents.first().context("no agent runs")?;
        let words = ["-n", NAMESPACE, "exec", pod, "--", "/sekisho", "doctor", "-o", "json"];
        let answer = stage.client.kubectl(&words).output().context("kubectl does not start")?;
        let json = serde_json::from_slice(&answer.stdout).with_context(|| String::from_utf8_lossy(&answer.stderr).into_owned())?;
        Ok((answer.status.code(), json))
    };
    let finding = |answer: &Value, check: &str| {
        answer["findings"].as_array().into_iter().flatten().find(|finding| finding["check"] == check).cloned().unwrap_or_default()
    };
    let (code, answer) = doctor()?;
    ensure!(code == Some(0) && answer["verdict"] == "good", "{code:?}: {answer:#}");
    for check in ["kernel", "btf", "capabilities", "bpf", "cgroup", "bpffs", "rbac", "hooks", "agent", "coverage"] {
        ensure!(finding(&answer, check)["state"] == "good", "{check}: {answer:#}");
    }
    let role = stage.api.must("GET", path, None)?.body;
    let mut less = role.clone();
    for rule in less["rules"].as_array_mut().context("the role has no rules")? {
        if let Some(resources) = rule["resources"].as_array_mut().filter(|resources| resources.len() == 1) {
            resources[0] = if resources[0] == "jobs" { "nothing".into() } else { resources[0].clone() };
        }
    }
    stage.api.must("PATCH", path, Some(&json!({"rules": less["rules"]})))?;
    let (code, answer) = doctor()?;
    stage.api.must("PATCH", path, Some(&json!({"rules": role["rules"]})))?;
    let rbac = finding(&answer, "rbac");
    let text = |field: &str| rbac[field].as_str().unwrap_or_default().to_owned();
    ensure!(code == Some(1) && text("found").contains("list jobs.batch") && text("cost").contains("CronJob"), "{code:?}: {rbac}");
    Ok(())
}

pub(super) fn no_capability_can_be_spared(stage: &Stage) -> Result<()> {
    let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/daemonsets/sekisho");
    let mut set = stage.api.must("GET", &path, None)?.body;
    let container = set["spec"]["template"]["spec"]["containers"][0].take();
    let capabilities: Vec<Value> = container["securityContext"]["capabilities"]["add"].as_array().cloned().unwrap_or_default();
    ensure!(container["securityContext"]["capabilities"]["drop"] == json!(["ALL"]), "not every capability is dropped");
    ensure!(container["securityContext"]["privileged"].as_bool() != Some(true), "the agent is privileged");
    let with = |capabilities: &[&Value]| {
        let mut container = container.clone();
        container["securityContext"]["capabilities"]["add"] = json!(capabilities);
        json!({"spec": {"template": {"spec": {"containers": [container]}}}})
    };
    let mut outcome = Ok(());
    for spared in &capabilities {
        let others: Vec<&Value> = capabilities.iter().filter(|capability| *capability != spared).collect();
        stage.api.must("PATCH", &path, Some(&with(&others)))?;
        outcome = refuses_without(stage, spared.as_str().unwrap_or_default());
        if outcome.is_err() {
            break;
        }
    }
    stage.api.must("PATCH", &path, Some(&with(&capabilities.iter().collect::<Vec<_>>())))?;
    stage.agents_are_rolled_out()?;
    outcome
}

/// Waits until an agent has ended for lack of this capability, with its exit code and the capability's name.
fn refuses_without(stage: &Stage, capability: &str) -> Result<()> {
    let pods = format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app.kubernetes.io/name=sekisho");
    let mut seen = String::new();
    let outcome = stage.client.wait(Duration::from_secs(60), "an agent ends", |client| {
        for pod in stage.api.list(&pods)? {
            let added = pod["spec"]["containers"][0]["securityContext"]["capabilities"]["add"].to_string();
            let state = &pod["status"]["containerStatuses"][0];
            let ended = [&state["state"], &state["lastState"]].into_iter().find(|state| !state["terminated"].is_null());
            if let (false, Some(ended)) = (added.contains(&format!("\"{capability}\"")), ended) {
                let name = pod["metadata"]["name"].as_str().unwrap_or_default();
                let log = client.try_run(&["-n", NAMESPACE, "logs", name, "--tail=3"])?.unwrap_or_default();
                seen = format!("{}: {log}", ended["terminated"]["exitCode"]);
                if ended["terminated"]["exitCode"] == 3 && log.contains(capability) {
                    eprint!("    without {capability}: {log}");
                    return Ok(true);
                }
            }
        }
        Ok(false)
    });
    outcome.with_context(|| format!("without {capability} the agent should end with 3 and name it; seen {seen:?}"))
}

#[cfg(test)]
mod tests {
    use super::{BTreeSet, Right, compare};

    fn rights(names: &[&str]) -> BTreeSet<Right> {
        names.iter().map(|name| ("watch".to_owned(), String::new(), (*name).to_owned())).collect()
    }

    #[test]
    fn a_right_too_few_and_a_right_too_many_are_named() {
        let both = rights(&["nodes", "pods"]);
        assert!(compare(&both, &both, &rights(&[])).is_ok());
        let few = compare(&rights(&["pods"]), &rights(&["pods"]), &rights(&["nodes"])).unwrap_err().to_string();
        assert!(few.contains("refused: watch nodes."), "{few}");
        let many = compare(&rights(&["nodes", "pods", "secrets"]), &both, &rights(&[])).unwrap_err().to_string();
        assert!(many.contains("never used: watch secrets."), "{many}");
        let elsewhere = compare(&rights(&["pods"]), &both, &rights(&[])).unwrap_err().to_string();
        assert!(elsewhere.contains("not granted by the chart: watch nodes."), "{elsewhere}");
    }
}
