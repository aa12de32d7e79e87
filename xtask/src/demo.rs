//! `cargo xtask demo`: a small shop in real network namespaces, guarded for half a minute.
//!
//! Builds what is missing, makes the pods, starts the agent, lets the shop do business and a stranger misbehave
//! while `sekisho observe --follow` tells what it sees, and ends with a summary. Interrupted, it cleans up too.

mod shop;
mod summary;

use std::io::IsTerminal;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sekisho_lab::{Agent, Lab, interrupted, on_interrupt, sweep};

use crate::setup;
use crate::workspace::{build_agent, build_lab, program, say};
use shop::Shop;

const NAME: &str = "shop";

pub(crate) fn run(keep: bool) -> Result<()> {
    if !sekisho_lab::is_root() {
        bail!("the demo makes network namespaces and loads eBPF programs, so it needs root (sudo -E cargo xtask demo)");
    }
    setup::build_tools()?;
    let sekisho = build_agent()?;
    sekisho_lab::use_programs(sekisho, build_lab()?);
    on_interrupt();
    if sweep::names().iter().any(|name| name == NAME) {
        say("remove the shop of an earlier demo");
        sweep::remove(NAME)?;
    }
    say("open the shop: four pods in network namespaces of their own, with control groups and processes");
    let lab = Lab::new(NAME)?;
    let shop = Shop::open(&lab)?;
    say("start the agent on this node");
    let begin = Instant::now();
    let lines = lab.directory().join("flows.jsonl").display().to_string();
    let agent = Agent::start(&lab, &["--jsonl", &lines])?;
    eprintln!("    ready after {:.1} s: programs attached to every pod, policy in force", begin.elapsed().as_secs_f64());
    let scanned = show(&lab, &agent, &shop)?;
    pause(500)?;
    summary::print(&lab, &agent, scanned)?;
    if keep {
        summary::how_to_explore(&lab, &shop);
        shop.stay_open();
        agent.detach();
        lab.keep();
    } else {
        println!("\nNext: `cargo xtask demo --keep` leaves the shop open and says what to type;");
        println!(
            "      deploy/examples/shop has its manifests; `{} --help` teaches the commands.",
            program("release", "sekisho").display()
        );
    }
    Ok(())
}

/// Removes what `--keep` has left.
pub(crate) fn clean() -> Result<()> {
    sweep::remove(NAME)?;
    say("the shop is closed and gone");
    Ok(())
}

/// Plays the scenes before a live view; returns when the scan began.
fn show(lab: &Lab, agent: &Agent, shop: &Shop) -> Result<Instant> {
    watched(lab, agent, &["observe", "--follow", "--last", "0", "--kind", "start", "-o", "wide", "--both"], || {
        scene("A customer buys something: frontend -> api -> database")?;
        shop.sell()?;
        scene("A stranger from another team tries the database")?;
        shop.trespass()?;
        scene("The frontend skips the api and dials the database itself")?;
        shop.short_cut()?;
        pause(400)
    })?;
    // Two hundred records more would hide the one line that matters.
    let mut began = Instant::now();
    watched(lab, agent, &["alerts", "--follow", "-o", "wide"], || {
        scene("The stranger scans the database's ports 5400-5499 (from here on only alerts are shown)")?;
        began = Instant::now();
        shop.scan()?;
        pause(1500)
    })?;
    Ok(began)
}

/// Does something while `sekisho WORDS` shows what it sees.
fn watched(lab: &Lab, agent: &Agent, words: &[&str], play: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut command = lab.node().command(Agent::binary()?)?;
    let mut view = command.args(agent.with_socket(words)).stdout(Stdio::inherit()).spawn().context("the live view does not start")?;
    let played = pause(400).and_then(|()| play());
    // It may have ended with an interrupt that reached it, too.
    let _ended = view.kill();
    view.wait()?;
    played
}

fn scene(title: &str) -> Result<()> {
    pause(900)?;
    if std::io::stdout().is_terminal() {
        println!("\n\x1b[1m# {title}\x1b[0m");
    } else {
        println!("\n# {title}");
    }
    pause(100)
}

/// Waits, and ends the demo if somebody pressed Ctrl-C.
fn pause(milliseconds: u64) -> Result<()> {
    let deadline = Instant::now() + Duration::from_millis(milliseconds);
    loop {
        if interrupted() {
            bail!("interrupted; everything is removed");
        }
        if Instant::now() >= deadline {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
