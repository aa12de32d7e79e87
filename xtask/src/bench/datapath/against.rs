//! `cargo xtask bench datapath --against OBJECT`: what these kernel programs cost, as a ratio to another build's. What a
//! packet costs follows the machine's memory and its other guests, so that numbers of two runs cannot be compared: here both builds
//! are measured in turns, a little of each line at a time.
//!
//! Every round loads both anew, since where a table lies in memory decides about a few per cent as well. A line's
//! ratio is the median of the rounds' ratios.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use sekisho_core::layout::{EGRESS, INGRESS};
use sekisho_core::tcp::{ACK, SYN};
use sekisho_lab::programs::object;

use super::packets::{Family, Packet, Transport};
use super::rounds::{Bench, Samples};
use super::{FEW, Life, all_lives, lines, node, packet, tcp};
use crate::bench::table::Table;

/// Rounds: an odd number, so that one of them is in the middle.
const ROUNDS: usize = 9;
/// How often each line has its turn in a round, with either build.
const PASSES: usize = 4;
/// Rounds of flows in one turn.
const OPENINGS: usize = 3;
/// What an existing flow may cost more than with the other build, and a new one.
const EXISTING: f64 = 1.03;
const NEW: f64 = 1.05;

/// What is measured at a turn.
enum Work {
    /// The last packet of a flow that has seen the others.
    Existing(Vec<Packet>, u32),
    /// The first packet of a flow.
    New(Packet, u32),
    /// Every packet of a flow's life.
    Life(Life),
}

/// Work, and what it is called.
struct Item {
    what: String,
    work: Work,
}

/// One line of the result: nanoseconds of each round, the other build's and ours.
struct Line {
    what: String,
    limit: Option<f64>,
    theirs: Vec<f64>,
    ours: Vec<f64>,
}

/// Measures, prints, and fails where a bar is broken.
pub(crate) fn run(other: &Path) -> Result<()> {
    let theirs = fs::read(other).with_context(|| other.display().to_string())?;
    let ours = object()?;
    let items: Vec<Item> = [Family::V4, Family::V6].into_iter().flat_map(items).collect();
    let mut result: Vec<Line> = items.iter().flat_map(Item::lines).collect();
    for round in 0..ROUNDS {
        // Who is loaded first, and has the first turn, changes too.
        let order = if round % 2 == 0 { [&theirs, &ours] } else { [&ours, &theirs] };
        let [first, second] = order.map(|object| node::prepare_other(object, FEW).and_then(Bench::of));
        let mut benches = [first?, second?];
        let [first, second] = measured(&items, &mut benches)?;
        let (theirs, ours) = if round % 2 == 0 { (first, second) } else { (second, first) };
        for (line, (theirs, ours)) in result.iter_mut().zip(theirs.into_iter().zip(ours)) {
            line.theirs.push(theirs);
            line.ours.push(ours);
        }
        if round == 0 {
            warn(&benches);
        }
    }
    println!("nanoseconds: the other build's, this one's (medians of {ROUNDS} rounds); their ratio, and the rounds' least and greatest");
    let mut table = Table::new();
    for line in result {
        line.print(&mut table);
    }
    table.finish()
}

/// Says what the other build does not know.
fn warn(benches: &[Bench; 2]) {
    let unknown: Vec<String> = benches.iter().flat_map(|bench| bench.programs.unknown()).collect();
    if !unknown.is_empty() {
        println!("the other build does not know {}", unknown.join(", "));
    }
}

/// What is measured of one family.
fn items(family: Family) -> Vec<Item> {
    let name = family.name();
    let datagrams = [EGRESS, INGRESS, EGRESS].map(|direction| packet(family, direction, Transport::Udp)).to_vec();
    let incoming = vec![tcp(family, EGRESS, SYN), tcp(family, INGRESS, SYN | ACK), tcp(family, EGRESS, ACK), tcp(family, INGRESS, ACK)];
    let existing = [(format!("existing {name} flow, in"), incoming), (format!("existing {name} datagrams"), datagrams)];
    let existing = existing.into_iter().map(|(what, packets)| Item { what, work: Work::Existing(packets, node::INTERFACE) });
    let barred = lines(family, FEW).into_iter().map(|line| Item {
        what: line.what.trim_end_matches(&format!(", {FEW} policies")).to_owned(),
        work: match &line.packets[..] {
            [first] => Work::New(*first, line.interface),
            _ => Work::Existing(line.packets, line.interface),
        },
    });
    let first = packet(family, EGRESS, Transport::Udp);
    let datagram = Item { what: format!("new {name} flow of datagrams"), work: Work::New(first, node::INTERFACE) };
    let lives = all_lives(family).into_iter().map(|life| Item { what: format!("{name} {}", life.what), work: Work::Life(life) });
    barred.chain(existing).chain([datagram]).chain(lives).collect()
}

impl Item {
    fn lines(&self) -> Vec<Line> {
        let line = |what: String, limit| Line { what, limit, theirs: Vec::new(), ours: Vec::new() };
        match &self.work {
            Work::Existing(..) => vec![line(self.what.clone(), Some(EXISTING))],
            Work::New(..) => vec![line(self.what.clone(), Some(NEW))],
            Work::Life(life) => life.stations.iter().map(|station| line(format!("{}: {station}", self.what), None)).collect(),
        }
    }

    fn measure(&self, bench: &mut Bench, samples: &mut [Samples]) -> Result<()> {
        match (&self.work, samples) {
            (Work::Existing(packets, interface), [samples, ..]) => bench.existing(packets, *interface, samples),
            (Work::New(first, interface), [samples, ..]) => bench.opening(*first, *interface, OPENINGS, samples),
            (Work::Life(life), samples) => bench.lives(&life.packets, node::INTERFACE, 1, samples),
            (_, []) => Ok(()),
        }
    }
}

/// One round: nanoseconds of every line, with either build.
fn measured(items: &[Item], benches: &mut [Bench; 2]) -> Result<[Vec<f64>; 2]> {
    let mut samples: Vec<[Vec<Samples>; 2]> =
        items.iter().map(|item| [(); 2].map(|()| vec![Samples::default(); item.lines().len()])).collect();
    for pass in 0..PASSES {
        for (item, samples) in items.iter().zip(&mut samples) {
            for turn in [pass % 2, 1 - pass % 2] {
                item.measure(&mut benches[turn], &mut samples[turn])?;
            }
        }
    }
    let mut costs = [Vec::new(), Vec::new()];
    for (side, costs) in costs.iter_mut().enumerate() {
        for of in &samples {
            let exact: Result<Vec<f64>> = of[side].iter().cloned().map(Samples::exactly).collect();
            costs.extend(exact?);
        }
    }
    Ok(costs)
}

impl Line {
    fn print(self, table: &mut Table) {
        let mut ratios: Vec<f64> = self.ours.iter().zip(&self.theirs).map(|(ours, theirs)| ours / theirs).collect();
        let ratio = median(&mut ratios);
        let (mut theirs, mut ours) = (self.theirs, self.ours);
        let what = format!(
            "{:<56} {:6.1} {:6.1}   {:.3} to {:.3}",
            self.what,
            median(&mut theirs),
            median(&mut ours),
            ratios.first().copied().unwrap_or(f64::NAN),
            ratios.last().copied().unwrap_or(f64::NAN)
        );
        match self.limit {
            Some(limit) => table.at_most(&what, ratio, limit, ""),
            None => table.told(&what, format!("{ratio:.3}")),
        };
    }
}

/// The one in the middle; NaN where there is none. Sorts.
fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_judged_by_the_middle_of_its_rounds() {
        let line = |ours: [f64; 3], limit| Line { what: "it".into(), limit, theirs: vec![100.0, 200.0, 300.0], ours: ours.to_vec() };
        for (ours, limit, holds) in [
            // One round that a neighbour disturbed is one of three.
            ([101.0, 202.0, 600.0], Some(1.03), true),
            ([104.0, 208.0, 312.0], Some(1.03), false),
            ([104.0, 208.0, 312.0], None, true),
        ] {
            let mut table = Table::new();
            line(ours, limit).print(&mut table);
            assert_eq!(table.finish().is_ok(), holds, "{ours:?}");
        }
    }
}
