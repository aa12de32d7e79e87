//! `cargo xtask bench datapath`: what a packet costs in the kernel programs, over a program that does nothing,
//! measured in between. Needs root.
//!
//! Existing flows: one packet, repeated. What happens once in a flow's life (opening, promotion, close): rounds of
//! thousands of flows, one packet of each. Everything is on: both directions isolated, budgets, events, spoof check.

mod against;
mod node;
mod packets;
mod rounds;
mod sockets;

use anyhow::Result;
use sekisho_core::layout::{EGRESS, Hold, INGRESS, hold};
use sekisho_core::tcp::{ACK, FIN, SYN};
use sekisho_lab::programs::Group;

pub(super) use self::against::run as against;
use self::packets::{Family, Packet, Peer, SERVICE, Transport};
use self::rounds::{Bench, OPENINGS, Samples};
use super::table::Table;

/// Nanoseconds over an empty program that an existing flow may cost.
const EXISTING4: f64 = 40.0;
const EXISTING6: f64 = 48.0;
/// And a new one.
const NEW: f64 = 520.0;
/// Policies on the node.
const FEW: u32 = 10;
const MANY: u32 = 10_000;
/// Instructions that the verifier may walk for a packet program: more make a slow start where there is no hardware help.
const VERIFIED: u32 = 30_000;

/// How often each of the lines with a bar is measured, in turns: a neighbour's burst then meets a part of every line, not
/// the whole of one.
const PASSES: usize = 12;

/// Measures, prints, and fails where a bar is broken.
pub(crate) fn run() -> Result<()> {
    let mut table = Table::new();
    bars(&mut table)?;
    let mut bench = Bench::new(FEW)?;
    for family in [Family::V4, Family::V6] {
        lives(&mut bench, &mut table, family)?;
    }
    groups(&mut bench, &mut table)?;
    instructions(&bench, &mut table)?;
    table.finish()
}

const fn packet(family: Family, direction: u8, transport: Transport) -> Packet {
    Packet { family, peer: Peer::Friend, direction, transport, dialled: EGRESS, service: SERVICE }
}

const fn tcp(family: Family, direction: u8, flags: u8) -> Packet {
    packet(family, direction, Transport::Tcp(flags))
}

/// A line with a bar.
struct Line {
    what: String,
    limit: f64,
    packets: Vec<Packet>,
    interface: u32,
    samples: Samples,
}

/// What has a bar, with few policies and with many, side by side.
fn bars(table: &mut Table) -> Result<()> {
    let mut nodes = Vec::new();
    for policies in [FEW, MANY] {
        let lines: Vec<Line> = [Family::V4, Family::V6].into_iter().flat_map(|family| lines(family, policies)).collect();
        nodes.push((Bench::new(policies)?, lines));
    }
    for _ in 0..PASSES {
        for (bench, lines) in &mut nodes {
            for line in lines {
                match &line.packets[..] {
                    [first] => bench.opening(*first, line.interface, OPENINGS, &mut line.samples)?,
                    packets => bench.existing(packets, line.interface, &mut line.samples)?,
                }
            }
        }
    }
    for line in nodes.into_iter().flat_map(|(_, lines)| lines) {
        table.at_most(&line.what, line.samples.over()?, line.limit, "ns");
    }
    Ok(())
}

/// The lines of one family: a single packet is a new flow's, the last of several an existing one's.
fn lines(family: Family, policies: u32) -> Vec<Line> {
    let name = family.name();
    let line = |what: String, limit, packets, interface| Line {
        what: format!("{what}, {policies} policies"),
        limit,
        packets,
        interface,
        samples: Samples::default(),
    };
    let handshake = vec![tcp(family, EGRESS, SYN), tcp(family, INGRESS, SYN | ACK), tcp(family, EGRESS, ACK), tcp(family, EGRESS, ACK)];
    let existing = if family == Family::V4 { EXISTING4 } else { EXISTING6 };
    let out = tcp(family, EGRESS, SYN);
    let incoming = Packet { dialled: INGRESS, ..tcp(family, INGRESS, SYN) };
    vec![
        line(format!("existing {name} flow"), existing, handshake, node::INTERFACE),
        line(format!("new {name} flow allowed by a rule for its port, out"), NEW, vec![out], node::INTERFACE),
        line(format!("new {name} flow allowed by a rule for its port, in"), NEW, vec![incoming], node::INTERFACE),
        line(format!("new {name} flow of a pod that nothing isolates"), NEW, vec![out], node::OPEN_INTERFACE),
    ]
}

/// A flow's life: a packet for each station.
struct Life {
    what: &'static str,
    stations: &'static [&'static str],
    packets: Vec<Packet>,
}

fn all_lives(family: Family) -> [Life; 3] {
    let denied = Packet { peer: Peer::Stranger, ..tcp(family, EGRESS, SYN) };
    let connection = Life {
        what: "connection",
        stations: &["opening", "answer", "promotion", "data, of another flow each", "first FIN", "second FIN", "close and burial"],
        packets: vec![
            tcp(family, EGRESS, SYN),
            tcp(family, INGRESS, SYN | ACK),
            tcp(family, EGRESS, ACK),
            tcp(family, INGRESS, ACK),
            tcp(family, EGRESS, FIN | ACK),
            tcp(family, INGRESS, FIN | ACK),
            tcp(family, EGRESS, ACK),
        ],
    };
    let datagrams = Life {
        what: "datagrams",
        stations: &["first", "first reply, promotion"],
        packets: vec![packet(family, EGRESS, Transport::Udp), packet(family, INGRESS, Transport::Udp)],
    };
    [connection, datagrams, Life { what: "denied", stations: &["first packet", "second packet"], packets: vec![denied, denied] }]
}

/// The stations of flows' lives.
fn lives(bench: &mut Bench, table: &mut Table, family: Family) -> Result<()> {
    let name = family.name();
    let denied = Packet { peer: Peer::Stranger, ..tcp(family, EGRESS, SYN) };
    for life in all_lives(family) {
        told(table, &format!("{name} {}: ", life.what), life.stations, bench.life(&life.packets, node::INTERFACE)?);
    }
    let mut again = Samples::default();
    for _ in 0..PASSES {
        bench.existing(&[denied, denied], node::INTERFACE, &mut again)?;
    }
    table.told(&format!("{name} denied: one flow's packets"), ns(again.over()?));
    let alone = bench.alone(tcp(family, EGRESS, SYN), node::INTERFACE)?;
    table.told(&format!("new {name} flow, one per system call"), ns(alone));
    let full = bench.crowded(tcp(family, EGRESS, SYN), node::OPEN_INTERFACE)?;
    table.told(&format!("new {name} flow where another must go"), ns(full));
    Ok(())
}

fn told(table: &mut Table, of: &str, stations: &[&str], costs: Vec<f64>) {
    for (station, cost) in stations.iter().zip(costs) {
        table.told(&format!("{of}{station}"), ns(cost));
    }
}

fn ns(cost: f64) -> String {
    format!("{cost:.0} ns")
}

/// What hangs on control groups.
fn groups(bench: &mut Bench, table: &mut Table) -> Result<()> {
    let group = Group::enter(&format!("sekisho-bench-{}", std::process::id()))?;
    node::own(&bench.programs, group.id()?)?;
    for family in [Family::V4, Family::V6] {
        let handshake = [tcp(family, EGRESS, SYN), tcp(family, INGRESS, SYN | ACK), tcp(family, EGRESS, ACK)];
        for (direction, side) in [(EGRESS, "out"), (INGRESS, "in")] {
            let [first, second, third] = handshake;
            let cost = bench.existing_at_group(&[first, second, third, tcp(family, direction, ACK)])?;
            table.told(&format!("at a control group: existing {} flow, {side}", family.name()), ns(cost));
        }
    }
    holding(bench, table, group.id()?)?;
    let programs = &mut bench.programs;
    let known = sockets::added(programs, &group, "connect4", sockets::connect()?)?;
    let new = sockets::added(programs, &group, "connect4", sockets::connect_anew()?)?;
    let sent = sockets::added(programs, &group, "sendmsg4", sockets::send()?)?;
    table.told("connect4 adds to a connect of a known socket", ns(known));
    table.told("connect4 adds to a connect of a new socket", ns(new));
    table.told("sendmsg4 adds to a datagram", ns(sent));
    Ok(())
}

/// What the programs that hold new pods take from every packet of pods that are live.
fn holding(bench: &mut Bench, table: &mut Table, group: u64) -> Result<()> {
    /// Groups one and two levels below the root may be pods'.
    const LEVELS: u32 = 1 << 1 | 1 << 2;
    bench.programs.put("HOLD", &0u32, &Hold { on: hold::HELD, levels: LEVELS })?;
    bench.programs.put("LIVE", &group, &1u32)?;
    for (direction, side) in [(EGRESS, "out"), (INGRESS, "in")] {
        let cost = bench.holding(tcp(Family::V4, direction, ACK))?;
        table.told(&format!("holding new pods costs a live pod, a guaranteed one, {side}"), ns(cost));
    }
    bench.programs.remove("LIVE", &group)?;
    Ok(())
}

/// How much the verifier has to walk.
fn instructions(bench: &Bench, table: &mut Table) -> Result<()> {
    for name in bench.programs.names() {
        let verified = bench.programs.verified(&name)?;
        let what = format!("verified instructions of {name}");
        if ["pod_egress", "pod_ingress", "cg_egress", "cg_ingress"].contains(&name.as_str()) {
            table.at_most(&what, verified.into(), VERIFIED.into(), "");
        } else {
            table.told(&what, verified);
        }
    }
    Ok(())
}
