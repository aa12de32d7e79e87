//! The policies of the truth table, and beside each, in plain code, who reaches whom under it. Written by hand:
//! nothing here is computed from the policies.

use serde_json::{Value, json};

use super::probe::Protocol;

/// One end: namespace (x, y, z) and pod (a, b, c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct End {
    pub(super) namespace: &'static str,
    pub(super) pod: &'static str,
}

/// From whom, to whom, protocol, port: whether it passes. A pod to itself is not asked.
type Truth = fn(End, End, Protocol, u16) -> bool;

/// Policies and what follows from them.
pub(super) struct Scenario {
    pub(super) name: &'static str,
    pub(super) policies: Vec<Value>,
    pub(super) truth: Truth,
}

/// The namespaces' real names begin with this.
pub(super) const PREFIX: &str = "e2e-";

const fn end(namespace: &'static str, pod: &'static str) -> End {
    End { namespace, pod }
}

const XA: End = end("x", "a");
const YA: End = end("y", "a");

/// A NetworkPolicy.
pub(super) fn policy(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec,
    })
}

/// One that isolates every pod of a namespace.
pub(super) fn deny_all(namespace: &str, direction: &str) -> Value {
    policy(namespace, "deny-all", &json!({"podSelector": {}, "policyTypes": [direction]}))
}

fn to_xa(ingress: &Value) -> Vec<Value> {
    vec![policy("e2e-x", "p", &json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Ingress"], "ingress": ingress}))]
}

fn from_ya(egress: &Value) -> Vec<Value> {
    vec![policy("e2e-y", "p", &json!({"podSelector": {"matchLabels": {"pod": "a"}}, "policyTypes": ["Egress"], "egress": egress}))]
}

fn pods(name: &str) -> Value {
    json!({"matchLabels": {"pod": name}})
}

fn namespaces(name: &str) -> Value {
    json!({"matchLabels": {"ns": format!("{PREFIX}{name}")}})
}

/// All of them. `addresses` are those of the pod y/a.
pub(super) fn all(addresses: &[std::net::IpAddr]) -> Vec<Scenario> {
    let blocks: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"ipBlock": {"cidr": format!("{address}/{}", if address.is_ipv4() { 32 } else { 128 })}}))
        .collect();
    let scenario = |name, policies, truth: Truth| Scenario { name, policies, truth };
    let mut all = vec![
        scenario("no policy", vec![], |_, _, _, _| true),
        scenario("x takes nothing in", vec![deny_all("e2e-x", "Ingress")], |_, to, _, _| to.namespace != "x"),
        scenario("y lets nothing out", vec![deny_all("e2e-y", "Egress")], |from, _, _, _| from.namespace != "y"),
        scenario("x/a from its neighbours b", to_xa(&json!([{"from": [{"podSelector": pods("b")}]}])), |from, to, _, _| {
            to != XA || from == end("x", "b")
        }),
        scenario("x/a from y", to_xa(&json!([{"from": [{"namespaceSelector": namespaces("y")}]}])), |from, to, _, _| {
            to != XA || from.namespace == "y"
        }),
        scenario(
            "x/a from y's b",
            to_xa(&json!([{"from": [{"namespaceSelector": namespaces("y"), "podSelector": pods("b")}]}])),
            |from, to, _, _| to != XA || from == end("y", "b"),
        ),
        scenario(
            "x/a from z or its neighbours c",
            to_xa(&json!([{"from": [{"namespaceSelector": namespaces("z")}, {"podSelector": pods("c")}]}])),
            |from, to, _, _| to != XA || from.namespace == "z" || from == end("x", "c"),
        ),
        scenario("x/a on 80/TCP", to_xa(&json!([{"ports": [{"protocol": "TCP", "port": 80}]}])), |_, to, protocol, port| {
            to != XA || (protocol == Protocol::Tcp && port == 80)
        }),
        scenario("x/a on the port called http", to_xa(&json!([{"ports": [{"port": "http"}]}])), |_, to, protocol, port| {
            to != XA || (protocol == Protocol::Tcp && port == 80)
        }),
        scenario("x/a from y/a's addresses", to_xa(&json!([{"from": blocks}])), |from, to, _, _| to != XA || from == YA),
    ];
    all.extend(of_egress(scenario));
    all
}

fn of_egress(scenario: impl Fn(&'static str, Vec<Value>, Truth) -> Scenario) -> Vec<Scenario> {
    let not_a = json!({"matchExpressions": [{"key": "pod", "operator": "NotIn", "values": ["a"]}]});
    let both = {
        let mut policies = to_xa(&json!([{"from": [{"namespaceSelector": namespaces("y")}]}]));
        policies.extend(from_ya(&json!([{"to": [{"namespaceSelector": {}, "podSelector": pods("b")}]}])));
        policies
    };
    vec![
        scenario("y/a to z", from_ya(&json!([{"to": [{"namespaceSelector": namespaces("z")}]}])), |from, to, _, _| {
            from != YA || to.namespace == "z"
        }),
        scenario(
            "y/a to ports 81 to 90 of TCP",
            from_ya(&json!([{"ports": [{"protocol": "TCP", "port": 81, "endPort": 90}]}])),
            |from, _, protocol, port| from != YA || (protocol == Protocol::Tcp && port == 81),
        ),
        scenario(
            "x/a from its neighbours but a, and UDP from all",
            to_xa(&json!([{"from": [{"podSelector": not_a}]}, {"ports": [{"protocol": "UDP", "port": 80}]}])),
            |from, to, protocol, _| to != XA || (from.namespace == "x" && from.pod != "a") || protocol == Protocol::Udp,
        ),
        scenario("both ends at once", both, |from, to, _, _| (to != XA || from.namespace == "y") && (from != YA || to.pod == "b")),
    ]
}
