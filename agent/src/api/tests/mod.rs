//! A real client over real sockets, against an agent in memory with a real book.

mod authority;
mod listening;
mod probes;
mod records;
mod selecting;
mod streaming;
mod tls;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use sekisho_proto as proto;
use sekisho_proto::sekisho_client::SekishoClient;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};

use super::*;

/// Answers from memory.
struct Memory {
    book: Arc<Book>,
    /// How often it was asked for its status.
    asked: AtomicU64,
    /// Why it is not ready.
    unready: Vec<String>,
}

impl Memory {
    fn new(capacity: usize) -> Self {
        Self { book: Arc::new(Book::new(capacity)), asked: AtomicU64::new(0), unready: Vec::new() }
    }
}

impl Agent for Memory {
    fn ready(&self) -> bool {
        self.unready.is_empty()
    }

    fn status(&self) -> Result<proto::StatusResponse, Refusal> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let (ready, unready) = (self.ready(), self.unready.clone());
        Ok(proto::StatusResponse { ready, unready, node: "node-1".into(), mode: "enforce".into(), ..Default::default() })
    }

    fn explain(&self, request: &proto::ExplainRequest) -> Result<proto::ExplainResponse, Refusal> {
        match request.to.as_str() {
            "shop/nobody" => Err(Refusal::NotFound("pod shop/nobody is not known".into())),
            _ => Ok(proto::ExplainResponse { verdict: proto::Verdict::Denied as i32, ..Default::default() }),
        }
    }

    fn names(&self, request: &proto::NamesRequest) -> Result<proto::NamesResponse, Refusal> {
        Ok(proto::NamesResponse { names: vec![format!("{}web", request.prefix)], more: false, complete: true })
    }

    fn mode(&self) -> Result<proto::ModeResponse, Refusal> {
        Ok(proto::ModeResponse { mode: "enforce".to_owned(), epoch: 1, node: "node-1".into() })
    }

    fn set_mode(&self, mode: &str) -> Result<proto::ModeResponse, Refusal> {
        Ok(proto::ModeResponse { mode: mode.to_owned(), epoch: 2, node: "node-1".into() })
    }

    fn book(&self) -> Arc<Book> {
        Arc::clone(&self.book)
    }

    fn header(&self) -> Arc<Header> {
        Arc::new(Header { run: "run-1".into(), node: "node-1".into(), ..Header::default() })
    }
}

/// A folder that goes with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sekisho-api-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).expect("a folder");
        Self(path)
    }

    fn socket(&self) -> PathBuf {
        self.0.join("run/sekisho.sock")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A served agent.
struct Served {
    folder: Folder,
    book: Arc<Book>,
    stop: watch::Sender<bool>,
    serving: JoinHandle<Result<(), ServeError>>,
    tcp: Option<std::net::SocketAddr>,
}

impl Served {
    async fn start(listen: Option<&str>, capacity: usize) -> Self {
        Self::start_with(listen, None, capacity).await
    }

    async fn start_with(listen: Option<&str>, tls: Option<Tls>, capacity: usize) -> Self {
        let folder = Folder::new();
        let agent = Arc::new(Memory::new(capacity));
        let book = Arc::clone(&agent.book);
        let listen = listen.map(|address| address.parse().expect("an address"));
        let listeners = bind(&folder.socket(), listen, tls).await.expect("free sockets");
        let tcp = listeners.tcp_address();
        let (stop, stopped) = watch::channel(false);
        let serving = tokio::spawn(serve(listeners, agent, stopped));
        Self { folder, book, stop, serving, tcp }
    }

    async fn channel(&self) -> Channel {
        connect(&self.folder.socket()).await
    }

    async fn client(&self) -> SekishoClient<Channel> {
        SekishoClient::new(self.channel().await)
    }
}

async fn connect(socket: &Path) -> Channel {
    Endpoint::from_shared(format!("unix:{}", socket.display())).expect("a path").connect().await.expect("an agent")
}

/// Waits for what must become true soon.
async fn soon(what: &str, mut test: impl FnMut() -> bool) {
    for _ in 0..500 {
        if test() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never came true: {what}");
}
