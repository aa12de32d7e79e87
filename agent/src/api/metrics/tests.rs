use std::collections::BTreeMap;
use std::sync::Arc;

use sekisho_proto as proto;

use super::*;
use crate::flow::{Body, Book, Start};

fn moment(status: proto::StatusResponse) -> Moment {
    Moment { status: Arc::new(status), tally: Tally::default(), sinks: BTreeMap::new(), kernel: false }
}

fn has(page: &str, lines: &[&str]) {
    for line in lines {
        assert!(page.lines().any(|l| l == *line), "{line} is not in\n{page}");
    }
}

fn status() -> proto::StatusResponse {
    let endpoint = proto::EndpointStatus {
        pod: Some(proto::Pod { name: "web-1".into(), ..proto::Pod::default() }),
        attach: "tcx".into(),
        coverage: "full".into(),
        isolated_ingress: true,
        ready: true,
        ..proto::EndpointStatus::default()
    };
    let map = |name: &str, entries| proto::MapStatus { name: name.into(), entries, max: 100, bytes: 4096 };
    proto::StatusResponse {
        ready: true,
        mode: "audit".into(),
        version: "1.2.3".into(),
        commit: "c0ffee".into(),
        kernel: "6.18".into(),
        endpoints: vec![endpoint.clone(), proto::EndpointStatus { ready: false, ..endpoint }],
        refused: vec!["NetworkPolicy a/b, spec: wrong".into()],
        source: Some(proto::SourceStatus { name: "kube".into(), synced: true, ..proto::SourceStatus::default() }),
        counters: [("dropped".to_owned(), 7), ("spoofed".to_owned(), 1)].into(),
        maps: vec![map("RULES", 25), map("OWNED", 1)],
        ledger: Some(proto::Ledger {
            kernel: Some(proto::ledger::Kernel { created: 12, lost: [("ring_full".to_owned(), 3)].into(), ..Default::default() }),
            ..proto::Ledger::default()
        }),
        ..proto::StatusResponse::default()
    }
}

#[test]
fn a_page_says_what_the_status_says_and_names_no_pod() {
    let page = render(moment(status()));
    has(
        &page,
        &[
            "sekisho_build_info{version=\"1.2.3\",commit=\"c0ffee\"} 1.0",
            "sekisho_ready 1.0",
            "sekisho_mode{mode=\"audit\"} 1.0",
            "sekisho_mode{mode=\"enforce\"} 0.0",
            "sekisho_endpoints{attach=\"tcx\",coverage=\"full\"} 2.0",
            "sekisho_endpoints_not_ready 1.0",
            "sekisho_endpoints_isolated{direction=\"ingress\"} 2.0",
            "sekisho_refused_objects 1.0",
            "sekisho_source_synced{source=\"kube\"} 1.0",
            "sekisho_source_stale_since_timestamp_seconds 0.0",
            "sekisho_packets_dropped_total 7.0",
            "sekisho_flows_judged_total 12.0",
            "sekisho_flows_lost_total{cause=\"ring_full\"} 3.0",
            "sekisho_table_usage_ratio{table=\"rules\"} 0.25",
            "sekisho_tables_memory_bytes 8192.0",
        ],
    );
    assert!(page.contains("process_resident_memory_bytes ") && page.contains("process_cpu_seconds_total "));
    assert!(!page.contains("web-1"));
    assert!(page.trim_end().ends_with("# EOF") && page.matches("# EOF").count() == 1);
}

#[test]
fn the_kernels_part_is_there_on_request() {
    for (query, wanted) in [("", false), ("detail=kernel", true), ("a=b&detail=kernel", true), ("detail=all", false)] {
        assert_eq!(wants_kernel(query), wanted, "{query}");
    }
    let inside = ["sekisho_kernel_total{counter=\"spoofed\"} 1.0", "sekisho_map_entries{map=\"OWNED\"} 1.0"];
    has(&render(Moment { kernel: true, ..moment(status()) }), &inside);
    let page = render(moment(status()));
    assert!(inside.iter().all(|line| !page.contains(line)) && !page.contains("sekisho_map_"), "{page}");
}

#[test]
fn what_records_say_is_counted_and_never_falls() {
    let book = Arc::new(Book::new(16));
    book.expect_alerts(["scan.vertical"]);
    let mut stream = book.reader("grpc:1", None, Start::Next, true);
    let alert = proto::Alert { rule: "scan.vertical".into(), severity: "high".into(), status: "open".into(), ..proto::Alert::default() };
    book.append_one(1, Body::Alert(Arc::new(alert)));
    stream.try_next();
    let page = || render(Moment { tally: book.tally(), sinks: book.sinks(), ..moment(status()) });
    let wanted = [
        "# TYPE sekisho_alerts counter",
        "sekisho_alerts_total{rule=\"scan.vertical\",severity=\"high\"} 1.0",
        "sekisho_alerts_total{rule=\"scan.vertical\",severity=\"low\"} 0.0",
        "sekisho_metric_overflows_total{metric=\"flows\"} 0.0",
        "# TYPE sekisho_sink_records_delivered counter",
        "sekisho_sink_records_delivered_total{sink=\"grpc\"} 1.0",
        "sekisho_sink_records_queued{sink=\"grpc\"} 0.0",
    ];
    has(&page(), &wanted);
    drop(stream);
    has(&page(), &wanted);
}

#[test]
fn who_does_not_ask_for_open_metrics_gets_the_older_text() {
    let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4";
    let new = page(moment(status()), Format::accepted(prometheus));
    assert!(new.contains("# TYPE sekisho_packets_dropped counter\n") && new.ends_with("# EOF\n"));
    let old = page(moment(status()), Format::accepted("*/*"));
    has(
        &old,
        &[
            "# HELP sekisho_packets_dropped_total Packets dropped",
            "# TYPE sekisho_packets_dropped_total counter",
            "sekisho_packets_dropped_total 7.0",
            "# TYPE sekisho_ready gauge",
        ],
    );
    assert!(!old.contains("# EOF"));
    let samples = |page: &str| page.lines().filter(|line| !line.starts_with(['#', 'p'])).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(samples(&new), samples(&old));
}
