//! The merge with time passed in, and which pod is whose agent. Tunnels need a cluster: `cargo xtask e2e`.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node, Pod};
use proptest::prelude::*;
use sekisho_proto::{Record, from_nanoseconds};
use serde_json::json;

use super::merge::{Merge, Next, Said};
use super::places::places;

const WINDOW: Duration = Duration::from_millis(500);

fn record(node: usize, time: u64, seq: u64) -> Record {
    Record { node: node.to_string(), seq, time: Some(from_nanoseconds(time)), ..Record::default() }
}

fn said(at: Instant, node: usize, time: u64) -> Said {
    Said::Record(at, Box::new(record(node, time, 0)))
}

/// The time of the next record, if one may be printed.
fn time(next: Next) -> Option<u64> {
    match next {
        Next::Print(record) => record.time.as_ref().map(sekisho_proto::to_nanoseconds),
        _ => None,
    }
}

#[test]
fn nothing_overtakes_a_past_that_is_still_coming() {
    let start = Instant::now();
    let mut merge = Merge::new(2, WINDOW);
    merge.hear(0, said(start, 0, 10));
    assert!(matches!(merge.next(start + Duration::from_hours(1)), Next::Wait(None)));
    merge.hear(1, said(start, 1, 5));
    assert_eq!(time(merge.next(start)), Some(5));
    assert!(!merge.past_is_told());
    merge.end(1);
    assert_eq!(time(merge.next(start)), Some(10));
    merge.end(0);
    assert!(matches!(merge.next(start), Next::End));
}

#[test]
fn a_silent_lane_holds_the_others_up_for_one_window() {
    let start = Instant::now();
    let mut merge = Merge::new(2, WINDOW);
    merge.hear(0, Said::Caught(start));
    merge.hear(1, Said::Caught(start));
    let later = start + Duration::from_secs(60);
    merge.hear(0, said(later, 0, 10));
    assert!(matches!(merge.next(later), Next::Wait(Some(until)) if until == later + WINDOW));
    // What comes in time goes before.
    merge.hear(1, said(later + WINDOW / 2, 1, 9));
    assert_eq!(time(merge.next(later + WINDOW / 2)), Some(9));
    assert!(matches!(merge.next(later + WINDOW), Next::Wait(Some(_))));
    assert_eq!(time(merge.next(later + WINDOW / 2 + WINDOW)), Some(10));
}

#[test]
fn a_lane_that_is_down_holds_nobody_up_and_counts_again_when_it_speaks() {
    let start = Instant::now();
    let mut merge = Merge::new(2, WINDOW);
    merge.hear(0, Said::Caught(start));
    merge.hear(1, Said::Down);
    assert!(merge.past_is_told());
    merge.hear(0, said(start, 0, 10));
    assert_eq!(time(merge.next(start)), Some(10));
    merge.hear(1, said(start, 1, 3));
    assert!(matches!(merge.next(start), Next::Wait(Some(_))));
    merge.hear(0, said(start, 0, 11));
    assert_eq!(time(merge.next(start)), Some(3));
}

#[test]
fn a_lane_that_joins_holds_nobody_up_before_it_speaks() {
    let start = Instant::now();
    let mut merge = Merge::new(1, WINDOW);
    merge.hear(0, Said::Caught(start));
    merge.add();
    assert!(merge.past_is_told());
    merge.hear(0, said(start, 0, 10));
    assert_eq!(time(merge.next(start)), Some(10));
    merge.hear(1, Said::Caught(start));
    merge.hear(0, said(start, 0, 11));
    assert!(matches!(merge.next(start), Next::Wait(Some(_))));
}

#[test]
fn a_clock_that_is_hours_behind_holds_nobody_up_for_ever() {
    let start = Instant::now();
    let mut merge = Merge::new(2, WINDOW);
    merge.hear(0, Said::Caught(start));
    merge.hear(1, Said::Caught(start));
    merge.hear(0, said(start, 0, 1_000_000));
    let mut now = start;
    for behind in 0..100 {
        now += WINDOW / 2;
        if merge.wants(1) {
            merge.hear(1, said(now, 1, behind));
        }
        while let Some(printed) = time(merge.next(now)) {
            if printed == 1_000_000 {
                assert!(now <= start + WINDOW * 11, "after {:?}", now - start);
                return;
            }
        }
    }
    panic!("never printed");
}

proptest! {
    /// Whatever the order in which the lanes' pasts arrive: all of it, once, by time, each lane in its own order.
    #[test]
    fn the_past_is_merged_exactly(
        mut times in prop::collection::vec(prop::collection::vec(0_u64..100, 0..20), 1..5),
        turns in prop::collection::vec(any::<prop::sample::Index>(), 200),
    ) {
        for lane in &mut times {
            lane.sort_unstable();
        }
        let mut lanes: Vec<VecDeque<Record>> = times
            .iter()
            .enumerate()
            .map(|(node, times)| times.iter().zip(1..).map(|(time, seq)| record(node, *time, seq)).collect())
            .collect();
        let now = Instant::now();
        let mut merge = Merge::new(lanes.len(), WINDOW);
        let mut printed: Vec<(u64, String, u64)> = Vec::new();
        let all = 0..lanes.len();
        for lane in turns.iter().map(|turn| turn.index(times.len())).chain(all.clone().cycle().take(1000)) {
            if merge.wants(lane) {
                match lanes[lane].pop_front() {
                    Some(record) => merge.hear(lane, Said::Record(now, Box::new(record))),
                    None => merge.end(lane),
                }
            }
            while let Next::Print(record) = merge.next(now) {
                printed.push((sekisho_proto::to_nanoseconds(&record.time.unwrap_or_default()), record.node.clone(), record.seq));
            }
        }
        prop_assert!(matches!(merge.next(now), Next::End));
        prop_assert!(printed.is_sorted_by_key(|(time, ..)| *time));
        let mut wanted: Vec<(u64, String, u64)> = Vec::new();
        for (node, times) in times.iter().enumerate() {
            wanted.extend(times.iter().zip(1..).map(|(time, seq)| (*time, node.to_string(), seq)));
        }
        for node in all {
            let own = |list: &[(u64, String, u64)]| list.iter().filter(|(_, n, _)| *n == node.to_string()).map(|r| r.2).collect::<Vec<_>>();
            prop_assert_eq!(own(&printed), own(&wanted));
        }
    }
}

fn node(name: &str, ready: bool) -> Node {
    let status = if ready { "True" } else { "Unknown" };
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
        "status": {"conditions": [{"type": "Ready", "status": status, "lastHeartbeatTime": null, "lastTransitionTime": null}]},
    }))
    .expect("a node")
}

fn pod(name: &str, node: &str, state: &serde_json::Value) -> Pod {
    let phase = if state["running"].is_null() { "Pending" } else { "Running" };
    serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"nodeName": node, "containers": []},
        "status": {"phase": phase, "containerStatuses": [
            {"name": "agent", "image": "", "imageID": "", "ready": true, "restartCount": 0, "state": state},
        ]},
    }))
    .expect("a pod")
}

#[test]
fn every_node_has_its_place_and_the_agent_that_runs_is_meant() {
    let mut fargate = node("d", true);
    fargate.metadata.labels = Some([("eks.amazonaws.com/compute-type".to_owned(), "fargate".to_owned())].into());
    let nodes = [node("a", true), node("b", true), node("c", false), fargate];
    let pods = [
        pod("old", "a", &json!({"terminated": {"exitCode": 1}})),
        pod("new", "a", &json!({"running": {}})),
        pod("waits", "c", &json!({"waiting": {"reason": "CrashLoopBackOff"}})),
    ];
    let found = places(&pods, Some(&nodes), &[]);
    let names: Vec<&str> = found.iter().map(|place| place.node.as_str()).collect();
    assert_eq!(names, ["a", "b", "c"]);
    assert_eq!(found[0].pod, Ok("new".to_owned()));
    assert_eq!(found[1].pod, Err("no agent runs on it".to_owned()));
    let why = found[2].pod.as_ref().expect_err("it does not run");
    assert!(why.contains("waits does not run: Pending (CrashLoopBackOff)") && why.contains("not ready"), "{why}");
}

#[test]
fn a_node_that_is_asked_for_by_name_is_the_only_one_and_need_not_exist() {
    let nodes = [node("a", true), node("b", true)];
    let pods = [pod("one", "a", &json!({"running": {}})), pod("two", "b", &json!({"running": {}}))];
    let found = places(&pods, Some(&nodes), &["b".to_owned(), "z".to_owned()]);
    assert_eq!(found.len(), 2);
    assert_eq!((found[0].node.as_str(), &found[0].pod), ("b", &Ok("two".to_owned())));
    assert_eq!(found[1].pod, Err("there is no such node".to_owned()));
    assert_eq!(places(&pods, None, &[]).len(), 2);
}
