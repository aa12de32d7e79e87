//! Asking the agent: one connection over its Unix socket, and what to say when there is none.

use std::error::Error;
use std::future::Future;
use std::io;
use std::path::Path;
use std::time::Duration;

use sekisho_proto::sekisho_client::SekishoClient;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use super::{Exit, Failure};

/// How long an agent that is there may take to answer. Longer than it takes itself to say that it is too busy.
pub(super) const PATIENCE: Duration = Duration::from_secs(8);

/// Answers may be large: a status names every endpoint.
const MAX_ANSWER: usize = 64 << 20;

/// A connected client.
pub(super) type Client = SekishoClient<Channel>;

/// Runs a conversation with the agent; an interrupt ends it quietly and well.
pub(super) fn converse<T: Future<Output = Result<Exit, Failure>>>(conversation: T) -> Result<Exit, Failure> {
    block_on(&mut tokio::runtime::Builder::new_current_thread(), async {
        tokio::select! {
            result = conversation => result,
            _ = tokio::signal::ctrl_c() => Ok(Exit::Done),
        }
    })
}

/// Runs conversations with many agents; a slow reader of our output holds up none of them.
pub(super) fn run<T: Future<Output = Result<Exit, Failure>>>(conversations: T) -> Result<Exit, Failure> {
    block_on(tokio::runtime::Builder::new_multi_thread().worker_threads(2), conversations)
}

fn block_on<T: Future<Output = Result<Exit, Failure>>>(builder: &mut tokio::runtime::Builder, work: T) -> Result<Exit, Failure> {
    let runtime = builder.enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::CannotRun, format_args!("the runtime does not start: {error}")))?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

/// Asks one question. An agent that is stopped or stuck keeps its socket open and says nothing.
pub(super) async fn answered<T>(question: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    answered_within(PATIENCE, question).await
}

/// The same with less patience.
pub(super) async fn answered_within<T>(patience: Duration, question: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(patience, question).await.unwrap_or_else(|_| {
        let text = format!("the agent took the question and did not answer within {} s: it is stopped or stuck", patience.as_secs());
        Err(Failure::new(Exit::NotReady, text))
    })
}

/// Connects to the agent behind a socket.
pub(super) async fn connect(socket: &Path) -> Result<Client, Failure> {
    let path = socket.to_str().ok_or_else(|| Failure::new(Exit::Usage, "the path of the socket is not UTF-8"))?;
    let endpoint = Endpoint::from_shared(format!("unix:{path}"))
        .map_err(|error| Failure::new(Exit::Usage, format_args!("{path} is no socket path: {error}")))?;
    let channel = endpoint.connect().await.map_err(|error| no_answer(path, &error))?;
    Ok(over(channel))
}

/// A client over a connection that is there.
pub(super) fn over(channel: Channel) -> Client {
    SekishoClient::new(channel).max_decoding_message_size(MAX_ANSWER)
}

/// Why no agent answers, and what to do.
fn no_answer(path: &str, error: &(dyn Error + 'static)) -> Failure {
    let text = match io_error(error).map(io::Error::kind) {
        Some(io::ErrorKind::NotFound) => {
            format!("no agent answers: there is no socket {path}; start one with `sekisho agent`, or name its socket with --socket")
        }
        Some(io::ErrorKind::ConnectionRefused) => {
            format!("no agent answers on {path}: the one that made it has ended; start it again with `sekisho agent`")
        }
        Some(io::ErrorKind::PermissionDenied) => {
            return Failure::new(Exit::CannotRun, format_args!("{path} may not be opened: run as root"));
        }
        _ => format!("no agent answers on {path}: {}", deepest(error)),
    };
    Failure::new(Exit::NotReady, text)
}

fn io_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut current = Some(error);
    let mut found = None;
    while let Some(error) = current {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            found = Some(io);
        }
        current = error.source();
    }
    found
}

fn deepest(error: &(dyn Error + 'static)) -> String {
    let mut current = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string()
}

/// What the agent refused or could not do, as a sentence with its exit.
pub(super) fn refused(status: &Status) -> Failure {
    let exit = match status.code() {
        Code::InvalidArgument => Exit::Usage,
        _ => Exit::NotReady,
    };
    if is_broken(status) { Failure::new(exit, "the agent has ended while it was asked") } else { Failure::new(exit, status.message()) }
}

/// Whether the connection failed, rather than the agent refused.
pub(super) fn is_broken(status: &Status) -> bool {
    let code = matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal);
    code && (io_error(status).is_some() || status.source().is_some() || status.message().contains("transport"))
}
