//! This program as the first process of a small machine: mounts what a node has, loads the modules that lie
//! beside it, runs the tests that it was given, says how each ended, and switches the machine off.
//!
//! What it says is one line each: [`PASS`] or [`FAIL`] and the test's name, everything else as it comes, and
//! [`VERDICT`] last.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::sys;

/// What the last line on the console begins with; the exit code follows.
pub const VERDICT: &str = "SEKISHO-GUEST-VERDICT";
/// What the line of a test that passed begins with.
pub const PASS: &str = "PASS ";
/// What the line of a test that failed begins with.
pub const FAIL: &str = "FAIL ";

pub(super) fn main() -> ! {
    let code = match machine().and_then(|()| tests()) {
        Ok(code) => code,
        Err(error) => {
            println!("init: {error:#}");
            3
        }
    };
    println!("\n{VERDICT} {code}");
    // If even this fails, the end of the first process stops the machine.
    let _off = sys::power_off();
    std::process::exit(code);
}

fn machine() -> Result<()> {
    for (source, target, kind) in [
        ("proc", "/proc", "proc"),
        ("sysfs", "/sys", "sysfs"),
        ("devtmpfs", "/dev", "devtmpfs"),
        ("tmpfs", "/run", "tmpfs"),
        ("tmpfs", "/tmp", "tmpfs"),
        ("bpf", "/sys/fs/bpf", "bpf"),
        ("cgroup2", "/sys/fs/cgroup", "cgroup2"),
    ] {
        // The kernel makes its own mount points below /sys.
        let _exists = fs::create_dir_all(target);
        sys::mount(Path::new(source), Path::new(target), kind).with_context(|| format!("cannot mount {target}"))?;
    }
    let order = fs::read_to_string("/modules/order").context("no modules were brought along")?;
    for name in order.lines() {
        let module = File::open(Path::new("/modules").join(name))?;
        sys::insmod(&module).with_context(|| format!("cannot load {name}"))?;
    }
    Ok(())
}

fn tests() -> Result<i32> {
    let mut worst = 0;
    let list = fs::read_to_string("/tests/list").context("no tests were brought along")?;
    for line in list.lines() {
        let mut words = line.split(' ');
        let program = words.next().context("an empty line in the list of tests")?;
        let mut child = Command::new(Path::new("/tests").join(program))
            .arg("--test-threads=1")
            .args(words)
            .env("SEKISHO_BIN", "/sekisho")
            .env("SEKISHO_LAB_BIN", "/init")
            .env("SEKISHO_EBPF_OBJECT", "/programs.o")
            // Every instruction is emulated.
            .env("SEKISHO_LAB_PATIENCE", "6")
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{program} does not start"))?;
        let output = BufReader::new(child.stdout.take().context("standard output was piped")?);
        let mut running = String::new();
        for text in output.split(b'\n').map_while(Result::ok) {
            say(program, &String::from_utf8_lossy(&text), &mut running);
        }
        worst = worst.max(child.wait()?.code().unwrap_or(4));
    }
    Ok(worst)
}

/// Passes on one line of a test program's output. With one thread, a test's result stands at the end of the
/// line that names it, or, if the test printed something itself, on a line of its own.
fn say(program: &str, line: &str, running: &mut String) {
    if let Some(rest) = line.strip_prefix("test ")
        && let Some((name, result)) = rest.split_once(" ... ")
    {
        name.clone_into(running);
        report(program, name, result, line);
    } else {
        report(program, running, line, line);
    }
}

fn report(program: &str, name: &str, result: &str, line: &str) {
    match result {
        "ok" => println!("{PASS}{program}::{name}"),
        "FAILED" => println!("{FAIL}{program}::{name}"),
        _ => println!("{line}"),
    }
}
