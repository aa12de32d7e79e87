//! What the agents may do at the API server, and what they did: the audit log is the evidence. A right that was not
//! used is one too many; a request that was refused is a right too few.

use std::collections::BTreeSet;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{NAMESPACE, Stage};
use crate::cluster::audit_log;

/// Verb, group and resource.
type Right = (String, String, String);

pub(super) fn used_and_granted_are_the_same(stage: &Stage) -> Result<()> {
    let granted = granted(stage)?;
    let (used, refused) = used()?;
    ensure!(!used.is_empty(), "the audit log knows nothing of the agents");
    let tell = |rights: &BTreeSet<Right>| {
        rights.iter().map(|(verb, group, resource)| format!("{verb} {resource}.{group}")).collect::<Vec<_>>().join(", ")
    };
    if !refused.is_empty() {
        bail!("the agents were refused: {}", tell(&refused));
    }
    let unused: BTreeSet<Right> = granted.difference(&used).cloned().collect();
    if !unused.is_empty() {
        bail!("granted and never used: {}", tell(&unused));
    }
    let more: BTreeSet<Right> = used.difference(&granted).cloned().collect();
    if !more.is_empty() {
        bail!("used and not granted by the chart: {}", tell(&more));
    }
    eprintln!("    {} rights, all used, none missing", granted.len());
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

/// What the agents asked for, and of that what was refused.
fn used() -> Result<(BTreeSet<Right>, BTreeSet<Right>)> {
    let log = fs::read_to_string(audit_log()).context("cannot read the audit log")?;
    let user = format!("system:serviceaccount:{NAMESPACE}:sekisho");
    let (mut used, mut refused) = (BTreeSet::new(), BTreeSet::new());
    for line in log.lines().filter(|line| line.contains(&user)) {
        let event: Value = serde_json::from_str(line).context("the audit log is not JSON")?;
        if event["user"]["username"] != user.as_str() || event["objectRef"].is_null() {
            continue;
        }
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let right = (text(&event["verb"]), text(&event["objectRef"]["apiGroup"]), text(&event["objectRef"]["resource"]));
        if event["responseStatus"]["code"] == 403 {
            refused.insert(right.clone());
        }
        used.insert(right);
    }
    Ok((used, refused))
}
