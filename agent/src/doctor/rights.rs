//! What the API server lets us do.

use super::Finding;
use crate::inventory::kube::{Access, Right, rights};

pub(super) fn examine(access: Option<&Access>) -> Vec<Finding> {
    let Some(access) = access else {
        let found = "no API server is known here (no kubeconfig, no service account): with --manifests the agent needs none";
        return vec![Finding::note("rbac", found)];
    };
    vec![match rights(access) {
        Ok(rights) => judge(&rights),
        Err(error) => {
            let cost = "the agent goes on with the policy that it knows; where it knows none, it waits";
            Finding::lack("rbac", format!("the API server does not tell what we may do: {error}"), cost)
                .remedy("look whether it is reached from here, and whose credentials are used")
        }
    }]
}

pub(super) fn judge(rights: &[Right]) -> Finding {
    let missing: Vec<&Right> = rights.iter().filter(|right| !right.granted).collect();
    if missing.is_empty() {
        return Finding::good("rbac", format!("all {} rights that watches and Events need", rights.len()));
    }
    let names: Vec<String> = missing.iter().map(|right| format!("{} {}", right.verb, right.resource)).collect();
    let mut costs: Vec<&str> = missing.iter().map(|right| cost(&right.resource)).collect();
    costs.dedup();
    Finding::lack("rbac", format!("the API server refuses: {}", names.join(", ")), costs.join("; "))
        .remedy("bind the chart's ClusterRole to this service account")
}

fn cost(resource: &str) -> &'static str {
    match resource.split('.').next().unwrap_or_default() {
        "replicasets" => "a pod's workload is its ReplicaSet, not its Deployment",
        "jobs" => "a pod's workload is its Job, not its CronJob",
        "events" => "no Event tells of alerts and of policies that cannot be honoured",
        "networkpolicies" => "no policy is known: the agent does not become ready",
        _ => "who is who is not known: the agent does not become ready",
    }
}
