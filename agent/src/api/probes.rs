//! What a kubelet and Prometheus ask: `/healthz`, `/readyz` and `/metrics` over plain HTTP.
//!
//! It says numbers about the node and no name of a pod, and takes no orders, so it may listen on any address.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::{Agent, metrics};

/// A request must come, and its answer go, within this.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest request.
const REQUEST: usize = 8 << 10;
/// Requests at a time; more wait.
const AT_ONCE: usize = 8;

/// Why probes cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen for --metrics on {address}: {source}")]
pub struct ProbeError {
    address: SocketAddr,
    source: io::Error,
}

/// The bound address.
pub struct Probes(TcpListener);

impl Probes {
    /// Binds `address`.
    pub async fn bind(address: SocketAddr) -> Result<Self, ProbeError> {
        TcpListener::bind(address).await.map(Self).map_err(|source| ProbeError { address, source })
    }

    /// Where it listens.
    pub fn address(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }

    /// Answers until `stopped`.
    pub async fn serve(self, agent: Arc<dyn Agent>, mut stopped: watch::Receiver<bool>) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let accepted = tokio::select! {
                accepted = self.0.accept() => accepted,
                _ = stopped.changed() => return,
            };
            let Ok((stream, _)) = accepted else {
                // Out of file descriptors, most likely: it passes.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (agent, places) = (agent.clone(), places.clone());
            tokio::spawn(async move {
                let Ok(_place) = places.acquire().await else { return };
                // Who asks and does not listen gets nothing.
                drop(tokio::time::timeout(PATIENCE, answer(stream, agent)).await);
            });
        }
    }
}

/// An answer's status line, content type and body.
type Answer = (&'static str, &'static str, String);

const TEXT: &str = "text/plain; charset=utf-8";

async fn answer(mut stream: TcpStream, agent: Arc<dyn Agent>) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() >= REQUEST || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = String::from_utf8_lossy(request.split(|b| *b == b'\r').next().unwrap_or_default()).into_owned();
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let path = path.split('?').next().unwrap_or_default().to_owned();
    let format = metrics::Format::accepted(&header(&request, "accept"));
    // The agent answers from its own thread and may take a moment.
    let (status, kind, body) = match method.as_str() {
        "GET" | "HEAD" => tokio::task::spawn_blocking(move || say(&path, format, &*agent)).await.unwrap_or_else(|_| failed("no answer")),
        _ => ("405 Method Not Allowed", TEXT, "GET or HEAD\n".to_owned()),
    };
    let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    if method == "GET" {
        stream.write_all(body.as_bytes()).await?;
    }
    stream.shutdown().await
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

fn say(path: &str, format: metrics::Format, agent: &dyn Agent) -> Answer {
    match path {
        // Alive: the thread that judges answers.
        "/healthz" | "/livez" => match agent.mode(None) {
            Ok(_) => ("200 OK", TEXT, "ok\n".to_owned()),
            Err(e) => failed(&e.to_string()),
        },
        "/readyz" if agent.ready() => ("200 OK", TEXT, "ready: every pod is covered and the policy is in force\n".to_owned()),
        "/readyz" => match agent.status() {
            Ok(status) => failed(&format!("not ready\n{}", status.unready.join("\n"))),
            Err(e) => failed(&e.to_string()),
        },
        "/metrics" => match agent.status() {
            Ok(status) => ("200 OK", format.content_type(), metrics::page(status, format)),
            Err(e) => failed(&e.to_string()),
        },
        _ => ("404 Not Found", TEXT, "/metrics, /healthz or /readyz\n".to_owned()),
    }
}
