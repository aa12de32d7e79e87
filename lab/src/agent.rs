//! The agent under test: the real binary, started on a lab's node and driven through its command line.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::lab::{Lab, NODE_NAME};
use crate::place::{Finished, text_of, until};
use crate::sys;

/// `(sekisho, sekisho-lab)`, where the program that uses this crate has built them itself.
static PROGRAMS: OnceLock<(PathBuf, PathBuf)> = OnceLock::new();

/// Tells which binaries to use, before anything is started. Without it they are looked for.
pub fn use_programs(sekisho: PathBuf, lab: PathBuf) {
    // Said twice, the first one stays.
    let _first = PROGRAMS.set((sekisho, lab));
}

/// The `sekisho-lab` binary of [`use_programs`].
pub(crate) fn lab_program() -> Option<PathBuf> {
    PROGRAMS.get().map(|programs| programs.1.clone())
}

/// The `sekisho` binary: `SEKISHO_BIN`, else the newest build in the target directory of this program.
pub(crate) fn binary() -> Result<PathBuf> {
    if let Some((sekisho, _)) = PROGRAMS.get() {
        return Ok(sekisho.clone());
    }
    if let Some(path) = env::var_os("SEKISHO_BIN") {
        return Ok(path.into());
    }
    let me = env::current_exe()?;
    newest(&me, "sekisho").context("there is no sekisho binary; build it (`cargo build --release`) or name it in SEKISHO_BIN")
}

/// The newest program of this name around a program of ours.
fn newest(me: &Path, name: &str) -> Option<PathBuf> {
    // target/TRIPLE/PROFILE/sekisho-lab, or target/TRIPLE/PROFILE/deps/TEST-HASH
    let found =
        me.ancestors().skip(1).take(4).flat_map(|directory| ["", "release", "debug"].map(|profile| directory.join(profile).join(name)));
    found.filter(|path| path.is_file()).max_by_key(|path| path.metadata().and_then(|meta| meta.modified()).ok())
}

/// The agent built with the layout of a next version: `SEKISHO_NEXT_BIN`, else the newest build beside this program.
fn next_binary() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SEKISHO_NEXT_BIN") {
        return Ok(path.into());
    }
    newest(&env::current_exe()?, "sekisho-next").context(
        "there is no agent of another layout; build it (`cargo build --features next-layout --bin sekisho-next`) or name it in SEKISHO_NEXT_BIN",
    )
}

/// How an agent is to be started.
#[derive(Clone, Debug)]
pub struct AgentOptions {
    arguments: Vec<String>,
    binary: Option<PathBuf>,
}

impl Default for AgentOptions {
    fn default() -> Self {
        Self::new(&[])
    }
}

impl AgentOptions {
    /// With these arguments beside the lab's own (manifests, node name, socket, pins).
    pub fn new(arguments: &[&str]) -> Self {
        Self { arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(), binary: None }
    }

    /// The build with the layout of a next version.
    pub fn next_layout(mut self) -> Result<Self> {
        self.binary = Some(next_binary()?);
        Ok(self)
    }
}

/// A running agent; killed when dropped.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    binary: PathBuf,
    node: crate::Place,
    socket: PathBuf,
    pin_dir: PathBuf,
    log: PathBuf,
}

impl Agent {
    /// Where the binary is.
    pub fn binary() -> Result<PathBuf> {
        binary()
    }

    /// Starts the agent and waits until it says that it is ready.
    pub fn start(lab: &Lab, arguments: &[&str]) -> Result<Self> {
        Self::start_with(lab, &AgentOptions::new(arguments))
    }

    /// The same with options.
    pub fn start_with(lab: &Lab, options: &AgentOptions) -> Result<Self> {
        let mut agent = Self::launch(lab, options)?;
        agent.wait_ready(Duration::from_secs(20))?;
        Ok(agent)
    }

    /// Starts the agent and does not wait.
    pub fn launch(lab: &Lab, options: &AgentOptions) -> Result<Self> {
        let binary = options.binary.clone().map_or_else(binary, Ok)?;
        let log = lab.directory().join("node.log");
        let child = lab
            .node()
            .command(&binary)?
            .arg("agent")
            .arg("--manifests")
            .arg(lab.manifests())
            .args(["--node-name", NODE_NAME, "--socket"])
            .arg(lab.socket())
            .arg("--pin-dir")
            .arg(lab.pin_dir())
            .args(&options.arguments)
            .stdout(std::process::Stdio::null())
            .spawn()
            .with_context(|| format!("{} does not start", binary.display()))?;
        Ok(Self { child, binary, node: lab.node().clone(), socket: lab.socket(), pin_dir: lab.pin_dir(), log })
    }

    /// Waits until `sekisho status` says ready.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<()> {
        let mut last = String::new();
        let ready = until(limit, "the agent is ready", || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent ended: {status}");
            }
            let answer = self.command(&["status", "-o", "json"])?;
            last = format!("{}{}", answer.stdout, answer.stderr);
            Ok(answer.success())
        });
        ready.with_context(|| format!("last status: {last}\nits log:\n{}", self.log()))
    }

    /// Runs `sekisho ARGUMENTS --socket ...` on the node.
    pub fn command(&self, arguments: &[&str]) -> Result<Finished> {
        self.node.run(&self.binary, &self.with_socket(arguments))
    }

    /// The same arguments with the agent's socket named, where a command that prints runs on.
    pub fn with_socket(&self, arguments: &[&str]) -> Vec<String> {
        let mut all: Vec<String> = arguments.iter().map(|&argument| argument.to_owned()).collect();
        all.extend(["--socket".to_owned(), self.socket.display().to_string()]);
        all
    }

    /// Starts `sekisho ARGUMENTS --socket ...` on the node and leaves it running.
    pub fn follow(&self, arguments: &[&str]) -> Result<crate::Running> {
        self.node.spawn(&self.binary, &self.with_socket(arguments))
    }

    /// `sekisho status` as JSON.
    pub fn status(&self) -> Result<Value> {
        self.command(&["status", "-o", "json"])?.json()
    }

    /// Waits until the status has what `wanted` looks for.
    pub fn until_status(&self, what: &str, limit: Duration, mut wanted: impl FnMut(&Value) -> bool) -> Result<()> {
        until(limit, what, || Ok(wanted(&self.status()?))).with_context(|| self.log())
    }

    /// Every record in the agent's memory, as JSON.
    pub fn records(&self) -> Result<Vec<Value>> {
        self.records_of(&[])
    }

    /// The records that `sekisho observe FILTER` picks.
    pub fn records_of(&self, filter: &[&str]) -> Result<Vec<Value>> {
        let answer = self.command(&[&["observe", "--last", "all", "-o", "json"], filter].concat())?;
        if !answer.success() {
            bail!("observe: exit {:?}: {}", answer.code, answer.stderr);
        }
        answer.json_lines()
    }

    /// Waits until a record is there that `wanted` picks, and returns the first.
    pub fn record(&self, what: &str, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        self.record_of(&[], what, limit, wanted)
    }

    /// The same among what `sekisho observe FILTER` picks, where there are very many.
    pub fn record_of(&self, filter: &[&str], what: &str, limit: Duration, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut found = None;
        let mut seen = Vec::new();
        let outcome = until(limit, what, || {
            seen = self.records_of(filter)?;
            found = seen.iter().find(|record| wanted(record)).cloned();
            Ok(found.is_some())
        });
        outcome.with_context(|| {
            let last: Vec<String> = seen.iter().rev().take(20).rev().map(Value::to_string).collect();
            format!("the last of {} records:\n{}\n{}", seen.len(), last.join("\n"), self.log())
        })?;
        found.context("just found")
    }

    /// Every alert in the agent's memory.
    pub fn alerts(&self) -> Result<Vec<Value>> {
        self.command(&["alerts", "--last", "all", "-o", "json"])?.json_lines()
    }

    /// Sets the mode of the whole agent.
    pub fn set_mode(&self, mode: &str) -> Result<()> {
        let answer = self.command(&["mode", mode])?;
        if !answer.success() {
            bail!("mode {mode}: exit {:?}: {}", answer.code, answer.stderr);
        }
        Ok(())
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has logged, with everything else that complained on the node.
    pub fn log(&self) -> String {
        text_of(&self.log)
    }

    /// Where its pins are.
    pub fn pin_dir(&self) -> &Path {
        &self.pin_dir
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// SIGKILL, as an out-of-memory kill would do it.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and waits for its end.
    pub fn terminate(mut self, limit: Duration) -> Result<Option<i32>> {
        sys::kill(self.pid(), libc::SIGTERM)?;
        self.wait(limit)
    }

    /// Waits for its end and returns its exit code.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<i32>> {
        until(limit, "the agent ends", || Ok(self.child.try_wait()?.is_some()))?;
        Ok(self.child.wait()?.code())
    }

    /// Lets it run on by itself; the lab ends it when it goes.
    pub fn detach(self) {
        std::mem::forget(self);
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
