//! The agent as a process, under the names that every Prometheus client library uses.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;

use super::{counters, float, gauges, plain};

#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let out = &mut encoder;
        let usage = Usage::now();
        gauges(out, "process_resident_memory_bytes", "Memory of the agent", plain(usage.resident))?;
        gauges(out, "process_start_time_seconds", "When the agent was started, since 1970 UTC", plain(usage.started))?;
        gauges(out, "process_open_fds", "Files that the agent has open", plain(usage.open))?;
        counters(out, "process_cpu_seconds", "Processor time of the agent", plain(usage.processor))
    }
}

/// What the kernel says of this process, in bytes and seconds.
struct Usage {
    resident: f64,
    processor: f64,
    started: f64,
    open: f64,
}

impl Usage {
    fn now() -> Self {
        // Pages have 64 KiB on some machines, and no constant of ours knows the clock's ticks.
        let page = float(rustix::param::page_size() as u64);
        let ticks = float(rustix::param::clock_ticks_per_second()).max(1.0);
        let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let stat = Stat::read(&stat);
        let boot = fs::read_to_string("/proc/stat").unwrap_or_default();
        let boot = boot.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok()).unwrap_or(0.0);
        let open = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        Self {
            resident: resident_pages(&statm) * page,
            processor: stat.processor / ticks,
            started: boot + stat.started / ticks,
            open: float(open as u64),
        }
    }
}

fn resident_pages(statm: &str) -> f64 {
    statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// In clock ticks, since boot.
struct Stat {
    processor: f64,
    started: f64,
}

impl Stat {
    fn read(text: &str) -> Self {
        // The name in brackets may hold anything.
        let after = text.rsplit_once(')').map_or("", |(_, rest)| rest);
        let field = |number: usize| after.split_whitespace().nth(number - 3).and_then(|n| n.parse().ok()).unwrap_or(0.0);
        Self { processor: field(14) + field(15), started: field(22) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_is_what_the_kernel_says() {
        let usage = Usage::now();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let kib: f64 = status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok()).unwrap();
        // Other tests run meanwhile.
        assert!((usage.resident / (kib * 1024.0) - 1.0).abs() < 0.5, "{} bytes, {kib} KiB", usage.resident);
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64();
        assert!((now - usage.started) > -2.0 && now - usage.started < 86_400.0, "started {} at {now}", usage.started);
        assert!(usage.open >= 3.0);
    }

    #[test]
    fn fields_are_found_behind_any_name() {
        let text = "7 (a) b (c) R 1 1 1 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 5 0 9000 1000 200";
        let stat = Stat::read(text);
        assert_eq!((stat.processor, stat.started, resident_pages("1000 250 3 4")), (200.0, 9000.0, 250.0));
    }
}
