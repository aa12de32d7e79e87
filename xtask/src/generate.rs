//! `cargo xtask gen`: files in the tree that are made from others. The plain manifests are the chart rendered with its
//! defaults, for those who do not use Helm; the JSON Schemas are made from the protocol; the chart's copy of the alert rules
//! is the one of `deploy/monitoring`.

mod chart;

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cluster::ensure_helm;
use crate::workspace::{cargo, output, root, say, step};

const TARGET: &str = "deploy/kubernetes/sekisho.yaml";
/// `proto/tests/schemas.rs` fails where they are not what would be written.
const SCHEMAS: &str = "docs/schemas";
/// The alert rules, and where the chart has them: Helm reads no file outside a chart.
const RULES: [&str; 2] = ["deploy/monitoring/alerts.yaml", "deploy/helm/files/alerts.yaml"];

/// What stands before the rendered chart. The namespace says what an agent is allowed, as the Pod Security
/// standards want it.
const HEAD: &str = "\
# Sekisho, installed without Helm: kubectl apply --server-side -f sekisho.yaml
# Rendered from deploy/helm with its defaults by `cargo xtask gen`; do not edit. The mode is audit: nothing is
# dropped until --mode=audit becomes --mode=enforce.
apiVersion: v1
kind: Namespace
metadata:
  name: sekisho
  labels:
    # An agent is in the node's network and sees its processes, which no other level allows.
    pod-security.kubernetes.io/enforce: privileged
";

/// Writes them.
pub(crate) fn run() -> Result<()> {
    write(RULES[1], &rules()?)?;
    write(TARGET, &manifests()?)?;
    fs::create_dir_all(root().join(SCHEMAS)).with_context(|| format!("cannot make {SCHEMAS}"))?;
    let schemas = root().join(SCHEMAS);
    step(
        "write the JSON Schemas",
        cargo().args(["run", "--quiet", "--package", "sekisho-proto", "--example", "schemas", "--"]).arg(schemas),
    )
}

fn write(name: &str, text: &str) -> Result<()> {
    let file = root().join(name);
    file.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(&file, text))
        .with_context(|| format!("cannot write {name}"))?;
    say(&format!("wrote {name}"));
    Ok(())
}

/// Fails if what can be made here is not what would be written now.
pub(crate) fn check() -> Result<()> {
    say("plain manifests");
    for (name, wanted) in [(RULES[1], rules()?), (TARGET, manifests()?)] {
        if fs::read_to_string(root().join(name)).ok().as_ref() != Some(&wanted) {
            bail!("{name} is not what it is made from: run `cargo xtask gen`");
        }
    }
    chart::check(&ensure_helm()?)
}

fn rules() -> Result<String> {
    fs::read_to_string(root().join(RULES[0])).with_context(|| format!("cannot read {}", RULES[0]))
}

/// The chart as an operator gets it: checked, and rendered.
fn manifests() -> Result<String> {
    let helm = ensure_helm()?;
    let chart = root().join("deploy/helm");
    output(Command::new(&helm).args(["lint", "--strict", "--quiet"]).arg(&chart)).context("the chart is not as it should be")?;
    let text = output(Command::new(&helm).args(["template", "sekisho"]).arg(&chart).args(["--namespace", "sekisho"]))?;
    // Helm's own marks mean nothing to those who do without it.
    let marks = ["# Source:", "app.kubernetes.io/managed-by: Helm", "helm.sh/chart:"];
    let lines = text.lines().filter(|line| !marks.iter().any(|mark| line.trim().starts_with(mark)) && !line.trim().is_empty());
    Ok(lines.fold(HEAD.to_owned(), |text, line| text + line.trim_end() + "\n"))
}
