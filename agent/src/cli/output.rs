//! Where answers go: stdout, in one of three forms, and quietly away when nobody reads any more.

use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write as _};

use clap::{Args, ValueEnum};
use sekisho_proto::json::Message;
use sekisho_proto::to_json;

use super::render::{self, Paint};
use super::{Exit, Failure};

/// Form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// One readable line each
    Compact,
    /// One JSON object per line
    Json,
    /// Blocks of `key: value`
    Dict,
}

/// The option that every printing command has.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct OutputArgs {
    /// Form of the output [default: compact on a terminal, else json]
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
}

impl OutputArgs {
    /// The form asked for, or the one that fits where stdout goes.
    pub(super) fn format(self) -> Format {
        self.output.unwrap_or(if io::stdout().is_terminal() { Format::Compact } else { Format::Json })
    }
}

/// Colours where stdout shows them.
pub(super) fn paint() -> Paint {
    Paint::new(io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
}

/// Stdout in one form.
pub(super) struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    format: Format,
    paint: Paint,
    blocks: u64,
}

impl Printer {
    pub(super) fn new(args: OutputArgs) -> Self {
        Self { out: BufWriter::new(io::stdout().lock()), format: args.format(), paint: paint(), blocks: 0 }
    }

    /// Prints one message; `compact` gives its readable form.
    pub(super) fn print<M: Message>(&mut self, message: &M, compact: impl FnOnce(&M, Paint) -> String) -> Result<(), Failure> {
        let mut text = match self.format {
            Format::Compact => compact(message, self.paint),
            Format::Json => to_json(message),
            Format::Dict => render::dict(&to_json(message)),
        };
        if self.format == Format::Dict && self.blocks > 0 {
            text.insert(0, '\n');
        }
        self.blocks += 1;
        if !text.ends_with('\n') {
            text.push('\n');
        }
        self.out.write_all(render::harmless(&text).as_bytes()).map_err(|error| closed(&error))
    }

    /// Prints what is no message, such as a table.
    pub(super) fn text(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.out, "{}", render::harmless(text)).map_err(|error| closed(&error))
    }

    /// Hands over what was printed.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.out.flush().map_err(|error| closed(&error))
    }
}

/// A reader that has gone away (`| head`) is no failure; a full disk is.
pub(super) fn closed(error: &io::Error) -> Failure {
    if error.kind() == io::ErrorKind::BrokenPipe {
        Failure::new(Exit::Done, "")
    } else {
        Failure::new(Exit::CannotRun, format_args!("the output cannot be written: {error}"))
    }
}
