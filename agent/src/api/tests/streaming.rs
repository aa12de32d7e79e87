//! History and what follows it, without a gap and without anything twice.

use proto::{AlertsRequest, Filter, FlowsRequest, Kind, Record, Verdict, from_nanoseconds};
use tonic::{Code, Streaming};

use super::records::{alert, body, denied, flow, ledger};
use super::*;

async fn rest(mut stream: Streaming<Record>) -> Vec<Record> {
    let mut records = Vec::new();
    while let Some(record) = stream.message().await.expect("no error") {
        records.push(record);
    }
    records
}

fn seqs(records: &[Record]) -> Vec<u64> {
    records.iter().map(|record| record.seq).collect()
}

/// 1 flow, 2 denied, 3 ledger, 4 alert, 5 flow, 6 denied; record n made at n seconds.
fn fill(book: &Book) {
    let bodies = [body(flow()), body(denied()), ledger(), alert(), body(flow()), body(denied())];
    for (second, body) in (1_u64..).zip(bodies) {
        book.append_one(second * 1_000_000_000, body);
    }
}

#[tokio::test]
async fn history_by_number_and_time() {
    let served = Served::start(None, 64).await;
    fill(&served.book);
    let mut client = served.client().await;
    let verdicts = Some(Filter { verdicts: vec![Verdict::Denied as i32], ..Filter::default() });
    let at = |second: u64| Some(from_nanoseconds(second * 1_000_000_000));
    let [ledgers, alerts] = [Kind::Ledger, Kind::Alert].map(|kind| Filter { kinds: vec![kind as i32], ..Filter::default() });
    let cases = [
        (FlowsRequest { all: true, ..FlowsRequest::default() }, vec![1, 2, 3, 4, 5, 6]),
        (FlowsRequest { last: Some(2), ..FlowsRequest::default() }, vec![5, 6]),
        (FlowsRequest { last: Some(0), ..FlowsRequest::default() }, vec![]),
        (FlowsRequest { last: Some(2), filter: verdicts.clone(), ..FlowsRequest::default() }, vec![2, 6]),
        (FlowsRequest { last: Some(99), filter: verdicts.clone(), ..FlowsRequest::default() }, vec![2, 6]),
        (FlowsRequest { since: at(4), ..FlowsRequest::default() }, vec![4, 5, 6]),
        (FlowsRequest { since: at(3), all: true, filter: verdicts, ..FlowsRequest::default() }, vec![6]),
        (FlowsRequest { since: at(4), last: Some(2), ..FlowsRequest::default() }, vec![5, 6]),
        (FlowsRequest { since: at(6), last: Some(5), ..FlowsRequest::default() }, vec![6]),
        (FlowsRequest { since: at(2), until: at(4), ..FlowsRequest::default() }, vec![2, 3, 4]),
        (FlowsRequest { until: at(4), last: Some(2), ..FlowsRequest::default() }, vec![3, 4]),
        (FlowsRequest { exclude: vec![ledgers, alerts], all: true, ..FlowsRequest::default() }, vec![1, 2, 5, 6]),
    ];
    for (request, expected) in cases {
        let records = rest(client.flows(request.clone()).await.expect("a stream").into_inner()).await;
        assert_eq!(seqs(&records), expected, "{request:?}");
        assert!(records.iter().all(|record| record.run == "run-1" && record.node == "node-1"));
    }
}

#[tokio::test]
async fn alerts_alone() {
    let served = Served::start(None, 64).await;
    fill(&served.book);
    let mut client = served.client().await;
    let request = AlertsRequest { last: Some(20), ..AlertsRequest::default() };
    let records = rest(client.alerts(request).await.expect("a stream").into_inner()).await;
    assert_eq!(seqs(&records), [4]);
    assert_eq!(records[0].kind, Kind::Alert as i32);
    let of = |rule: &str| Filter { rules: vec![rule.to_owned()], ..Filter::default() };
    for (request, expected) in [
        (AlertsRequest { filter: Some(of("scan")), all: true, ..AlertsRequest::default() }, vec![4]),
        (AlertsRequest { filter: Some(of("spoof")), all: true, ..AlertsRequest::default() }, vec![]),
        (AlertsRequest { exclude: vec![of("scan")], all: true, ..AlertsRequest::default() }, vec![]),
        (AlertsRequest { since: Some(from_nanoseconds(5_000_000_000)), ..AlertsRequest::default() }, vec![]),
        (AlertsRequest { since: Some(from_nanoseconds(4_000_000_000)), ..AlertsRequest::default() }, vec![4]),
    ] {
        let records = rest(client.alerts(request.clone()).await.expect("a stream").into_inner()).await;
        assert_eq!(seqs(&records), expected, "{request:?}");
    }
}

#[tokio::test]
async fn a_stream_that_goes_on_ends_at_the_moment_that_was_named() {
    let served = Served::start(None, 64).await;
    fill(&served.book);
    let mut client = served.client().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    let until = u64::try_from((now + Duration::from_millis(300)).as_nanos()).expect("before 2554");
    let request = FlowsRequest { all: true, follow: true, until: Some(from_nanoseconds(until)), ..FlowsRequest::default() };
    let records = tokio::time::timeout(Duration::from_secs(20), rest(client.flows(request).await.expect("a stream").into_inner())).await;
    assert_eq!(seqs(&records.expect("it ends")), [1, 2, 3, 4, 5, 6]);
}

#[tokio::test]
async fn names_are_answered() {
    let served = Served::start(None, 64).await;
    let request = proto::NamesRequest { kind: "pods".into(), prefix: "shop/".into(), limit: 0 };
    let answer = served.client().await.names(request).await.expect("an answer").into_inner();
    assert_eq!(answer.names, ["shop/web"]);
}

#[tokio::test]
async fn following_has_no_gap_and_nothing_twice_and_ends_with_the_book() {
    const MANY: u64 = 20_000;
    let served = Served::start(None, 65_536).await;
    fill(&served.book);
    let mut client = served.client().await;
    let book = Arc::clone(&served.book);
    let writer = tokio::task::spawn_blocking(move || {
        for second in 7..=MANY {
            book.append_one(second * 1_000_000_000, body(flow()));
        }
        book.close();
    });
    let request = FlowsRequest { all: true, follow: true, ..FlowsRequest::default() };
    let records = rest(client.flows(request).await.expect("a stream").into_inner()).await;
    writer.await.expect("no panic");
    assert_eq!(seqs(&records), (1..=MANY).collect::<Vec<_>>());
}

#[tokio::test]
async fn an_open_stream_has_a_ledger_line_until_the_client_leaves() {
    let served = Served::start(None, 64).await;
    fill(&served.book);
    let mut client = served.client().await;
    let filter = Some(Filter { kinds: vec![Kind::Alert as i32], ..Filter::default() });
    let request = FlowsRequest { all: true, follow: true, filter, ..FlowsRequest::default() };
    let mut stream = client.flows(request).await.expect("a stream").into_inner();
    assert_eq!(stream.message().await.expect("no error").expect("the alert").seq, 4);
    soon("everything is delivered or filtered", || served.book.lines().iter().any(|line| line.delivered == 1 && line.filtered == 5)).await;
    let lines = served.book.lines();
    assert_eq!(lines.len(), 1);
    assert!(lines[0].name.starts_with("grpc:"), "{}", lines[0].name);
    assert_eq!((lines[0].made, lines[0].queued), (6, 0));
    drop(stream);
    soon("the line closes", || served.book.lines().is_empty()).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_does_not_keep_the_agent_from_ending() {
    let served = Served::start(None, 65_536).await;
    let mut client = served.client().await;
    let request = FlowsRequest { all: true, follow: true, ..FlowsRequest::default() };
    let stream = client.flows(request).await.expect("a stream").into_inner();
    for second in 1..=10_000 {
        served.book.append_one(second, body(flow()));
    }
    served.stop.send_replace(true);
    tokio::time::timeout(Duration::from_secs(5), served.serving).await.expect("in time").expect("no panic").expect("a good end");
    drop(stream);
}

#[tokio::test]
async fn a_bad_filter_is_refused() {
    let served = Served::start(None, 16).await;
    let mut client = served.client().await;
    let filter = Some(Filter { ips: vec!["here".into()], ..Filter::default() });
    let refusal = client.flows(FlowsRequest { filter, ..FlowsRequest::default() }).await.expect_err("nonsense");
    assert_eq!(refusal.code(), Code::InvalidArgument);
    assert!(refusal.message().contains("`here`"), "{}", refusal.message());
}
