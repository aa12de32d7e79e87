//! The service `sekisho.v1.Sekisho`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;
use sekisho_proto::sekisho_server::Sekisho;
use sekisho_proto::{
    AlertsRequest, ExplainRequest, ExplainResponse, Filter, FlowsRequest, ModeRequest, ModeResponse, NamesRequest, NamesResponse, Record,
    StatusRequest, StatusResponse, to_nanoseconds,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Agent, Refusal, Selection};
use crate::flow::{self, Reader, Start};

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

    fn stream(&self, selection: Selection, span: Span) -> ReceiverStream<Result<Record, Status>> {
        let name = format!("grpc:{}", STREAMS.fetch_add(1, Ordering::Relaxed));
        let selection = selection.until(span.until.as_ref().map(to_nanoseconds));
        let reader = self.agent.book().reader(&name, selection.filter(), span.start(), span.follow);
        let (sender, receiver) = mpsc::channel(HAND);
        let delivery = deliver(reader, self.agent.header(), sender);
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

/// Carries records from the book to one client until either ends.
async fn deliver(mut reader: Reader, header: Arc<flow::Header>, client: mpsc::Sender<Result<Record, Status>>) {
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
        Ok(Response::new(self.stream(selection, span)))
    }

    async fn alerts(&self, request: Request<AlertsRequest>) -> Result<Response<Self::AlertsStream>, Status> {
        let request = request.into_inner();
        let selection = selection(request.filter.as_ref(), &request.exclude)?.of_alerts();
        let span = Span { last: request.last, all: request.all, since: request.since, until: request.until, follow: request.follow };
        Ok(Response::new(self.stream(selection, span)))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.ask(Agent::status).await
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Result<Response<ExplainResponse>, Status> {
        let request = request.into_inner();
        self.ask(move |agent| agent.explain(&request)).await
    }

    async fn mode(&self, request: Request<ModeRequest>) -> Result<Response<ModeResponse>, Status> {
        let mode = request.into_inner().mode;
        if mode.is_some() && self.reach != Reach::Local {
            return Err(Status::permission_denied("the mode is set only over the agent's Unix socket"));
        }
        self.ask(move |agent| agent.mode(mode.as_deref())).await
    }

    async fn names(&self, request: Request<NamesRequest>) -> Result<Response<NamesResponse>, Status> {
        let request = request.into_inner();
        self.ask(move |agent| agent.names(&request)).await
    }
}
