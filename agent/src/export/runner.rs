//! The thread that feeds one sink.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{Sink, WRITE_ERROR};
use crate::flow::{Book, Header, Start};

/// How long a record may stay in a sink's buffer.
const FLUSH: Duration = Duration::from_millis(100);

/// How long a sink may take for what is left when the agent ends.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A sink at work. It ends when the book is closed and read to its end.
pub struct Runner {
    thread: JoinHandle<()>,
}

impl Runner {
    /// Waits until everything in the book has been given to the sink, but not for ever: who reads a pipe may have stopped. Close the
    /// book before. Tells whether the sink came to its end.
    pub fn join(self) -> bool {
        let until = Instant::now() + LAST_WORDS;
        while !self.thread.is_finished() {
            if Instant::now() >= until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }
}

/// Starts a sink on a thread of its own, from the book's first record on.
pub fn spawn(mut sink: Box<dyn Sink>, book: &Arc<Book>, header: Header) -> std::io::Result<Runner> {
    let mut reader = book.reader(sink.name(), None, Start::Oldest, true);
    let work = move || {
        loop {
            let batch = reader.take();
            if batch.is_empty() {
                sink.flush();
                if reader.ended() {
                    return;
                }
                reader.wait(FLUSH);
                continue;
            }
            let outcome = sink.write(&batch, &header);
            reader.settle_delivered(outcome.delivered);
            reader.settle_lost(WRITE_ERROR, outcome.lost);
        }
    };
    let thread = std::thread::Builder::new().name("sink".to_owned()).spawn(work)?;
    Ok(Runner { thread })
}
