//! `cargo xtask bench datapath`: what a packet costs in the kernel programs, over an empty program
//! measured in between. Needs root.

use anyhow::{Context, Result};
use sekisho_core::layout::{AddressEntry, Config, EGRESS, Endpoint, RuleKey, Rules, endpoint_flags, mode};
use sekisho_core::parse::mapped;
use sekisho_core::tcp::{ACK, SYN};
use sekisho_lab::programs::{Programs, Skb, object};

use super::table::Table;

const REPEAT: u32 = 200_000;
const ROUNDS: usize = 9;
const NEW_FLOWS: u16 = 20_000;
const POD: [u8; 4] = [10, 1, 0, 2];
const PEER: [u8; 4] = [10, 1, 0, 3];

/// Measures, prints, and fails where a bar is broken.
pub(crate) fn run() -> Result<()> {
    let mut table = Table::new();
    for rules in [10, 10_000] {
        let mut programs = prepare(rules)?;
        let (existing4, existing6) = (existing(&programs, false)?, existing(&programs, true)?);
        table.at_most(&format!("existing IPv4 flow over an empty program, {rules} rules"), existing4, 40.0, "ns");
        table.at_most(&format!("existing IPv6 flow over an empty program, {rules} rules"), existing6, 48.0, "ns");
        table.at_most(&format!("new IPv4 flow over an empty program, {rules} rules"), new_flow(&mut programs)?, 520.0, "ns");
    }
    table.finish()
}

fn prepare(rules: u32) -> Result<Programs> {
    let programs = Programs::load(&object()?, 1 << 20, &[])?;
    let config = Config { epoch: 1, mode: mode::ENFORCE, hz: 250, linger: 250, ..Config::ZERO };
    programs.put("CONFIG", &0u32, &config)?;
    let mut endpoint = Endpoint {
        set: 1,
        instance: 1,
        flags: endpoint_flags::ISOLATED_EGRESS,
        established_cap: 1000,
        answered_cap: 1000,
        address_count: 2,
        ..Endpoint::ZERO
    };
    endpoint.addresses[0] = mapped(POD);
    endpoint.addresses[1] = [0xfd; 16];
    programs.put("ENDPOINTS", &1u32, &endpoint)?;
    for (address, class) in [(mapped(PEER), 1), ([0xfc; 16], 1)] {
        programs.put("ADDRESSES", &address, &AddressEntry { class, instance: 2, flags: 0 })?;
    }
    for class in 1..=rules {
        programs.put("RULES", &RuleKey { set: 1, class, direction: EGRESS.into() }, &Rules { any: class, ports: 0 })?;
    }
    Ok(programs)
}

fn tcp(v6: bool, egress: bool, port: u16, flags: u8) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let (from, to) = if egress { (port, 80) } else { (80, port) };
    if v6 {
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 20, 6, 64]);
        let ends = if egress { [[0xfd; 16], [0xfc; 16]] } else { [[0xfc; 16], [0xfd; 16]] };
        frame.extend(ends.concat());
    } else {
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(if egress { [POD, PEER] } else { [PEER, POD] }.concat());
    }
    frame.extend(from.to_be_bytes());
    frame.extend(to.to_be_bytes());
    frame.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0]);
    frame
}

fn nanoseconds(programs: &Programs, program: &str, frame: &[u8], repeat: u32) -> Result<f64> {
    Ok(programs.run(program, frame, Skb::default(), repeat)?.time.as_secs_f64() * 1e9)
}

fn median(mut values: Vec<f64>) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("nothing was measured")
}

/// A data packet of an established connection, over the cheapest program there is: the floor of the machinery.
fn existing(programs: &Programs, v6: bool) -> Result<f64> {
    for (egress, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)] {
        let program = if egress { "pod_egress" } else { "pod_ingress" };
        programs.run(program, &tcp(v6, egress, 4000, flags), Skb::default(), 1)?;
    }
    let data = tcp(v6, true, 4000, ACK);
    let mut over = Vec::new();
    for _ in 0..ROUNDS {
        let floor = programs.floor(&data, REPEAT)?.as_secs_f64() * 1e9;
        over.push(nanoseconds(programs, "pod_egress", &data, REPEAT)? - floor);
    }
    median(over)
}

fn new_flow(programs: &mut Programs) -> Result<f64> {
    let mut over = Vec::new();
    for port in 10_000..10_000 + NEW_FLOWS {
        let frame = tcp(false, true, port, SYN);
        let floor = programs.floor(&frame, 1)?.as_secs_f64() * 1e9;
        over.push(nanoseconds(programs, "pod_egress", &frame, 1)? - floor);
        if port % 1000 == 0 {
            programs.events();
        }
    }
    median(over)
}
