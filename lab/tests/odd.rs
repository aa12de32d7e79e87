//! Packets that are not the usual ones: fragments, forged sources, TCP without a beginning, Services, several
//! questions to one agent. Needs root.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use sekisho_lab::{Agent, Heading, Lab, Layout, PodSpec, Sniffer, app};
use serde_json::json;

const SOON: Duration = Duration::from_secs(8);

/// Datagrams larger than a packet: all pieces arrive where the first may, none where it may not.
#[test]
fn fragments_follow_their_first() -> Result<()> {
    let lab = Lab::new("odd-fragments")?;
    let [server, free, client, stranger] = lab.pods("shop", ["server", "free", "client", "stranger"])?;
    lab.admit("shop", "server", &json!([{"from": [app("client")], "ports": [{"protocol": "UDP", "port": 53}]}]))?;
    let _servers = [server.serve("udp", 53)?, free.serve("udp", 53)?];
    let _agent = Agent::start(&lab, &[])?;
    for v6 in [false, true] {
        for (from, to, works) in [(&client, &server, true), (&stranger, &server, false), (&client, &free, true), (&stranger, &free, true)] {
            let sniffer = Sniffer::start(to.netns(), "eth0")?;
            let target = std::net::SocketAddr::new(to.address(v6), 53).to_string();
            let worked = from.tool(&["dial", "udp", &target, "--bytes", "4000"])?.success();
            let (source, own) = (from.address(v6), to.address(v6));
            let arrived = sniffer.total(|flow| flow.heading == Heading::In && flow.source.0 == source && flow.destination.0 == own)?;
            ensure!(worked == works, "{} -> {} v6 {v6}: {worked}", from.name(), to.name());
            ensure!(arrived.packets == if works { 3 } else { 0 }, "{} -> {} v6 {v6}: {arrived:?}", from.name(), to.name());
        }
    }
    Ok(())
}

/// Who asks where nobody listens is told so, through every isolation that allowed the question.
#[test]
fn refusals_come_back() -> Result<()> {
    let lab = Lab::new("odd-refusals")?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    let ports = json!([{"protocol": "UDP", "port": 99}, {"protocol": "TCP", "port": 99}]);
    lab.policy(
        "shop",
        "server",
        &json!({"podSelector": {"matchLabels": {"app": "server"}}, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [app("client")], "ports": ports}]}),
    )?;
    lab.policy(
        "shop",
        "client",
        &json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Ingress", "Egress"],
        "egress": [{"to": [app("server")], "ports": ports}]}),
    )?;
    let _agent = Agent::start(&lab, &[])?;
    for v6 in [false, true] {
        for protocol in ["udp", "tcp"] {
            let target = std::net::SocketAddr::new(server.address(v6), 99).to_string();
            let answer = client.tool(&["dial", protocol, &target])?;
            ensure!(answer.stderr.contains("refused"), "{protocol} v6 {v6}: {answer:?}");
        }
    }
    Ok(())
}

/// A pod that speaks from another's address is told, with the address it claims.
#[test]
fn a_forged_source_is_called_out() -> Result<()> {
    let lab = Lab::new("odd-forged")?;
    let (victim, liar) = (lab.pod(PodSpec::new("shop", "victim"))?, lab.pod(PodSpec::new("shop", "liar").owner("Deployment", "liar"))?);
    let agent = Agent::start(&lab, &[])?;
    let target = format!("{}:9000", lab.outside_v4());
    liar.tool(&["spray", "udp", &victim.v4().to_string(), &target, "20", "100"])?;
    let start = agent.record("the forged flow", SOON, |record| record["reason"] == "spoofed_source" && record["kind"] == "start")?;
    ensure!(start["source"]["ip"] == victim.v4().to_string() && start["mac"].is_string(), "{start:#}");
    let alert = agent.record("the alert", SOON, |record| record["kind"] == "alert" && record["rule"] == "spoof.ip")?;
    let text = alert.to_string();
    ensure!(text.contains("liar") && text.contains(liar.uid()) && text.contains(&victim.v4().to_string()), "{alert:#}");
    Ok(())
}

/// What a pod was lent by its annotation it may use, and nothing else.
#[test]
fn lent_sources_pass() -> Result<()> {
    let lab = Lab::new("odd-lent")?;
    let router = lab.pod(PodSpec::new("shop", "router").annotation("sekisho.dev/allow-sources", "198.51.100.0/24"))?;
    let agent = Agent::start(&lab, &["--allow-sources-from", "shop/router"])?;
    let target = format!("{}:9000", lab.outside_v4());
    for (source, arrives) in [("198.51.100.7", true), ("203.0.113.7", false)] {
        let sniffer = Sniffer::start(lab.outside().netns(), "eth0")?;
        router.tool(&["spray", "udp", source, &target, "20", "100"])?;
        let source: IpAddr = source.parse()?;
        let arrived = sniffer.total(|flow| flow.heading == Heading::In && flow.source.0 == source)?;
        ensure!(arrived.packets == if arrives { 20 } else { 0 }, "from {source}: {arrived:?}");
    }
    let start = agent.record("the lent source", SOON, |record| record["kind"] == "start" && record["source"]["ip"] == "198.51.100.7")?;
    ensure!(start["verdict"] == "allowed" && start["reason"].is_null(), "{start:#}");
    Ok(())
}

/// Whoever may annotate a pod must not thereby be able to speak for others: without a word in the agent's configuration the
/// annotation opens nothing, however wide its networks are, and an operator is shown that it was asked for.
#[test]
fn an_annotation_alone_lends_nothing() -> Result<()> {
    let lab = Lab::new("odd-unlent")?;
    let victim = lab.pod(PodSpec::new("shop", "victim"))?;
    let liar = lab.pod(PodSpec::new("shop", "liar").annotation("sekisho.dev/allow-sources", "0.0.0.0/0, ::/0"))?;
    let agent = Agent::start(&lab, &["--allow-sources-from", "shop/router", "--allow-sources-from", "vpn"])?;
    for v6 in [false, true] {
        let claimed = victim.address(v6);
        let to = if v6 { lab.outside_v6() } else { lab.outside_v4() };
        let sniffer = Sniffer::start(lab.outside().netns(), "eth0")?;
        liar.tool(&["spray", "udp", &claimed.to_string(), &std::net::SocketAddr::new(to, 9000).to_string(), "20", "100"])?;
        let arrived = sniffer.total(|flow| flow.heading == Heading::In && flow.source.0 == claimed)?;
        ensure!(arrived.packets == 0, "in the name of {claimed}: {arrived:?}");
        agent.record("the forged source", SOON, |record| {
            record["kind"] == "start" && record["reason"] == "spoofed_source" && record["source"]["ip"] == claimed.to_string()
        })?;
    }
    let warnings = agent.status()?["policy"]["warnings"].to_string();
    ensure!(warnings.contains("shop/liar") && warnings.contains("0.0.0.0/0") && warnings.contains("--allow-sources-from"), "{warnings}");
    Ok(())
}

/// A connection older than the agent goes on, and is recorded as one whose beginning nobody saw.
#[test]
fn older_connections_are_adopted() -> Result<()> {
    let lab = Lab::new("odd-adopted")?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    lab.admit("shop", "server", &json!([{"from": [{"podSelector": {}}], "ports": [{"port": 80}]}]))?;
    let _serving = server.serve("tcp", 80)?;
    let held = client.start(&["hold", &format!("{}:80", server.v4()), "5", "6"])?;
    let agent = Agent::start(&lab, &[])?;
    let record = agent.record("an adopted flow", SOON, |record| record["adopted"] == true)?;
    ensure!(record["verdict"] == "allowed", "{record:#}");
    ensure!(held.finish(Duration::from_secs(20))?.json()?["broken"] == 0, "nothing breaks");
    Ok(())
}

/// A Service address is judged as what stands behind it, and the record names the Service.
#[test]
fn a_service_is_its_backends() -> Result<()> {
    let lab = Lab::new("odd-service")?;
    let pod = |name: &str| lab.pod(PodSpec::new("shop", name).layout(Layout::PointToPoint));
    let (backend, other, client) = (pod("backend")?, pod("other")?, pod("client")?);
    let addresses: [(&str, IpAddr, &sekisho_lab::Pod); 2] =
        [("good", "10.96.0.10".parse()?, &backend), ("bad", "10.96.0.11".parse()?, &other)];
    let mut rules = String::from("table ip services { chain prerouting { type nat hook prerouting priority dstnat;\n");
    for (name, address, pod) in &addresses {
        lab.manifest(
            &format!("service-{name}"),
            &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": name},
                "spec": {"clusterIP": address, "clusterIPs": [address], "selector": {"app": pod.pod_name()}, "ports": [{"name": "web", "port": 80, "protocol": "TCP"}]}}),
        )?;
        lab.manifest(
            &format!("slice-{name}"),
            &json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
                "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": name}},
                "ports": [{"name": "web", "port": 80, "protocol": "TCP"}],
                "endpoints": [{"addresses": [pod.v4()], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "namespace": "shop", "name": pod.pod_name()}}]}),
        )?;
        writeln!(rules, "ip daddr {address} tcp dport 80 dnat to {}:80;", pod.v4())?;
    }
    rules.push_str("}\n}\n");
    let file = lab.directory().join("services.nft");
    std::fs::write(&file, rules)?;
    let loaded = lab.node().run("nft", &["-f", &file.display().to_string()])?;
    ensure!(loaded.success(), "{loaded:?}");
    lab.policy(
        "shop",
        "client",
        &json!({"podSelector": {"matchLabels": {"app": "client"}}, "policyTypes": ["Egress"], "egress": [
            {"to": [app("backend")], "ports": [{"port": 80}]},
        ]}),
    )?;
    let _servers = [backend.serve("tcp", 80)?, other.serve("tcp", 80)?];
    let agent = Agent::start(&lab, &[])?;
    ensure!(client.reaches("tcp", addresses[0].1, 80)?, "its backend is allowed");
    ensure!(!client.reaches("tcp", addresses[1].1, 80)?, "its backend is not");
    let allowed = agent
        .record("the allowed one", SOON, |record| record["direction"] == "egress" && record["destination"]["service"]["name"] == "good")?;
    ensure!(allowed["verdict"] == "allowed" && allowed["destination"]["zone"] == "service", "{allowed:#}");
    let denied = agent
        .record("the denied one", SOON, |record| record["direction"] == "egress" && record["destination"]["service"]["name"] == "bad")?;
    ensure!(denied["verdict"] == "denied" && denied["mismatch"] == json!(["peer"]), "{denied:#}");
    Ok(())
}

/// What `explain` says is what happens; filters narrow what `observe` tells.
#[test]
fn questions_are_answered() -> Result<()> {
    let lab = Lab::new("odd-questions")?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    lab.admit("shop", "server", &json!([{"from": [app("client")], "ports": [{"port": 80}]}]))?;
    let _serving = server.serve("tcp", 80)?;
    let agent = Agent::start(&lab, &[])?;
    for (port, verdict, from) in [(80, "allowed", "shop/client"), (81, "denied", "shop/client"), (80, "denied", "203.0.113.7")] {
        let answer = agent.command(&["explain", "--from", from, "--to", "shop/server", "--port", &format!("{port}/TCP"), "-o", "json"])?;
        ensure!(answer.json()?["verdict"] == verdict, "{from} to {port}: {answer:?}");
    }
    ensure!(client.reaches("tcp", server.v4(), 80)? && !client.reaches("tcp", server.v4(), 81)?);
    agent.record("the denial", SOON, |record| record["verdict"] == "denied")?;
    let count = |words: &[&str]| -> Result<usize> {
        Ok(agent.command(&[&["observe", "--last", "all", "-o", "json"], words].concat())?.json_lines()?.len())
    };
    ensure!(count(&["--verdict", "denied", "--kind", "start"])? == 1);
    ensure!(count(&["--to-pod", "shop/server", "--port", "80", "--kind", "start"])? == 2, "both ends");
    ensure!(count(&["--from-pod", "shop/server"])? == 0);
    ensure!(count(&["--ip", "203.0.113.0/24"])? == 0);
    ensure!(count(&["--ip", &server.v4().to_string(), "--protocol", "tcp"])? > 0 && count(&["--protocol", "udp"])? == 0);
    let text = agent.command(&["observe", "--verdict", "denied", "-o", "compact"])?;
    ensure!(
        text.success() && text.stdout.contains("shop/client") && text.stdout.contains("shop/server") && !text.stdout.contains('\u{1b}'),
        "{text:?}"
    );
    ensure!(lab.sekisho(&["completion", "bash"])?.stdout.contains("sekisho"));
    Ok(())
}
