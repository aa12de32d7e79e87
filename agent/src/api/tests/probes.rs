//! What a kubelet and Prometheus ask over plain HTTP, and those who only pretend to.

use std::net::SocketAddr;
use std::time::Instant;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;

/// Serves an agent on every address of this machine; tells where on loopback.
async fn served(agent: &Arc<Memory>) -> (SocketAddr, watch::Sender<bool>) {
    let probes = Probes::bind("[::]:0".parse().expect("an address")).await.expect("a free port");
    let port = probes.address().expect("bound").port();
    let (stop, stopped) = watch::channel(false);
    tokio::spawn(probes.serve(agent.clone(), stopped));
    (SocketAddr::from(([127, 0, 0, 1], port)), stop)
}

async fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connected");
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await.expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    answer
}

#[tokio::test]
async fn every_page_is_there_under_ipv4_too_where_all_addresses_are_bound() {
    let agent = Arc::new(Memory::new(16));
    let (address, _stop) = served(&agent).await;
    for (path, wanted) in [
        ("/healthz", "HTTP/1.1 200 OK"),
        ("/readyz?verbose", "HTTP/1.1 200 OK"),
        ("/metrics", "sekisho_ready 1"),
        ("/", "HTTP/1.1 404 Not Found"),
    ] {
        let answer = get(address, path).await;
        assert!(answer.contains(wanted), "{path}: {answer}");
    }
}

#[tokio::test]
async fn whoever_asks_learns_no_pods_name() {
    let agent = Arc::new(Memory { unready: vec!["shop/web: not found yet".into()], ..Memory::new(16) });
    let (address, _stop) = served(&agent).await;
    let answer = get(address, "/readyz").await;
    assert!(answer.contains("503 ") && answer.contains("reasons: 1,") && !answer.contains("shop"), "{answer}");
}

#[tokio::test]
async fn the_agent_is_asked_for_its_status_once_in_a_while_however_many_want_it() {
    let agent = Arc::new(Memory::new(16));
    let (address, _stop) = served(&agent).await;
    let begun = Instant::now();
    for _ in 0..50 {
        assert!(get(address, "/metrics").await.contains("sekisho_ready 1"));
    }
    let most = 1 + u64::try_from(begun.elapsed().as_millis() / 500).expect("short");
    assert!(agent.asked.load(Ordering::Relaxed) <= most, "{} times", agent.asked.load(Ordering::Relaxed));
}

#[tokio::test]
async fn connections_that_say_nothing_hold_up_nobody_for_long() {
    let agent = Arc::new(Memory::new(16));
    let (address, _stop) = served(&agent).await;
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(TcpStream::connect(address).await.expect("connected"));
    }
    let answer = tokio::time::timeout(Duration::from_secs(15), get(address, "/healthz")).await;
    assert!(answer.expect("in time").contains("200 OK"));
}
