//! A pod that has been taken over, against an isolated one: everything that it can send, while allowed traffic runs and the
//! agent is killed, restarted, upgraded and its policy edited. Nothing arrives, nothing allowed fails, every
//! attempt is counted and recorded. Needs root, nft and iproute2, and the agent built a second time (`next-layout`).

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sekisho_lab::{Agent, AgentOptions, Lab, Layout, Place, Pod, PodSpec, Witness, app, tool, until};
use serde_json::{Value, json};

/// How long the hostile pod sends.
const ATTACK: u64 = 40;
const SOON: Duration = Duration::from_secs(10);
/// A Service in front of the victim, which its friend uses.
const SERVICE: [&str; 2] = ["10.96.0.20", "fd96::20"];

struct Scene {
    lab: Lab,
    hostile: Pod,
    victim: Pod,
    neighbour: Pod,
    dns: Pod,
    friend: Pod,
}

impl Scene {
    fn new(name: &str, layout: Layout) -> Result<Self> {
        let lab = Lab::new(name)?;
        let pod = |name: &str| lab.pod(PodSpec::new("shop", name).layout(layout));
        let [hostile, victim, neighbour, dns, friend] = [pod("hostile")?, pod("victim")?, pod("neighbour")?, pod("dns")?, pod("friend")?];
        for pod in [&victim, &friend] {
            // Thousands of short connections between two addresses: let ports be used again at once.
            pod.netns().sysctl("net/ipv4/tcp_tw_reuse", "1")?;
        }
        let scene = Self { lab, hostile, victim, neighbour, dns, friend };
        scene.policies(0)?;
        scene.service()?;
        Ok(scene)
    }

    /// Policies that mean the same in every `round`, so that each round is an edit that changes no verdict.
    fn policies(&self, round: u16) -> Result<()> {
        let to_dns = json!([{"to": [app("dns")], "ports": [{"port": 53, "protocol": "UDP"}]}]);
        let spec = |name: &str, ingress: Value| {
            let mut spec = app(name);
            spec["policyTypes"] = json!(["Ingress", "Egress"]);
            spec["ingress"] = ingress;
            spec["egress"] = to_dns.clone();
            spec
        };
        self.lab.policy("shop", "hostile", &spec("hostile", json!([])))?;
        // Port 9 and up are nobody's: only the rule's text changes.
        let friend = json!([{"from": [app("friend")], "ports": [{"port": 80}, {"port": 9 + round, "protocol": "UDP"}]}]);
        self.lab.policy("shop", "victim", &spec("victim", friend))?;
        self.lab.policy("shop", "neighbour", &spec("neighbour", json!([])))
    }

    /// The Service, as kube-proxy would set it up.
    fn service(&self) -> Result<()> {
        let (lab, victim) = (&self.lab, &self.victim);
        let mut rules = String::new();
        for (family, at, to) in [("ip", SERVICE[0], victim.v4().to_string()), ("ip6", SERVICE[1], format!("[{}]", victim.v6()))] {
            write!(
                rules,
                "table {family} service {{ chain prerouting {{ type nat hook prerouting priority dstnat;
                    {family} daddr {at} tcp dport 8080 dnat to {to}:80; }}; }}\n"
            )?;
        }
        let file = lab.directory().join("service.nft");
        std::fs::write(&file, rules)?;
        let nft = lab.node().run("nft", &["-f", &file.display().to_string()])?;
        ensure!(nft.success(), "nft: {}", nft.stderr);
        lab.manifest(
            "web",
            &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
                "spec": {"clusterIP": SERVICE[0], "clusterIPs": SERVICE, "ports": [{"name": "http", "port": 8080}]}}),
        )?;
        for (family, address) in [("IPv4", victim.v4()), ("IPv6", victim.v6())] {
            let name = format!("web-{}", family.to_lowercase());
            lab.manifest(
                &name,
                &json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                    "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
                    "ports": [{"name": "http", "port": 80}],
                    "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true},
                        "targetRef": {"kind": "Pod", "name": "victim"}}]}),
            )?;
        }
        Ok(())
    }

    /// What the hostile pod has found out about its surroundings.
    fn known_to_the_attacker(&self, layout: Layout) -> Result<Value> {
        let lab = &self.lab;
        let side = match layout {
            Layout::Bridge => "cni0",
            _ => self.hostile.interface().context("a veth")?,
        };
        let gateway = mac(lab.node(), side)?;
        // Without a bridge everything goes through the node's side of the link.
        let through = |pod: &Pod| if layout == Layout::Bridge { mac(pod, "eth0") } else { Ok(gateway.clone()) };
        let pod = |pod: &Pod| Ok::<Value, anyhow::Error>(json!([pod.v4(), pod.v6(), through(pod)?]));
        Ok(json!({
            "own": [self.hostile.v4(), self.hostile.v6(), mac(&self.hostile, "eth0")?],
            "victim": pod(&self.victim)?,
            "neighbour": pod(&self.neighbour)?,
            "allowed": pod(&self.dns)?,
            "gateway": [lab.bridge_v4(), lab.bridge_v6(), gateway],
            "outside": [lab.outside_v4(), lab.outside_v6(), gateway],
        }))
    }
}

fn mac(place: &Place, interface: &str) -> Result<String> {
    let links = place.run("ip", &["-json", "link", "show", "dev", interface])?.json()?;
    Ok(links[0]["address"].as_str().with_context(|| format!("{interface} has no address: {links}"))?.to_owned())
}

/// Operations that policy allows, repeated while the attack runs.
#[derive(Default)]
struct Allowed {
    stop: AtomicBool,
    worked: AtomicU64,
}

impl Allowed {
    /// Repeats one of the lab's commands until it is stopped; the first failure is an error.
    fn repeat(&self, what: &str, place: &Place, words: &[&str]) -> Result<()> {
        while !self.stop.load(Ordering::Relaxed) {
            let answer = place.tool(words)?;
            ensure!(answer.success(), "{what} failed after {} that worked: {}", self.worked.load(Ordering::Relaxed), answer.stderr);
            self.worked.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }
}

fn target(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

fn counter(agent: &Agent, name: &str) -> Result<u64> {
    let counters = &agent.status()?["counters"];
    let value = &counters[name];
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).with_context(|| format!("no counter {name}: {counters}"))
}

/// Kill, restart, upgrade, downgrade and edits, for as long as the attack takes. Returns the agent that runs at the end.
fn disturb(scene: &Scene, mut agent: Agent, options: &[&str]) -> Result<Agent> {
    let lab = &scene.lab;
    let pause = || std::thread::sleep(Duration::from_millis(ATTACK * 1000 / 14));
    for round in 1..=2 {
        scene.policies(round)?;
        pause();
        agent.kill()?;
        pause();
        agent = Agent::start(lab, options)?;
        scene.policies(round + 10)?;
        pause();
        ensure!(agent.terminate(SOON)? == Some(0), "the agent ends");
        agent = Agent::start_with(lab, &AgentOptions::new(options).next_layout()?)?;
        pause();
        agent.kill()?;
        agent = Agent::start(lab, options)?;
        pause();
    }
    Ok(agent)
}

fn journey(name: &str, layout: Layout, options: &[&str]) -> Result<()> {
    let scene = Scene::new(name, layout)?;
    // Of every run: an agent that starts remembers none of the records of the one before.
    let file = scene.lab.directory().join("records.jsonl");
    let path = file.display().to_string();
    let options = &[options, &["--jsonl", &path]].concat()[..];
    let Scene { lab, hostile, victim, neighbour, dns, friend } = &scene;
    let _serving = [victim.serve("tcp", 80)?, victim.serve("udp", 53)?, dns.serve("udp", 53)?];
    let agent = Agent::start(lab, options)?;
    let dropped = counter(&agent, "dropped")?;
    ensure!(hostile.reaches("udp", dns.v4(), 53)? && hostile.reaches("udp", dns.v6(), 53)?, "the one allowed server answers");

    let witnesses = [("victim", &**victim), ("neighbour", &**neighbour), ("dns", &**dns), ("outside", lab.outside())]
        .map(|(who, place)| Ok::<_, anyhow::Error>((who, Witness::start(place.netns(), "eth0")?)));
    let held: Vec<_> = [false, true]
        .map(|v6| friend.start(&["hold", &target(victim.address(v6), 80), "10", &(ATTACK + 3).to_string()]))
        .into_iter()
        .collect::<Result<_>>()?;
    let known = scene.known_to_the_attacker(layout)?.to_string();
    let attack = hostile.spawn(tool::binary()?, &["hostile", "eth0", &known, &ATTACK.to_string()])?;

    let allowed = Allowed::default();
    let agent = std::thread::scope(|scope| -> Result<Agent> {
        let mut running = Vec::new();
        for v6 in [false, true] {
            let (web, asks) = (target(SERVICE[usize::from(v6)].parse()?, 8080), target(dns.address(v6), 53));
            let probe = target(victim.address(v6), 80);
            let allowed = &allowed;
            running.push(scope.spawn(move || allowed.repeat("a connection through the Service", friend, &["dial", "tcp", &web])));
            let asks_too = asks.clone();
            running.push(scope.spawn(move || allowed.repeat("the victim's own query", victim, &["dial", "udp", &asks])));
            running.push(scope.spawn(move || {
                allowed.repeat("the victim's query from an unconnected socket", victim, &["dial", "udp", &asks_too, "--connect", "no"])
            }));
            running.push(scope.spawn(move || allowed.repeat("the node's probe", lab.node(), &["dial", "tcp", &probe])));
        }
        let agent = disturb(&scene, agent, options);
        allowed.stop.store(true, Ordering::Relaxed);
        for thread in running {
            thread.join().expect("allowed traffic does not panic")?;
        }
        agent
    })?;
    let sent = attack.finish(Duration::from_mins(2))?.json()?;
    for held in held {
        let result = held.finish(Duration::from_mins(1))?.json()?;
        ensure!(result["broken"] == 0, "open connections stay open: {result}");
    }
    ensure!(allowed.worked.load(Ordering::Relaxed) > 300, "allowed traffic ran: {:?}", allowed.worked);
    for witness in witnesses {
        let (who, witness) = witness?;
        let arrived = witness.stop()?;
        ensure!(arrived.is_empty(), "arrived at {who}: {arrived:#?}");
    }
    accounted(&agent, &scene, &file, &sent, dropped)
}

/// Every frame is counted as dropped, and the records show every kind of attempt.
fn accounted(agent: &Agent, scene: &Scene, file: &Path, sent: &Value, dropped_before: u64) -> Result<()> {
    let frames = sent["sent"].as_u64().context("frames sent")?;
    ensure!(frames > 10_000, "the attack ran: {sent}");
    until(SOON, "every frame is counted as dropped", || Ok(counter(agent, "dropped")? - dropped_before >= frames))
        .with_context(|| format!("{} of {sent} dropped", counter(agent, "dropped").unwrap_or(0) - dropped_before))?;
    let text = std::fs::read_to_string(file)?;
    let records = text.lines().map(serde_json::from_str).collect::<Result<Vec<Value>, _>>()?;
    let denied = records.iter().filter(|record| record["verdict"] == "denied");
    let from = |address: IpAddr| address.to_string();
    let own = [from(scene.hostile.v4()), from(scene.hostile.v6())];
    let mut seen = BTreeSet::new();
    for record in denied {
        let field = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let source = field(&record["source"]["ip"]);
        let who = if own.contains(&source) { "own" } else { "forged" };
        seen.insert((who, field(&record["protocol"]), field(&record["reason"])));
    }
    for (who, protocol, reason) in [
        ("own", "TCP", "default_deny"),
        ("own", "TCP", "no_connection"),
        ("own", "UDP", "default_deny"),
        ("own", "SCTP", "default_deny"),
        ("own", "ICMPv4", "default_deny"),
        ("own", "ICMPv6", "default_deny"),
        ("own", "ICMPv4", "no_connection"),
        ("own", "ICMPv6", "no_connection"),
        ("forged", "UDP", "spoofed_source"),
        ("forged", "TCP", "spoofed_source"),
    ] {
        let wanted = (who, protocol.to_owned(), reason.to_owned());
        ensure!(seen.contains(&wanted), "no record of {wanted:?} among {seen:#?}");
    }
    let alerts = agent.alerts()?;
    ensure!(alerts.iter().any(|alert| alert["rule"] == "spoof.ip"), "forged sources raise an alert: {alerts:#?}");
    let ledger = agent.record("the ledger", SOON, |record| record["kind"] == "ledger")?;
    ensure!(ledger["kernel"].is_object(), "{ledger:#}");
    Ok(())
}

#[test]
fn on_a_bridge() -> Result<()> {
    journey("hostile-bridge", Layout::Bridge, &[])
}

#[test]
fn point_to_point_with_filters() -> Result<()> {
    journey("hostile-ptp", Layout::PointToPoint, &["--tc-backend", "clsact"])
}
