//! Measuring: one packet repeated, or one packet each of thousands of flows, through a program and, in between,
//! through one that does nothing. Results are nanoseconds over the latter: lower quartile less lower quartile, because
//! whatever else runs on the machine only ever adds.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use sekisho_core::layout::{EGRESS, FlowKey4, FlowKey6};
use sekisho_lab::programs::{Idle, Programs, Skb, Varied};

use super::node;
use super::packets::{FIRST, Family, Packet, Peer, SERVICE, Transport};

/// Flows of one round: thousands, so that nothing but the tables decides how warm the caches are.
const FLOWS: u16 = 2_048;
/// Rounds of flows.
const ROUNDS: usize = 41;
/// Runs of one and the same packet in a row, and how often.
const REPEAT: u32 = 20_000;
const REPEATS: usize = 5;
/// The same where nothing is measured in turns.
const GROUP_REPEATS: usize = 41;
/// Rounds of new flows per visit.
pub(super) const OPENINGS: usize = 15;

/// Loaded programs and what to measure them with.
pub(super) struct Bench {
    /// The programs.
    pub(super) programs: Programs,
    wrapped: BTreeMap<(&'static str, u16), Varied>,
    idle: Idle,
}

impl Bench {
    pub(super) fn new(policies: u32) -> Result<Self> {
        Self::of(node::prepare(policies)?)
    }

    pub(super) fn of(programs: Programs) -> Result<Self> {
        Ok(Self { programs, wrapped: BTreeMap::new(), idle: Idle::new()? })
    }

    /// Cost of the last packet of a flow that has seen the others already.
    pub(super) fn existing(&mut self, packets: &[Packet], interface: u32, samples: &mut Samples) -> Result<()> {
        let (last, before) = packets.split_last().context("no packet")?;
        let skb = Skb { ifindex: interface, ..Skb::default() };
        for packet in before {
            self.programs.run(program(*packet), &packet.frame(), skb, 1)?;
        }
        let frame = last.frame();
        for _ in 0..REPEATS {
            let floor = self.programs.floor(&frame, REPEAT)?.spent;
            let run = self.programs.run(program(*last), &frame, skb, REPEAT)?;
            ensure!(run.code == last.code(), "{last:?} gets {}", run.code);
            samples.add(run.spent, floor);
        }
        self.forget(*last, interface, &["EMBRYONIC", "ESTABLISHED"])
    }

    /// Cost of the first packet of a flow, in so many rounds of flows.
    pub(super) fn opening(&mut self, packet: Packet, interface: u32, rounds: usize, samples: &mut Samples) -> Result<()> {
        for _ in 0..rounds {
            self.station(packet, interface, samples)?;
            self.forget(packet, interface, &["EMBRYONIC"])?;
        }
        Ok(())
    }

    /// One packet of every flow of a round.
    fn station(&mut self, packet: Packet, interface: u32, samples: &mut Samples) -> Result<()> {
        let floor = self.once("empty", packet, interface)?;
        samples.add(self.once(program(packet), packet, interface)?, floor);
        self.programs.drain();
        Ok(())
    }

    /// As [`Self::existing`], of a flow of this process's control group.
    pub(super) fn existing_at_group(&mut self, packets: &[Packet]) -> Result<f64> {
        let (last, before) = packets.split_last().context("no packet")?;
        for packet in before {
            self.programs.run(group_program(*packet), &packet.frame(), Skb::default(), 1)?;
        }
        let frame = last.frame();
        let mut samples = Samples::default();
        for _ in 0..GROUP_REPEATS {
            let floor = self.idle.run(&frame, Skb::default(), REPEAT)?.spent;
            let run = self.programs.run(group_program(*last), &frame, Skb::default(), REPEAT)?;
            let expected = i32::from(last.peer == Peer::Friend);
            ensure!(run.code == expected, "{last:?} gets {} at the control group", run.code);
            samples.add(run.spent, floor);
        }
        samples.over()
    }

    /// Cost of a packet of a live pod in the program that holds others.
    pub(super) fn holding(&mut self, packet: Packet) -> Result<f64> {
        let program = if packet.direction == EGRESS { "hold_egress" } else { "hold_ingress" };
        let frame = packet.frame();
        let mut samples = Samples::default();
        for _ in 0..GROUP_REPEATS {
            let floor = self.idle.run(&frame, Skb::default(), REPEAT)?.spent;
            let run = self.programs.run(program, &frame, Skb::default(), REPEAT)?;
            ensure!(run.code == 1, "a live pod's packet gets {}", run.code);
            samples.add(run.spent, floor);
        }
        samples.over()
    }

    /// Cost of each packet of a flow's life. The flows are gone afterwards.
    pub(super) fn life(&mut self, packets: &[Packet], interface: u32) -> Result<Vec<f64>> {
        let mut costs = vec![Samples::default(); packets.len()];
        self.lives(packets, interface, ROUNDS, &mut costs)?;
        costs.into_iter().map(Samples::over).collect()
    }

    /// The same, in so many rounds of flows.
    pub(super) fn lives(&mut self, packets: &[Packet], interface: u32, rounds: usize, costs: &mut [Samples]) -> Result<()> {
        for _ in 0..rounds {
            for (packet, samples) in packets.iter().zip(&mut *costs) {
                self.station(*packet, interface, samples)?;
            }
            if let Some(packet) = packets.first() {
                self.forget(*packet, interface, &["EMBRYONIC", "ESTABLISHED", "ANSWERED"])?;
            }
        }
        Ok(())
    }

    /// Cost of the first packet of a flow where the table is full, and another flow has to go.
    pub(super) fn crowded(&mut self, packet: Packet, interface: u32) -> Result<f64> {
        let mut samples = Samples::default();
        // Each round takes another service; those that fill the table are not counted.
        let filling = node::EMBRYONIC as usize / usize::from(FLOWS) + 1;
        for round in 0..filling + ROUNDS {
            let mut packet = packet;
            packet.service = SERVICE + 1 + u16::try_from(round)?;
            let floor = self.once("empty", packet, interface)?;
            let run = self.once(program(packet), packet, interface)?;
            self.programs.drain();
            if round >= filling {
                samples.add(run, floor);
            }
        }
        samples.over()
    }

    /// Cost of the first packet of a flow right after a system call, that is with one run per call.
    pub(super) fn alone(&mut self, packet: Packet, interface: u32) -> Result<f64> {
        let skb = Skb { ifindex: interface, ..Skb::default() };
        let mut samples = Samples::default();
        for run in 0..FLOWS {
            let mut frame = packet.frame();
            let at = usize::from(packet.client_port());
            frame[at..at + 2].copy_from_slice(&client(run).to_be_bytes());
            let floor = self.programs.floor(&frame, 1)?.time;
            let run = self.programs.run(program(packet), &frame, skb, 1)?.time;
            samples.add(run.as_secs_f64() * 1e9, floor.as_secs_f64() * 1e9);
        }
        self.programs.drain();
        self.forget(packet, interface, &["EMBRYONIC"])?;
        samples.over()
    }

    /// One packet of every flow: nanoseconds each.
    fn once(&mut self, program: &'static str, packet: Packet, interface: u32) -> Result<f64> {
        let key = (program, packet.client_port());
        if !self.wrapped.contains_key(&key) {
            let made = self.programs.vary(program, key.1)?;
            self.wrapped.insert(key, made);
        }
        let wrapped = self.wrapped.get(&key).context("just made")?;
        let skb = Skb { ifindex: interface, ..Skb::default() };
        let outcome = wrapped.run(&packet.frame(), skb, FLOWS.into())?;
        let expected = if program == "empty" { -1 } else { packet.code() };
        ensure!(outcome.code == expected, "{program} says {} to {packet:?}", outcome.code);
        Ok(outcome.spent)
    }

    /// Removes the flows of a round.
    fn forget(&self, packet: Packet, interface: u32, tables: &[&str]) -> Result<()> {
        let protocol = if packet.transport == Transport::Udp { 17 } else { 6 };
        let remote = packet.family.peer(packet.peer);
        let service = packet.service;
        for run in 0..=FLOWS {
            let (local_port, remote_port) = if packet.dialled == EGRESS { (client(run), service) } else { (service, client(run)) };
            let key6 = FlowKey6 { remote, endpoint: interface, local_port, remote_port, protocol, cause: 0, pad: [0; 2] };
            let [.., a, b, c, d] = remote;
            let key4 = FlowKey4 { endpoint: interface, remote: [a, b, c, d], local_port, remote_port, protocol, cause: 0, pad: [0; 2] };
            for table in tables {
                match packet.family {
                    Family::V4 => self.programs.remove(&format!("{table}4"), &key4)?,
                    Family::V6 => self.programs.remove(&format!("{table}6"), &key6)?,
                };
            }
        }
        Ok(())
    }
}

/// The client's port in the given run: the wrapper adds to the two bytes as this machine reads them.
fn client(run: u16) -> u16 {
    u16::from_be_bytes(u16::from_ne_bytes(FIRST.to_be_bytes()).wrapping_add(run).to_ne_bytes())
}

fn program(packet: Packet) -> &'static str {
    if packet.direction == EGRESS { "pod_egress" } else { "pod_ingress" }
}

fn group_program(packet: Packet) -> &'static str {
    if packet.direction == EGRESS { "cg_egress" } else { "cg_ingress" }
}

/// Nanoseconds that a program takes, and those of one that does nothing.
#[derive(Clone, Default)]
pub(super) struct Samples {
    runs: Vec<f64>,
    floors: Vec<f64>,
}

impl Samples {
    pub(super) fn add(&mut self, run: f64, floor: f64) {
        self.runs.push(run);
        self.floors.push(floor);
    }

    /// Whole nanoseconds of the one over the other.
    pub(super) fn over(self) -> Result<f64> {
        self.exactly().map(f64::round)
    }

    /// Nanoseconds of the one over the other.
    pub(super) fn exactly(self) -> Result<f64> {
        let quartile = |mut times: Vec<f64>| {
            times.sort_unstable_by(f64::total_cmp);
            times.get(times.len() / 4).copied().context("nothing was measured")
        };
        Ok(quartile(self.runs)? - quartile(self.floors)?)
    }
}
