//! Where answers go: stdout, in one of four forms, and quietly away when nobody reads any more.

use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write as _};

use anstream::{AutoStream, ColorChoice};
use clap::{Args, ValueEnum};
use rustix::termios::tcgetwinsize;
use sekisho_proto::json::Message;
use sekisho_proto::{Record, to_json};

use super::render::{self, Paint, View};
use super::{Exit, Failure};

/// Columns of a line where stdout is no terminal, or one that does not say how wide it is.
const COLUMNS: usize = 100;
/// Narrower than this nothing fits.
const NARROWEST: usize = 60;

/// Form of what is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// A short line each, which fits the terminal
    Compact,
    /// A line each, with everything that fits on none
    Wide,
    /// One JSON object per line
    #[value(aliases = ["jsonl", "jsonpb"])]
    Json,
    /// Blocks of `key: value`
    Dict,
}

/// The option that every printing command has.
#[derive(Args, Clone, Copy, Debug)]
pub(super) struct OutputArgs {
    /// Form of the output
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value_t = Format::Compact)]
    output: Format,
}

impl OutputArgs {
    /// The form asked for.
    pub(super) fn format(self) -> Format {
        self.output
    }
}

/// When colours are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Color {
    /// On a terminal that shows them, unless NO_COLOR is set or TERM is dumb
    #[default]
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

impl Color {
    /// Remembers the choice for everything that is printed.
    pub(super) fn choose(self) {
        let choice = match self {
            Self::Auto => ColorChoice::Auto,
            Self::Always => ColorChoice::Always,
            Self::Never => ColorChoice::Never,
        };
        choice.write_global();
    }
}

/// Colours where they are wanted on stdout.
pub(super) fn paint() -> Paint {
    Paint::new(AutoStream::choice(&io::stdout()) != ColorChoice::Never)
}

/// How wide a line may be: as the terminal, else as COLUMNS says.
fn width() -> usize {
    let terminal = || tcgetwinsize(io::stdout()).ok().map(|size| usize::from(size.ws_col)).filter(|_| io::stdout().is_terminal());
    let told = || std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    terminal().filter(|columns| *columns > 0).or_else(told).unwrap_or(COLUMNS).max(NARROWEST)
}

/// Stdout in one form.
pub(super) struct Printer {
    out: BufWriter<StdoutLock<'static>>,
    format: Format,
    view: View,
    blocks: u64,
}

impl Printer {
    pub(super) fn new(args: OutputArgs) -> Self {
        let format = args.format();
        let view = View { paint: paint(), width: (format == Format::Compact).then(width) };
        Self { out: BufWriter::new(io::stdout().lock()), format, view, blocks: 0 }
    }

    /// Prints one message; `compact` gives its readable form.
    pub(super) fn print<M: Message>(&mut self, message: &M, compact: impl FnOnce(&M, Paint) -> String) -> Result<(), Failure> {
        let paint = self.view.paint;
        let text = match self.format {
            Format::Compact | Format::Wide => compact(message, paint),
            Format::Json => to_json(message),
            Format::Dict => render::dict(&to_json(message)),
        };
        self.block(text)
    }

    /// Prints a record; as a line it begins with the name of its node, if that has a column.
    pub(super) fn record(&mut self, record: &Record, column: usize) -> Result<(), Failure> {
        let view = self.view;
        self.print(record, |record, _| render::record(record, column, view))
    }

    fn block(&mut self, mut text: String) -> Result<(), Failure> {
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
