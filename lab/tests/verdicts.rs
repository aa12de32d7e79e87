//! Allowed and denied TCP, UDP and ICMP, over both families, in every layout and with every way to attach:
//! the verdict is right, and exactly the packets that should arrive do. Needs root.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use sekisho_lab::{Agent, CgroupLayout, Count, Flow, Heading, Lab, Layout, Pod, PodSpec, Sniffer, app, sum};
use serde_json::json;

/// Everybody of one node, with the policies of the test in force.
struct Cast {
    lab: Lab,
    /// Admits `client` at TCP 80 and UDP 53.
    server: Pod,
    /// Admits `client` at everything.
    open: Pod,
    client: Pod,
    stranger: Pod,
    /// May only reach `open`, at TCP 80.
    caged: Pod,
}

fn cast(name: &str, layout: Layout, cgroup: CgroupLayout) -> Result<Cast> {
    let lab = Lab::new(name)?;
    let pod = |name: &str| lab.pod(PodSpec::new("shop", name).layout(layout).cgroup(cgroup));
    let (server, open, client, stranger, caged) = (pod("server")?, pod("open")?, pod("client")?, pod("stranger")?, pod("caged")?);
    let ports = json!([{"protocol": "TCP", "port": 80}, {"protocol": "UDP", "port": 53}]);
    lab.admit("shop", "server", &json!([{"from": [app("client")], "ports": ports}]))?;
    lab.admit("shop", "open", &json!([{"from": [app("client"), app("caged")]}]))?;
    lab.policy(
        "shop",
        "caged",
        &json!({"podSelector": {"matchLabels": {"app": "caged"}}, "policyTypes": ["Egress"], "egress": [
            {"to": [app("open")], "ports": [{"protocol": "TCP", "port": 80}]},
        ]}),
    )?;
    Ok(Cast { lab, server, open, client, stranger, caged })
}

/// One attempt and what must become of it.
struct Attempt<'a> {
    from: &'a Pod,
    to: &'a Pod,
    what: &'a str,
    port: u16,
    allowed: bool,
}

impl Attempt<'_> {
    fn make(&self, v6: bool) -> Result<bool> {
        match self.what {
            "ping" => self.from.pings(self.to.address(v6)),
            protocol => self.from.reaches(protocol, self.to.address(v6), self.port),
        }
    }

    fn protocol(&self, v6: bool) -> u8 {
        match (self.what, v6) {
            ("tcp", _) => 6,
            ("udp", _) => 17,
            (_, false) => 1,
            (_, true) => 58,
        }
    }

    /// Packets of this attempt, from its opener, as counted at one end.
    fn counted(&self, counts: &BTreeMap<Flow, Count>, v6: bool, heading: Heading) -> Count {
        let (from, to): (IpAddr, IpAddr) = (self.from.address(v6), self.to.address(v6));
        sum(counts, |flow| {
            flow.heading == heading
                && flow.protocol == self.protocol(v6)
                && flow.source.0 == from
                && flow.destination.0 == to
                && (self.what == "ping" || flow.destination.1 == self.port)
        })
    }

    /// At a control group what is denied reaches the interface, but no socket: nothing is answered. What the pod itself may
    /// not send does not leave it.
    fn check_at_cgroup(&self, v6: bool) -> Result<()> {
        let name = format!("{} {} -> {} port {}, v6 {v6}, at the control group", self.what, self.from.name(), self.to.name(), self.port);
        let (sender, receiver) = (Sniffer::start(self.from.netns(), "eth0")?, Sniffer::start(self.to.netns(), "eth0")?);
        let worked = self.make(v6)?;
        let (sent, seen) = (self.counted(&sender.stop()?, v6, Heading::Out), receiver.stop()?);
        ensure!(worked == self.allowed, "{name}: worked {worked}, must be {}", self.allowed);
        let (from, to): (IpAddr, IpAddr) = (self.from.address(v6), self.to.address(v6));
        let answered = sum(&seen, |flow| flow.heading == Heading::Out && flow.source.0 == to && flow.destination.0 == from);
        if self.allowed {
            ensure!(sent == self.counted(&seen, v6, Heading::In), "{name}: {sent:?} sent, {seen:?} arrived");
        } else {
            ensure!(answered == Count::default(), "{name}: denied, and yet answered {answered:?}");
            ensure!((sent.packets == 0) == (self.from.pod_name() == "caged"), "{name}: {sent:?} sent");
        }
        Ok(())
    }

    fn check(&self, v6: bool) -> Result<()> {
        let name = format!("{} {} -> {} port {}, v6 {v6}", self.what, self.from.name(), self.to.name(), self.port);
        let (sender, receiver) = (Sniffer::start(self.from.netns(), "eth0")?, Sniffer::start(self.to.netns(), "eth0")?);
        let worked = self.make(v6)?;
        let (sent, arrived) = (sender.stop()?, receiver.stop()?);
        let (sent, arrived) = (self.counted(&sent, v6, Heading::Out), self.counted(&arrived, v6, Heading::In));
        ensure!(worked == self.allowed, "{name}: worked {worked}, must be {}", self.allowed);
        ensure!(sent.packets > 0, "{name}: nothing was sent");
        if self.allowed {
            ensure!(sent == arrived, "{name}: {sent:?} sent, {arrived:?} arrived");
        } else {
            ensure!(arrived == Count::default(), "{name}: denied, and yet {arrived:?} arrived");
        }
        Ok(())
    }
}

/// The allowed ones one after the other; the denied ones, which wait for an answer that never comes, together.
fn check_all(attempts: &[Attempt<'_>], v6: bool, at_cgroup: bool) -> Result<()> {
    // The kernel answers echoes without any socket, so no control group sees those that come in.
    let judged = |attempt: &&Attempt<'_>| !at_cgroup || attempt.what != "ping" || attempt.allowed || attempt.from.pod_name() == "caged";
    let attempts: Vec<&Attempt<'_>> = attempts.iter().filter(judged).collect();
    let check = |attempt: &Attempt<'_>| if at_cgroup { attempt.check_at_cgroup(v6) } else { attempt.check(v6) };
    for attempt in attempts.iter().filter(|attempt| attempt.allowed) {
        check(attempt)?;
    }
    std::thread::scope(|scope| {
        let denied = attempts.iter().filter(|attempt| !attempt.allowed);
        let waiting: Vec<_> = denied.map(|attempt| scope.spawn(move || check(attempt))).collect();
        waiting.into_iter().try_for_each(|thread| thread.join().expect("an attempt does not panic"))
    })
}

fn journey(name: &str, layout: Layout, cgroup: CgroupLayout, backend: &str, kind: &str) -> Result<()> {
    let cast = cast(name, layout, cgroup)?;
    let Cast { lab, server, open, client, stranger, caged } = &cast;
    let mut servers = Vec::new();
    for pod in [server, open] {
        servers.extend([pod.serve("tcp", 80)?, pod.serve("tcp", 81)?, pod.serve("udp", 53)?, pod.serve("udp", 54)?]);
    }
    let agent = Agent::start(lab, &["--tc-backend", backend])?;
    let status = agent.status()?;
    for endpoint in status["endpoints"].as_array().into_iter().flatten() {
        ensure!(endpoint["attach"] == kind, "attached as {} instead of {kind}: {endpoint:#}", endpoint["attach"]);
    }
    let attempt = |from, to, what, port, allowed| Attempt { from, to, what, port, allowed };
    let attempts = [
        attempt(client, server, "tcp", 80, true),
        attempt(client, server, "tcp", 81, false),
        attempt(client, server, "udp", 53, true),
        attempt(client, server, "udp", 54, false),
        // An echo has no port, so a rule with ports does not match it.
        attempt(client, server, "ping", 0, false),
        attempt(stranger, server, "tcp", 80, false),
        attempt(stranger, server, "udp", 53, false),
        attempt(stranger, server, "ping", 0, false),
        attempt(client, open, "tcp", 81, true),
        attempt(client, open, "udp", 54, true),
        attempt(client, open, "ping", 0, true),
        attempt(stranger, open, "ping", 0, false),
        attempt(stranger, open, "tcp", 80, false),
        // Denied at its own veth: it leaves the pod and goes no further.
        attempt(caged, open, "tcp", 80, true),
        attempt(caged, open, "tcp", 81, false),
        attempt(caged, open, "udp", 53, false),
        attempt(caged, open, "ping", 0, false),
        attempt(caged, server, "tcp", 80, false),
    ];
    for v6 in [false, true] {
        check_all(&attempts, v6, kind == "cgroup")?;
        // What nothing isolates stays open to all, and so does everybody to the node. A node that is no neighbour of the
        // pod's namespace cannot be told from others.
        ensure!(layout == Layout::Elsewhere || lab.node().reaches("tcp", server.address(v6), 81)?, "the node reaches its pod (v6 {v6})");
        let outside = if v6 { lab.outside_v6() } else { lab.outside_v4() };
        ensure!(stranger.pings(outside)?, "a pod without policies reaches the world (v6 {v6})");
        ensure!(!caged.pings(outside)?, "a caged pod does not reach the world (v6 {v6})");
    }
    Ok(())
}

/// TCX where this kernel has it: every test of it says so by name.
#[test]
fn bridge_tcx() -> Result<()> {
    journey("verdicts-bt", Layout::Bridge, CgroupLayout::Cgroupfs, "auto", newest())
}

#[test]
fn bridge_clsact() -> Result<()> {
    journey("verdicts-bc", Layout::Bridge, CgroupLayout::Systemd, "clsact", "clsact")
}

#[test]
fn point_to_point_tcx() -> Result<()> {
    journey("verdicts-pt", Layout::PointToPoint, CgroupLayout::Systemd, "auto", newest())
}

#[test]
fn point_to_point_clsact() -> Result<()> {
    journey("verdicts-pc", Layout::PointToPoint, CgroupLayout::Cgroupfs, "clsact", "clsact")
}

/// A pod on an interface that is not the node's to watch is judged at its control group.
#[test]
fn elsewhere_cgroup() -> Result<()> {
    journey("verdicts-el", Layout::Elsewhere, CgroupLayout::Cgroupfs, "auto", "cgroup")
}

/// What `auto` must choose: TCX came with Linux 6.6.
fn newest() -> &'static str {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split('.').filter_map(|number| number.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= (6, 6) { "tcx" } else { "clsact" }
}

/// A pod in the node's own namespace has a record of its own, seen at its control group, and is judged by nobody.
#[test]
fn host_network_is_told_apart() -> Result<()> {
    let lab = Lab::new("verdicts-host")?;
    let host = lab.pod(PodSpec::new("kube-system", "agent").host_network().owner("DaemonSet", "agent"))?;
    lab.policy("kube-system", "nothing", &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))?;
    let outside = lab.outside().serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    ensure!(host.reaches("tcp", lab.outside_v4(), 80)?, "no policy selects a hostNetwork pod");
    let record = agent.record("the pod's flow", std::time::Duration::from_secs(5), |record| {
        record["kind"] == "start" && record["source"]["pod"]["name"] == "agent" && record["destination"]["port"] == 80
    })?;
    ensure!(record["attach"] == "cgroup" && record["verdict"] == "allowed", "{record:#}");
    drop(outside);
    Ok(())
}
