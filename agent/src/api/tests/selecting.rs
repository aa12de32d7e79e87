//! Which records pass which filter.

use sekisho_proto::{Filter, Kind, Reason, Verdict, WorkloadName};

use super::super::{FilterError, Selection};
use super::records::{alert, body, denied, flow, ledger, mapped, pod};
use crate::flow::{Body, Explanation, FlowRecord, Moment, Owner, Record, Translated};
use crate::inventory::Workload;
use crate::policy::RuleRef;

fn passes(filter: &Filter, body: Body) -> bool {
    Selection::new(filter).expect("a good filter").passes(&Record { seq: 1, time_ns: 1, body })
}

fn texts(values: &[&str]) -> Vec<String> {
    values.iter().map(|value| (*value).to_owned()).collect()
}

#[test]
fn no_filter_passes_everything() {
    for body in [body(flow()), body(denied()), alert(), ledger()] {
        assert!(passes(&Filter::default(), body));
    }
    assert!(Selection::new(&Filter::default()).expect("good").filter().is_none());
}

#[test]
fn a_filter_on_flows_leaves_other_records_out() {
    let filter = Filter { verdicts: vec![Verdict::Denied as i32], ..Filter::default() };
    assert!(passes(&filter, body(denied())));
    assert!(!passes(&filter, body(flow())));
    assert!(!passes(&filter, alert()));
    assert!(!passes(&filter, ledger()));
}

#[test]
fn other_records_pass_where_their_kind_is_asked_for() {
    let filter =
        Filter { kinds: vec![Kind::Start as i32, Kind::Ledger as i32], verdicts: vec![Verdict::Denied as i32], ..Filter::default() };
    assert!(passes(&filter, body(denied())));
    assert!(!passes(&filter, body(flow())));
    assert!(passes(&filter, ledger()));
    assert!(!passes(&filter, alert()));
    let ended = FlowRecord { moment: Moment::End(1), ..denied() };
    assert!(!passes(&filter, body(ended)));
}

#[test]
fn pods_match_by_role_however_the_flow_was_seen() {
    for seen in [flow(), denied()] {
        let from = |pod: &str| Filter { from_pods: texts(&[pod]), ..Filter::default() };
        let to = |pod: &str| Filter { to_pods: texts(&[pod]), ..Filter::default() };
        let either = |pod: &str| Filter { pods: texts(&[pod]), ..Filter::default() };
        assert!(passes(&from("shop/web"), body(seen.clone())));
        assert!(!passes(&from("shop/db"), body(seen.clone())));
        assert!(passes(&to("shop/db"), body(seen.clone())));
        assert!(!passes(&to("shop/web"), body(seen.clone())));
        assert!(passes(&either("shop/web"), body(seen.clone())));
        assert!(passes(&either("shop/db"), body(seen.clone())));
        assert!(!passes(&either("web"), body(seen.clone())), "a pod alone is one of namespace default");
    }
}

#[test]
fn ends_match_by_namespace_address_port_and_protocol() {
    let yes = |filter: Filter| assert!(passes(&filter, body(flow())), "{filter:?}");
    let no = |filter: Filter| assert!(!passes(&filter, body(flow())), "{filter:?}");
    yes(Filter { namespaces: texts(&["other", "shop"]), ..Filter::default() });
    no(Filter { namespaces: texts(&["other"]), ..Filter::default() });
    yes(Filter { ips: texts(&["10.1.0.2"]), ..Filter::default() });
    yes(Filter { ips: texts(&["10.1.0.3/32"]), ..Filter::default() });
    yes(Filter { ips: texts(&["10.0.0.0/8"]), ..Filter::default() });
    no(Filter { ips: texts(&["10.2.0.0/16", "::/0"]), ..Filter::default() });
    yes(Filter { ports: vec![5432], ..Filter::default() });
    yes(Filter { ports: vec![1, 40_000], ..Filter::default() });
    no(Filter { ports: vec![80], ..Filter::default() });
    yes(Filter { protocols: texts(&["tcp"]), ..Filter::default() });
    yes(Filter { protocols: texts(&["6"]), ..Filter::default() });
    no(Filter { protocols: texts(&["UDP", "icmp"]), ..Filter::default() });
    no(Filter { ports: vec![5432], protocols: texts(&["UDP"]), ..Filter::default() });
}

#[test]
fn icmp_means_both_families_and_its_id_is_no_port() {
    let mut seen = flow();
    seen.key.protocol = 58;
    seen.key.remote = mapped("fd00::3");
    let only = |protocol: &str| Filter { protocols: texts(&[protocol]), ..Filter::default() };
    assert!(passes(&only("ICMP"), body(seen.clone())));
    assert!(passes(&only("icmpv6"), body(seen.clone())));
    assert!(!passes(&only("ICMPv4"), body(seen.clone())));
    assert!(passes(&Filter { ips: texts(&["fd00::/64"]), ..Filter::default() }, body(seen.clone())));
    assert!(!passes(&Filter { ports: vec![5432], ..Filter::default() }, body(seen)));
}

#[test]
fn alerts_match_by_their_ends() {
    let asked = |filter: Filter| Filter { kinds: vec![Kind::Alert as i32], ..filter };
    let yes = |filter: Filter| assert!(passes(&asked(filter.clone()), alert()), "{filter:?}");
    let no = |filter: Filter| assert!(!passes(&asked(filter.clone()), alert()), "{filter:?}");
    yes(Filter::default());
    yes(Filter { from_pods: texts(&["shop/stranger"]), ..Filter::default() });
    no(Filter { from_pods: texts(&["shop/db"]), ..Filter::default() });
    yes(Filter { to_pods: texts(&["shop/db"]), ..Filter::default() });
    yes(Filter { ips: texts(&["10.1.0.9"]), ports: vec![23], ..Filter::default() });
    no(Filter { namespaces: texts(&["other"]), ..Filter::default() });
}

#[test]
fn nonsense_is_refused_by_name() {
    let refused = |filter: Filter| Selection::new(&filter).expect_err("nonsense");
    assert_eq!(refused(Filter { ips: texts(&["10.1.0.0/33"]), ..Filter::default() }), FilterError::Network("10.1.0.0/33".into()));
    assert_eq!(refused(Filter { pods: texts(&["a/b/c"]), ..Filter::default() }), FilterError::Pod("a/b/c".into()));
    assert_eq!(refused(Filter { policies: texts(&["/"]), ..Filter::default() }), FilterError::Name("/".into()));
    assert_eq!(refused(Filter { workloads: vec![WorkloadName::default()], ..Filter::default() }), FilterError::Workload);
    assert!(matches!(refused(Filter { selectors: texts(&["a=b=c"]), ..Filter::default() }), FilterError::Selector(_)));
    assert_eq!(refused(Filter { reasons: vec![99], ..Filter::default() }), FilterError::Unknown(99));
    assert_eq!(refused(Filter { ports: vec![65_536], ..Filter::default() }), FilterError::Port(65_536));
    assert_eq!(refused(Filter { protocols: texts(&["http"]), ..Filter::default() }), FilterError::Protocol("http".into()));
    assert_eq!(refused(Filter { kinds: vec![0], ..Filter::default() }), FilterError::Unknown(0));
    assert_eq!(refused(Filter { verdicts: vec![9], ..Filter::default() }), FilterError::Unknown(9));
}

/// `shop/web` of a Deployment, with labels.
fn labelled() -> FlowRecord {
    let mut web = (*pod("shop", "web-5d9f7c6b8-q7k2m")).clone();
    let text = std::sync::Arc::<str>::from;
    if let Owner::Pod { labels, workload, .. } = &mut web.owner {
        *labels = std::sync::Arc::new([(text("app"), text("web")), (text("tier"), text("front"))].into());
        *workload = Workload { kind: "Deployment".into(), name: "frontend".into() };
    }
    FlowRecord { local: Some(web.into()), ..flow() }
}

#[test]
fn pods_match_by_the_beginning_of_their_name_or_by_their_workload() {
    let pods = |pod: &str| passes(&Filter { pods: texts(&[pod]), ..Filter::default() }, body(labelled()));
    for wanted in ["shop/web", "shop/web-5d9f7c6b8-q7k2m", "shop/frontend", "shop/", "/web", "/frontend"] {
        assert!(pods(wanted), "{wanted}");
    }
    for other in ["shop/eb", "shop/front", "other/web", "other/", "/api", "web"] {
        assert!(!pods(other), "{other}");
    }
}

#[test]
fn ends_match_by_workload_and_labels() {
    let yes = |filter: Filter| assert!(passes(&filter, body(labelled())), "{filter:?}");
    let no = |filter: Filter| assert!(!passes(&filter, body(labelled())), "{filter:?}");
    let workload = |namespace: Option<&str>, kind: Option<&str>, name: &str| {
        vec![WorkloadName { namespace: namespace.map(Into::into), kind: kind.map(Into::into), name: name.into() }]
    };
    yes(Filter { workloads: workload(None, None, "frontend"), ..Filter::default() });
    yes(Filter { from_workloads: workload(Some("shop"), Some("deployment"), "frontend"), ..Filter::default() });
    no(Filter { to_workloads: workload(None, None, "frontend"), ..Filter::default() });
    no(Filter { workloads: workload(None, Some("StatefulSet"), "frontend"), ..Filter::default() });
    no(Filter { workloads: workload(Some("play"), None, "frontend"), ..Filter::default() });
    no(Filter { workloads: workload(None, None, "front"), ..Filter::default() });
    yes(Filter { selectors: texts(&["app=web,tier in (front,back)"]), ..Filter::default() });
    yes(Filter { selectors: texts(&["app=db", "!canary,app=web"]), ..Filter::default() });
    yes(Filter { from_selectors: texts(&["tier"]), ..Filter::default() });
    no(Filter { to_selectors: texts(&["tier"]), ..Filter::default() });
    no(Filter { selectors: texts(&["app=web,tier!=front"]), ..Filter::default() });
}

#[test]
fn each_end_has_its_own_filters() {
    let yes = |filter: Filter| [flow(), denied()].into_iter().for_each(|seen| assert!(passes(&filter, body(seen)), "{filter:?}"));
    let no = |filter: Filter| [flow(), denied()].into_iter().for_each(|seen| assert!(!passes(&filter, body(seen)), "{filter:?}"));
    yes(Filter { from_namespaces: texts(&["shop"]), to_namespaces: texts(&["shop"]), ..Filter::default() });
    no(Filter { from_namespaces: texts(&["other"]), ..Filter::default() });
    yes(Filter { from_ips: texts(&["10.1.0.2"]), to_ips: texts(&["10.1.0.3"]), ..Filter::default() });
    no(Filter { from_ips: texts(&["10.1.0.3"]), ..Filter::default() });
    yes(Filter { to_ports: vec![5432], from_ports: vec![40_000], ..Filter::default() });
    no(Filter { to_ports: vec![40_000], ..Filter::default() });
}

#[test]
fn a_flow_to_a_service_goes_to_the_service_and_to_what_stands_behind_it() {
    let mut api = (*pod("shop", "api")).clone();
    api.owner = Owner::Service { namespace: "shop".into(), name: "api".into(), port: "http".into() };
    let behind = Translated {
        source: ("10.1.0.2".parse().expect("an address"), 40_000),
        destination: ("10.1.0.7".parse().expect("an address"), 8080),
        owner: Some(pod("shop", "api-1")),
    };
    let dialled = FlowRecord { remote: Some(api.into()), translated: Some(behind.into()), ..flow() };
    let yes = |filter: Filter| assert!(passes(&filter, body(dialled.clone())), "{filter:?}");
    let no = |filter: Filter| assert!(!passes(&filter, body(dialled.clone())), "{filter:?}");
    yes(Filter { services: texts(&["shop/ap"]), ..Filter::default() });
    yes(Filter { to_services: texts(&["/api"]), ..Filter::default() });
    no(Filter { from_services: texts(&["shop/api"]), ..Filter::default() });
    no(Filter { services: texts(&["shop/web"]), ..Filter::default() });
    yes(Filter { to_pods: texts(&["shop/api-1"]), ..Filter::default() });
    yes(Filter { to_ips: texts(&["10.1.0.7"]), to_ports: vec![8080], ..Filter::default() });
    no(Filter { from_pods: texts(&["shop/api-1"]), ..Filter::default() });
}

#[test]
fn flows_match_by_the_policy_and_the_reason_that_decided() {
    let rule = RuleRef { kind: "NetworkPolicy", namespace: "shop".into(), name: "db-in".into(), uid: None, direction: 1, index: 0 };
    let by_default = Explanation { isolated_by: vec![rule.clone()], ..Explanation::default() };
    let refused = FlowRecord { decision: Some(by_default.into()), ..denied() };
    let allowed = FlowRecord { decision: Some(Explanation { rule: Some(rule), ..Explanation::default() }.into()), ..flow() };
    let policy = |name: &str| Filter { policies: texts(&[name]), ..Filter::default() };
    for seen in [&refused, &allowed] {
        assert!(passes(&policy("shop/db-in"), body(seen.clone())) && passes(&policy("/db-in"), body(seen.clone())));
        assert!(!passes(&policy("shop/db"), body(seen.clone())) && !passes(&policy("play/db-in"), body(seen.clone())));
    }
    assert!(!passes(&policy("shop/db-in"), body(flow())));
    let because = |reason: Reason| Filter { reasons: vec![reason as i32], ..Filter::default() };
    assert!(passes(&because(Reason::DefaultDeny), body(refused.clone())));
    assert!(!passes(&because(Reason::SpoofedSource), body(refused)));
    assert!(!passes(&because(Reason::DefaultDeny), body(allowed)));
}

#[test]
fn alerts_match_by_severity_and_rule_and_no_other_record_does() {
    let of = |filter: Filter| passes(&filter, alert());
    let severity = |severity: &str| Filter { severities: texts(&[severity]), ..Filter::default() };
    let rule = |rule: &str| Filter { rules: texts(&[rule]), ..Filter::default() };
    assert!(of(severity("HIGH")) && !of(severity("low")));
    assert!(of(rule("scan.vertical")) && of(rule("scan")) && !of(rule("sca")) && !of(rule("scan.vertical.x")) && !of(rule("spoof")));
    for other in [body(flow()), ledger()] {
        assert!(!passes(&rule("scan"), other));
    }
}

#[test]
fn what_is_excluded_is_left_out_and_nothing_else() {
    let without = |filter: Filter, body: Body| {
        let selection = Selection::default().without(&[filter]).expect("a good filter");
        selection.passes(&Record { seq: 1, time_ns: 1, body })
    };
    let denials = || Filter { verdicts: vec![Verdict::Denied as i32], ..Filter::default() };
    assert!(!without(denials(), body(denied())) && without(denials(), body(flow())));
    assert!(without(denials(), alert()) && without(denials(), ledger()), "they have no verdict");
    let shop = || Filter { namespaces: texts(&["shop"]), ..Filter::default() };
    assert!(!without(shop(), body(flow())) && !without(shop(), alert()) && without(shop(), ledger()));
    let ledgers = || Filter { kinds: vec![Kind::Ledger as i32], ..Filter::default() };
    assert!(!without(ledgers(), ledger()) && without(ledgers(), alert()) && without(ledgers(), body(flow())));
    let both = Selection::new(&shop()).and_then(|wanted| wanted.without(&[denials()])).expect("good filters");
    assert!(both.passes(&Record { seq: 1, time_ns: 1, body: body(flow()) }));
    assert!(!both.passes(&Record { seq: 1, time_ns: 1, body: body(denied()) }));
}

#[test]
fn nothing_newer_than_a_moment_passes() {
    let selection = Selection::default().until(Some(5));
    let at = |time_ns: u64| selection.passes(&Record { seq: 1, time_ns, body: ledger() });
    assert!(at(5) && !at(6));
}
