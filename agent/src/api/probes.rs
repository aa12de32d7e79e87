//! What a kubelet and Prometheus ask: `/healthz`, `/readyz` and `/metrics` over plain HTTP.
//!
//! It says numbers about the node, its namespaces and policies and no name of a pod, and takes no orders, so it may listen on any address. Whoever reaches that
//! address may ask as often as they like: that costs neither descriptors, for connections wait in the kernel until there is a place,
//! nor the thread that judges, which is asked for its status at most once in a while on behalf of all.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sekisho_proto::StatusResponse;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, watch};

use super::{Agent, Refusal, listen, metrics};

/// A request must come within this.
const PATIENCE: Duration = Duration::from_secs(2);
/// Its answer must be made and go within this.
const ANSWER: Duration = Duration::from_secs(10);
/// Longest request.
const REQUEST: usize = 8 << 10;
/// Connections at a time; more wait in the kernel.
const AT_ONCE: usize = 32;
/// How long one status answers everybody.
const FRESH: Duration = Duration::from_millis(500);

/// Why probes cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}; give another address and port with --metrics")]
pub struct ProbeError {
    address: SocketAddr,
    source: io::Error,
}

/// The bound address.
pub struct Probes(TcpListener);

impl Probes {
    /// Binds `address`.
    pub async fn bind(address: SocketAddr) -> Result<Self, ProbeError> {
        listen::bind_tcp(address).await.map(Self).map_err(|source| ProbeError { address, source })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }

    /// Answers until `stopped`.
    pub async fn serve(self, agent: Arc<dyn Agent>, mut stopped: watch::Receiver<bool>) {
        let answers = Arc::new(Answers { agent, kept: Mutex::new(None) });
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let accepted = async {
                let place = places.clone().acquire_owned().await;
                (place, self.0.accept().await)
            };
            let (place, accepted) = tokio::select! {
                accepted = accepted => accepted,
                _ = stopped.changed() => return,
            };
            let Ok((stream, _)) = accepted else {
                // Out of file descriptors, most likely: it passes.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let answers = answers.clone();
            tokio::spawn(async move {
                let _place = place;
                // Who asks and does not listen gets nothing.
                drop(answer(stream, &answers).await);
            });
        }
    }
}

/// An answer's status line, content type and body.
type Answer = (&'static str, &'static str, String);

const TEXT: &str = "text/plain; charset=utf-8";

async fn answer(mut stream: TcpStream, answers: &Answers) -> io::Result<()> {
    let mut request = Vec::new();
    tokio::time::timeout(PATIENCE, async {
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            if request.len() >= REQUEST || stream.read_buf(&mut request).await? == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        io::Result::Ok(())
    })
    .await??;
    let line = String::from_utf8_lossy(request.split(|b| *b == b'\r').next().unwrap_or_default()).into_owned();
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let format = metrics::Format::accepted(&header(&request, "accept"));
    tokio::time::timeout(ANSWER, async {
        let (status, kind, body) = match method {
            "GET" | "HEAD" => answers.say(path, query, format).await,
            _ => ("405 Method Not Allowed", TEXT, "GET or HEAD\n".to_owned()),
        };
        let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
        stream.write_all(head.as_bytes()).await?;
        if method == "GET" {
            stream.write_all(body.as_bytes()).await?;
        }
        stream.shutdown().await
    })
    .await?
}

/// A header's value, in small letters.
fn header(request: &[u8], name: &str) -> String {
    let text = String::from_utf8_lossy(request).to_lowercase();
    let mut values = text.lines().filter_map(|line| line.split_once(':')).filter(|(header, _)| *header == name);
    values.next().map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
}

fn failed(why: &str) -> Answer {
    ("503 Service Unavailable", TEXT, format!("{why}\n"))
}

/// What the agent says, asked no more often than need be.
struct Answers {
    agent: Arc<dyn Agent>,
    /// The newest status, and since when it is.
    kept: Mutex<Option<(Instant, Arc<StatusResponse>)>>,
}

impl Answers {
    async fn say(&self, path: &str, query: &str, format: metrics::Format) -> Answer {
        match path {
            // Alive: the thread that judges answers.
            "/healthz" | "/livez" => match self.ask(Agent::mode).await {
                Ok(_) => ("200 OK", TEXT, "ok\n".to_owned()),
                Err(e) => failed(&e.to_string()),
            },
            "/readyz" if self.agent.ready() => ("200 OK", TEXT, "ready: every pod is covered and the policy is in force\n".to_owned()),
            "/readyz" => match self.status().await {
                // The reasons name pods, and anybody may ask here.
                Ok(status) => failed(&format!("not ready; reasons: {}, named by `sekisho status`", status.unready.len())),
                Err(e) => failed(&e.to_string()),
            },
            "/metrics" => match self.status().await {
                Ok(status) => {
                    let book = self.agent.book();
                    let (tally, sinks, kernel) = (book.tally(), book.sinks(), metrics::wants_kernel(query));
                    ("200 OK", format.content_type(), metrics::page(metrics::Moment { status, tally, sinks, kernel }, format))
                }
                Err(e) => failed(&e.to_string()),
            },
            _ => ("404 Not Found", TEXT, "/metrics, /healthz or /readyz\n".to_owned()),
        }
    }

    /// The status of this moment, or of one shortly before.
    async fn status(&self) -> Result<Arc<StatusResponse>, Refusal> {
        let mut kept = self.kept.lock().await;
        if let Some((since, status)) = &*kept
            && since.elapsed() < FRESH
        {
            return Ok(status.clone());
        }
        let status = Arc::new(self.ask(Agent::status).await?);
        *kept = Some((Instant::now(), status.clone()));
        Ok(status)
    }

    /// The agent answers from its own thread and may take a moment.
    async fn ask<T: Send + 'static>(&self, question: fn(&dyn Agent) -> Result<T, Refusal>) -> Result<T, Refusal> {
        let agent = self.agent.clone();
        let answer = tokio::task::spawn_blocking(move || question(&*agent)).await;
        answer.unwrap_or_else(|_| Err(Refusal::Unavailable("no answer".to_owned())))
    }
}
