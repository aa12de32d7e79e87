//! The truth table: nine pods in three namespaces on two nodes, every pair, three ports, both families, under one
//! set of policies after the other.

use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::json;

use super::Stage;
use super::pods::{Pod, server};
use super::probe::{PATIENCE, Protocol, SILENCE, answered};
use super::scenarios::{End, PREFIX, Scenario, all};
use crate::cluster::node_name;

const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
const SERVED: [(Protocol, u16); 3] = [(Protocol::Tcp, 80), (Protocol::Tcp, 81), (Protocol::Udp, 80)];

pub(super) fn the_truth_table_holds_for_every_policy(stage: &Stage) -> Result<()> {
    let pods = populate(stage)?;
    let asker = pods.iter().find(|(end, _)| *end == (End { namespace: "y", pod: "a" })).map(|(_, pod)| pod.addresses.clone());
    let mut wrong = Vec::new();
    for scenario in all(&asker.unwrap_or_default()) {
        for namespace in NAMESPACES {
            stage.api.drop_policies(&format!("{PREFIX}{namespace}"))?;
        }
        for policy in &scenario.policies {
            stage.api.put_policy(policy)?;
        }
        // More than three times what a change may take.
        std::thread::sleep(Duration::from_millis(500));
        let found = judge(&scenario, &pods)?;
        eprintln!("    {}: {}", scenario.name, if found.is_empty() { "holds" } else { "DOES NOT HOLD" });
        wrong.extend(found);
    }
    stage.forget(&["e2e-x", "e2e-y", "e2e-z"])?;
    if !wrong.is_empty() {
        bail!("{} verdicts are wrong:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
    }
    Ok(())
}

fn populate(stage: &Stage) -> Result<Vec<(End, Pod)>> {
    for namespace in NAMESPACES {
        stage.namespace(&format!("{PREFIX}{namespace}"))?;
        for (at, pod) in PODS.into_iter().enumerate() {
            let number = u8::try_from(at % usize::from(stage.plan.nodes)).expect("few nodes") + 1;
            stage.make(&server(&format!("{PREFIX}{namespace}"), pod, Some(&node_name(number)), &json!({"pod": pod})))?;
        }
    }
    let mut found = Vec::new();
    for namespace in NAMESPACES {
        let ready = stage.ready(&format!("{PREFIX}{namespace}"), PODS.len())?;
        found.extend(PODS.into_iter().zip(ready).map(|(pod, ready)| (End { namespace, pod }, ready)));
    }
    Ok(found)
}

/// Tries everything, one asking pod after the other, all its targets at once; returns what is not as it should be.
fn judge(scenario: &Scenario, pods: &[(End, Pod)]) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (from, asking) in pods {
        wrong.extend(asking.netns().within(|| Ok(from_one(scenario, *from, pods)))?);
    }
    Ok(wrong)
}

/// All that one pod tries. Runs, with every thread that it starts, in that pod's network.
fn from_one(scenario: &Scenario, from: End, pods: &[(End, Pod)]) -> Vec<String> {
    std::thread::scope(|scope| {
        let mut running = Vec::new();
        for (to, asked) in pods.iter().filter(|(to, _)| *to != from) {
            for (protocol, port) in SERVED {
                for address in &asked.addresses {
                    running.push(scope.spawn(move || {
                        let wanted = (scenario.truth)(from, *to, protocol, port);
                        let passed = answered(protocol, *address, port, if wanted { PATIENCE } else { SILENCE });
                        (passed != wanted).then(|| {
                            let (is, protocol) = (if passed { "passes" } else { "does not pass" }, protocol.name());
                            format!(
                                "{}: {}/{} to {}/{} at {address} on {port}/{protocol} {is}",
                                scenario.name, from.namespace, from.pod, to.namespace, to.pod
                            )
                        })
                    }));
                }
            }
        }
        running.into_iter().filter_map(|probe| probe.join().expect("a probe does not panic")).collect()
    })
}
