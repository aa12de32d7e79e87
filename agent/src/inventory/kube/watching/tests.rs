//! Servers that are there and do not help: how often they are asked.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::Namespace;
use kube::Config;
use tokio::sync::mpsc;

use super::super::connect;
use super::*;

/// How often a server is asked within `span` that answers every request with what `answer` makes of its first line.
async fn asked_within(span: Duration, answer: fn(&str) -> String) -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut lines = BufReader::new(stream.try_clone().expect("the same connection")).lines();
            let Some(Ok(first)) = lines.next() else { continue };
            let _end = lines.map_while(Result::ok).find(String::is_empty);
            count.fetch_add(1, Ordering::Relaxed);
            // Who asked may have gone meanwhile.
            drop(stream.write_all(answer(&first).as_bytes()));
        }
    });
    let link = Arc::<Link>::default();
    let client = connect::client(Config::new(url.parse().expect("a URL")), &link).expect("a client");
    let (events, _received) = mpsc::channel(1024);
    let watching = tokio::spawn(watch::<Namespace>(client, link, events));
    tokio::time::sleep(span).await;
    watching.abort();
    asked.load(Ordering::Relaxed)
}

fn refusal(code: u16) -> String {
    let body = format!(r#"{{"kind": "Status", "status": "Failure", "message": "no", "reason": "no", "code": {code}}}"#);
    format!("HTTP/1.1 {code} No\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_server_that_gives_no_list_is_asked_ever_more_rarely() {
    // One that streams no lists, and one whose streams fail.
    let pages = |request: &str| refusal(if request.contains("sendInitialEvents=true") { 400 } else { 503 });
    let asked = asked_within(Duration::from_secs(3), pages).await;
    assert!((3..=12).contains(&asked), "{asked} times");
    let asked = asked_within(Duration::from_secs(3), |_| refusal(429)).await;
    assert!((3..=12).contains(&asked), "{asked} times");
}

#[tokio::test]
async fn a_list_that_ends_before_it_is_whole_is_no_reason_to_hurry() {
    let nothing =
        |_: &str| "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_owned();
    let asked = asked_within(Duration::from_secs(3), nothing).await;
    assert!((3..=12).contains(&asked), "{asked} times");
}

#[test]
fn only_a_server_that_is_busy_for_long_is_left_alone_for_long() {
    let mut backoff = Backoff::default();
    let away = (0..20).map(|_| backoff.after(false)).max();
    assert!(away <= Some(LONGEST_WAIT), "{away:?}");
    let busy: Vec<_> = (0..20).map(|_| backoff.after(true)).collect();
    assert!(busy[..BUSY as usize].iter().all(|wait| *wait <= LONGEST_WAIT), "it may have just come back: {busy:?}");
    assert!(busy[14..].iter().all(|wait| (LONGEST_BUSY / 2..=LONGEST_BUSY).contains(wait)), "{busy:?}");
    assert!(backoff.after(false) <= LONGEST_WAIT, "gone again");
}

#[test]
fn jitter_stays_within_half_and_whole() {
    let waits: Vec<_> = (0..1000).map(|_| jittered(Duration::from_secs(2))).collect();
    assert!(waits.iter().all(|w| (Duration::from_secs(1)..=Duration::from_secs(2)).contains(w)));
    let distinct: std::collections::BTreeSet<_> = waits.iter().collect();
    assert!(distinct.len() > 900);
}
