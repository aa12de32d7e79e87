//! The service `sekisho.v1.Sekisho`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;
use sekisho_proto::sekisho_server::Sekisho;
use sekisho_proto::{
    AlertsRequest, ExplainRequest, ExplainResponse, Filter, FlowsRequest, GetModeRequest, ModeResponse, NamesRequest, NamesResponse,
    Record, SetModeRequest, StatusRequest, StatusResponse, to_nanoseconds,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Agent, Refusal, Selection};
use crate::flow::{self, Past, Reader, Start};

/// Records that wait between the book and a client's connection. Small: what is here counts as delivered.
const HAND: usize = 16;

/// Numbers the streams over all listeners, for their names in the ledger.
static STREAMS: AtomicU64 = AtomicU64::new(1);

/// Who can reach a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Those who may open the Unix socket.
    Local,
    /// Every process of this machine: it may ask, and change nothing.
    Loopback,
    /// Those who have shown a certificate: they may ask, and change nothing.
    Certified,
}

/// One listener's service.
pub(super) struct Service {
    agent: Arc<dyn Agent>,
    reach: Reach,
}

/// How much of the past, and whether it goes on.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    last: Option<u64>,
    all: bool,
    since: Option<Timestamp>,
    until: Option<Timestamp>,
    follow: bool,
}

impl Span {
    /// A request that asks for nothing of the past and nothing of what comes would be answered with an empty stream, which looks
    /// like a node without traffic.
    fn checked(self) -> Result<Self, Status> {
        if self.last.is_none() && !self.all && self.since.is_none() && !self.follow {
            return Err(Status::invalid_argument("nothing is asked for: set one of last, all, since and follow"));
        }
        Ok(self)
    }

    fn start(self) -> Start {
        let since = self.since.as_ref().map(to_nanoseconds);
        match (self.all, self.last, since) {
            (true, _, None) => Start::Oldest,
            (false, Some(last), None) => Start::Last(last),
            (false, Some(last), Some(since)) => Start::LastSince(last, since),
            (true, _, Some(since)) | (false, None, Some(since)) => Start::Since(since),
            (false, None, None) => Start::Next,
        }
    }

    /// How long a stream that goes on may go on.
    fn left(self) -> Option<Duration> {
        let until = to_nanoseconds(self.until.as_ref().filter(|_| self.follow)?);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Duration::from_nanos(until).saturating_sub(now))
    }
}

/// A request's filters, checked.
fn selection(filter: Option<&Filter>, exclude: &[Filter]) -> Result<Selection, Status> {
    let wanted = filter.map_or_else(|| Ok(Selection::default()), Selection::new);
    wanted.and_then(|wanted| wanted.without(exclude)).map_err(|error| Status::invalid_argument(error.to_string()))
}

impl Service {
    pub(super) fn new(agent: Arc<dyn Agent>, reach: Reach) -> Self {
        Self { agent, reach }
    }

    fn stream(&self, selection: Selection, span: Span, earlier: bool) -> ReceiverStream<Result<Record, Status>> {
        let name = format!("grpc:{}", STREAMS.fetch_add(1, Ordering::Relaxed));
        let selection = selection.until(span.until.as_ref().map(to_nanoseconds));
        let (book, filter) = (self.agent.book(), selection.filter());
        // Before the reader: an alert that comes in between is told by the reader alone.
        let before = if earlier { book.before(filter.as_ref(), span.start()) } else { Vec::new() };
        let reader = book.reader(&name, filter, span.start(), span.follow);
        let (sender, receiver) = mpsc::channel(HAND);
        let delivery = deliver(before, reader, self.agent.header(), sender);
        match span.left() {
            // What ends there is only the stream: what was delivered stays.
            Some(left) => drop(tokio::spawn(async move { drop(tokio::time::timeout(left, delivery).await) })),
            None => drop(tokio::spawn(delivery)),
        }
        ReceiverStream::new(receiver)
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Agent) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<Response<T>, Status> {
        let agent = Arc::clone(&self.agent);
        let answer = tokio::task::spawn_blocking(move || question(agent.as_ref()));
        let answer = answer.await.map_err(|_| Status::internal("the agent failed while it answered; its log says more"))?;
        Ok(Response::new(answer?))
    }
}

/// Carries records of earlier runs, then those of the book, to one client until either ends.
async fn deliver(before: Vec<Past>, mut reader: Reader, header: Arc<flow::Header>, client: mpsc::Sender<Result<Record, Status>>) {
    for past in before {
        if client.send(Ok(flow::project(&past.record, &past.header))).await.is_err() {
            return;
        }
    }
    loop {
        let next = tokio::select! {
            next = reader.next() => next,
            () = client.closed() => return,
        };
        let Some(record) = next else { return };
        if client.send(Ok(flow::project(&record, &header))).await.is_err() {
            return;
        }
    }
}

#[tonic::async_trait]
impl Sekisho for Service {
    type FlowsStream = ReceiverStream<Result<Record, Status>>;
    type AlertsStream = ReceiverStream<Result<Record, Status>>;

    async fn flows(&self, request: Request<FlowsRequest>) -> Result<Response<Self::FlowsStream>, Status> {
        let request = request.into_inner();
        let selection = selection(request.filter.as_ref(), &request.exclude)?;
        let span = Span { last: request.last, all: request.all, since: request.since, until: request.until, follow: request.follow };
        let span = span.checked()?;
        Ok(Response::new(self.stream(selection, span, false)))
    }

    async fn alerts(&self, request: Request<AlertsRequest>) -> Result<Response<Self::AlertsStream>, Status> {
        let request = request.into_inner();
        let selection = selection(request.filter.as_ref(), &request.exclude)?.of_alerts();
        let span = Span { last: request.last, all: request.all, since: request.since, until: request.until, follow: request.follow };
        let span = span.checked()?;
        Ok(Response::new(self.stream(selection, span, true)))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.ask(Agent::status).await
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let request = request.into_inner();
        check_question(&request)?;
        self.ask(move |agent| agent.explain(&request)).await
    }

    async fn get_mode(&self, _: Request<GetModeRequest>) -> Result<Response<ModeResponse>, Status> {
        self.ask(Agent::mode).await
    }

    async fn set_mode(&self, request: Request<SetModeRequest>) -> Result<Response<ModeResponse>, Status> {
        if self.reach != Reach::Local {
            return Err(Status::permission_denied("the mode is set only over the agent's Unix socket"));
        }
        let mode = request.into_inner().mode;
        if mode.is_empty() {
            return Err(Status::invalid_argument("mode is missing: observe, audit or enforce"));
        }
        self.ask(move |agent| agent.set_mode(&mode)).await
    }

    async fn names(&self, request: Request<NamesRequest>) -> Result<Response<NamesResponse>, Status> {
        let request = request.into_inner();
        self.ask(move |agent| agent.names(&request)).await
    }
}

/// Fails with the names of all fields that are missing.
fn check_question(request: &ExplainRequest) -> Result<(), Status> {
    let protocol = request.protocol.to_ascii_uppercase();
    // What is neither a name nor a number is refused by whoever reads it, with what may be said instead.
    let number = match protocol.as_str() {
        "" | "TCP" | "UDP" | "SCTP" => Some(6),
        other => other.parse().ok(),
    };
    let port = request.port == 0 && number.is_some_and(flow::has_ports);
    let missing: Vec<&str> = [
        (request.from.is_empty(), "from (NAMESPACE/POD or an address)"),
        (request.to.is_empty(), "to (NAMESPACE/POD or an address)"),
        (port, "port (1 to 65535; protocols without ports, such as ICMP, need none)"),
    ]
    .into_iter()
    .filter_map(|(missing, field)| missing.then_some(field))
    .collect();
    if missing.is_empty() { Ok(()) } else { Err(Status::invalid_argument(format!("missing: {}", missing.join(", ")))) }
}
