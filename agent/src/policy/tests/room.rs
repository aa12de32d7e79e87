//! Whatever policies say, what comes out has room in the kernel's tables, and who takes little has it whole.

use std::collections::HashMap;
use std::fmt::Write as _;

use proptest::prelude::*;

use super::{Compiled, Compiler, Numbers, Tables, UsedIds, World, ask, input, namespace, pod, policy, snapshot_of};
use crate::inventory::Snapshot;

/// As [`super::compile`] gives them.
const NETWORKS: usize = 1024;
const RULES: usize = 2 * NETWORKS;

/// Pods of one namespace, each with a set of its own, and peers with a port each: rows for every pair.
fn product(name: &str, pods: usize, peers: usize, ports: usize) -> String {
    let mut yaml = namespace(name, "");
    let place: usize = name.bytes().map(usize::from).sum::<usize>() % 200;
    for n in 0..pods {
        yaml += &pod(&format!("{name}/p{n}"), &format!("10.{place}.1.{n}"), &format!("app: p, n: n{n}"), "");
        // A rule of its own, so that no two sets are equal.
        yaml += &policy(
            &format!("{name}/own{n}"),
            &format!("{{podSelector: {{matchLabels: {{n: n{n}}}}}, ingress: [{{ports: [{{port: {}}}]}}]}}", 1 + n),
        );
    }
    let mut rules = String::new();
    for n in 0..peers {
        yaml += &pod(&format!("{name}/x{n}-far"), &format!("10.{place}.{}.{}", 2 + n / 250, n % 250), &format!("peer: x{n}"), "");
        let list = (0..ports).map(|p| format!("{{port: {}}},", 1000 + 7 * n + 2 * p)).collect::<Vec<_>>().concat();
        write!(rules, "{{from: [{{podSelector: {{matchLabels: {{peer: x{n}}}}}}}], ports: [{list}]}},").unwrap();
    }
    yaml + &policy(&format!("{name}/large"), &format!("{{podSelector: {{matchLabels: {{app: p}}}}, ingress: [{rules}]}}"))
}

fn small(name: &str) -> String {
    namespace(name, "")
        + &pod(&format!("{name}/db"), "10.250.0.1", "app: db", "")
        + &pod(&format!("{name}/api"), "10.250.0.2", "app: api", "")
        + &policy(
            &format!("{name}/p"),
            "{podSelector: {matchLabels: {app: db}}, ingress: [{from: [{podSelector: {matchLabels: {app: api}}}], ports: [{port: 5432}]}]}",
        )
}

/// Whether `name`'s policy is in force.
fn in_force(w: &World, name: &str) -> bool {
    let (db, api) = (format!("{name}/db"), format!("{name}/api"));
    w.ingress(&db, &api, "5432/tcp") && !w.ingress(&db, &api, "5433/tcp") && !w.ingress(&db, "8.8.8.8", "5432/tcp")
}

fn refused(compiled: &Compiled) -> Vec<String> {
    let large = compiled.warnings.iter().filter(|warning| warning.reason == "PolicyTooLarge");
    large.map(|warning| format!("{}/{}", warning.about.namespace, warning.about.name)).collect()
}

#[test]
fn pods_times_peers_are_counted_as_they_come_out() {
    let w = World::of(&(product("big", 30, 60, 1) + &small("small")));
    assert_eq!(refused(&w.compiled), ["big/large"], "1,800 rows and more");
    assert!(in_force(&w, "small"));
    assert!(!w.ingress("big/p3", "big/x7-far", "1049/tcp"), "what is refused allows nothing");
    assert!(w.ingress("big/p3", "big/x7-far", "4/tcp"), "the small policies beside it hold");
    assert!(w.compiled.tables.rules.len() <= RULES / 2, "{}", w.compiled.tables.rules.len());
    let fits = World::of(&(product("big", 10, 40, 1) + &small("small")));
    assert_eq!(refused(&fits.compiled), [""; 0]);
    assert!(fits.ingress("big/p3", "big/x7-far", "1049/tcp") && !fits.ingress("big/p3", "big/x8-far", "1049/tcp"));
}

#[test]
fn several_large_namespaces_do_not_starve_a_small_one() {
    let large: String = ["a", "b", "c", "d", "e"].map(|name| product(name, 10, 40, 1)).concat();
    let w = World::of(&(large + &small("small")));
    assert!(in_force(&w, "small"));
    assert!(!refused(&w.compiled).is_empty() && refused(&w.compiled).iter().all(|name| !name.starts_with("small")));
    assert!(w.compiled.tables.rules.len() <= RULES / 2, "{}", w.compiled.tables.rules.len());
}

#[test]
fn networks_of_several_namespaces_share_what_there_is() {
    let mut yaml = small("small");
    for (n, name) in ["a", "b", "c", "d"].into_iter().enumerate() {
        let blocks = (0..300).map(|i| format!("{{ipBlock: {{cidr: 2{n}.{}.{}.0/24}}}},", i / 256, i % 256)).collect::<Vec<_>>().concat();
        yaml += &(namespace(name, "") + &pod(&format!("{name}/p"), &format!("10.1.{n}.1"), "", ""));
        yaml += &policy(&format!("{name}/list"), &format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{blocks}]}}]}}"));
        yaml +=
            &policy(&format!("{name}/one"), "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 9.9.9.9/32}}]}]}");
    }
    let w = World::of(&yaml);
    assert_eq!(refused(&w.compiled), ["a/list", "b/list", "c/list", "d/list"], "1,200 networks, and 512 for all");
    assert!(w.egress("a/p", "9.9.9.9", "80/tcp") && in_force(&w, "small"));
}

/// Too many Services of one namespace are that one's trouble.
#[test]
fn services_of_one_namespace_do_not_take_the_room_of_others() {
    let service = |namespace: &str, name: &str, address: &str, rest: &str| {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{namespace: {namespace}, name: {name}}}\nspec: {{clusterIP: {address}, {rest}}}\n"
        )
    };
    let slice = "---\napiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {namespace: small, name: db-1, labels: {kubernetes.io/service-name: db}}\naddressType: IPv4\nports: [{port: 5432}]\nendpoints: [{addresses: [10.250.0.1]}]\n";
    let addresses: Vec<String> = (0..1200).map(|n| format!("7.0.{}.{}", n / 256, n % 256)).collect();
    let ports = (1..100).map(|n| format!("{{name: p{n}, port: {n}}},")).collect::<Vec<_>>().concat();
    let egress =
        "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: db}}}, {ipBlock: {cidr: 7.0.0.0/8}}]}]}";
    let yaml = [
        small("small"),
        policy("small/out", egress),
        service("small", "db", "10.96.0.1", "ports: [{port: 5432}]"),
        slice.to_owned(),
        namespace("big", ""),
        service("big", "little", "10.97.0.1", "ports: [{port: 80}]"),
        service("big", "huge", "10.97.0.2", &format!("externalIPs: [{}], ports: [{ports}]", addresses.join(", "))),
    ];
    let w = World::of(&yaml.concat());
    let tables = &w.compiled.tables;
    assert_eq!(tables.vips.len(), 2, "all but the huge one");
    assert!(w.egress("small/api", "10.96.0.1", "5432/tcp") && tables.addresses.len() <= 2 * NETWORKS);
    let found = ask(tables, "small/api", 0, "7.0.1.1".parse().unwrap(), 6, Some(5));
    assert!(!found.allowed, "what is behind it is not known");
    assert!(w.compiled.warnings.iter().any(|warning| warning.reason == "ServicesTooMany" && warning.about.name.as_ref() == "big"));
}

/// The kernel's tables through a change: what goes leaves after what comes is there, then what only the former sets need.
fn change(kernel: &Tables, next: &Tables) -> Result<Tables, String> {
    let meanwhile = |old: usize, new: usize, room: usize, what: &str| {
        if old + new > room { Err(format!("{what}: {old} and {new} more")) } else { Ok(()) }
    };
    let new = |keys: &mut dyn Iterator<Item = bool>| keys.filter(|known| !known).count();
    meanwhile(kernel.rules.len(), new(&mut next.rules.keys().map(|k| kernel.rules.contains_key(k))), RULES, "rules")?;
    meanwhile(kernel.ports.len(), new(&mut next.ports.keys().map(|k| kernel.ports.contains_key(k))), NETWORKS, "ports")?;
    meanwhile(kernel.cidrs.len(), new(&mut next.cidrs.keys().map(|k| kernel.cidrs.contains_key(k))), NETWORKS, "networks")?;
    let mut kept = next.clone();
    kept.rules.retain(|key, _| key.direction == 2 || !next.passing.sets.contains(&key.set));
    let spoken: Vec<[u8; 4]> = kept.rules.values().map(|rules| rules.ports.to_be_bytes()).collect();
    kept.ports.retain(|(key, _), _| spoken.contains(&key.table));
    kept.cidrs.retain(|key, _| !next.passing.cidrs.contains(key));
    Ok(kept)
}

fn compiled(compiler: &mut Compiler, snapshot: &Snapshot, numbers: &Numbers, kernel: &Tables) -> Compiled {
    compiler.compile(&input(snapshot, numbers, NETWORKS, &HashMap::new(), kernel))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, failure_persistence: None, ..ProptestConfig::default() })]

    /// From any policies to any others, over restarts too, there is room, and the small namespace's policy holds.
    #[test]
    fn there_is_always_room(
        versions in proptest::collection::vec(
            (proptest::collection::vec((1usize..40, 0usize..80, 1usize..6), 0..5), 0usize..400, any::<bool>()),
            1..5,
        )
    ) {
        let (mut compiler, numbers, mut kernel) = (Compiler::new(UsedIds::default()), Numbers::default(), Tables::default());
        for (step, (namespaces, networks, restarts)) in versions.into_iter().enumerate() {
            let mut yaml = small("small");
            for (name, (pods, peers, ports)) in ["a", "b", "c", "d", "e"].into_iter().zip(namespaces) {
                yaml += &product(name, pods, peers, ports);
                let blocks = (0..networks).map(|i| format!("{{ipBlock: {{cidr: {}.{}.{}.0/24}}}},", 20 + step, i / 256, i % 256)).collect::<Vec<_>>().concat();
                yaml += &policy(&format!("{name}/list"), &format!("{{podSelector: {{}}, policyTypes: [Egress], egress: [{{to: [{blocks}]}}]}}"));
            }
            let snapshot = snapshot_of(&yaml);
            if restarts {
                let set = kernel.rules.keys().filter(|k| k.direction < 2).map(|k| k.set).max().unwrap_or(0);
                let class = kernel.rules.keys().map(|k| k.class).max().unwrap_or(0).max(kernel.cidrs.values().copied().max().unwrap_or(0));
                let table = kernel.rules.values().map(|r| r.ports).max().unwrap_or(0);
                compiler = Compiler::new(UsedIds { set, class, table, rule: 100_000 * u32::try_from(step).unwrap(), instance: 0 });
            }
            let next = compiled(&mut compiler, &snapshot, &numbers, &kernel);
            for (port, allowed) in [(5432, true), (5433, false)] {
                let found = ask(&next.tables, "small/db", 1, "10.250.0.2".parse().unwrap(), 6, Some(port));
                prop_assert_eq!(found.allowed, allowed, "{:?}", next.stats);
            }
            prop_assert!(refused(&next).iter().all(|name| !name.starts_with("small")));
            kernel = match change(&kernel, &next.tables) {
                Ok(kept) => kept,
                Err(why) => return Err(TestCaseError::fail(why)),
            };
            for endpoint in next.tables.endpoints.values().filter(|endpoint| endpoint.set != 0) {
                prop_assert!(!next.tables.passing.sets.contains(&endpoint.set));
            }
            let lean = Tables { endpoints: next.tables.endpoints.clone(), ..kernel.clone() };
            for uid in ["small/db", "a/p0"].iter().filter(|uid| lean.endpoints.contains_key(**uid)) {
                for (direction, remote) in [(0, "21.0.3.1"), (0, "20.0.3.1"), (1, "10.97.2.7"), (1, "10.250.0.2")] {
                    for port in [1, 1000, 1049, 5432] {
                        let of = |tables| ask(tables, uid, direction, remote.parse().unwrap(), 6, Some(port)).allowed;
                        prop_assert_eq!(of(&lean), of(&next.tables), "what goes is missed: {} {} {}", uid, remote, port);
                    }
                }
            }
        }
    }
}
