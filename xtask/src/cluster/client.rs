//! kubectl, run where the API server is reached.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::binaries::Programs;
use super::plan::{self, CONTROL_PLANE, Plan};

/// Talks to the running cluster as its administrator.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    kubectl: PathBuf,
    kubeconfig: PathBuf,
}

impl Client {
    /// To the cluster that is here.
    pub(crate) fn connect() -> Result<Self> {
        Plan::read().context("there is no cluster; bring it up with `cargo xtask cluster up`")?;
        Ok(Self { kubectl: Programs::built()?.path("kubectl"), kubeconfig: plan::root().join("admin.kubeconfig") })
    }

    /// Any program in the control plane's network, with the administrator's kubeconfig.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", plan::netns(CONTROL_PLANE).display())).arg("--").arg(program);
        command.env("KUBECONFIG", &self.kubeconfig);
        command
    }

    /// A kubectl that will run with these arguments.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(&self.kubectl);
        command.args(arguments);
        command
    }

    /// kubectl itself.
    pub(super) fn program(&self) -> PathBuf {
        self.kubectl.clone()
    }

    /// Runs a program with our input and output.
    pub(super) fn pass_on(&self, program: &Path, arguments: &[String]) -> Result<ExitCode> {
        let status = self.command(program).args(arguments).status().with_context(|| format!("{} does not start", program.display()))?;
        Ok(ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)))
    }

    /// What kubectl prints; its failure is ours.
    pub(crate) fn run(&self, arguments: &[&str]) -> Result<String> {
        let output = self.kubectl(arguments).stdin(Stdio::null()).output().context("kubectl does not start")?;
        finished(arguments, &output)
    }

    /// What kubectl prints, or nothing where it fails.
    pub(crate) fn try_run(&self, arguments: &[&str]) -> Result<Option<String>> {
        let output = self.kubectl(arguments).stdin(Stdio::null()).output().context("kubectl does not start")?;
        Ok(output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned()))
    }

    /// The lines that kubectl prints.
    pub(crate) fn lines(&self, arguments: &[&str]) -> Result<Vec<String>> {
        Ok(self.run(arguments)?.lines().map(str::to_owned).collect())
    }

    /// Gives kubectl a manifest on its standard input.
    pub(crate) fn feed(&self, arguments: &[&str], manifest: &str) -> Result<String> {
        let mut command = self.kubectl(arguments);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("kubectl does not start")?;
        child.stdin.take().context("standard input was piped")?.write_all(manifest.as_bytes())?;
        finished(arguments, &child.wait_with_output()?)
    }

    /// Applies a manifest.
    pub(crate) fn apply(&self, manifest: &str) -> Result<String> {
        self.feed(&["apply", "--server-side", "-f", "-"], manifest)
    }

    /// Waits until the cluster is as `ready` wants it.
    pub(crate) fn wait(&self, limit: Duration, what: &str, mut ready: impl FnMut(&Self) -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !ready(self)? {
            if Instant::now() > deadline {
                bail!("{what}: not within {} s", limit.as_secs());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    }
}

fn finished(arguments: &[&str], output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!("kubectl {}: {}\n{}", arguments.join(" "), output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
