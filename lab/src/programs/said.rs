//! What programs of [`talking_object`](super::talking_object) said.

use std::sync::Mutex;

use anyhow::{Context, Result};
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};

use super::Programs;

/// Listens to loaded programs.
pub struct Listener {
    logger: EbpfLogger<Lines>,
    lines: &'static Mutex<Vec<String>>,
}

/// Keeps the text of every record.
struct Lines(&'static Mutex<Vec<String>>);

impl Log for Lines {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if let Ok(mut lines) = self.0.lock() {
            lines.push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

impl Programs {
    /// Listens from now on.
    pub fn listen(&mut self) -> Result<Listener> {
        // A listener lives as long as its test program.
        let lines: &'static Mutex<Vec<String>> = Box::leak(Box::default());
        let logger = EbpfLogger::init_with_logger(&mut self.bpf, Lines(lines)).context("these programs have no voice")?;
        Ok(Listener { logger, lines })
    }
}

impl Listener {
    /// What was said since the last call.
    pub fn said(&mut self) -> Vec<String> {
        self.logger.flush();
        self.lines.lock().map(|mut lines| std::mem::take(&mut *lines)).unwrap_or_default()
    }
}
