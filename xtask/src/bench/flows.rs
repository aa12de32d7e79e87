//! `bench flows`: ten pods make 50,000 new flows a second for ten seconds, every one recorded, while an
//! eleventh measures how long a packet takes to become a streamed record.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sekisho_lab::{Agent, Lab, Pod, PodSpec, Running};
use serde_json::{Value, json};

use crate::workspace::{build_agent, build_lab, say};

const PODS: u32 = 10;
const RATE: u32 = 5_000;
const SECONDS: u32 = 10;
const PROBES: u16 = 200;

pub(crate) fn run() -> Result<()> {
    sekisho_lab::use_programs(build_agent()?, build_lab()?);
    let lab = Lab::new("bench-flows")?;
    let pods: Vec<Pod> = (0..PODS).map(|number| lab.pod(PodSpec::new("bench", &format!("client-{number}")))).collect::<Result<_>>()?;
    let prober = lab.pod(PodSpec::new("bench", "prober"))?;
    let agent = Agent::start(&lab, &[])?;
    std::thread::sleep(Duration::from_secs(2));
    let before = Usage::of(agent.pid())?;
    say(&format!("{PODS} pods x {RATE} new flows/s for {SECONDS} s"));
    let begin = Instant::now();
    let sprays: Vec<Running> = pods.iter().map(|pod| spray(&lab, pod)).collect::<Result<_>>()?;
    let delays = probe(&lab, &agent, &prober)?;
    let mut sent = 0;
    for running in sprays {
        let answer = running.finish(Duration::from_secs(60))?.json()?;
        sent += answer["sent"].as_u64().context("spray tells how many it sent")?;
    }
    let elapsed = begin.elapsed();
    let after = Usage::of(agent.pid())?;
    std::thread::sleep(Duration::from_millis(500));
    let status = agent.status()?;
    let kernel = &status["ledger"]["kernel"];
    let lost: u64 = kernel["lost"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum();
    let map_bytes: u64 = status["maps"].as_array().into_iter().flatten().filter_map(|map| map["bytes"].as_u64()).sum();
    let cores = (after.cpu_seconds - before.cpu_seconds) / elapsed.as_secs_f64();
    println!(
        "{}",
        json!({
            "bench": "flows", "sent": sent, "seconds": elapsed.as_secs_f64(), "created": kernel["created"], "start_sent": kernel["start_sent"],
            "summarised": kernel["summarised"], "lost": lost, "cores": cores, "user_cores": (after.user_seconds - before.user_seconds) / elapsed.as_secs_f64(),
            "peak_rss_mb": after.peak_rss_kb / 1024, "map_mb": map_bytes >> 20,
            "delay_ms": {"p50": at(&delays, 50), "p99": at(&delays, 99)}, "probes": delays.len(),
        })
    );
    verdict(lost, cores, after.peak_rss_kb, at(&delays, 99))
}

fn verdict(lost: u64, cores: f64, peak_rss_kb: u64, p99: f64) -> Result<()> {
    let mut broken = Vec::new();
    for (holds, what) in [
        (lost == 0, format!("{lost} records lost; the promise is none")),
        (cores <= 0.15, format!("{cores:.3} cores; the promise is 0.15")),
        (peak_rss_kb <= 96 << 10, format!("{} MB resident; the promise is 96", peak_rss_kb >> 10)),
        (p99 <= 200.0, format!("{p99:.0} ms from packet to record; the promise is 200")),
    ] {
        if !holds {
            broken.push(what);
        }
    }
    if broken.is_empty() { Ok(()) } else { bail!("{}", broken.join("; ")) }
}

fn spray(lab: &Lab, pod: &Pod) -> Result<Running> {
    let target = format!("{}:9000", lab.outside_v4());
    let (count, rate) = ((RATE * SECONDS).to_string(), RATE.to_string());
    pod.spawn(sekisho_lab::tool::binary()?, &["spray", "udp", &pod.v4().to_string(), &target, &count, &rate])
}

/// Milliseconds from a packet to its record in a follower's hands, sorted.
fn probe(lab: &Lab, agent: &Agent, prober: &Pod) -> Result<Vec<f64>> {
    let mut follower = agent.follow(&["observe", "--follow", "--last", "0", "--kind", "start", "--pod", "bench/prober", "-o", "json"])?;
    let reader = std::thread::spawn(move || -> Result<HashMap<u64, Instant>> {
        let mut seen = HashMap::new();
        while seen.len() < usize::from(PROBES) {
            let line = follower.line()?;
            if line.is_empty() {
                bail!("the follower ended");
            }
            let record: Value = serde_json::from_str(&line)?;
            if let Some(port) = record["source"]["port"].as_u64() {
                seen.insert(port, Instant::now());
            }
        }
        Ok(seen)
    });
    std::thread::sleep(Duration::from_secs(1));
    let target = std::net::SocketAddr::new(lab.outside_v4(), 9001);
    let sent: HashMap<u64, Instant> = prober.netns().within(|| {
        let mut sent = HashMap::new();
        for probe in 0..PROBES {
            let port = 30_000 + probe;
            let socket = std::net::UdpSocket::bind(("0.0.0.0", port))?;
            sent.insert(u64::from(port), Instant::now());
            socket.send_to(b"probe", target)?;
            std::thread::sleep(Duration::from_millis(u64::from(SECONDS - 2) * 1000 / u64::from(PROBES)));
        }
        Ok(sent)
    })?;
    let deadline = Instant::now() + Duration::from_secs(5);
    while !reader.is_finished() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    if !reader.is_finished() {
        bail!("not every probe has become a streamed record");
    }
    let seen = reader.join().expect("reading does not panic")?;
    let mut delays: Vec<f64> =
        sent.iter().filter_map(|(port, sent)| Some(seen.get(port)?.saturating_duration_since(*sent).as_secs_f64() * 1000.0)).collect();
    delays.sort_by(f64::total_cmp);
    Ok(delays)
}

fn at(sorted: &[f64], share: usize) -> f64 {
    sorted.get((sorted.len().max(1) - 1) * share / 100).copied().unwrap_or(f64::NAN)
}

/// What a process has used so far.
struct Usage {
    cpu_seconds: f64,
    user_seconds: f64,
    peak_rss_kb: u64,
}

impl Usage {
    fn of(pid: u32) -> Result<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("a line of /proc/PID/stat")?;
        let ticks: Vec<u32> = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
        let [user, system] = ticks[..] else { bail!("a line of /proc/PID/stat") };
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse().ok());
        // USER_HZ is 100 on every platform that Linux supports today.
        Ok(Self {
            cpu_seconds: f64::from(user + system) / 100.0,
            user_seconds: f64::from(user) / 100.0,
            peak_rss_kb: peak.context("no VmHWM in /proc/PID/status")?,
        })
    }
}
