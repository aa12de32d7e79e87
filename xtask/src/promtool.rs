//! Prometheus' own judge of alert rules and metrics, `promtool`: the one on the path, else the one in Debian's package, which
//! is unpacked into the cache and not installed.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::kernel::debian;
use crate::setup::find;
use crate::workspace::{cache_dir, output, root, say};

const PACKAGE: &str = "prometheus";

/// Fails unless the alert rules are well-formed and do what their tests say.
pub(crate) fn check_rules() -> Result<()> {
    say("alert rules");
    let promtool = promtool()?;
    let folder = root().join("deploy/monitoring");
    for words in [["check", "rules", "alerts.yaml"], ["test", "rules", "alerts_test.yaml"]] {
        output(Command::new(&promtool).args(words).current_dir(&folder)).context("deploy/monitoring")?;
    }
    Ok(())
}

/// Fails unless it finds nothing to say about a page of metrics.
pub(crate) fn check_metrics(page: &str) -> Result<()> {
    let mut child = Command::new(promtool()?)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("promtool does not start")?;
    child.stdin.take().context("standard input was piped")?.write_all(page.as_bytes())?;
    let done = child.wait_with_output()?;
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    ensure!(done.status.success() && said.trim().is_empty(), "promtool check metrics: {said}");
    Ok(())
}

fn promtool() -> Result<PathBuf> {
    if let Some(here) = find("promtool") {
        return Ok(here);
    }
    let directory = cache_dir("prometheus")?.join("root");
    if !directory.exists() && debian::fetch(PACKAGE, &directory).is_err() {
        // A machine that never had package lists.
        output(Command::new("apt-get").args(["update", "-q"])).context("please install Debian's package prometheus")?;
        debian::fetch(PACKAGE, &directory).context("please install Debian's package prometheus")?;
    }
    Ok(directory.join("usr/bin/promtool"))
}
