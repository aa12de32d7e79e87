//! A place where daemons run, the control plane or a node: a network namespace, a control group, and for nodes
//! a mount namespace that its first process holds.

use std::fs::{self, OpenOptions};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use sekisho_lab::{Netns, Place, until};

use super::binaries::Programs;
use super::{cgroups, plan};

/// A node's mounts: its own peer group, so that nothing of it reaches the machine; a bpffs and a /run of its own.
const HOLD: &str = "mount --make-rprivate / && mount --make-rshared / && mount -t bpf bpf /sys/fs/bpf \
    && mount -t tmpfs -o mode=755 tmpfs /run && exec sleep infinity";

/// Where daemons run.
pub(super) struct Site {
    name: String,
    place: Place,
    programs: Programs,
}

impl Site {
    /// The site of this name, whose network is there already.
    pub(super) fn new(name: &str, programs: &Programs) -> Result<Self> {
        let place = Place::new(name, Netns::at(&plan::netns(name)), cgroups::daemons(name)?, plan::logs().join(format!("{name}.log")))?;
        Ok(Self { name: name.to_owned(), place, programs: programs.clone() })
    }

    /// Where its files are.
    pub(super) fn directory(&self) -> PathBuf {
        plan::root().join(&self.name)
    }

    /// Makes its mount namespace, held by a process that does nothing else.
    pub(super) fn hold_mounts(&self) -> Result<()> {
        let mut command = self.place.command("unshare")?;
        command.args(["--mount", "--propagation", "private", "sh", "-c", HOLD]);
        let pid = self.launch("mounts", command)?;
        let ready = || Ok(fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep"));
        until(Duration::from_secs(5), "the node's mounts are there", ready).with_context(|| self.log("mounts"))
    }

    /// A command that will run here.
    pub(super) fn command(&self, program: impl AsRef<Path>) -> Result<Command> {
        let mut command = match self.holder() {
            None => self.place.command(program.as_ref())?,
            Some(pid) => {
                let mut enter = self.place.command("nsenter")?;
                enter.arg(format!("--mount=/proc/{pid}/ns/mnt")).arg("--").arg(program.as_ref());
                enter
            }
        };
        command.env("PATH", self.programs.search_path()).current_dir("/");
        Ok(command)
    }

    /// Starts one of the cluster's programs as a daemon that outlives this command.
    pub(super) fn start(&self, program: &str, arguments: &[String]) -> Result<()> {
        let mut command = self.command(self.programs.path(program))?;
        command.args(arguments);
        self.launch(program, command).map(drop)
    }

    /// The last words of a daemon.
    pub(super) fn log(&self, daemon: &str) -> String {
        let text = fs::read_to_string(self.log_file(daemon)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(15);
        format!("{}:\n{}", self.log_file(daemon).display(), lines[from..].join("\n"))
    }

    /// Fails if a daemon has ended.
    pub(super) fn must_live(&self, daemon: &str) -> Result<()> {
        if alive(&self.name, daemon) {
            return Ok(());
        }
        bail!("{daemon} has ended on {}; {}", self.name, self.log(daemon))
    }

    fn log_file(&self, daemon: &str) -> PathBuf {
        plan::logs().join(format!("{}-{daemon}.log", self.name))
    }

    /// The process that holds the mounts.
    fn holder(&self) -> Option<u32> {
        holder(&self.name)
    }

    fn launch(&self, daemon: &str, mut command: Command) -> Result<u32> {
        let log = OpenOptions::new().create(true).append(true).open(self.log_file(daemon))?;
        // A group of its own: an interrupt at the terminal is not for it.
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("{daemon} does not start on {}", self.name))?;
        let pid = child.id();
        let started = started(pid).with_context(|| format!("{daemon} ended at once on {}; {}", self.name, self.log(daemon)))?;
        fs::create_dir_all(plan::root().join("pid"))?;
        fs::write(pid_file(&self.name, daemon), format!("{pid} {started}")).context("cannot write down a pid")?;
        Ok(pid)
    }
}

fn pid_file(site: &str, daemon: &str) -> PathBuf {
    plan::root().join("pid").join(format!("{site}.{daemon}"))
}

/// The process that holds a site's mounts, if it has any.
pub(crate) fn holder(site: &str) -> Option<u32> {
    pid(site, "mounts")
}

/// A daemon's process, if it still is that one.
pub(super) fn pid(site: &str, daemon: &str) -> Option<u32> {
    let text = fs::read_to_string(pid_file(site, daemon)).ok()?;
    let (pid, since) = text.trim().split_once(' ')?;
    let pid = pid.parse().ok()?;
    (started(pid)?.to_string() == since).then_some(pid)
}

/// Whether a daemon runs.
pub(super) fn alive(site: &str, daemon: &str) -> bool {
    pid(site, daemon).is_some()
}

/// When a process started, in clock ticks since boot: tells a reused pid apart. None if it is gone or a zombie.
fn started(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    if fields.next()? == "Z" {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
