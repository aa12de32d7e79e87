//! What the chart makes of values: those that charts usually have, and those that do not fit together.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Result, ensure};

use crate::workspace::root;

/// Values, and what must stand in the rendered objects then. Spaces at the ends of lines do not count.
const RENDERED: [(&[&str], &[&str]); 8] = [
    (&["imagePullSecrets[0].name=registry"], &["imagePullSecrets:\n        - name: registry"]),
    (&["extraEnv[0].name=HTTPS_PROXY,extraEnv[0].value=http://p"], &["- name: HTTPS_PROXY\n              value: http://p"]),
    (
        &[
            "extraVolumes[0].name=ca,extraVolumes[0].emptyDir.sizeLimit=1Mi",
            "extraVolumeMounts[0].name=ca,extraVolumeMounts[0].mountPath=/ca",
        ],
        &["- mountPath: /ca\n              name: ca", "- emptyDir:\n            sizeLimit: 1Mi\n          name: ca"],
    ),
    (&["podSecurityContext.fsGroup=7"], &["securityContext:\n        fsGroup: 7\n        seccompProfile:\n          type: RuntimeDefault"]),
    (
        &["serviceMonitor.enabled=true,serviceMonitor.labels.release=r,serviceMonitor.interval=15s"],
        &["kind: ServiceMonitor", "release: r", "interval: 15s", "name: sekisho-metrics"],
    ),
    (
        &["prometheusRule.enabled=true,prometheusRule.labels.release=r"],
        &["kind: PrometheusRule", "release: r", "alert: SekishoNotReady", "{{ $labels.instance }}", "runbook_url: https://"],
    ),
    (
        &["export.file.enabled=true,export.file.maxSize=64Mi,export.file.keep=2"],
        &[
            "- \"--jsonl=/var/log/sekisho/flows.jsonl\"",
            "- --jsonl-max-size=64Mi",
            "- --jsonl-keep=2",
            "- name: records\n              mountPath: /var/log/sekisho",
            "- name: records\n          hostPath:\n            path: \"/var/log/sekisho\"\n            type: DirectoryOrCreate",
        ],
    ),
    (
        &["export.file.enabled=true,export.file.volume.emptyDir.sizeLimit=1Gi"],
        &["- name: records\n          emptyDir:\n            sizeLimit: 1Gi"],
    ),
];

/// Values that are refused, and what the refusal says.
const REFUSED: [(&str, &str); 6] = [
    ("memoryBudget=512Mi", "memoryBudget 512Mi and 100Mi for the agent itself do not fit into resources.limits.memory 384Mi"),
    ("resources.limits.memory=200M", "resources.limits.memory 200M"),
    ("resources.limits.memory=lots", "lots is no quantity of memory"),
    ("export.stdout=true,export.file.enabled=true", "records go to one of them"),
    ("serviceMonitor.enabled=true,metrics.enabled=false", "metrics"),
    ("podSecurityContexts.fsGroup=7", "podSecurityContexts"),
];

/// Budgets and limits that fit, in every spelling of a quantity.
const FITTING: [&str; 6] = [
    "memoryBudget=256Mi,resources.limits.memory=0.5Gi",
    "memoryBudget=1G,resources.limits.memory=2Gi",
    "memoryBudget=128Mi,resources.limits.memory=239075328",
    "memoryBudget=64Mi,resources.limits.memory=256M",
    "memoryBudget=64Mi,resources.limits.memory=2e8",
    "memoryBudget=512Mi,resources.limits=null",
];

/// Fails unless the chart does what these tables say.
pub(super) fn check(helm: &Path) -> Result<()> {
    for (values, wanted) in RENDERED {
        let text = rendered(helm, values)?;
        for wanted in wanted {
            ensure!(text.contains(wanted), "{values:?} does not make\n{wanted}\nbut\n{text}");
        }
    }
    let everywhere =
        rendered(helm, &["commonLabels.team=net", "metrics.service=true,networkPolicy.enabled=true,prometheusRule.enabled=true"])?;
    let objects = everywhere.split("\n---\n").filter(|object| object.contains("kind:"));
    for object in objects {
        ensure!(object.contains("\n    team: net"), "no common label on\n{object}");
    }
    ensure!(!everywhere.contains("matchLabels:\n      team"), "a common label must not choose pods: selectors cannot change");
    for values in FITTING {
        rendered(helm, &[values])?;
    }
    for (values, why) in REFUSED {
        let output = template(helm, &[values])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success() && said.contains(why), "{values} must be refused with {why:?}, not\n{said}");
    }
    Ok(())
}

fn template(helm: &Path, values: &[&str]) -> Result<Output> {
    let mut command = Command::new(helm);
    command.args(["template", "sekisho"]).arg(root().join("deploy/helm"));
    for value in values {
        command.args(["--set", value]);
    }
    Ok(command.output()?)
}

fn rendered(helm: &Path, values: &[&str]) -> Result<String> {
    let output = template(helm, values)?;
    ensure!(output.status.success(), "{values:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Ok(text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n"))
}
