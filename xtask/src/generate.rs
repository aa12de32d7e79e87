//! `cargo xtask gen`: files in the tree that are made from others. Today one: the plain manifests, which are the
//! chart rendered with its defaults, for those who do not use Helm.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::cluster::ensure_helm;
use crate::workspace::{output, root, say};

const TARGET: &str = "deploy/kubernetes/sekisho.yaml";

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
    let file = root().join(TARGET);
    fs::write(&file, manifests()?).with_context(|| format!("cannot write {TARGET}"))?;
    say(&format!("wrote {TARGET}"));
    Ok(())
}

/// Fails if they are not what would be written now.
pub(crate) fn check() -> Result<()> {
    say("plain manifests");
    if fs::read_to_string(root().join(TARGET)).ok() != Some(manifests()?) {
        bail!("{TARGET} is not what deploy/helm renders: run `cargo xtask gen`");
    }
    Ok(())
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
