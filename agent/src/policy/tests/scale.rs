use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Compiler, Numbers, Snapshot, UsedIds, compile, compile_with, pod, policy, snapshot_of};
use crate::inventory::{Labels, NetworkPolicy, Pod, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Requirement, Selector, Workload};

fn labels(app: usize, tier: usize) -> Labels {
    Arc::new([("app".into(), format!("a{app}").into()), ("tier".into(), format!("t{tier}").into())].into())
}

fn app(n: usize) -> Selector {
    Selector { requirements: vec![Requirement::In("app".into(), vec![format!("a{n}").into()])] }
}

/// Networks, prefixes of ports and Service ports that the kernel's tables hold with eight times the default budget. Ten thousand
/// ranges of ports, each of a rule of its own, have no room with less.
const ROOM: usize = 8 * 23_967;

/// 20,000 pods of 1,000 apps in 50 namespaces, 110 of them local; 10,000 policies.
fn large() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for i in 0..20_000usize {
        let (namespace, name): (Arc<str>, Arc<str>) = (format!("ns{}", i % 50).into(), format!("p{i}").into());
        Arc::make_mut(&mut snapshot.namespaces)
            .entry(namespace.clone())
            .or_insert_with(|| Arc::new(crate::inventory::Namespace::bare(namespace.clone())));
        let pod = Pod {
            namespace: namespace.clone(),
            name: name.clone(),
            uid: name.clone(),
            labels: labels(i % 1000, i % 7),
            node: Some(if i < 110 { "n1" } else { "n2" }.into()),
            ips: vec![std::net::Ipv4Addr::from(0x0a00_0000 + u32::try_from(i).unwrap()).into()],
            announced: Box::default(),
            host_network: false,
            finished: false,
            service_account: None,
            workload: Workload { kind: "Pod".into(), name: name.clone() },
            ports: vec![("http".into(), 8080, 6)],
            serves: Box::default(),
            config_hash: None,
            allow_sources: Vec::new(),
            runtime_class: None,
        };
        Arc::make_mut(&mut snapshot.pods).insert((namespace, name), Arc::new(pod));
    }
    for i in 0..10_000usize {
        let (namespace, name): (Arc<str>, Arc<str>) = (format!("ns{}", i % 50).into(), format!("n{i}").into());
        let cidr = format!("10.{}.{}.0/24", i % 200, i % 250).parse().unwrap();
        let peers = vec![
            PolicyPeer::Pods { namespaces: Some(Selector::default()), pods: Some(app(i % 997)) },
            PolicyPeer::Pods { namespaces: None, pods: None },
            PolicyPeer::Block { cidr, except: Vec::new() },
        ];
        let ports = vec![PolicyPort { protocol: 6, port: PortMatch::Range(80, 90 + u16::try_from(i % 100).unwrap()) }];
        let rules = Some(vec![PolicyRule { peers, ports }]);
        let policy = NetworkPolicy {
            namespace: namespace.clone(),
            name: name.clone(),
            uid: None,
            pod_selector: if i % 2 == 0 { app(i % 1000) } else { Selector::default() },
            ingress: rules.clone(),
            egress: if i % 4 == 0 { rules } else { None },
        };
        Arc::make_mut(&mut snapshot.policies).insert((namespace, name), Arc::new(policy));
    }
    snapshot
}

#[test]
fn a_large_cluster_compiles_in_time() {
    let snapshot = large();
    let (mut compiler, numbers) = (Compiler::new(UsedIds::default()), Numbers::default());
    let mut times = Vec::new();
    let (mut said, mut warnings) = (String::new(), 0);
    for _ in 0..2 {
        let began = Instant::now();
        let compiled = compile_with(&mut compiler, &snapshot, &numbers, ROOM);
        times.push(began.elapsed());
        warnings += compiled.warnings.len();
        said = format!("{:?}, {} rows, {} port prefixes", compiled.stats, compiled.tables.rules.len(), compiled.tables.ports.len());
    }
    println!("{times:?} {said}");
    assert_eq!(warnings, 0, "{said}");
    // Without optimisation it is ten times slower than what is shipped.
    let limit = Duration::from_secs(if cfg!(debug_assertions) { 40 } else { 4 });
    assert!(times.iter().all(|t| *t < limit), "{times:?} {said}");
}

#[test]
fn a_small_lab_compiles_at_once() {
    let yaml: String = (0..8).map(|i| pod(&format!("p{i}"), &format!("10.0.0.{i}"), &format!("app: a{i}"), "")).collect::<String>()
        + &(0..8).map(|i| policy(&format!("n{i}"), &format!("{{podSelector: {{matchLabels: {{app: a{i}}}}}, ingress: [{{from: [{{podSelector: {{}}}}], ports: [{{port: 80}}]}}]}}"))).collect::<String>();
    let snapshot = snapshot_of(&yaml);
    let (mut compiler, numbers) = (Compiler::new(UsedIds::default()), Numbers::default());
    let mut times: Vec<Duration> = (0..21)
        .map(|_| {
            let began = Instant::now();
            compile(&mut compiler, &snapshot, &numbers);
            began.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[10] < Duration::from_millis(if cfg!(debug_assertions) { 10 } else { 2 }), "{times:?}");
}
