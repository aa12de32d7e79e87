//! gRPC to an agent through `exec` in its pod.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{AttachParams, AttachedProcess};
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tonic::Status;
use tonic::transport::Endpoint;
use tower::service_fn;

use super::super::client;
use super::places::reason;

/// How long an agent may take to be reached. The API server itself gives up on a dead node later.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// The agent's container in its pod.
pub(super) const CONTAINER: &str = "agent";
/// What is started there: see [`super::super::relay`].
const RELAY: [&str; 2] = ["/sekisho", "relay"];
/// Bytes that wait on either way.
const BUFFER: usize = 256 << 10;
/// How often a silent tunnel is tried, and how long it may be silent then.
const PULSE: Duration = Duration::from_secs(5);
/// How much of what the relay complains of is kept.
const COMPLAINT: u64 = 2048;

/// A connected agent.
pub(super) struct Tunnel {
    pub(super) client: client::Client,
    complaint: Arc<Mutex<String>>,
}

impl Tunnel {
    /// Reaches the agent in a pod.
    pub(super) async fn open(kube: &Client, namespace: &str, pod: &str) -> Result<Self, String> {
        tokio::time::timeout(PATIENCE, Self::reach(kube, namespace, pod))
            .await
            .unwrap_or_else(|_| Err(format!("its agent {pod} was not reached within {} s", PATIENCE.as_secs())))
    }

    async fn reach(kube: &Client, namespace: &str, pod: &str) -> Result<Self, String> {
        let api: Api<Pod> = Api::namespaced(kube.clone(), namespace);
        let attach = AttachParams::default().container(CONTAINER).stdin(true).stdout(true).stderr(true).tty(false);
        let attach = attach.max_stdin_buf_size(BUFFER).max_stdout_buf_size(BUFFER);
        let mut process = api.exec(pod, RELAY, &attach).await.map_err(|e| format!("its agent {pod} cannot be reached: {}", reason(&e)))?;
        let (Some(input), Some(output), Some(errors)) = (process.stdin(), process.stdout(), process.stderr()) else {
            return Err("the API server gave no streams".to_owned());
        };
        let complaint = Arc::new(Mutex::new(String::new()));
        tokio::spawn(note(errors, Arc::clone(&complaint)));
        let mut pipe = Some(TokioIo::new(Pipe { input, output, _process: process }));
        let connector = service_fn(move |_| {
            let pipe = pipe.take().ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, "the tunnel has ended"));
            std::future::ready(pipe)
        });
        let endpoint =
            Endpoint::from_static("http://agent").http2_keep_alive_interval(PULSE).keep_alive_timeout(PULSE).keep_alive_while_idle(true);
        let channel = endpoint.connect_with_connector(connector).await.map_err(|e| e.to_string())?;
        Ok(Self { client: client::over(channel), complaint })
    }

    /// Why a question failed, in the relay's words where it has any.
    pub(super) async fn why(&self, status: &Status) -> String {
        if !client::is_broken(status) {
            return status.message().to_owned();
        }
        // What the relay says arrives beside the end of its stream.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let said = self.complaint.lock().unwrap_or_else(PoisonError::into_inner).trim().to_owned();
        let said = said.trim_start_matches("sekisho: ");
        if said.is_empty() { "the connection to its agent broke".to_owned() } else { said.to_owned() }
    }
}

async fn note(errors: impl AsyncRead + Unpin, complaint: Arc<Mutex<String>>) {
    let mut errors = errors.take(COMPLAINT);
    let mut buffer = [0; 512];
    while let Ok(length @ 1..) = errors.read(&mut buffer).await {
        complaint.lock().unwrap_or_else(PoisonError::into_inner).push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
}

/// The relay's standard streams as one; dropped, the relay ends.
struct Pipe<R, W> {
    output: R,
    input: W,
    _process: AttachedProcess,
}

impl<R: AsyncRead + Unpin, W: Unpin> AsyncRead for Pipe<R, W> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(context, buffer)
    }
}

impl<R: Unpin, W: AsyncWrite + Unpin> AsyncWrite for Pipe<R, W> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.input).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_shutdown(context)
    }
}
