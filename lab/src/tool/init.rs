//! This program as the first process of a small machine: mounts what a node has, loads the modules that lie
//! beside it, runs the tests that it finds, says how they ended, and switches the machine off.

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::sys;

/// What the last line on the console begins with; the exit code follows.
pub const VERDICT: &str = "SEKISHO-GUEST-VERDICT";

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
    let order = fs::read_to_string("/modules/order").unwrap_or_default();
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
        let status = Command::new(Path::new("/tests").join(program))
            .args(words)
            .env("SEKISHO_BIN", "/sekisho")
            .env("SEKISHO_LAB_BIN", "/init")
            .env("RUST_BACKTRACE", "0")
            .status()
            .with_context(|| format!("{program} does not start"))?;
        worst = worst.max(status.code().unwrap_or(4));
    }
    Ok(worst)
}
