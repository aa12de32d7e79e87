//! Somewhere a process can run: a network namespace and a control group together.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::netns::Netns;
use crate::{sys, tool};

/// A network namespace and a control group, where processes run.
#[derive(Clone, Debug)]
pub struct Place {
    name: String,
    netns: Netns,
    cgroup: PathBuf,
    log: PathBuf,
}

impl Place {
    /// A place whose processes go into the control group `cgroup`, made if missing, and complain into `log`.
    pub fn new(name: &str, netns: Netns, cgroup: PathBuf, log: PathBuf) -> Result<Self> {
        fs::create_dir_all(&cgroup).with_context(|| format!("cannot make the control group {}", cgroup.display()))?;
        Ok(Self { name: name.to_owned(), netns, cgroup, log })
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// Its control group's directory.
    pub fn cgroup(&self) -> &Path {
        &self.cgroup
    }

    /// A command that will start here. Its standard error goes to the place's log.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new(program);
        let log =
            OpenOptions::new().create(true).append(true).open(&self.log).with_context(|| format!("cannot write {}", self.log.display()))?;
        let procs = OpenOptions::new()
            .write(true)
            .open(self.cgroup.join("cgroup.procs"))
            .with_context(|| format!("{} is gone", self.cgroup.display()))?;
        sys::start_inside(&mut command, self.netns.open()?, procs);
        command.stdin(Stdio::null()).stderr(log);
        Ok(command)
    }

    /// Runs a program here to its end.
    pub fn run<A: AsRef<OsStr>>(&self, program: impl AsRef<OsStr>, arguments: &[A]) -> Result<Finished> {
        let program = program.as_ref();
        let output = self
            .command(program)?
            .args(arguments)
            .stderr(Stdio::piped())
            .output()
            .with_context(|| format!("{} does not start in {}", program.display(), self.name))?;
        Ok(Finished {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Starts a program here; it is ended when the returned value is dropped.
    pub fn spawn<A: AsRef<OsStr>>(&self, program: impl AsRef<OsStr>, arguments: &[A]) -> Result<Running> {
        let program = program.as_ref();
        let mut child = self
            .command(program)?
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} does not start in {}", program.display(), self.name))?;
        let stdout = child.stdout.take().context("standard output was piped")?;
        Ok(Running { child, stdout: BufReader::new(stdout) })
    }

    /// Runs one of the lab's own programs here to its end, see [`tool`].
    pub fn tool<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<Finished> {
        self.run(tool::binary()?, arguments)
    }

    /// Starts one of the lab's own programs here and waits until it says that it is ready.
    pub fn start<A: AsRef<OsStr>>(&self, arguments: &[A]) -> Result<Running> {
        self.start_as(tool::binary()?, arguments)
    }

    /// The same for a program that is another name (a link) of the lab's own.
    pub fn start_as<A: AsRef<OsStr>>(&self, program: impl AsRef<OsStr>, arguments: &[A]) -> Result<Running> {
        let mut running = self.spawn(program, arguments)?;
        let line = running.line()?;
        if line.trim() != tool::READY {
            let what: Vec<_> = arguments.iter().map(|a| a.as_ref().to_string_lossy()).collect();
            bail!("`{}` is not ready in {}: {line:?} (see {})", what.join(" "), self.name, self.log.display());
        }
        Ok(running)
    }

    /// A server that answers what it is sent, see [`tool`].
    pub fn serve(&self, protocol: &str, port: u16) -> Result<Running> {
        self.start(&["serve", protocol, &port.to_string()])
    }

    /// Whether one exchange with a server over `protocol` (`tcp`, `udp`) succeeds within a second.
    pub fn reaches(&self, protocol: &str, address: std::net::IpAddr, port: u16) -> Result<bool> {
        let target = std::net::SocketAddr::new(address, port).to_string();
        Ok(self.tool(&["dial", protocol, &target])?.success())
    }

    /// Whether an echo request is answered within a second.
    pub fn pings(&self, address: std::net::IpAddr) -> Result<bool> {
        Ok(self.tool(&["ping", &address.to_string()])?.success())
    }
}

/// A program that has ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// Its exit code; absent if a signal ended it.
    pub code: Option<i32>,
    /// What it printed.
    pub stdout: String,
    /// What it complained about.
    pub stderr: String,
}

impl Finished {
    /// Whether it ended with 0.
    pub fn success(&self) -> bool {
        self.code == Some(0)
    }

    /// Its standard output as JSON, one value a line.
    pub fn json_lines(&self) -> Result<Vec<Value>> {
        self.stdout
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}")))
            .collect()
    }

    /// Its standard output as one JSON value.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_str(&self.stdout).with_context(|| format!("exit {:?}, not JSON: {:?} {:?}", self.code, self.stdout, self.stderr))
    }
}

/// A program that runs until this value is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Running {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line that it prints; empty at its end.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stdout.read_line(&mut line).context("cannot read a program's output")?;
        Ok(line)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        sys::kill(self.pid(), signal).context("cannot signal a program")
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits for its end, at most `limit`, and returns what it printed since the last line read.
    pub fn finish(mut self, limit: Duration) -> Result<Finished> {
        let mut stdout = String::new();
        let deadline = Instant::now() + limit;
        while self.child.try_wait()?.is_none() {
            if sys::interrupted() {
                bail!("interrupted");
            }
            if Instant::now() > deadline {
                bail!("a program still runs after {limit:?}");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        self.stdout.read_to_string(&mut stdout)?;
        Ok(Finished { code: self.child.wait()?.code(), stdout, stderr: String::new() })
    }

    /// Lets it run on by itself; the lab ends it when it goes.
    pub fn detach(self) {
        std::mem::forget(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// How many times slower than a real machine this one is, where it is emulated.
fn patience() -> u32 {
    std::env::var("SEKISHO_LAB_PATIENCE").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}

/// Waits until `ready` says so.
pub fn until(limit: Duration, what: &str, mut ready: impl FnMut() -> Result<bool>) -> Result<()> {
    let limit = limit * patience();
    let deadline = Instant::now() + limit;
    while !ready()? {
        if Instant::now() > deadline {
            bail!("{what}: not within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A file's text, or empty where it is not to be had.
pub(crate) fn text_of(path: &Path) -> String {
    let mut text = String::new();
    if let Ok(mut file) = File::open(path) {
        let _partial = file.read_to_string(&mut text);
    }
    text
}
