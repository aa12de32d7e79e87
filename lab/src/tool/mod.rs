//! Programs that run inside a lab's places: `sekisho-lab COMMAND ...`.
//!
//! Every command ends with 0 when what it tried worked, with 1 when it did not, and with 2 when it was called
//! wrongly. Servers print `ready` when they listen. Measurements are one JSON object on standard output.

mod dial;
mod first;
mod hold;
mod hostile;
pub mod init;
mod ping;
mod rr;
mod scan;
mod serve;
mod spray;
mod stray;

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{sweep, sys};

pub use hostile::MARKER as HOSTILE_MARKER;

/// What a server prints when it listens.
pub(crate) const READY: &str = "ready";

const HELP: &str = "\
sekisho-lab COMMAND
  sweep                                     remove what dead labs left behind
  remove NAME                               remove a lab, also one that was kept
  pin PROCESSOR COMMAND ...                 run COMMAND on that processor only
  nice PRIORITY COMMAND ...                 run COMMAND with that priority, -20 to 19
  pause                                     live until killed
  serve tcp|udp PORT [MESSAGE]              answer what is sent, or MESSAGE to everything
  serve udp-late PORT MS                    answer every datagram so much later
  serve many tcp:PORT udp:PORT ...          several of the first kind at once
  serve tcp-in-turn PORT                    answer one connection after the other, without threads
  serve http PORT NAME                      answer GET requests in the name of NAME
  dial tcp|udp ADDR:PORT [--bytes N] [--count N] [--from PORT] [--bind ADDR] [--timeout MS] [--connect no] [--user ID]
  first ADDR:PORT ADDR:PORT MS              the first act of a pod: datagrams to the one, a connection to the other, for so long
  knock ADDR:PORT COUNT PER_SECOND          datagrams, each a new flow, whatever becomes of them
  ask ADDR:PORT COUNT PER_SECOND            datagrams, each from a socket of its own; tell how many were answered
  http ADDR:PORT PATH                       one GET request; prints the first line of the answer
  hold ADDR:PORT COUNT SECONDS              keep COUNT connections busy, tell how many broke
  rate ADDR:PORT PER_SECOND SECONDS         new connections, tell how many succeeded
  ping ADDR [COUNT]
  scan connect|syn ADDR FIRST LAST          try ports
  spray tcp|udp|sockets FROM TO:PORT COUNT PER_SECOND   each a new flow (0: as fast as possible): raw packets, or UDP sockets
  hostile INTERFACE SCENE SECONDS           raw frames of every shape that policy must stop; SCENE is JSON
  segments FLAGS FROM TO:PORT BYTES COUNT   raw TCP segments with these flags (letters of FSRPAU, or -), each from another port
  forge PORT ADDR:PORT SECONDS              send on a connection that no handshake began, beside a listener on PORT
  stream ADDR:PORT PER_SECOND SECONDS [FROM]   datagrams from one socket, whatever comes back; tell how many answers came, and when the last
  rr tcp|crr|udp ADDR:PORT SECONDS          request and response, one after the other
";

/// The program itself, for starting its commands inside a place: `SEKISHO_LAB_BIN`, else beside the running test.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = crate::agent::lab_program() {
        return Ok(path);
    }
    if let Some(path) = env::var_os("SEKISHO_LAB_BIN") {
        return Ok(path.into());
    }
    let me = env::current_exe()?;
    me.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("sekisho-lab"))
        .find(|path| path.is_file())
        .context("there is no sekisho-lab binary; build it (`cargo build -p sekisho-lab`) or name it in SEKISHO_LAB_BIN")
}

/// Runs a command given by its words.
pub fn main(arguments: &[String]) -> ExitCode {
    if std::process::id() == 1 {
        // A kernel starts its init without a word; in a container there is always one.
        if arguments.is_empty() {
            init::main();
        }
        sys::live_as_first_process();
    }
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match run(&words) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("sekisho-lab: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(words: &[&str]) -> Result<bool> {
    match words {
        ["sweep"] => {
            for name in sweep::sweep()? {
                println!("removed {name}");
            }
            Ok(true)
        }
        ["remove", name] => sweep::remove(name).map(|()| true),
        ["pin", processor, command @ ..] => {
            sys::pin(number(processor)?).context("cannot stay on that processor")?;
            run(command)
        }
        ["nice", priority, command @ ..] => {
            sys::nice(number(priority)?).context("cannot take that priority")?;
            run(command)
        }
        ["pause"] => {
            println!("{READY}");
            loop {
                sys::pause();
            }
        }
        ["serve", "tcp", port] => serve::tcp(number(port)?, None),
        ["serve", "tcp", port, message] => serve::tcp(number(port)?, Some(message)),
        ["serve", "tcp-in-turn", port] => serve::in_turn(number(port)?),
        ["serve", "udp", port] => serve::udp(number(port)?),
        ["serve", "udp-late", port, milliseconds] => serve::udp_late(number(port)?, Duration::from_millis(number(milliseconds)?)),
        ["serve", "many", ports @ ..] => serve::many(ports),
        ["serve", "http", port, name] => serve::http(number(port)?, name),
        ["dial", protocol, target, options @ ..] => dial::main(protocol, target.parse().context("not ADDR:PORT")?, options),
        ["first", datagrams, stream, milliseconds] => first::main(
            datagrams.parse().context("not ADDR:PORT")?,
            stream.parse().context("not ADDR:PORT")?,
            Duration::from_millis(number(milliseconds)?),
        ),
        ["knock", target, count, rate] => dial::knock(target.parse().context("not ADDR:PORT")?, number(count)?, number(rate)?),
        ["ask", target, count, rate] => dial::ask(target.parse().context("not ADDR:PORT")?, number(count)?, number(rate)?),
        ["http", target, path] => Ok(dial::http(target.parse().context("not ADDR:PORT")?, path)),
        ["hold", target, count, seconds] => hold::main(target.parse().context("not ADDR:PORT")?, number(count)?, seconds_of(seconds)?),
        ["rate", target, rate, seconds] => Ok(hold::rate(target.parse().context("not ADDR:PORT")?, number(rate)?, seconds_of(seconds)?)),
        ["ping", target] => ping::main(target.parse().context("not an address")?, 1),
        ["ping", target, count] => ping::main(target.parse().context("not an address")?, number(count)?),
        ["scan", kind, target, first, last] => scan::main(kind, target.parse().context("not an address")?, number(first)?..=number(last)?),
        ["spray", protocol, from, to, count, rate] => spray::main(
            protocol,
            from.parse().context("not an address")?,
            to.parse().context("not ADDR:PORT")?,
            number(count)?,
            number(rate)?,
        ),
        ["hostile", interface, scene, seconds] => hostile::main(interface, scene, seconds_of(seconds)?),
        ["segments", flags, from, to, bytes, count] => stray::segments(
            flags,
            from.parse().context("not an address")?,
            to.parse().context("not ADDR:PORT")?,
            number(bytes)?,
            number(count)?,
        ),
        ["forge", port, target, seconds] => stray::forge(number(port)?, target.parse().context("not ADDR:PORT")?, seconds_of(seconds)?),
        ["stream", target, rate, seconds, from @ ..] => stray::stream(
            target.parse().context("not ADDR:PORT")?,
            number(rate)?,
            seconds_of(seconds)?,
            from.first().map_or(Ok(0), |port| number(port))?,
        ),
        ["rr", kind, target, seconds] => rr::main(kind, target.parse().context("not ADDR:PORT")?, seconds_of(seconds)?),
        _ => bail!("no such command\n{HELP}"),
    }
}

fn number<T: std::str::FromStr>(word: &str) -> Result<T> {
    word.parse().ok().with_context(|| format!("{word:?} is not a number that fits here"))
}

fn seconds_of(word: &str) -> Result<Duration> {
    Ok(Duration::from_secs_f64(number(word)?))
}
