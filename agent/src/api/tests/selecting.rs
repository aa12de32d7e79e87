//! Which records pass which filter.

use sekisho_proto::{Filter, Kind, Verdict};

use super::super::{FilterError, Selection};
use super::records::{alert, body, denied, flow, ledger, mapped};
use crate::flow::{Body, FlowRecord, Moment, Record};

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
    assert_eq!(refused(Filter { ports: vec![65_536], ..Filter::default() }), FilterError::Port(65_536));
    assert_eq!(refused(Filter { protocols: texts(&["http"]), ..Filter::default() }), FilterError::Protocol("http".into()));
    assert_eq!(refused(Filter { kinds: vec![0], ..Filter::default() }), FilterError::Unknown(0));
    assert_eq!(refused(Filter { verdicts: vec![9], ..Filter::default() }), FilterError::Unknown(9));
}
