//! What a process has used, as the kernel accounts it.

use std::fs;

use anyhow::{Context, Result, bail};

/// Processor time since its start and memory now.
pub(crate) struct Usage {
    user: f64,
    system: f64,
    resident_kb: u32,
    peak_kb: u32,
}

impl Usage {
    /// Of a running process.
    pub(crate) fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the process has ended")?;
        let (_, fields) = stat.rsplit_once(')').context("a line of /proc/PID/stat")?;
        let ticks: Vec<u32> = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        let [user, system] = ticks[..] else { bail!("a line of /proc/PID/stat") };
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let memory = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.split_whitespace().next()?.parse().ok()).with_context(|| format!("no {name} in /proc/PID/status"))
        };
        // USER_HZ is 100 on every platform that Linux supports today.
        Ok(Self {
            user: f64::from(user) / 100.0,
            system: f64::from(system) / 100.0,
            resident_kb: memory("VmRSS:")?,
            peak_kb: memory("VmHWM:")?,
        })
    }

    /// Seconds of a processor since `before`: exact, while the kernel guesses the two shares of it from its ticks.
    pub(crate) fn time_since(&self, before: &Self) -> f64 {
        self.user_since(before) + self.system_since(before)
    }

    /// Seconds in user space since `before`.
    pub(crate) fn user_since(&self, before: &Self) -> f64 {
        self.user - before.user
    }

    /// Seconds in the kernel, its own system calls, since `before`.
    pub(crate) fn system_since(&self, before: &Self) -> f64 {
        self.system - before.system
    }

    /// Resident memory.
    pub(crate) fn resident_mb(&self) -> f64 {
        f64::from(self.resident_kb) / 1024.0
    }

    /// The most that was ever resident.
    pub(crate) fn peak_mb(&self) -> f64 {
        f64::from(self.peak_kb) / 1024.0
    }
}
