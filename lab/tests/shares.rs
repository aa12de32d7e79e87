//! What one namespace's policies take of the kernel's tables is that one's trouble. Needs root.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};
use sekisho_lab::{Agent, Lab, NODE_NAME, app, until};
use serde_json::json;

/// A debug build compiles such a cluster in seconds.
const LATE: Duration = Duration::from_secs(40);

/// A hundred pods of this node with rules of their own, and 600 peers with a port each: 60,000 rows for a table that takes 48,000.
/// Their namespace goes without, and says so; another one's changes come into force as before.
#[test]
fn one_namespace_does_not_freeze_the_nodes_policy() -> Result<()> {
    let lab = Lab::new("shares-rows")?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    lab.admit("shop", "server", &json!([{"from": [app("nobody")]}]))?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    ensure!(!client.reaches("tcp", server.v4(), 80)?);
    let (mut pods, mut rules) = (String::new(), String::new());
    let pod = |pods: &mut String, name: &str, label: &str, node: &str, ip: String| {
        writeln!(
            pods,
            "---\n{}",
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "greedy", "name": name, "labels": {"is": label, "n": name}},
                "spec": {"nodeName": node}, "status": {"podIPs": [{"ip": ip}]}})
        )
    };
    for n in 0..100 {
        pod(&mut pods, &format!("p{n}"), "local", NODE_NAME, format!("10.201.0.{n}"))?;
        writeln!(
            pods,
            "---\n{}",
            json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"namespace": "greedy", "name": format!("own{n}")},
                "spec": {"podSelector": {"matchLabels": {"n": format!("p{n}")}}, "ingress": [{"ports": [{"port": 1 + n}]}]}})
        )?;
    }
    for n in 0..600 {
        pod(&mut pods, &format!("x{n}"), "peer", "elsewhere", format!("10.202.{}.{}", n / 250, n % 250))?;
        write!(rules, "{{from: [{{podSelector: {{matchLabels: {{n: x{n}}}}}}}], ports: [{{port: {}}}]}},", 2000 + n)?;
    }
    lab.write_manifest("greedy.yaml", &pods)?;
    lab.write_manifest(
        "greedy-policy.yaml",
        &format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{namespace: greedy, name: large}}\nspec: {{podSelector: {{matchLabels: {{is: local}}}}, ingress: [{rules}]}}\n"
        ),
    )?;
    // While it compiles, a debug build may not answer in time.
    until(LATE, "what is refused is said", || {
        Ok(agent.status().is_ok_and(|status| {
            let warnings = status["policy"]["warnings"].to_string();
            warnings.contains("NetworkPolicy greedy/large is too large") && !warnings.contains("shop/")
        }))
    })?;
    lab.admit("shop", "server", &json!([{"from": [app("client")]}]))?;
    until(LATE, "another namespace's change is in force", || client.reaches("tcp", server.v4(), 80))?;
    lab.admit("shop", "server", &json!([{"from": [app("nobody")]}]))?;
    until(LATE, "and the next one", || Ok(!client.reaches("tcp", server.v4(), 80)?))?;
    let status = agent.status()?;
    let rules = status["maps"].as_array().into_iter().flatten().find(|map| map["name"] == "RULES").cloned().unwrap_or_default();
    ensure!(rules["entries"].as_u64() < rules["max"].as_u64().map(|max| max / 2), "{rules}");
    ensure!(!status["unready"].to_string().contains("RULES"), "{status:#}");
    Ok(())
}
