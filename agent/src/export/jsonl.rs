//! JSON lines to stdout or to a file that is rotated by size.
//!
//! One record is one line and one write: a line is whole in the file or not there. What cannot be written is lost and counted;
//! every batch tries again, so that the stream goes on when the disk has room again.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Outcome, Sink};
use crate::flow::{Header, Record, project};

/// How often a failing sink says so.
const COMPLAIN: Duration = Duration::from_secs(60);
const LOST: &str = "cannot write JSON lines: records are lost, counted as write_error, until it works again";
const OVERFULL: &str = "cannot put a full file of JSON lines aside: it grows beyond its size until that works again";

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Standard output.
    Stdout,
    /// A file, made if missing, appended to if there.
    File(PathBuf),
}

/// When a file is full, and how many old ones are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Bytes after which a new file begins.
    pub size: u64,
    /// Old files: `path.1` is the newest of them.
    pub keep: u32,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { size: 100_000_000, keep: 5 }
    }
}

/// The sink cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum JsonLinesError {
    /// The file cannot be opened.
    #[error("cannot write JSON lines to {path}: {source}; give a path in a folder that exists and is writable")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

/// See the module.
pub struct JsonLines {
    target: Target,
    rotation: Rotation,
    output: Option<Output>,
    /// Whole lines that wait to be written, and where each ends.
    buffer: Vec<u8>,
    ends: Vec<usize>,
    /// The file is full, and could not be put aside.
    overfull: bool,
    complained: Option<Instant>,
}

/// An open target.
struct Output {
    write: File,
    /// Bytes in the file.
    size: u64,
    /// The file ends within a line: a write broke off.
    torn: bool,
    /// It is a file, and not a pipe or a device: it may be put aside when it is full.
    rotates: bool,
}

impl Output {
    /// Takes the beginning of a line that broke off out of the file; of a pipe it stays, and the next line begins anew.
    fn cut_back(&mut self, torn: u64) {
        if torn == 0 {
            return;
        }
        match self.write.set_len(self.size - torn) {
            Ok(()) => self.size -= torn,
            Err(_) => self.torn = true,
        }
    }
}

impl JsonLines {
    /// Opens the target.
    pub fn open(target: Target, rotation: Rotation) -> Result<Self, JsonLinesError> {
        let output = match open(&target) {
            Ok(output) => Some(output),
            Err(source) => {
                let path = match target {
                    Target::File(path) => path,
                    Target::Stdout => PathBuf::from("-"),
                };
                return Err(JsonLinesError::Open { path, source });
            }
        };
        Ok(Self { target, rotation, output, buffer: Vec::new(), ends: Vec::new(), overfull: false, complained: None })
    }

    /// Writes the buffer; answers with how many of its lines arrived whole.
    fn write_buffer(&mut self) -> usize {
        if let Err(error) = self.prepare() {
            self.complain(&error, LOST);
            return 0;
        }
        let Some(output) = &mut self.output else { return 0 };
        let mut written = 0;
        let mut failed = None;
        if output.torn {
            match output.write.write_all(b"\n") {
                Ok(()) => output.torn = false,
                Err(error) => failed = Some(error),
            }
        }
        while failed.is_none() && written < self.buffer.len() {
            match output.write.write(&self.buffer[written..]) {
                Ok(0) => failed = Some(io::ErrorKind::WriteZero.into()),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => failed = Some(error),
            }
        }
        output.size += written as u64;
        let lines = self.ends.partition_point(|end| *end <= written);
        if let Some(error) = failed {
            let whole = lines.checked_sub(1).map_or(0, |last| self.ends[last]);
            output.cut_back((written - whole) as u64);
            self.complain(&error, LOST);
        } else if !self.overfull {
            self.complained = None;
        }
        lines
    }

    /// Sees to it that the target is open, and rotates a full file.
    fn prepare(&mut self) -> io::Result<()> {
        if self.output.is_none() {
            self.output = Some(open(&self.target)?);
        }
        let Target::File(path) = &self.target else { return Ok(()) };
        let beyond = |o: &Output| o.rotates && o.size > 0 && o.size + self.buffer.len() as u64 > self.rotation.size;
        self.overfull = self.output.as_ref().is_some_and(beyond);
        if !self.overfull {
            return Ok(());
        }
        match rotate(path, self.rotation.keep) {
            Ok(()) => {
                self.overfull = false;
                self.output = None;
                self.output = Some(open(&self.target)?);
            }
            Err(error) => self.complain(&error, OVERFULL),
        }
        Ok(())
    }

    fn complain(&mut self, error: &io::Error, what: &str) {
        if self.complained.is_some_and(|at| at.elapsed() < COMPLAIN) {
            return;
        }
        self.complained = Some(Instant::now());
        let target = match &self.target {
            Target::Stdout => "standard output".to_owned(),
            Target::File(path) => path.display().to_string(),
        };
        tracing::error!(%target, %error, "{what}");
    }
}

impl Sink for JsonLines {
    fn name(&self) -> &'static str {
        "jsonl"
    }

    fn write(&mut self, batch: &[Record], header: &Header) -> Outcome {
        self.buffer.clear();
        self.ends.clear();
        for record in batch {
            self.buffer.extend_from_slice(sekisho_proto::to_json_line(&project(record, header)).trim_end().as_bytes());
            self.buffer.push(b'\n');
            self.ends.push(self.buffer.len());
        }
        let delivered = self.write_buffer() as u64;
        Outcome { delivered, lost: batch.len() as u64 - delivered }
    }

    fn flush(&mut self) {
        // Every batch is written through; nothing waits here.
    }
}

fn open(target: &Target) -> io::Result<Output> {
    match target {
        // A descriptor of our own: no line buffer of the standard library between.
        Target::Stdout => {
            use std::os::fd::AsFd;
            let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
            Ok(Output { write: file, size: 0, torn: false, rotates: false })
        }
        Target::File(path) => {
            let file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
            let metadata = file.metadata()?;
            let size = metadata.len();
            let torn = size > 0 && !ends_with_newline(&file, size);
            Ok(Output { write: file, size, torn, rotates: metadata.is_file() })
        }
    }
}

/// Whether a file of that size ends a line; one that cannot be read back (a FIFO, a device) is taken at its word.
fn ends_with_newline(file: &File, size: u64) -> bool {
    use std::os::unix::fs::FileExt;
    let mut last = [0];
    file.read_exact_at(&mut last, size - 1).is_err() || last == *b"\n"
}

/// `path` becomes `path.1`, `path.1` becomes `path.2`; the oldest goes. What someone else has taken away is no obstacle.
fn rotate(path: &Path, keep: u32) -> io::Result<()> {
    let numbered = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    let if_there = |done: io::Result<()>| match done {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    };
    if keep == 0 {
        return if_there(std::fs::remove_file(path));
    }
    for n in (1..keep).rev() {
        if_there(std::fs::rename(numbered(n), numbered(n + 1)))?;
    }
    if_there(std::fs::rename(path, numbered(1)))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
