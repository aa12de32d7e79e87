//! `sekisho relay`: joins standard input and output with the agent's socket, for those who ask through `exec`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::thread;

use super::{Exit, Failure};

/// Bytes that go at once.
const PIECE: usize = 64 << 10;

/// Ends with whichever side ends first.
pub(super) fn run(socket: &Path) -> Result<Exit, Failure> {
    let failed = |e: io::Error| Failure::new(Exit::NotReady, format_args!("no agent answers on {}: {e}", socket.display()));
    let agent = UnixStream::connect(socket).map_err(failed)?;
    // Without the buffers of the standard library: what comes goes on at once.
    let input = File::from(io::stdin().as_fd().try_clone_to_owned().map_err(failed)?);
    let output = File::from(io::stdout().as_fd().try_clone_to_owned().map_err(failed)?);
    let (questions, answers) = (agent.try_clone().map_err(failed)?, agent.try_clone().map_err(failed)?);
    let (ended, first) = mpsc::channel();
    let asked = ended.clone();
    thread::spawn(move || {
        pass(input, &questions);
        // The other side may have gone already.
        let _ = asked.send(Exit::Done);
    });
    thread::spawn(move || {
        pass(answers, &output);
        let _ = ended.send(Exit::NotReady);
    });
    let exit = first.recv().unwrap_or(Exit::NotReady);
    // The other thread ends with the process.
    let _ = agent.shutdown(Shutdown::Both);
    if exit == Exit::NotReady {
        return Err(Failure::new(exit, "the agent has ended"));
    }
    Ok(exit)
}

fn pass(mut from: impl Read, mut to: impl Write) {
    let mut piece = vec![0; PIECE];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return,
            Ok(length) if to.write_all(&piece[..length]).is_ok() => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return,
        }
    }
}
