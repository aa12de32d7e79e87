//! The tests that need a real API server: the source `kube` against etcd and kube-apiserver, which are built from their Go
//! modules. They are built while other tests run, as that takes minutes on a machine that has not done it yet; where there
//! is no Go, the tests that did not run are named.

use std::path::PathBuf;
use std::thread::JoinHandle;

use anyhow::{Context, Result};

use crate::cluster::{ensure_servers, servers_obstacle};
use crate::workspace::{cargo, output, say};

/// What takes minutes and is run by `cargo xtask e2e` alone.
const LONG: [&str; 2] = ["--skip", "twenty_thousand"];

/// The servers on their way, or why there will be none.
pub(crate) enum Servers {
    /// Being built, or built already.
    Coming(JoinHandle<Result<PathBuf>>),
    /// There is nothing to build them with.
    Impossible(String),
}

impl Servers {
    /// Begins to build them.
    pub(crate) fn prepare() -> Result<Self> {
        if let Some(why) = servers_obstacle()? {
            return Ok(Self::Impossible(why));
        }
        Ok(Self::Coming(std::thread::spawn(ensure_servers)))
    }

    /// Where they are; or why they are not.
    pub(crate) fn wait(self) -> Result<PathBuf, String> {
        match self {
            Self::Impossible(why) => Err(why),
            Self::Coming(thread) => {
                if !thread.is_finished() {
                    say("wait for etcd and kube-apiserver, which are still being built");
                }
                thread.join().expect("building does not panic").map_err(|error| format!("they cannot be built: {error:#}"))
            }
        }
    }
}

/// The command that runs the tests, or lists them.
pub(crate) fn tests(filter: Option<&str>, list: bool) -> std::process::Command {
    let mut command = cargo();
    command
        .args(["test", "--package", "sekisho", "--test", "kube", "--"])
        .args(filter)
        .args(["--ignored", "--test-threads", "1"])
        .args(LONG);
    if list {
        command.args(["--list", "--format", "terse"]);
    }
    command
}

/// Their names.
pub(crate) fn names(filter: Option<&str>) -> Result<Vec<String>> {
    let text = output(&mut tests(filter, true)).context("the tests that need an API server cannot be listed")?;
    Ok(text.lines().filter_map(|line| line.strip_suffix(": test")).map(str::to_owned).collect())
}
