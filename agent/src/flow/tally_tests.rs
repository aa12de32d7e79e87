use std::sync::Arc;

use sekisho_core::layout::{INGRESS, verdict};
use sekisho_proto as proto;

use super::tally::{Family, Key, Labels, OTHER, SERIES, Tally, Volume};
use super::testing::{flow, pod_identity};
use super::{Body, Explanation, FlowRecord, Moment, Owner};
use crate::policy::RuleRef;

fn record(moment: Moment) -> FlowRecord {
    let (key, flow) = flow(1, 80);
    FlowRecord {
        moment,
        flow_id: 1,
        key,
        family: 4,
        flow,
        start_ns: 1,
        last_ns: 1,
        delta: None,
        local: Some(pod_identity(1, "web-1", "web", "10.0.0.1")),
        remote: None,
        late_identity: false,
        translated: None,
        decision: None,
        process: None,
        listener: None,
        interface: None,
    }
}

fn rule(name: &str, index: u32) -> RuleRef {
    RuleRef { kind: "NetworkPolicy", namespace: "shop".into(), name: name.into(), uid: None, direction: INGRESS, index }
}

fn count(tally: &mut Tally, record: FlowRecord) {
    tally.count(&Body::Flow(Arc::new(record)));
}

fn text(labels: &Labels) -> String {
    labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(",")
}

fn series<K: Key>(family: &Family<K, u64>) -> Vec<(String, u64)> {
    family.series().iter().map(|(labels, n)| (text(labels), *n)).collect()
}

#[test]
fn starts_count_once_by_namespace_policy_rule_and_verdict() {
    let mut tally = Tally::default();
    let allowed = |moment| {
        let mut record = record(moment);
        record.flow.opened = INGRESS;
        record.decision = Some(Arc::new(Explanation { rule: Some(rule("web", 1)), ..Explanation::default() }));
        record
    };
    for moment in [Moment::Start, Moment::Update, Moment::End(1), Moment::Start] {
        count(&mut tally, allowed(moment));
    }
    let mut denied = record(Moment::Start);
    denied.flow.opened = INGRESS;
    denied.flow.verdict = verdict::DENIED;
    denied.flow.reason = 2;
    let isolated_by = vec![rule("all", 0), rule("web", 0)];
    denied.decision = Some(Arc::new(Explanation { isolated_by, nearest: Some(rule("web", 0)), ..Explanation::default() }));
    count(&mut tally, denied);
    // Nothing isolates: no policy decided.
    count(&mut tally, record(Moment::Start));
    assert_eq!(
        series(&tally.flows),
        [
            ("namespace=shop,direction=egress,verdict=allowed".to_owned(), 1),
            ("namespace=shop,direction=ingress,verdict=allowed".to_owned(), 2),
            ("namespace=shop,direction=ingress,verdict=denied".to_owned(), 1),
        ]
    );
    assert_eq!(
        series(&tally.policies),
        [
            ("namespace=shop,policy=web,direction=ingress,rule=ingress[1],verdict=allowed".to_owned(), 2),
            ("namespace=shop,policy=web,direction=ingress,rule=none,verdict=denied".to_owned(), 1),
        ]
    );
    assert_eq!(series(&tally.denials), [("namespace=shop,direction=ingress,reason=default_deny,verdict=denied".to_owned(), 1)]);
}

#[test]
fn traffic_is_what_was_let_through_as_the_pod_sees_it() {
    let mut tally = Tally::default();
    let moved = |opened, verdict| {
        let mut record = record(Moment::Update);
        record.flow.opened = opened;
        record.flow.verdict = verdict;
        record.delta = Some([[3, 2], [300, 2000]]);
        record
    };
    let client = record(Moment::Start).flow.opened;
    count(&mut tally, moved(client, verdict::ALLOWED));
    count(&mut tally, moved(INGRESS, verdict::AUDIT));
    count(&mut tally, moved(client, verdict::DENIED));
    let all: Vec<_> = tally.traffic.series().iter().map(|(labels, volume)| (text(labels), *volume)).collect();
    assert_eq!(
        all,
        [
            ("namespace=shop,direction=received".to_owned(), Volume { packets: 5, bytes: 2300 }),
            ("namespace=shop,direction=sent".to_owned(), Volume { packets: 5, bytes: 2300 }),
        ]
    );
}

#[test]
fn who_makes_namespaces_makes_no_more_series_than_fit() {
    let mut tally = Tally::default();
    let beyond = 500;
    for n in 0..SERIES + beyond {
        let mut record = record(Moment::Start);
        let mut identity = (*pod_identity(1, "web-1", "web", "10.0.0.1")).clone();
        if let Owner::Pod { namespace, .. } = &mut identity.owner {
            *namespace = format!("team-{n}").into();
        }
        record.local = Some(Arc::new(identity));
        count(&mut tally, record);
    }
    let all = series(&tally.flows);
    assert_eq!(all.len(), SERIES + 1);
    assert_eq!(tally.flows.overflow(), beyond as u64);
    let other = all.iter().find(|(labels, _)| labels.contains(OTHER)).expect("what is beyond is counted");
    assert_eq!(other.1, beyond as u64);
    assert_eq!(all.iter().map(|(_, n)| n).sum::<u64>(), (SERIES + beyond) as u64, "nothing is lost");
    // Those that are known go on under their names.
    count(&mut tally, record(Moment::Start));
    assert_eq!(series(&tally.flows).len(), SERIES + 1);
}

#[test]
fn alerts_count_when_they_open_and_stand_at_zero_before() {
    let mut tally = Tally::default();
    tally.expect_alerts(["scan.vertical"]);
    let alert = |status: &str| {
        let source = proto::AlertPeer { namespace: Some("shop".into()), ..proto::AlertPeer::default() };
        let (rule, severity) = ("scan.vertical".to_owned(), "high".to_owned());
        Body::Alert(Arc::new(proto::Alert { rule, severity, status: status.into(), source: Some(source), ..proto::Alert::default() }))
    };
    let high = ("scan.vertical".to_owned(), "high".to_owned());
    assert_eq!((tally.alerts.len(), tally.alerts[&high]), (5, 0));
    for status in ["open", "update", "closed"] {
        tally.count(&alert(status));
    }
    assert_eq!((tally.alerts.len(), tally.alerts[&high]), (5, 1));
    assert_eq!(series(&tally.alerts_by_namespace), [("namespace=shop,rule=scan.vertical".to_owned(), 1)]);
}
