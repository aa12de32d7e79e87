use super::{accepted, policy, read, refused};
use crate::inventory::{PolicyPeer, PortMatch, Requirement};

#[test]
fn policy_types_follow_the_api_server() {
    for (spec, ingress, egress) in [
        ("{podSelector: {}}", true, false),
        ("{podSelector: {}, egress: []}", true, false),
        ("{podSelector: {}, egress: [{}]}", true, true),
        ("{podSelector: {}, ingress: [{}]}", true, false),
        ("{podSelector: {}, policyTypes: []}", true, false),
        ("{podSelector: {}, policyTypes: [Egress]}", false, true),
        ("{podSelector: {}, policyTypes: [Egress], ingress: [{}]}", false, true),
        ("{podSelector: {}, policyTypes: [Ingress], egress: [{}]}", true, false),
        ("{podSelector: {}, policyTypes: [Ingress, Ingress]}", true, false),
        ("{}", true, false),
    ] {
        let policy = accepted(spec);
        assert_eq!((policy.ingress.is_some(), policy.egress.is_some()), (ingress, egress), "{spec}");
    }
}

#[test]
fn ports_take_their_defaults() {
    let policy = accepted(
        "{ingress: [{ports: [{}, {port: 80}, {port: 80, endPort: 82, protocol: UDP}, {port: 80, endPort: 80}, {port: http, protocol: SCTP}, null]}]}",
    );
    let ports: Vec<_> = policy.ingress.as_ref().unwrap()[0].ports.iter().map(|p| (p.protocol, p.port.clone())).collect();
    assert_eq!(
        ports,
        [
            (6, PortMatch::All),
            (6, PortMatch::Range(80, 80)),
            (17, PortMatch::Range(80, 82)),
            (6, PortMatch::Range(80, 80)),
            (132, PortMatch::Named("http".into())),
            (6, PortMatch::All),
        ]
    );
}

#[test]
fn selectors_become_canonical() {
    let a = accepted("{podSelector: {matchLabels: {b: '1', a: '2'}, matchExpressions: [{key: c, operator: NotIn, values: [z, y, z]}]}}");
    let b = accepted(
        "{podSelector: {matchExpressions: [{key: c, operator: NotIn, values: [y, z]}, {key: a, operator: In, values: ['2']}, {key: b, operator: In, values: ['1']}]}}",
    );
    assert_eq!(a.pod_selector, b.pod_selector);
    let c = accepted("{podSelector: {matchExpressions: [{key: c, operator: Exists}, {key: d, operator: DoesNotExist, values: []}]}}");
    assert_eq!(c.pod_selector.requirements, [Requirement::Exists("c".into()), Requirement::DoesNotExist("d".into())]);
}

#[test]
fn blocks_are_masked_and_unmapped() {
    let policy = accepted(
        "{ingress: [{from: [{ipBlock: {cidr: 10.161.3.4/8, except: [10.1.0.0/16]}}, {ipBlock: {cidr: '::ffff:10.0.0.0/104'}}, {ipBlock: {cidr: '2001:db8::1/32'}}]}]}",
    );
    let cidrs: Vec<_> = policy.ingress.as_ref().unwrap()[0]
        .peers
        .iter()
        .map(|p| match p {
            PolicyPeer::Block { cidr, except } => (cidr.to_string(), except.len()),
            PolicyPeer::Pods { .. } => panic!("a block"),
        })
        .collect();
    assert_eq!(cidrs, [("10.0.0.0/8".into(), 1), ("10.0.0.0/8".into(), 0), ("2001:db8::/32".into(), 0)]);
}

/// `(spec, parts of the message)`.
const REFUSED: &[(&str, &[&str])] = &[
    ("{podselector: {}}", &["spec.podselector", "unknown field"]),
    ("{ingress: [{form: []}]}", &["spec.ingress[0].form", "unknown field"]),
    ("{ingress: [{to: []}]}", &["spec.ingress[0].to", "unknown field"]),
    ("{ingress: [{from: [{podSelector: {matchLabel: {a: b}}}]}]}", &["spec.ingress[0].from[0].podSelector.matchLabel", "unknown field"]),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, exept: []}}]}]}", &["ipBlock.exept", "unknown field"]),
    ("{ingress: [{ports: [{ports: 80}]}]}", &["spec.ingress[0].ports[0].ports", "unknown field"]),
    ("{ingress: {from: []}}", &["spec.ingress", "must be a list", "mapping"]),
    ("{ingress: [{from: {podSelector: {}}}]}", &["spec.ingress[0].from", "must be a list"]),
    ("{podSelector: web}", &["spec.podSelector", "must be a mapping", "web"]),
    ("{podSelector: {matchLabels: {a: yes}}}", &["spec.podSelector.matchLabels.a", "must be a string", "boolean true"]),
    ("{podSelector: {matchLabels: {a: 1}}}", &["spec.podSelector.matchLabels.a", "must be a string", "number 1"]),
    ("{podSelector: {matchLabels: {a: 1.5}}}", &["spec.podSelector.matchLabels.a", "1.5"]),
    ("{podSelector: {matchLabels: {'-a': b}}}", &["spec.podSelector.matchLabels.-a", "label key"]),
    ("{podSelector: {matchLabels: {a: 'b c'}}}", &["spec.podSelector.matchLabels.a", "b c", "label value"]),
    (
        "{podSelector: {matchExpressions: [{key: a, operator: in, values: [b]}]}}",
        &["spec.podSelector.matchExpressions[0].operator", "\"in\"", "NotIn"],
    ),
    ("{podSelector: {matchExpressions: [{key: a, operator: Gt, values: ['1']}]}}", &["operator", "Gt"]),
    ("{podSelector: {matchExpressions: [{key: a}]}}", &["operator"]),
    ("{podSelector: {matchExpressions: [{key: a, operator: In}]}}", &["matchExpressions[0].values", "In and NotIn"]),
    ("{podSelector: {matchExpressions: [{key: a, operator: NotIn, values: []}]}}", &["matchExpressions[0].values"]),
    ("{podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}}", &["matchExpressions[0].values", "Exists"]),
    ("{podSelector: {matchExpressions: [{operator: Exists}]}}", &["matchExpressions[0].key", "required"]),
    ("{policyTypes: [ingress]}", &["spec.policyTypes[0]", "\"ingress\""]),
    ("{policyTypes: [Ingress, Egress, Ingress]}", &["spec.policyTypes", "more than two"]),
    ("{policyTypes: Ingress}", &["spec.policyTypes", "must be a list"]),
    ("{ingress: [{from: [{}]}]}", &["spec.ingress[0].from[0]", "must have a peer"]),
    ("{ingress: [{from: [null]}]}", &["spec.ingress[0].from[0]", "must have a peer"]),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}, podSelector: {}}]}]}", &["spec.ingress[0].from[0]", "both"]),
    ("{ingress: [{from: [{ipBlock: {}}]}]}", &["ipBlock.cidr", "required"]),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]}", &["ipBlock.cidr", "10.0.0.1", "CIDR"]),
    ("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/33}}]}]}", &["ipBlock.cidr", "10.0.0.0/33"]),
    (
        "{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}",
        &["spec.egress[0].to[0].ipBlock.except[0]", "11.0.0.0/16", "10.0.0.0/8"],
    ),
    ("{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}", &["except[0]", "strict subset"]),
    ("{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [0.0.0.0/0]}}]}]}", &["except[0]"]),
    ("{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: ['fd00::/64']}}]}]}", &["except[0]"]),
    ("{egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: 10.1.0.0/16}}]}]}", &["except", "must be a list"]),
    ("{ingress: [{ports: [{port: 0}]}]}", &["spec.ingress[0].ports[0].port", "0 is no port"]),
    ("{ingress: [{ports: [{port: 65536}]}]}", &["spec.ingress[0].ports[0].port", "65536"]),
    ("{ingress: [{ports: [{port: -1}]}]}", &["spec.ingress[0].ports[0].port", "-1"]),
    ("{ingress: [{ports: [{port: '80'}]}]}", &["spec.ingress[0].ports[0].port", "\"80\"", "port name"]),
    ("{ingress: [{ports: [{port: 80.5}]}]}", &["spec.ingress[0].ports[0].port", "80.5"]),
    ("{ingress: [{ports: [{port: much-too-long-a-name}]}]}", &["spec.ingress[0].ports[0].port", "port name"]),
    ("{ingress: [{ports: [{port: 80, endPort: 79}]}]}", &["spec.ingress[0].ports[0].endPort", "79 is below port 80"]),
    ("{ingress: [{ports: [{port: 80, endPort: 65536}]}]}", &["endPort", "65536"]),
    ("{ingress: [{ports: [{endPort: 80}]}]}", &["endPort", "without port"]),
    ("{ingress: [{ports: [{port: http, endPort: 80}]}]}", &["endPort", "name"]),
    ("{ingress: [{ports: [{port: 80, endPort: '90'}]}]}", &["endPort", "whole number"]),
    ("{ingress: [{ports: [{port: 80, protocol: tcp}]}]}", &["spec.ingress[0].ports[0].protocol", "\"tcp\"", "SCTP"]),
    ("{ingress: [{ports: [{port: 80, protocol: ICMP}]}]}", &["protocol", "ICMP"]),
    ("[]", &["spec", "must be a mapping"]),
];

#[test]
fn what_the_api_server_refuses_is_refused_with_its_field() {
    for (spec, parts) in REFUSED {
        let message = refused(&policy(spec));
        for part in parts.iter().chain(&["a.yaml", "document 1"]) {
            assert!(message.contains(part), "{spec}\n{message}\nlacks {part}");
        }
    }
}

#[test]
fn names_and_versions_are_checked() {
    let base = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n";
    for (text, part) in [
        (format!("{base}metadata: {{}}\nspec: {{}}"), "metadata.name: required"),
        (format!("{base}metadata: {{generateName: a-}}\nspec: {{}}"), "metadata.name: required"),
        (format!("{base}metadata: {{name: A_b}}\nspec: {{}}"), "metadata.name"),
        (format!("{base}metadata: {{name: a, namespace: a.b}}\nspec: {{}}"), "metadata.namespace"),
        (format!("{base}metadata: {{name: a, label: {{}}}}\nspec: {{}}"), "metadata.label: unknown field"),
        (format!("{base}metadata: {{name: 5}}\nspec: {{}}"), "metadata.name: must be a string"),
        (format!("{base}metadata: {{name: a}}\nspecs: {{}}"), "specs: unknown field"),
        ("apiVersion: networking.k8s.io/v1beta1\nkind: NetworkPolicy\nmetadata: {name: a}".into(), "apiVersion"),
        ("kind: NetworkPolicy\nmetadata: {name: a}".into(), "apiVersion: required"),
        ("apiVersion: networking.k8s.io/v1\nmetadata: {name: a}".into(), "kind: required"),
        ("- a\n- b".into(), "must be an object"),
    ] {
        let message = refused(&text);
        assert!(message.contains(part), "{message}\nlacks {part}");
    }
}

#[test]
fn policies_of_other_groups_are_not_ours() {
    let snapshot =
        read(&[("a.yaml", "apiVersion: projectcalico.org/v3\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: {selector: all()}")]);
    assert!(snapshot.refused.is_empty() && snapshot.policies.is_empty());
}
