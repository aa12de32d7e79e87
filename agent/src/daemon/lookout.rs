//! The lookout: a thread that wakes the pump when pods may have come or gone, so that a new one does not wait for a beat.

use std::sync::mpsc::Sender;
use std::thread;
use std::time::Duration;

use tracing::warn;

use super::control::Command;
use crate::datapath;

/// How long one look stands for all changes: a pod's start is a dozen of them.
const PAUSE: Duration = Duration::from_millis(3);
/// How long it waits at a time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts it. Where the node cannot be watched, the pump looks now and then, and that is said.
pub(super) fn start(commands: Sender<Command>) {
    let watching = datapath::watch().and_then(|mut watcher| {
        thread::Builder::new().name("lookout".into()).spawn(move || {
            loop {
                match watcher.wait(PATIENCE) {
                    Ok(false) => {}
                    Ok(true) if commands.send(Command::Look).is_ok() => thread::sleep(PAUSE),
                    // The pump has ended.
                    Ok(true) => return,
                    Err(e) => return warn!(error = %e, "pods are looked for now and then only"),
                }
            }
        })
    });
    if let Err(e) = watching {
        warn!(error = %e, "pods are looked for now and then only");
    }
}
