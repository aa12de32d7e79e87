//! `cargo xtask test`: everything, in the order in which it fails cheapest. What needs the real kernel is
//! never skipped: if it cannot run here, the command fails and says why. What needs a real API server needs Go; where
//! that is missing, the tests that did not run are named, and where the variable CI is set they fail.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::servers::{self, Servers};
use crate::setup;
use crate::workspace::{build_agent, build_next_layout, cargo, say};

/// How a run of tests ended.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    passed: u32,
    failed: u32,
}

pub(crate) fn run(filter: Option<&str>) -> Result<()> {
    let begin = Instant::now();
    setup::run(false)?;
    let servers = Servers::prepare()?;
    let agent = build_agent()?;
    let next = build_next_layout()?;
    // The data path's own tests make their pods with it.
    let built = cargo().args(["build", "--package", "sekisho-lab"]).status().context("cargo does not start")?;
    if !built.success() {
        bail!("the lab does not build");
    }
    let host =
        tests("tests in user space", cargo().args(["test", "--workspace", "--exclude", "sekisho-lab", "--no-fail-fast"]).args(filter))?;
    // From here on tests measure time: nothing is built beside them any more.
    let (source, missing) = match servers.wait() {
        Ok(programs) => {
            let mut command = servers::tests(filter, false);
            (tests("tests on a real API server", command.env("SEKISHO_KUBERNETES", programs))?, None)
        }
        Err(why) => (Tally::default(), Some(why)),
    };
    let obstacle = obstacle();
    let kernel = match &obstacle {
        Some(_) => Tally::default(),
        None => tests(
            "tests on the real kernel",
            cargo()
                .args(["test", "--package", "sekisho-lab", "--no-fail-fast"])
                .args(filter)
                .env("SEKISHO_BIN", &agent)
                .env("SEKISHO_NEXT_BIN", &next)
                // They measure time and share two cores: one after the other.
                .env("RUST_TEST_THREADS", "1"),
        )?,
    };
    println!();
    println!("in user space:        {} passed, {} failed", host.passed, host.failed);
    println!("on a real API server: {} passed, {} failed", source.passed, source.failed);
    println!("on the real kernel:   {} passed, {} failed ({})", kernel.passed, kernel.failed, release());
    let not_run = not_run(missing.as_deref(), filter)?;
    println!("took {} s", begin.elapsed().as_secs());
    let failed = host.failed + source.failed + kernel.failed;
    println!("{} passed, {failed} failed, {not_run} did not run", host.passed + source.passed + kernel.passed);
    if let Some(why) = obstacle {
        bail!("the tests on the real kernel could not run: {why}");
    }
    if kernel.passed + kernel.failed == 0 && filter.is_none() {
        bail!("not one test ran on the real kernel");
    }
    if failed > 0 {
        bail!("tests failed");
    }
    if not_run > 0 && every_test_must_run() {
        bail!("tests did not run, and the environment says CI");
    }
    Ok(())
}

/// Names the tests that could not run for want of an API server; how many they are.
fn not_run(missing: Option<&str>, filter: Option<&str>) -> Result<usize> {
    let Some(why) = missing else { return Ok(0) };
    let names = servers::names(filter)?;
    if !names.is_empty() {
        println!("{} tests on a real API server did not run: {why}", names.len());
    }
    for name in &names {
        println!("test {name} ... did not run");
    }
    Ok(names.len())
}

/// A machine that tests must be able to run every test; a person's need not have Go.
fn every_test_must_run() -> bool {
    std::env::var("CI").is_ok_and(|value| !["", "0", "false"].contains(&value.as_str()))
}

/// Why nothing can be tested on this machine's kernel.
fn obstacle() -> Option<&'static str> {
    if !sekisho_lab::is_root() {
        return Some("they need root");
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Some("this kernel has no BTF (/sys/kernel/btf/vmlinux)");
    }
    None
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").map_or_else(|_| "unknown".to_owned(), |text| format!("Linux {}", text.trim()))
}

/// Runs `cargo test` with its output shown, and adds up what it says.
fn tests(what: &str, command: &mut Command) -> Result<Tally> {
    say(what);
    let mut child = command.stdout(Stdio::piped()).spawn().context("cargo does not start")?;
    let stdout = child.stdout.take().context("standard output was piped")?;
    let mut tally = Tally::default();
    let mut results = 0;
    for line in BufReader::new(stdout).lines() {
        let line = line?;
        if let Some(rest) = line.strip_prefix("test result: ") {
            results += 1;
            tally.passed += number_before(rest, " passed");
            tally.failed += number_before(rest, " failed");
        }
        println!("{line}");
    }
    let status = child.wait()?;
    if !status.success() && tally.failed == 0 {
        bail!("{what}: cargo test failed without a failed test ({results} results): it does not build, or a test ended its process");
    }
    Ok(tally)
}

/// The number that stands before a word.
pub(crate) fn number_before(text: &str, word: &str) -> u32 {
    let before = text.split(word).next().unwrap_or_default();
    before.rsplit(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}
