//! The chart and the manifests, judged by the tools that operators use: kubeconform with the schemas of the very
//! API server that runs, and that API server itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Stage;
use super::pods::server;
use super::probe::{PATIENCE, Protocol, SILENCE, answered_from, get};
use super::scenarios::deny_all;
use crate::cluster::{control_plane_netns, ensure_helm, ensure_kubeconform, holder, node_addresses, node_name, root as cluster_root};
use crate::promtool;
use crate::workspace::{output, root};

/// Values beside the defaults that change which objects there are.
const EVERYTHING: [&str; 6] = [
    "--set",
    "metrics.service=true,networkPolicy.enabled=true,priorityQuota=true,export.file.enabled=true,cluster=c1,commonLabels.team=net",
    "--set",
    "imagePullSecrets[0].name=s,extraEnv[0].name=A,extraEnv[0].value=b",
    "--set",
    "grpc.enabled=true,grpc.tls.secretName=certificates",
];

pub(super) fn the_real_tools_take_it(stage: &Stage) -> Result<()> {
    let schemas = cluster_root().join("schemas");
    write_schemas(&stage.api.must("GET", "/openapi/v2", None)?.body, &schemas)?;
    let (helm, chart) = (ensure_helm()?, root().join("deploy/helm"));
    let rendered = cluster_root().join("rendered.yaml");
    for values in [&[][..], &EVERYTHING] {
        let mut template = Command::new(&helm);
        let text = output(template.args(["template", "sekisho"]).arg(&chart).args(["--namespace", super::NAMESPACE]).args(values))?;
        fs::write(&rendered, &text)?;
        conforms(&schemas, &[&rendered])?;
        stage.client.feed(&["apply", "--server-side", "--dry-run=server", "--force-conflicts", "-f", "-"], &text)?;
    }
    conforms(&schemas, &[&root().join("deploy/kubernetes"), &root().join("deploy/examples")])?;
    let refused = Command::new(&helm).args(["template", "sekisho"]).arg(&chart).args(["--set", "mode=loud"]).output()?;
    ensure!(!refused.status.success(), "the schema lets a mode pass that is none");
    let refused = Command::new(&helm).args(["template", "sekisho"]).arg(&chart).args(["--set", "grpc.enabled=true"]).output()?;
    ensure!(!refused.status.success(), "the schema lets gRPC be served without a certificate");
    let refused = Command::new(&helm)
        .args(["template", "sekisho"])
        .arg(&chart)
        .args(["--set", "serviceMonitor.enabled=true,metrics.enabled=false"])
        .output()?;
    ensure!(!refused.status.success(), "the schema lets a ServiceMonitor go without the metrics that it is for");
    // Its definition is the Prometheus operator's, which is not here.
    let monitor = ["--set", "serviceMonitor.enabled=true,serviceMonitor.labels.release=r"];
    let text = output(Command::new(&helm).args(["template", "sekisho"]).arg(&chart).args(monitor))?;
    ensure!(text.contains("kind: ServiceMonitor") && text.contains("release: r"), "no ServiceMonitor where one was asked for");
    let gke = output(Command::new(&helm).args(["template", "sekisho"]).arg(&chart).args(["--kube-version", "1.33.1-gke.100"]))?;
    ensure!(gke.contains("kind: ResourceQuota"), "no quota where critical priority classes need one");
    let plain = fs::read_to_string(root().join("deploy/kubernetes/sekisho.yaml"))?;
    stage.client.feed(&["apply", "--server-side", "--dry-run=server", "--force-conflicts", "-f", "-"], &plain)?;
    Ok(())
}

fn conforms(schemas: &Path, files: &[&Path]) -> Result<()> {
    let location = format!("{}/{{{{.ResourceKind}}}}{{{{.KindSuffix}}}}.json", schemas.display());
    let mut command = Command::new(ensure_kubeconform()?);
    command.args(["-strict", "-summary", "-schema-location", &location]).args(files);
    let report = output(&mut command)?;
    ensure!(report.contains("Invalid: 0, Errors: 0, Skipped: 0"), "kubeconform: {report}");
    Ok(())
}

/// One file per kind, as kubeconform looks for them, out of the API server's own description of itself.
fn write_schemas(openapi: &Value, directory: &Path) -> Result<()> {
    fs::create_dir_all(directory)?;
    let definitions = openapi["definitions"].as_object().context("the API server describes nothing")?;
    let strict: BTreeMap<&String, Value> = definitions.iter().map(|(name, schema)| (name, closed(schema))).collect();
    fs::write(directory.join("definitions.json"), json!({"definitions": strict}).to_string())?;
    for (name, schema) in definitions {
        let Some(kinds) = schema["x-kubernetes-group-version-kind"].as_array() else { continue };
        for kind in kinds {
            let text = |field: &str| kind[field].as_str().unwrap_or_default().to_lowercase();
            let group = text("group").split('.').next().unwrap_or_default().to_owned();
            let suffix = if group.is_empty() { format!("-{}", text("version")) } else { format!("-{group}-{}", text("version")) };
            let schema = json!({"$ref": format!("file://{}/definitions.json#/definitions/{name}", directory.display())});
            fs::write(directory.join(format!("{}{suffix}.json", text("kind"))), schema.to_string())?;
        }
    }
    Ok(())
}

/// A schema that takes no field it does not know, and finds the others in the same file.
fn closed(schema: &Value) -> Value {
    match schema {
        // A number or a text: its own format is known to Kubernetes alone.
        Value::Object(fields) if fields.get("format").is_some_and(|format| format == "int-or-string") => json!({}),
        Value::Object(fields) => {
            let mut fields: serde_json::Map<String, Value> = fields.iter().map(|(name, value)| (name.clone(), closed(value))).collect();
            if fields.get("properties").is_some_and(Value::is_object) && !fields.contains_key("additionalProperties") {
                fields.insert("additionalProperties".to_owned(), false.into());
            }
            Value::Object(fields)
        }
        Value::Array(values) => values.iter().map(closed).collect(),
        other => other.clone(),
    }
}

/// Prometheus and load balancers ask each node, in either family.
pub(super) fn metrics_are_served_on_every_node(stage: &Stage) -> Result<()> {
    for number in stage.plan.numbers() {
        for address in node_addresses(number) {
            for (path, wanted) in [("/metrics", "# TYPE sekisho_"), ("/healthz", ""), ("/readyz", "")] {
                let (status, body) = control_plane_netns().within(|| get(address, super::METRICS_PORT, path))?;
                ensure!(status.contains(" 200 ") && body.contains(wanted), "{path} of {address}: {status} {body}");
                if path == "/metrics" {
                    promtool::check_metrics(&body)?;
                }
            }
        }
    }
    Ok(())
}

/// Two steps, as NOTES say, and a node is as if Sekisho had never been there. Nothing can be tested afterwards.
pub(super) fn an_uninstall_leaves_nothing_behind(stage: &Stage) -> Result<()> {
    const HOME: &str = "e2e-end";
    stage.namespace(HOME)?;
    stage.make(&server(HOME, "server", Some("node-1"), &json!({})))?;
    stage.make(&server(HOME, "stranger", Some("node-1"), &json!({})))?;
    stage.api.put_policy(&deny_all(HOME, "Ingress"))?;
    let pods = stage.ready(HOME, 2)?;
    let open = |limit| answered_from(&pods[1].netns(), Protocol::Tcp, pods[0].addresses[0], 80, limit);
    ensure!(!open(SILENCE)?, "the policy is not in force at the beginning");
    let helm = ensure_helm()?;
    let run = |words: &[&str]| output(stage.client.command(&helm).args(words).current_dir(root()));
    let to = ["--namespace", super::NAMESPACE, "--wait", "--timeout", "120s"];
    run(&[&["upgrade", "sekisho", "deploy/helm", "--reuse-values", "--set", "detachOnExit=true"][..], &to].concat())?;
    // A DaemonSet that is being replaced counts as there to Helm.
    stage.agents_are_rolled_out()?;
    ensure!(!open(SILENCE)?, "the policy is no longer in force after the first step");
    run(&[&["uninstall", "sekisho"][..], &to].concat())?;
    stage.client.wait(Duration::from_secs(30), "the agents have ended", |_| Ok(stage.agents()?.is_empty()))?;
    ensure!(open(PATIENCE)?, "pods are still isolated");
    for number in stage.plan.numbers() {
        let pid = holder(&node_name(number)).context("the node's mounts are gone")?;
        let mut left = Vec::new();
        // A pod that is being deleted may not have ended yet.
        let gone = stage.client.wait(Duration::from_secs(30), "nothing is pinned", |_| {
            let pins = fs::read_dir(format!("/proc/{pid}/root/sys/fs/bpf"))?.flatten().map(|entry| entry.file_name());
            // Two files are the kernel's own.
            left = pins.filter(|name| name != "progs.debug" && name != "maps.debug").collect();
            Ok(left.is_empty())
        });
        gone.with_context(|| format!("{left:?} is still pinned on {}", node_name(number)))?;
    }
    stage.make(&server(HOME, "late", Some("node-1"), &json!({})))?;
    stage.ready(HOME, 3)?;
    stage.forget(&[HOME])
}
