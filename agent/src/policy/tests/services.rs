use sekisho_core::layout::{EGRESS, address_flags};

use super::{NODE, World, mapped, pod, policy};

fn service(name: &str, spec: &str) -> String {
    format!("---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {spec}\n")
}

fn slice(service: &str, port: u16, endpoints: &str) -> String {
    format!(
        "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: {service}-1, labels: {{kubernetes.io/service-name: {service}}}}}\naddressType: IPv4\nports: [{{port: {port}}}]\nendpoints: [{endpoints}]\n"
    )
}

fn world(endpoints: &str, egress: &str) -> World {
    World::of(
        &[
            pod("client", "10.0.0.1", "app: client", ""),
            pod("a", "10.0.0.2", "app: web, v: '1'", ""),
            pod("b-far", "10.0.0.3", "app: web, v: '2'", ""),
            service("web", "{clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}"),
            slice("web", 8080, endpoints),
            policy("p", &format!("{{podSelector: {{matchLabels: {{app: client}}}}, policyTypes: [Egress], egress: [{egress}]}}")),
        ]
        .concat(),
    )
}

const BOTH: &str = "{addresses: [10.0.0.2], nodeName: n1}, {addresses: [10.0.0.3], nodeName: n2}";

#[test]
fn a_service_is_judged_as_its_backends_on_their_port() {
    let w = world(BOTH, "{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 8080}]}");
    assert!(w.egress("client", "10.96.0.1", "80/tcp") && !w.egress("client", "a", "80/tcp") && w.egress("client", "a", "8080/tcp"));
    assert!(w.egress("client", NODE, "30080/tcp") && !w.egress("client", NODE, "30081/tcp"));
    assert!(!w.egress("client", "10.96.0.1", "81/tcp") && !w.egress("client", "10.96.0.1", "80/udp"));
    let w = world(BOTH, "{to: [{podSelector: {matchLabels: {app: web}}}], ports: [{port: 80}]}");
    assert!(!w.egress("client", "10.96.0.1", "80/tcp"));
    let entry = w.compiled.tables.addresses[&mapped("10.96.0.1".parse().unwrap())];
    assert_eq!(entry.flags, address_flags::SERVICE);
    let entry = w.compiled.tables.addresses[&mapped(NODE.parse().unwrap())];
    assert_eq!(entry.flags, address_flags::SERVICE | address_flags::NODE);
}

#[test]
fn mixed_backends_are_denied_with_a_warning() {
    let w = world(BOTH, "{to: [{podSelector: {matchLabels: {v: '1'}}}]}");
    let (found, decision) = w.decide("client", EGRESS, "10.96.0.1", "80/tcp");
    assert!(!found.allowed);
    assert!(decision.warning.as_ref().is_some_and(|w| w.contains("default/web")), "{decision:?}");
    assert!(w.compiled.warnings.iter().any(|w| w.text.contains("default/web port 80")), "{:?}", w.compiled.warnings);
}

#[test]
fn ready_ones_count_else_those_that_still_serve() {
    let v1 = "{to: [{podSelector: {matchLabels: {v: '1'}}}]}";
    let w = world("{addresses: [10.0.0.2]}, {addresses: [10.0.0.3], conditions: {ready: false, serving: true, terminating: true}}", v1);
    assert!(w.egress("client", "10.96.0.1", "80/tcp"));
    let w = world(
        "{addresses: [10.0.0.3], conditions: {ready: false}}, {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}",
        v1,
    );
    assert!(w.egress("client", "10.96.0.1", "80/tcp"));
    let w = world("{addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: false}}", v1);
    assert!(!w.egress("client", "10.96.0.1", "80/tcp"));
}

#[test]
fn without_backends_only_who_may_go_anywhere_may_go_there() {
    let w = world("", "{to: [{ipBlock: {cidr: 0.0.0.0/0}}]}");
    assert!(!w.egress("client", "10.96.0.1", "80/tcp"));
    let w = world("", "{}");
    assert!(w.egress("client", "10.96.0.1", "80/tcp"));
}

#[test]
fn a_backend_whose_pod_is_unknown_is_left_out() {
    let w = world("{addresses: [10.0.0.2]}, {addresses: [10.0.0.9], targetRef: {kind: Pod, name: coming}}", "{to: [{podSelector: {}}]}");
    assert!(w.egress("client", "10.96.0.1", "80/tcp"));
}

/// `v: '1'` may be dialled; of what else is behind the Service, only what counts may take it away.
fn beside_the_good_one(endpoints: &str, more: &str) -> bool {
    let yaml = [
        pod("client", "10.0.0.1", "app: client", ""),
        pod("good", "10.0.0.2", "v: '1'", ""),
        pod("b-far", "10.0.0.3", "v: '2'", ""),
        more.to_owned(),
        service("web", "{clusterIP: 10.96.0.1, ports: [{port: 80}]}"),
        slice("web", 8080, &format!("{{addresses: [10.0.0.2], targetRef: {{kind: Pod, name: good}}}}, {endpoints}")),
        policy(
            "p",
            "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {v: '1'}}}]}]}",
        ),
    ];
    World::of(&yaml.concat()).egress("client", "10.96.0.1", "80/tcp")
}

#[test]
fn a_stale_backend_does_not_take_a_service_away() {
    let target = |ip: &str, name: &str| format!("{{addresses: ['{ip}'], targetRef: {{kind: Pod, name: {name}}}}}");
    let failed = pod("failed", "10.0.0.7", "v: '1'", "").replace("status: {", "status: {phase: Failed, ");
    let node = "---\napiVersion: v1\nkind: Node\nmetadata: {name: n2}\nspec: {podCIDRs: [10.0.0.0/24]}\n";
    assert!(beside_the_good_one(&target("10.0.0.7", "failed"), &failed), "its pod has failed");
    assert!(beside_the_good_one("{addresses: [10.0.0.7]}", &failed), "whoever says so");
    assert!(beside_the_good_one(&target("10.0.0.9", "b-far"), ""), "its pod has another address now");
    let coming = pod("coming", "10.0.0.9", "v: '1'", "").replace("podIPs: [{ip: '10.0.0.9'}]", "phase: Pending");
    assert!(beside_the_good_one(&target("10.0.0.9", "coming"), &coming), "its pod's address is not known yet");
    assert!(beside_the_good_one(&target("10.0.0.9", "unknown"), ""), "nor is its pod");
    assert!(beside_the_good_one("{addresses: [10.0.0.9]}", node), "nobody has it, where only pods have addresses");
}

/// Whoever may write slices must not open a road by calling it somebody's: what counts is who has the address.
#[test]
fn a_backend_is_who_has_its_address() {
    let target = |ip: &str, name: &str| format!("{{addresses: ['{ip}'], targetRef: {{kind: Pod, name: {name}}}}}");
    let failed = pod("failed", "10.0.0.3", "v: '1'", "").replace("status: {", "status: {phase: Failed, ");
    assert!(!beside_the_good_one(&target("10.0.0.3", "failed"), &failed), "another pod has it now");
    assert!(!beside_the_good_one(&target("10.0.0.3", "good"), ""), "it is not his");
    for name in ["unknown", "good"] {
        assert!(!beside_the_good_one(&target("8.8.8.8", name), ""), "no pod's address is there, whatever {name} is");
        assert!(!beside_the_good_one(&target(super::NODE, name), ""), "a node's address is a node's, not {name}'s");
    }
    assert!(!beside_the_good_one("{addresses: [10.0.0.9]}", ""), "it may be a machine's");
}

/// Of two pods behind their Service, each may use it where the other may be dialled: it may always dial itself.
#[test]
fn a_pod_reaches_itself_through_its_own_service() {
    let yaml = |egress: &str, endpoints: &str| {
        [
            pod("a", "10.0.0.1", "app: web, name: a", ""),
            pod("b", "10.0.0.2", "app: web, name: b", ""),
            pod("stranger", "10.0.0.3", "app: other", ""),
            service("web", "{clusterIP: 10.96.0.1, ports: [{port: 80, nodePort: 30080}]}"),
            slice("web", 80, endpoints),
            service("twin", "{clusterIP: 10.96.0.2, ports: [{port: 80}]}"),
            slice("twin", 80, "{addresses: [10.0.0.2]}"),
            policy("p", &format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{egress}]}}")),
        ]
        .concat()
    };
    let alone = World::of(&yaml("", "{addresses: [10.0.0.1]}"));
    assert!(alone.egress("a", "10.96.0.1", "80/tcp") && alone.egress("a", NODE, "30080/tcp"), "nobody else is there");
    assert!(!alone.egress("a", "10.96.0.1", "81/tcp") && !alone.egress("a", "10.96.0.2", "80/tcp"));
    assert!(!alone.egress("b", "10.96.0.1", "80/tcp") && !alone.egress("stranger", "10.96.0.1", "80/tcp"), "another pod of its rules");
    assert_eq!(alone.compiled.warnings, []);
    let both = "{addresses: [10.0.0.1]}, {addresses: [10.0.0.2]}";
    let closed = World::of(&yaml("", both));
    assert!(!closed.egress("a", "10.96.0.1", "80/tcp") && !closed.egress("b", "10.96.0.1", "80/tcp"));
    let open = World::of(&yaml("{to: [{podSelector: {matchLabels: {name: b}}}]}", both));
    assert!(open.egress("a", "10.96.0.1", "80/tcp"), "the other one may be dialled");
    assert!(!open.egress("b", "10.96.0.1", "80/tcp") && !open.egress("stranger", "10.96.0.1", "80/tcp"), "a may not be");
}

/// Such a load balancer sends what it is sent to the nodes by itself; kube-proxy does not take its address.
#[test]
fn a_load_balancer_that_is_a_proxy_is_a_plain_address() {
    let world = |mode: &str| {
        let yaml = [
            pod("client", "10.0.0.1", "app: client", ""),
            pod("a", "10.0.0.2", "v: '1'", ""),
            service("web", "{clusterIP: 10.96.0.1, ports: [{port: 80}]}"),
            format!("status: {{loadBalancer: {{ingress: [{{ip: 7.7.7.7{mode}}}]}}}}\n"),
            slice("web", 80, "{addresses: [10.0.0.2]}"),
            policy("p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {v: '1'}}}]}]}"),
            policy("q", "{podSelector: {matchLabels: {v: '1'}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 7.7.7.7/32}}]}]}"),
        ];
        World::of(&yaml.concat())
    };
    for mode in ["", ", ipMode: VIP"] {
        let w = world(mode);
        assert!(w.egress("client", "7.7.7.7", "80/tcp"), "{mode}");
    }
    let proxy = world(", ipMode: Proxy");
    assert!(!proxy.egress("client", "7.7.7.7", "80/tcp") && proxy.egress("client", "10.96.0.1", "80/tcp"));
    assert!(proxy.egress("a", "7.7.7.7", "80/tcp"), "as a rule names it");
}

#[test]
fn traffic_that_stays_on_the_node_meets_its_backends_only() {
    let yaml = [
        pod("client", "10.0.0.1", "app: client", ""),
        pod("a", "10.0.0.2", "v: '1'", ""),
        pod("b-far", "10.0.0.3", "v: '2'", ""),
        service("web", "{clusterIP: 10.96.0.1, internalTrafficPolicy: Local, externalIPs: [7.7.7.7], ports: [{port: 8080}]}"),
        slice("web", 8080, BOTH),
        policy(
            "p",
            "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {v: '1'}}}]}]}",
        ),
    ]
    .concat();
    let w = World::of(&yaml);
    assert!(w.egress("client", "10.96.0.1", "8080/tcp") && !w.egress("client", "7.7.7.7", "8080/tcp"));
}

/// Who may write a Service with `externalIPs` could make a forbidden Service look like one of his own.
#[test]
fn of_services_that_claim_one_door_all_must_be_allowed() {
    let yaml = |name: &str| {
        [
            pod("client", "10.0.0.1", "app: client", ""),
            pod("a", "10.0.0.2", "v: '1'", ""),
            pod("b-far", "10.0.0.3", "v: '2'", ""),
            service("mine", "{clusterIP: 10.96.0.1, ports: [{port: 80}]}"),
            slice("mine", 80, "{addresses: [10.0.0.3]}"),
            service(name, "{clusterIP: 10.96.0.2, externalIPs: [10.96.0.1], ports: [{port: 80}]}"),
            slice(name, 80, "{addresses: [10.0.0.2]}"),
            policy(
                "p",
                "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {v: '1'}}}]}]}",
            ),
        ]
        .concat()
    };
    for name in ["another", "zanother"] {
        let w = World::of(&yaml(name));
        assert!(w.egress("client", "10.96.0.2", "80/tcp") && !w.egress("client", "10.96.0.1", "80/tcp"), "{name}");
    }
}

#[test]
fn where_there_is_no_room_node_ports_of_other_nodes_are_left_out() {
    let nodes: Vec<String> = (2..200)
        .map(|n| format!("---\napiVersion: v1\nkind: Node\nmetadata: {{name: n{n}}}\nstatus: {{addresses: [{{type: InternalIP, address: 192.168.0.{n}}}]}}\n"))
        .collect();
    let ports = |count: u16| {
        (0..count).map(|n| format!("{{name: p{n}, port: {}, nodePort: {}}}", 80 + n, 30_000 + n)).collect::<Vec<_>>().join(", ")
    };
    let world = |count| {
        let yaml = [
            nodes.concat(),
            pod("client", "10.0.0.1", "app: client", ""),
            service("web", &format!("{{clusterIP: 10.96.0.1, ports: [{}]}}", ports(count))),
            policy("p", "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 192.168.0.7/32}}]}]}"),
        ];
        World::of(&yaml.concat())
    };
    let few = world(4);
    assert_eq!((few.compiled.tables.vips.len(), few.compiled.warnings.len()), (4 + 4 * 199, 0));
    assert!(!few.egress("client", "192.168.0.7", "30000/tcp"), "it is the Service, which has no backend");
    let many = world(5);
    assert_eq!(many.compiled.tables.vips.len(), 5 + 5, "its own addresses and this node's");
    assert!(many.compiled.warnings.iter().any(|w| w.reason == "ServiceTableSmall"), "{:?}", many.compiled.warnings);
    assert!(many.egress("client", "192.168.0.7", "30000/tcp") && !many.egress("client", "192.168.0.8", "30000/tcp"), "plain addresses");
}

#[test]
fn ingress_knows_no_services() {
    let yaml = [
        pod("client", "10.0.0.1", "app: client", ""),
        service("web", "{clusterIP: 10.96.0.1, ports: [{port: 80}]}"),
        slice("web", 80, "{addresses: [10.0.0.1]}"),
        policy("p", "{ingress: [{from: [{podSelector: {}}]}]}"),
    ]
    .concat();
    assert!(!World::of(&yaml).ingress("client", "10.96.0.1", "80/tcp"));
}
