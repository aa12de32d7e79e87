//! Records on their way to stdout: folded where lines are read by people, counted, and the newest kept where only those are wanted.

use std::collections::VecDeque;
use std::pin::pin;
use std::task::Poll;
use std::time::Instant;

use clap::Args;
use sekisho_proto::Record;
use tonic::Streaming;

use super::fold::Fold;
use super::output::{Format, OutputArgs, Printer};
use super::{Failure, client};

/// Whether both ends of a flow are shown.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(super) struct BothArgs {
    /// A line for each end of a flow, where both are seen [default: one line, of the end with the worse verdict]
    #[arg(long)]
    both: bool,
}

impl BothArgs {
    /// Whether the two ends of a flow become one line. For a program, each end is a record.
    pub(super) fn folds(self, output: OutputArgs) -> bool {
        !self.both && matches!(output.format(), Format::Compact | Format::Wide)
    }
}

/// Where records go.
pub(super) struct Page {
    printer: Printer,
    fold: Option<Fold>,
    /// Columns for the names of nodes.
    column: usize,
    /// The newest so far, where no more than a number of lines is wanted.
    newest: Option<(usize, VecDeque<Record>)>,
    printed: u64,
}

impl Page {
    /// Of one node's records, or with the nodes' names in so many columns.
    pub(super) fn new(output: OutputArgs, fold: Option<Fold>, column: usize) -> Self {
        Self { printer: Printer::new(output), fold, column, newest: None, printed: 0 }
    }

    /// Prints only so many of the newest, at the end.
    #[must_use]
    pub(super) fn with_newest(mut self, most: Option<usize>) -> Self {
        self.newest = most.map(|most| (most, VecDeque::new()));
        self
    }

    /// Whether nothing has been printed.
    pub(super) fn is_empty(&self) -> bool {
        self.printed == 0
    }

    /// Takes the next record.
    pub(super) fn push(&mut self, record: Record, now: Instant) -> Result<(), Failure> {
        match &mut self.fold {
            None => self.show(record),
            Some(fold) => {
                fold.push(record, now);
                self.tick(now)
            }
        }
    }

    /// Prints what need not wait any longer.
    pub(super) fn tick(&mut self, now: Instant) -> Result<(), Failure> {
        while let Some(record) = self.fold.as_mut().and_then(|fold| fold.pop(now)) {
            self.show(record)?;
        }
        Ok(())
    }

    /// When something that is held back may be printed.
    pub(super) fn due(&self) -> Option<Instant> {
        self.fold.as_ref().and_then(Fold::due)
    }

    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        self.printer.flush()
    }

    /// Prints everything that is still here: nothing comes any more.
    pub(super) fn finish(&mut self) -> Result<(), Failure> {
        while let Some(record) = self.fold.as_mut().and_then(Fold::take) {
            self.show(record)?;
        }
        for record in self.newest.take().into_iter().flat_map(|(_, newest)| newest) {
            self.show(record)?;
        }
        self.flush()
    }

    fn show(&mut self, record: Record) -> Result<(), Failure> {
        if let Some((most, newest)) = &mut self.newest {
            newest.push_back(record);
            if newest.len() > *most {
                newest.pop_front();
            }
            return Ok(());
        }
        self.printed += 1;
        self.printer.record(&record, self.column)
    }
}

/// Whoever interrupts sees what had come by then.
impl Drop for Page {
    fn drop(&mut self) {
        while let Some(record) = self.fold.as_mut().and_then(Fold::take) {
            if self.show(record).is_err() {
                return;
            }
        }
        // Nobody may read any more.
        let _ = self.flush();
    }
}

/// Prints a stream to its end. Whatever may be shown is flushed before waiting for more.
pub(super) async fn print(mut records: Streaming<Record>, page: &mut Page) -> Result<(), Failure> {
    loop {
        let ready = {
            let mut next = pin!(records.message());
            std::future::poll_fn(|context| Poll::Ready(next.as_mut().poll(context))).await
        };
        let next = match ready {
            Poll::Ready(next) => Some(next),
            Poll::Pending => {
                page.tick(Instant::now())?;
                page.flush()?;
                match page.due() {
                    Some(due) => tokio::time::timeout_at(due.into(), records.message()).await.ok(),
                    None => Some(records.message().await),
                }
            }
        };
        match next.transpose().map_err(|status| client::refused(&status))? {
            Some(Some(record)) => page.push(record, Instant::now())?,
            Some(None) => break,
            None => page.tick(Instant::now())?,
        }
    }
    page.finish()
}
