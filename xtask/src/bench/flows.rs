//! `bench flows`: ten pods make 50,000 new flows a second for ten seconds, every one recorded, while an
//! eleventh measures how long a packet takes to become a streamed record, allowed or denied.
//!
//! Each flow is a real datagram from a socket of its own, over the pod's veth and out of the node: so each costs the agent
//! everything, the look-up of its process too. Load and agent go before the rest of the machine, the agent before the load: this
//! measures what it costs and how late it is, not how the scheduler shares a machine that has too much to do.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use sekisho_lab::{Agent, Lab, Pod, PodSpec, Running, go_first, kill, on_interrupt};
use serde_json::{Value, json};

use super::table::Table;
use super::usage::Usage;
use crate::workspace::{build_agent, build_fast_lab, say};

const SIGTERM: i32 = 15;
const PODS: u32 = 10;
const RATE: u32 = 5_000;
const SECONDS: u32 = 10;
/// The prober may send to this port outside, and to no other.
const ALLOWED_PORT: u16 = 9001;
const DENIED_PORT: u16 = 9002;
/// Source ports of the probes; the even ones are allowed, the odd ones denied.
const PROBES: std::ops::Range<u16> = 20_000..20_500;

pub(crate) fn run() -> Result<()> {
    sekisho_lab::use_programs(build_agent()?, build_fast_lab()?);
    on_interrupt();
    go_first()?;
    let lab = Lab::new("bench-flows")?;
    let pods: Vec<Pod> = (0..PODS).map(|number| lab.pod(PodSpec::new("bench", &format!("client-{number}")))).collect::<Result<_>>()?;
    let lookout = lab.pod(PodSpec::new("bench", "prober"))?;
    cage(&lab)?;
    let agent = Agent::start(&lab, &[])?;
    let follower = Follower::start(&agent)?;
    std::thread::sleep(Duration::from_secs(2));
    let (before, counted) = (Usage::of(agent.pid())?, Counts::of(&agent)?);
    say(&format!("{PODS} pods x {RATE} new flows/s for {SECONDS} s"));
    let begin = Instant::now();
    let sprays: Vec<Running> = pods.iter().map(|pod| spray(&lab, pod)).collect::<Result<_>>()?;
    let probes = probe(&lookout, lab.outside_v4())?;
    let mut sent = 0;
    for running in sprays {
        sent += running.finish(Duration::from_secs(60))?.json()?["sent"].as_u64().context("spray tells how many it sent")?;
    }
    let elapsed = begin.elapsed().as_secs_f64();
    let after = Usage::of(agent.pid())?;
    let seen = follower.finish()?;
    let counts = Counts::of(&agent)?.since(&counted);
    let mut table = Table::new();
    table.told("seconds", format!("{elapsed:.1}")).told("packets sent, each a new flow", sent);
    table.at_least("new flows a second", number(sent) / elapsed, f64::from(PODS * RATE) * 0.98, "");
    table.told("flows judged", counts.created).told("starts recorded one by one", counts.start_sent);
    table
        .at_most(
            "flows that the kernel missed",
            number((sent + u64::from(PROBES.end - PROBES.start)).saturating_sub(counts.created)),
            0.0,
            "",
        )
        .at_most("records lost", number(counts.lost), 0.0, "")
        .at_most("starts only summarised", number(counts.summarised), 0.0, "")
        .told("flows evicted before anything but their start was told", counts.evicted_unseen)
        .at_most("agent's processor time, its system calls included", after.time_since(&before) / elapsed, 0.15, "cores")
        .told("of it in user space", format!("{:.3} cores", after.user_since(&before) / elapsed))
        .told("of it in the kernel", format!("{:.3} cores", after.system_since(&before) / elapsed))
        .told("resident before", format!("{:.0} MB", before.resident_mb()))
        .at_most("resident at its peak", after.peak_mb(), 96.0, "MB")
        .told("maps", format!("{:.1} MB", number(counts.map_bytes) / 1_048_576.0));
    for (what, remainder) in [("packet to streamed start", 0), ("packet to streamed denied record", 1)] {
        let delays = delays(&probes, &seen, remainder);
        let wanted = usize::from(PROBES.end - PROBES.start) / 2;
        table.told(&format!("{what}, probes streamed"), format!("{} of {wanted}", delays.len()));
        table.told(&format!("{what}, p50"), format!("{:.1} ms", share(&delays, 50)));
        // A probe without a record has waited for ever.
        let p99 = if delays.len() == wanted { share(&delays, 99) } else { f64::INFINITY };
        table.at_most(&format!("{what}, p99"), p99, 200.0, "ms");
    }
    table.finish()
}

/// The prober may reach one port of the outside.
fn cage(lab: &Lab) -> Result<()> {
    lab.policy(
        "bench",
        "prober",
        &json!({"podSelector": {"matchLabels": {"app": "prober"}}, "policyTypes": ["Egress"], "egress": [
            {"to": [{"ipBlock": {"cidr": format!("{}/32", lab.outside_v4())}}], "ports": [{"protocol": "UDP", "port": ALLOWED_PORT}]},
        ]}),
    )
}

fn spray(lab: &Lab, pod: &Pod) -> Result<Running> {
    let target = SocketAddr::new(lab.outside_v4(), 9000).to_string();
    let (count, rate) = ((RATE * SECONDS).to_string(), RATE.to_string());
    pod.spawn(sekisho_lab::tool::binary()?, &["nice", "-5", "spray", "sockets", &pod.v4().to_string(), &target, &count, &rate])
}

/// When a record of each probe's port arrived.
type Arrivals = HashMap<u16, Instant>;

/// Reads the prober's first records from the agent's stream.
struct Follower {
    pid: u32,
    seen: Arc<Mutex<Arrivals>>,
    thread: JoinHandle<Result<()>>,
}

impl Follower {
    fn start(agent: &Agent) -> Result<Self> {
        let mut running =
            agent.follow(&["observe", "--follow", "--last", "0", "--kind", "start", "--pod", "bench/prober", "-o", "json"])?;
        let (pid, seen) = (running.pid(), Arc::new(Mutex::new(Arrivals::new())));
        let noted = seen.clone();
        let thread = std::thread::spawn(move || {
            loop {
                let line = running.line()?;
                let arrived = Instant::now();
                if line.is_empty() {
                    return Ok(());
                }
                let record: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
                if let Some(port) = record["source"]["port"].as_u64().and_then(|port| u16::try_from(port).ok()) {
                    noted.lock().expect("nobody panics with it").entry(port).or_insert(arrived);
                }
            }
        });
        Ok(Self { pid, seen, thread })
    }

    /// What it has seen; waits for late records as long as anyone would.
    fn finish(self) -> Result<Arrivals> {
        let deadline = Instant::now() + Duration::from_secs(5);
        let all = || self.seen.lock().expect("nobody panics with it").len() >= PROBES.len();
        while !all() && !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        if !self.thread.is_finished() {
            kill(self.pid, SIGTERM)?;
        }
        self.thread.join().expect("following does not panic")?;
        Ok(std::mem::take(&mut self.seen.lock().expect("nobody panics with it")))
    }
}

/// Sends the probes, spread over the time of the load; tells when each went.
fn probe(prober: &Pod, target: IpAddr) -> Result<Arrivals> {
    let pause = Duration::from_secs(u64::from(SECONDS - 1)) / u32::from(PROBES.end - PROBES.start);
    prober.netns().within(|| {
        let mut sent = HashMap::new();
        for port in PROBES {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
            let to = if port % 2 == 0 { ALLOWED_PORT } else { DENIED_PORT };
            sent.insert(port, Instant::now());
            // A denied packet may be refused to the sender's face.
            let _refused = socket.send_to(b"probe", (target, to));
            std::thread::sleep(pause);
        }
        Ok(sent)
    })
}

/// Milliseconds from packet to record, sorted, of the probes whose port leaves `remainder` when halved.
fn delays(sent: &Arrivals, seen: &Arrivals, remainder: u16) -> Vec<f64> {
    let mut delays: Vec<f64> = sent
        .iter()
        .filter(|(port, _)| *port % 2 == remainder)
        .filter_map(|(port, sent)| Some(seen.get(port)?.saturating_duration_since(*sent).as_secs_f64() * 1000.0))
        .collect();
    delays.sort_by(f64::total_cmp);
    delays
}

fn share(sorted: &[f64], percent: usize) -> f64 {
    sorted.get(sorted.len().saturating_sub(1) * percent / 100).copied().unwrap_or(f64::NAN)
}

/// What the agent says about itself.
struct Counts {
    created: u64,
    start_sent: u64,
    summarised: u64,
    lost: u64,
    evicted_unseen: u64,
    map_bytes: u64,
}

impl Counts {
    fn of(agent: &Agent) -> Result<Self> {
        let status = agent.status()?;
        let ledger = &status["ledger"];
        let count = |value: &Value| value.as_u64().unwrap_or(0);
        let losses = |of: &Value| of["lost"].as_object().into_iter().flatten().map(|(_, lost)| count(lost)).sum::<u64>();
        Ok(Self {
            created: ledger["kernel"]["created"].as_u64().context("the status has no ledger")?,
            start_sent: count(&ledger["kernel"]["start_sent"]),
            summarised: count(&ledger["kernel"]["summarised"]),
            lost: losses(&ledger["kernel"]) + ledger["sinks"].as_array().into_iter().flatten().map(losses).sum::<u64>(),
            evicted_unseen: count(&ledger["flows"]["evicted_unseen"]),
            map_bytes: status["maps"].as_array().into_iter().flatten().map(|map| count(&map["bytes"])).sum(),
        })
    }

    /// What came on top; the maps are as they are.
    fn since(self, before: &Self) -> Self {
        Self {
            created: self.created - before.created,
            start_sent: self.start_sent - before.start_sent,
            summarised: self.summarised - before.summarised,
            lost: self.lost - before.lost,
            evicted_unseen: self.evicted_unseen - before.evicted_unseen,
            map_bytes: self.map_bytes,
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of one bench are far below 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}
