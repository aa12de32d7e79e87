use std::time::{Duration, Instant};

use super::{policy, read, refused};

const POD: &str = "
apiVersion: v1
kind: Pod
metadata:
  name: api-7d9f-x
  namespace: shop
  uid: 11111111-2222-3333-4444-555555555555
  labels: {app: api, pod-template-hash: 7d9f}
  annotations: {kubernetes.io/config.hash: abc, sekisho.dev/allow-sources: '10.9.0.0/16, 10.8.0.1'}
  ownerReferences: [{kind: ReplicaSet, name: api-7d9f, controller: true, apiVersion: apps/v1, uid: x}]
  somethingNew: 1
spec:
  nodeName: n1
  serviceAccountName: api
  containers:
  - name: c
    ports: [{name: http, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}, {containerPort: 9}]
    readinessProbe: {httpGet: {port: 8081}}
    livenessProbe: {httpGet: {port: http}}
  initContainers:
  - {name: once, ports: [{name: once, containerPort: 1}]}
  - {name: side, restartPolicy: Always, ports: [{name: side, containerPort: 2}]}
status: {phase: Running, podIP: 10.0.0.5, podIPs: [{ip: 10.0.0.5}, {ip: 'fd00::5'}]}
";

/// Annotations are anyone's to write: none of them makes a pod another one.
#[test]
fn annotations_prove_nothing() {
    let read_one = |annotations: &str, owner: &str, node: &str| {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: p, annotations: {{{annotations}}}, ownerReferences: [{owner}]}}\nspec: {{{node}}}"
        );
        let snapshot = read(&[("a.yaml", &text)]);
        assert_eq!(snapshot.refused, Vec::<String>::new());
        snapshot.pods.values().next().expect("a pod").clone()
    };
    let claim = |annotations: &str, owner: &str| read_one(annotations, owner, "nodeName: n1").config_hash.clone();
    let hash = |hash: &str, owner: &str| claim(&format!("kubernetes.io/config.hash: {hash}, kubernetes.io/config.mirror: {hash}"), owner);
    let (file, pod) = ("0123456789abcdef0123456789abcdef", "11111111-2222-3333-4444-555555555555");
    let node = "{kind: Node, name: n1, controller: true}";
    assert_eq!(hash(file, node).as_deref(), Some(file));
    assert_eq!(hash(pod, node), None, "another pod's UID");
    assert_eq!(hash(file, "{kind: Node, name: n2, controller: true}"), None, "another node's");
    assert_eq!(hash(file, ""), None);
    assert_eq!(claim(&format!("kubernetes.io/config.hash: {file}"), node), None, "a pod that the kubelet runs under its own UID");
    let announced = |node| read_one("cni.projectcalico.org/podIPs: 10.0.0.7/32", "", node);
    assert_eq!((announced("nodeName: n1").announced.len(), announced("nodeName: n1").ips.len()), (1, 0));
    assert_eq!(announced("").announced.len(), 0, "no CNI has seen it");
    assert_eq!(announced("nodeName: n1, hostNetwork: true").announced.len(), 0);
}

#[test]
fn a_pod_is_read() {
    let snapshot = read(&[("a.yml", POD)]);
    assert_eq!(snapshot.refused, Vec::<String>::new());
    let pod = &snapshot.pods[&("shop".into(), "api-7d9f-x".into())];
    assert_eq!(&*pod.uid, "11111111-2222-3333-4444-555555555555");
    assert_eq!(pod.node.as_deref(), Some("n1"));
    assert_eq!(pod.ips, ["10.0.0.5".parse::<std::net::IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
    assert_eq!((&*pod.workload.kind, &*pod.workload.name), ("Deployment", "api"));
    assert_eq!(pod.config_hash, None, "it is no static pod, whatever its annotation says");
    assert_eq!(pod.allow_sources.len(), 2);
    let ports: Vec<_> = pod.ports.iter().map(|(n, p, proto)| (&**n, *p, *proto)).collect();
    assert_eq!(ports, [("http", 8080, 6), ("dns", 53, 17), ("side", 2, 6)]);
    assert_eq!(*pod.serves, [(2, 6), (9, 6), (53, 17), (8080, 6), (8081, 6)]);
    assert!(!pod.finished && !pod.host_network);
    assert_eq!(&*snapshot.namespaces["shop"].labels["kubernetes.io/metadata.name"], "shop");
}

#[test]
fn owners_are_followed_to_the_top() {
    let owner = |group: &str, kind: &str, name: &str, above: &str| {
        format!("---\napiVersion: {group}/v1\nkind: {kind}\nmetadata: {{name: {name}, ownerReferences: [{above}]}}\n")
    };
    let pod = |name: &str, above: &str| format!("---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, ownerReferences: [{above}]}}\n");
    let text = [
        owner("apps", "Deployment", "web", ""),
        owner("apps", "ReplicaSet", "web-abc", "{kind: Deployment, name: web, controller: true}"),
        owner("apps", "ReplicaSet", "lone", ""),
        owner("batch", "CronJob", "nightly", ""),
        owner("batch", "Job", "nightly-1", "{kind: CronJob, name: nightly, controller: true}"),
        pod("a", "{kind: ReplicaSet, name: web-abc, controller: true}"),
        pod("b", "{kind: ReplicaSet, name: lone, controller: true}"),
        pod("c", "{kind: Job, name: nightly-1, controller: true}"),
        pod("d", "{kind: StatefulSet, name: db, controller: true}"),
        pod("e", "{kind: Node, name: n1, controller: true}"),
        pod("f", ""),
        pod("g", "{kind: ReplicaSet, name: gone-xyz, controller: true}"),
    ]
    .concat();
    let snapshot = read(&[("a.yaml", &text)]);
    assert_eq!(snapshot.refused, Vec::<String>::new());
    let of = |name: &str| {
        let workload = &snapshot.pods[&("default".into(), name.into())].workload;
        format!("{}/{}", workload.kind, workload.name)
    };
    let all: Vec<_> = ["a", "b", "c", "d", "e", "f", "g"].into_iter().map(of).collect();
    assert_eq!(all, ["Deployment/web", "ReplicaSet/lone", "CronJob/nightly", "StatefulSet/db", "Pod/e", "Pod/f", "ReplicaSet/gone-xyz"]);
}

#[test]
fn lists_and_json_and_many_documents() {
    let list = r#"{"apiVersion":"v1","kind":"List","items":[
        {"apiVersion":"v1","kind":"Namespace","metadata":{"name":"x","labels":{"team":"a"}}},
        {"apiVersion":"v1","kind":"PodList","items":[{"metadata":{"name":"p1"}},{"metadata":{"name":"p2","namespace":"x"}}]}]}
        {"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"},"status":{"addresses":[{"type":"InternalIP","address":"192.168.0.1"},{"type":"Hostname","address":"n1"}]}}"#;
    let yaml = "# a comment alone\n---\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: 1}\n---\napiVersion: v1\nkind: NamespaceList\nitems: []\n...\n";
    let snapshot = read(&[("a.json", list), ("b.yaml", yaml), ("c.txt", "nonsense: ["), (".d.yaml", "nonsense: [")]);
    assert_eq!(snapshot.refused, Vec::<String>::new());
    assert_eq!(snapshot.pods.len(), 2);
    assert_eq!(&*snapshot.namespaces["x"].labels["team"], "a");
    assert_eq!(snapshot.nodes["n1"].ips.len(), 1);
}

#[test]
fn services_and_slices_are_read() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1, 'fd96::1'], externalIPs: [1.2.3.4], ports: [{port: 80, targetPort: http, nodePort: 30080}]}
status: {loadBalancer: {ingress: [{ip: 5.6.7.8}, {hostname: x}]}}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec: {clusterIP: None, clusterIPs: [None], ports: [{name: a, port: 1, protocol: UDP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: api-1, namespace: shop, labels: {kubernetes.io/service-name: api}}
addressType: IPv4
ports: [{port: 8080, protocol: TCP, name: ''}]
endpoints:
- {addresses: [10.0.0.5], conditions: {ready: true}, targetRef: {kind: Pod, name: a, namespace: shop}, nodeName: n1}
- {addresses: [10.0.0.6], conditions: {ready: false, serving: true, terminating: true}}
- {addresses: [10.0.0.7]}
";
    let snapshot = read(&[("a.yaml", text)]);
    assert_eq!(snapshot.refused, Vec::<String>::new());
    let service = &snapshot.services[&("shop".into(), "api".into())];
    assert_eq!(service.ips.len(), 4);
    assert_eq!((service.ports[0].port, service.ports[0].node_port), (80, Some(30080)));
    assert!(snapshot.services[&("default".into(), "headless".into())].ips.is_empty());
    let slice = &snapshot.endpoint_slices[&("shop".into(), "api-1".into())];
    assert_eq!(slice.ports, [(None, 8080, 6)]);
    let states: Vec<_> = slice.endpoints.iter().map(|e| (e.ready, e.serving, e.terminating)).collect();
    assert_eq!(states, [(true, true, false), (false, true, true), (true, true, false)]);
}

#[test]
fn wrong_types_of_what_is_read_are_refused_and_unknown_fields_are_not() {
    let pod = |rest: &str| format!("apiVersion: v1\nkind: Pod\n{rest}");
    for (rest, part) in [
        ("metadata: {name: a, labels: {a: true}}", "metadata.labels.a"),
        ("metadata: {name: a, labels: [a]}", "metadata.labels"),
        ("metadata: {name: a}\nspec: {hostNetwork: 'yes'}", "spec.hostNetwork"),
        ("metadata: {name: a}\nspec: {nodeName: 5}", "spec.nodeName"),
        ("metadata: {name: a}\nspec: {containers: {}}", "spec.containers"),
        ("metadata: {name: a}\nspec: {containers: [{ports: [{containerPort: 70000}]}]}", "spec.containers[0].ports[0].containerPort"),
        ("metadata: {name: a}\nstatus: {podIP: 10.0.0}", "status.podIP"),
        ("metadata: {name: a}\nstatus: {podIPs: [10.0.0.1]}", "status.podIPs[0]"),
        ("metadata: {name: a, annotations: {sekisho.dev/allow-sources: all}}", "metadata.annotations[sekisho.dev/allow-sources]"),
        ("metadata: {namespace: a}", "metadata.name"),
    ] {
        let message = refused(&pod(rest));
        assert!(message.contains(part), "{message}\nlacks {part}");
    }
}

#[test]
fn an_error_anywhere_refuses_the_whole_file() {
    let text = format!("{}---\n{}", policy("{}"), policy("{ingress: [{ports: [{port: 80, endPort: 7}]}]}").replace("name: p", "name: q"));
    let snapshot = read(&[("a.yaml", &text), ("b.yaml", POD)]);
    assert!(snapshot.policies.is_empty());
    assert_eq!(snapshot.pods.len(), 1);
    assert!(
        snapshot.refused[0].contains("a.yaml, document 2, spec.ingress[0].ports[0].endPort: 7 is below port 80"),
        "{:?}",
        snapshot.refused
    );
}

#[test]
fn twice_is_refused() {
    let twice = format!("{}---\n{}", policy("{}"), policy("{}"));
    let message = refused(&twice);
    assert!(message.contains("document 2") && message.contains("NetworkPolicy default/p") && message.contains("document 1"), "{message}");
    let snapshot = read(&[("b.yaml", &policy("{}")), ("a.yaml", &policy("{egress: [{}]}"))]);
    assert!(snapshot.policies[&("default".into(), "p".into())].egress.is_none());
    assert!(snapshot.refused[0].contains("a.yaml") && snapshot.refused[0].contains("b.yaml"), "{:?}", snapshot.refused);
    let keys = refused(&policy("{podSelector: {}, podSelector: {matchLabels: {a: b}}}"));
    assert!(keys.contains("line 4") && keys.contains("podSelector") && keys.contains("twice"), "{keys}");
}

#[test]
fn broken_text_is_refused_by_name() {
    for (text, part) in [("a: [", "not YAML"), ("a: b: c", "not YAML"), ("a: *x", "not YAML")] {
        let message = refused(text);
        assert!(message.contains("a.yaml, document 1") && message.contains(part), "{message}");
    }
    let snapshot = read(&[("a.json", "{\"kind\": \"Pod\",}"), ("b.json", "{\"kind\":1,\"kind\":2}")]);
    assert!(snapshot.refused[0].contains("a.json, document 1, not JSON"), "{:?}", snapshot.refused);
    assert!(snapshot.refused[1].contains("twice"), "{:?}", snapshot.refused);
}

#[test]
fn anything_but_utf8_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("a.yaml"), [policy("{}").as_bytes(), b"---\nkind: \xff\n"].concat()).unwrap();
    let snapshot = super::Source::start(folder.path()).unwrap().current();
    assert!(snapshot.refused[0].contains("a.yaml, document 2") && snapshot.refused[0].contains("not UTF-8"), "{:?}", snapshot.refused);
    assert!(snapshot.policies.is_empty());
}

#[test]
fn aliases_and_merge_keys_work_and_bombs_do_not() {
    let text = "
base: &base {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy}
";
    assert!(refused(text).contains("kind: required"));
    let text = "
apiVersion: v1
kind: List
items:
- &p {apiVersion: v1, kind: Pod, metadata: {name: a, labels: &l {app: x}}}
- {<<: *p, metadata: {name: b, labels: {<<: *l, tier: y}}}
";
    let snapshot = read(&[("a.yaml", text)]);
    assert_eq!(snapshot.refused, Vec::<String>::new());
    let labels = &snapshot.pods[&("default".into(), "b".into())].labels;
    assert_eq!((&*labels["app"], &*labels["tier"]), ("x", "y"));

    let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for i in 1..40 {
        let before = format!("*a{}", i - 1);
        bomb.extend([&format!("a{i}: &a{i} ["), &*[before.as_str(); 10].join(","), "]\n"]);
    }
    let began = Instant::now();
    assert!(refused(&bomb).contains("more than"));
    assert!(refused(&"[".repeat(1_000_000)).contains("a.yaml"));
    assert!(refused(&"- ".repeat(1_000_000)).contains("a.yaml"));
    assert!(refused("a: &a [*a]").contains("a.yaml"));
    assert!(began.elapsed().as_secs() < 10);
}

#[test]
fn five_megabytes_are_applied_in_time() {
    let mut text = String::new();
    let mut count = 0;
    while text.len() < 5 << 20 {
        text += "---";
        text += &POD.replace("name: api-7d9f-x", &format!("name: p{count}")).replace("11111111", &format!("{count:08}"));
        count += 1;
    }
    let began = busy();
    let snapshot = read(&[("a.yaml", &text)]);
    assert_eq!(snapshot.refused, Vec::<String>::new());
    assert_eq!(snapshot.pods.len(), count);
    let took = busy().saturating_sub(began);
    assert!(took.as_secs() < 10, "{took:?}");
}

/// How long this thread has been on a processor: other tests beside it do not count.
fn busy() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("the kernel accounts for threads");
    Duration::from_nanos(text.split(' ').next().and_then(|n| n.parse().ok()).expect("nanoseconds"))
}
