//! How everybody else asks the pump something: a command goes in, the answer comes back within a beat or two.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sekisho_core::layout::mode;
use sekisho_proto as proto;

use crate::api::{Agent, Refusal};
use crate::flow::{Book, Header};

/// How long an answer may take before the pump counts as stuck. A sweep of full tables takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the pump is asked.
pub(super) enum Command {
    /// Everything that `sekisho status` shows.
    Status(Sender<proto::StatusResponse>),
    /// What would be decided, and why.
    Explain(proto::ExplainRequest, Sender<Result<proto::ExplainResponse, Refusal>>),
    /// Names of objects.
    Names(proto::NamesRequest, Sender<Result<proto::NamesResponse, Refusal>>),
    /// The mode; set first where one is given.
    Mode(Option<u32>, Sender<Result<proto::ModeResponse, Refusal>>),
    /// Look whether pods, interfaces or addresses of this node have come or gone.
    Look,
    /// Look whether the source has another snapshot.
    News,
    /// End in order.
    Stop,
}

/// What the pump tells without being asked.
#[derive(Default)]
pub(super) struct Shared {
    ready: AtomicBool,
}

impl Shared {
    pub(super) fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }
}

/// See the module.
pub(super) struct Control {
    commands: Sender<Command>,
    shared: Arc<Shared>,
    records: OnceLock<(Arc<Book>, Arc<Header>)>,
}

impl Control {
    pub(super) fn new() -> (Self, Receiver<Command>) {
        let (commands, receiver) = channel();
        (Self { commands, shared: Arc::default(), records: OnceLock::new() }, receiver)
    }

    /// For whoever tells the pump something.
    pub(super) fn sender(&self) -> Sender<Command> {
        self.commands.clone()
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.shared.clone()
    }

    /// The book that clients read, once the pump has opened it.
    pub(super) fn with_book(self, book: Arc<Book>, header: Arc<Header>) -> Self {
        self.records.get_or_init(|| (book, header));
        self
    }

    /// Tells the pump to end.
    pub(super) fn stop(&self) {
        // A pump that has ended already needs no telling.
        let _ = self.commands.send(Command::Stop);
    }

    fn ask<T>(&self, command: impl FnOnce(Sender<T>) -> Command) -> Result<T, Refusal> {
        let (answer, wait) = channel();
        let stuck = || Refusal::Unavailable("the agent is stopping, or too busy to answer".into());
        self.commands.send(command(answer)).map_err(|_| stuck())?;
        wait.recv_timeout(PATIENCE).map_err(|_| stuck())
    }
}

impl Agent for Control {
    fn ready(&self) -> bool {
        self.shared.ready.load(Ordering::Relaxed)
    }

    fn status(&self) -> Result<proto::StatusResponse, Refusal> {
        self.ask(Command::Status)
    }

    fn explain(&self, request: &proto::ExplainRequest) -> Result<proto::ExplainResponse, Refusal> {
        self.ask(|answer| Command::Explain(request.clone(), answer))?
    }

    fn names(&self, request: &proto::NamesRequest) -> Result<proto::NamesResponse, Refusal> {
        self.ask(|answer| Command::Names(request.clone(), answer))?
    }

    fn mode(&self) -> Result<proto::ModeResponse, Refusal> {
        self.ask(|answer| Command::Mode(None, answer))?
    }

    fn set_mode(&self, mode: &str) -> Result<proto::ModeResponse, Refusal> {
        let number = (mode::OBSERVE..=mode::ENFORCE).find(|n| mode::name(*n) == Some(mode));
        let number = number.ok_or_else(|| Refusal::Invalid(format!("{mode} is no mode: observe, audit or enforce")))?;
        self.ask(|answer| Command::Mode(Some(number), answer))?
    }

    fn book(&self) -> Arc<Book> {
        self.records.get().expect("the book is there before the API serves").0.clone()
    }

    fn header(&self) -> Arc<Header> {
        self.records.get().expect("the header is there before the API serves").1.clone()
    }
}
