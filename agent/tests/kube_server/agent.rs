//! The agent's binary on a kubeconfig, in the machine's own network namespace, with a bpffs and a socket of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

/// A running agent; killed when dropped, and what it pinned is removed.
pub(crate) struct Running {
    child: Child,
    binary: PathBuf,
    folder: tempfile::TempDir,
    pins: PathBuf,
}

impl Running {
    /// Starts it. `SEKISHO_BINARY` names another build than this test's.
    pub(crate) fn start(kubeconfig: &Path, node: &str) -> Result<Self> {
        let binary = std::env::var_os("SEKISHO_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_sekisho").into(), PathBuf::from);
        let folder = tempfile::tempdir()?;
        let mount = folder.path().join("bpf");
        fs::create_dir(&mount)?;
        let mounted = Command::new("mount").args(["-t", "bpf", "bpf"]).arg(&mount).status()?;
        ensure!(mounted.success(), "no bpffs can be mounted: this test needs root");
        let pins = mount.join("pins");
        let child = Command::new(&binary)
            .args(["agent", "--node-name", node, "--kubeconfig"])
            .arg(kubeconfig)
            .arg("--socket")
            .arg(folder.path().join("socket"))
            .arg("--pin-dir")
            .arg(&pins)
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log"))?)
            .spawn()?;
        Ok(Self { child, binary, folder, pins })
    }

    /// Its status, once `is` holds of it.
    pub(crate) fn until(&self, limit: Duration, is: impl Fn(&Value) -> bool) -> Result<Value> {
        let end = Instant::now() + limit;
        loop {
            let answer =
                Command::new(&self.binary).args(["status", "-o", "json", "--socket"]).arg(self.folder.path().join("socket")).output()?;
            let status = serde_json::from_slice::<Value>(&answer.stdout).unwrap_or_default();
            if is(&status) {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("not within {limit:?}: {status}\n{}", fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Resident memory in bytes.
    pub(crate) fn resident(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/statm", self.child.id()))?;
        Ok(text.split_whitespace().nth(1).context("statm")?.parse::<u64>()? * 4096)
    }

    /// The most that it ever had, in bytes.
    pub(crate) fn peak(&self) -> Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
    }

    /// Processor time so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        let text = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let after = text.rsplit_once(')').context("stat")?.1;
        let ticks: u64 = after.split_whitespace().skip(11).take(2).filter_map(|n| n.parse::<u64>().ok()).sum();
        Ok(Duration::from_millis(ticks * 10))
    }

    /// Processor time within the next `span`.
    pub(crate) fn cpu_over(&self, span: Duration) -> Result<Duration> {
        let before = self.cpu()?;
        std::thread::sleep(span);
        Ok(self.cpu()?.saturating_sub(before))
    }

    /// Ends it and removes what it pinned.
    pub(crate) fn stop(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        let done = Command::new(&self.binary).args(["detach", "--pin-dir"]).arg(&self.pins).output()?;
        ensure!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both do nothing after `stop`.
        drop(self.child.kill());
        drop(self.child.wait());
        drop(Command::new(&self.binary).args(["detach", "--pin-dir"]).arg(&self.pins).output());
        drop(Command::new("umount").arg(self.folder.path().join("bpf")).status());
    }
}
