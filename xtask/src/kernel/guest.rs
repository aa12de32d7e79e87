//! The machine itself: qemu without hardware help, its console read line by line, its time bounded.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sekisho_lab::tool::init;

/// What a guest said about its tests.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Names of tests that passed.
    pub(crate) passed: Vec<String>,
    /// Names of tests that did not.
    pub(crate) failed: Vec<String>,
    /// The exit code in the guest's last line; absent if that never came.
    pub(crate) verdict: Option<i32>,
}

impl Report {
    /// Takes one line of the console.
    fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix(init::PASS) {
            self.passed.push(name.trim().to_owned());
        } else if let Some(name) = line.strip_prefix(init::FAIL) {
            self.failed.push(name.trim().to_owned());
        } else if let Some(code) = line.strip_prefix(init::VERDICT) {
            self.verdict = code.trim().parse().ok();
        }
    }
}

/// Ends the machine with this value, however the run ends.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        // Both fail only if it has switched itself off already.
        let _ended = self.0.kill();
        let _reaped = self.0.wait();
    }
}

/// Boots `kernel` with `initramfs` and reads its console until it switches itself off or `limit` is over.
pub(crate) fn run(kernel: &Path, initramfs: &Path, limit: Duration) -> Result<Report> {
    let begin = Instant::now();
    let child = Command::new("qemu-system-x86_64")
        // Without the processor's help: nested in another machine, that help is half there and qemu aborts.
        .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "1536"])
        .args(["-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"])
        .args(["-append", "console=ttyS0 quiet loglevel=2 panic=-1 random.trust_cpu=on"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("qemu-system-x86_64 does not start (run `cargo xtask setup`)")?;
    let mut machine = Machine(child);
    let console = machine.0.stdout.take().context("the console was piped")?;
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(console).split(b'\n').map_while(Result::ok) {
            // Nobody listens any more once the time is up.
            let _late = sender.send(plain(&String::from_utf8_lossy(&line)));
        }
    });
    let mut report = Report::default();
    loop {
        let left = limit.saturating_sub(begin.elapsed());
        match lines.recv_timeout(left) {
            Ok(line) => {
                report.line(&line);
                if !line.is_empty() {
                    println!("  {:6.1}s  {line}", begin.elapsed().as_secs_f64());
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => return Ok(report),
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("the guest still ran after {} s and was switched off", limit.as_secs()),
        }
    }
}

/// A line without the firmware's orders to the terminal, which would clear the reader's screen.
fn plain(line: &str) -> String {
    let mut plain = String::new();
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // ESC c, or ESC [ parameters letter
            if characters.next() == Some('[') {
                characters.by_ref().find(char::is_ascii_alphabetic);
            }
        } else if !character.is_control() {
            plain.push(character);
        }
    }
    plain.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Report, plain};

    #[test]
    fn orders_to_the_terminal_are_left_out() {
        assert_eq!(plain("\u{1b}c\u{1b}[?7l\u{1b}[2Jrunning 1 test\r"), "running 1 test");
    }

    #[test]
    fn a_console_is_read() {
        let mut report = Report::default();
        for line in ["[ 1.0] kernel talk", "PASS one", "FAIL two", "SEKISHO-GUEST-VERDICT 101"] {
            report.line(line);
        }
        assert_eq!((report.passed.len(), report.failed.len(), report.verdict), (1, 1, Some(101)));
    }
}
