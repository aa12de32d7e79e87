//! What stands behind a Service, as verdicts see it: which backends count, by which one an open connection is judged, and a pod
//! that is behind its own Service. The translation is the kernel's own, as kube-proxy sets it up. Needs root and nft.

use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Result, ensure};
use sekisho_lab::{Agent, Lab, Layout, Pod, PodSpec, app, until};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(8);
const VIPS: [&str; 2] = ["10.96.0.10", "fd96::10"];

fn vips() -> [IpAddr; 2] {
    VIPS.map(|vip| vip.parse().expect("an address"))
}

/// Has the node translate the Service's port 80 to port 8080 of `backend`; its own talk with itself bears the node's address.
fn translate(lab: &Lab, backend: &Pod) -> Result<()> {
    let mut rules = String::new();
    for (family, vip, to) in [("ip", VIPS[0], backend.v4()), ("ip6", VIPS[1], backend.v6())] {
        let target = SocketAddr::new(to, 8080);
        write!(
            rules,
            "table {family} services {{
                chain prerouting {{ type nat hook prerouting priority dstnat; {family} daddr {vip} tcp dport 80 dnat to {target}; }}
                chain postrouting {{ type nat hook postrouting priority srcnat; {family} saddr {to} {family} daddr {to} masquerade; }}
            }}\n"
        )?;
    }
    let file = lab.directory().join("services.nft");
    std::fs::write(&file, rules)?;
    let nft = lab.node().run("nft", &["-f", &file.display().to_string()])?;
    ensure!(nft.success(), "nft: {}", nft.stderr);
    Ok(())
}

/// The Service `web`, with these endpoints of each family behind it.
fn web(lab: &Lab, endpoints: &dyn Fn(bool) -> Value) -> Result<()> {
    for (v6, family) in [(false, "IPv4"), (true, "IPv6")] {
        let name = format!("web-{}", family.to_lowercase());
        lab.manifest(
            &name,
            &json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
                "ports": [{"port": 8080}], "endpoints": endpoints(v6)}),
        )?;
    }
    lab.manifest(
        "web",
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIP": VIPS[0], "clusterIPs": VIPS, "ports": [{"port": 80}]}}),
    )
}

fn behind(pods: &[&Pod], v6: bool) -> Value {
    let endpoint = |pod: &&Pod| json!({"addresses": [pod.address(v6).to_string()], "targetRef": {"kind": "Pod", "name": pod.pod_name()}});
    pods.iter().map(endpoint).collect()
}

/// Lets the client go to pods of these names, and nowhere else.
fn let_client_go_to(lab: &Lab, names: &[&str]) -> Result<()> {
    let mut spec = app("client");
    spec["policyTypes"] = json!(["Egress"]);
    spec["egress"] = json!([{"to": names.iter().map(|name| app(name)).collect::<Vec<_>>()}]);
    lab.policy("shop", "client", &spec)
}

/// Waits until a policy or slice that was just written is in force.
fn epoch_after(agent: &Agent, before: &Value) -> Result<()> {
    agent.until_status("a new epoch", SOON, |status| status["epoch"].as_u64() > before.as_u64())
}

/// A connection stays on the backend that it was given. Other backends, and other pods' affairs, do not end it; a policy that
/// shuts its own backend out does, although all that are behind the Service now may be dialled. So it is after a restart too.
#[test]
fn an_open_connection_is_judged_by_its_own_backend() -> Result<()> {
    let lab = Lab::new("backends-open")?;
    let pod = |name: &str| lab.pod(PodSpec::new("shop", name).layout(Layout::PointToPoint));
    let (good, other, client) = (pod("good")?, pod("other")?, pod("client")?);
    let _serving = good.serve("tcp", 8080)?;
    translate(&lab, &good)?;
    web(&lab, &|v6| behind(&[&good], v6))?;
    let_client_go_to(&lab, &["good"])?;
    let agent = Agent::start(&lab, &[])?;
    let mut held = Vec::new();
    for vip in vips() {
        held.push(client.start(&["hold", &SocketAddr::new(vip, 80).to_string(), "2", "60"])?);
    }
    for vip in vips() {
        agent.record("what is behind it", SOON, |r| {
            r["destination"]["ip"] == vip.to_string() && r["destination"]["translated"].is_object()
        })?;
    }
    // The backend turns unready, and another takes its place: new connections are that one's.
    web(&lab, &|v6| behind(&[&other], v6))?;
    until(SOON, "new connections are judged by the new backend", || Ok(!client.reaches("tcp", vips()[0], 80)?))?;
    ensure!(!client.reaches("tcp", vips()[1], 80)?);
    // Anything else that makes a new epoch.
    let before = agent.status()?["epoch"].clone();
    let_client_go_to(&lab, &["good", "somebody"])?;
    epoch_after(&agent, &before)?;
    std::thread::sleep(Duration::from_secs(1));
    agent.terminate(SOON)?;
    let agent = Agent::start(&lab, &[])?;
    std::thread::sleep(Duration::from_secs(1));
    for running in &mut held {
        ensure!(running.alive()?, "still there");
    }
    // Only the new backend may be dialled from now on.
    let_client_go_to(&lab, &["other"])?;
    until(SOON, "the new backend may be dialled", || {
        let said = agent.command(&["explain", "--from", "shop/client", "--to", VIPS[0], "--port", "80/TCP", "-o", "json"])?;
        Ok(said.stdout.contains("allowed"))
    })?;
    for (running, vip) in held.into_iter().zip(vips()) {
        let result = running.finish(Duration::from_secs(120))?.json()?;
        ensure!(result["broken"] == 2, "{vip}: its own backend may not be: {result}");
        ensure!(result["exchanges"].as_u64() > Some(100), "{vip}: it went on before: {result}");
        agent.record("its end", SOON, |r| {
            r["kind"] == "end" && r["end_reason"] == "verdict_changed" && r["destination"]["ip"] == vip.to_string()
        })?;
    }
    Ok(())
}

/// The same without a change of policy: nothing breaks, however often the backends change.
#[test]
fn backends_that_change_break_nothing() -> Result<()> {
    let lab = Lab::new("backends-change")?;
    let pod = |name: &str| lab.pod(PodSpec::new("shop", name).layout(Layout::PointToPoint));
    let (good, other, client) = (pod("good")?, pod("other")?, pod("client")?);
    let _serving = good.serve("tcp", 8080)?;
    translate(&lab, &good)?;
    web(&lab, &|v6| behind(&[&good], v6))?;
    let_client_go_to(&lab, &["good"])?;
    let agent = Agent::start(&lab, &[])?;
    let mut held = Vec::new();
    for vip in vips() {
        held.push(client.start(&["hold", &SocketAddr::new(vip, 80).to_string(), "3", "8"])?);
    }
    for round in 0..6 {
        std::thread::sleep(Duration::from_millis(700));
        let pods: &[&Pod] = if round % 2 == 0 { &[&other] } else { &[&good, &other] };
        web(&lab, &|v6| behind(pods, v6))?;
        let mut stranger = app("nobody");
        stranger["ingress"] = json!([{"from": [app(&format!("round-{round}"))]}]);
        lab.policy("shop", "nobody", &stranger)?;
        lab.manifest(
            "newcomer",
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": format!("new-{round}"), "labels": {"app": "good"}},
                "spec": {"nodeName": "elsewhere"}, "status": {"podIPs": [{"ip": format!("10.77.0.{round}")}]}}),
        )?;
    }
    for running in held {
        let result = running.finish(Duration::from_secs(30))?.json()?;
        ensure!(result["broken"] == 0, "{result}");
    }
    drop(agent);
    Ok(())
}

/// A backend that has failed, is not known yet or has moved takes nobody's Service away; who is there in its place does.
#[test]
fn a_stale_backend_takes_nothing_away() -> Result<()> {
    let lab = Lab::new("backends-stale")?;
    let pod = |name: &str| lab.pod(PodSpec::new("shop", name).layout(Layout::PointToPoint));
    let (good, other, client) = (pod("good")?, pod("other")?, pod("client")?);
    let _serving = good.serve("tcp", 8080)?;
    translate(&lab, &good)?;
    let_client_go_to(&lab, &["good"])?;
    let near = |pod: &Pod, v6: bool| match pod.address(v6) {
        IpAddr::V4(v4) => IpAddr::V4((v4.to_bits() | 0xf0).into()),
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() | 0xf0).into()),
    };
    lab.manifest(
        "failed",
        &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "shop", "name": "failed", "labels": {"app": "good"}},
            "spec": {"nodeName": "elsewhere"},
            "status": {"phase": "Failed", "podIPs": [{"ip": near(&good, false).to_string()}, {"ip": near(&good, true).to_string()}]}}),
    )?;
    let beside = |what: Value, v6: bool| {
        let mut all = behind(&[&good], v6);
        all.as_array_mut().expect("a list").push(what);
        all
    };
    let target = |ip: IpAddr, name: &str| json!({"addresses": [ip.to_string()], "targetRef": {"kind": "Pod", "name": name}});
    web(&lab, &|v6| beside(target(near(&good, v6), "failed"), v6))?;
    let agent = Agent::start(&lab, &[])?;
    for name in ["failed", "unknown", "other"] {
        web(&lab, &|v6| beside(target(near(&good, v6), name), v6))?;
        std::thread::sleep(Duration::from_millis(500));
        for vip in vips() {
            ensure!(client.reaches("tcp", vip, 80)?, "beside {name} at {vip}");
        }
    }
    web(&lab, &|v6| beside(target(other.address(v6), "failed"), v6))?;
    until(SOON, "who has the address now may not be dialled", || Ok(!client.reaches("tcp", vips()[0], 80)?))?;
    ensure!(!client.reaches("tcp", vips()[1], 80)?);
    let warnings = agent.status()?["policy"]["warnings"].to_string();
    ensure!(warnings.contains("Service shop/web port 80"), "{warnings}");
    Ok(())
}

/// A pod that may be reached by nobody and go nowhere reaches itself through its own Service. Nobody else comes in that way.
#[test]
fn a_pod_reaches_itself_through_its_service() -> Result<()> {
    let lab = Lab::new("backends-hairpin")?;
    let pod = |name: &str| lab.pod(PodSpec::new("shop", name).layout(Layout::PointToPoint));
    let (solo, other) = (pod("solo")?, pod("other")?);
    let _serving = solo.serve("tcp", 8080)?;
    translate(&lab, &solo)?;
    web(&lab, &|v6| behind(&[&solo], v6))?;
    for vip in vips() {
        ensure!(solo.reaches("tcp", vip, 80)? && other.reaches("tcp", vip, 80)?, "without policy the road exists: {vip}");
    }
    lab.policy("shop", "closed", &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))?;
    let agent = Agent::start(&lab, &[])?;
    for vip in vips() {
        ensure!(solo.reaches("tcp", vip, 80)?, "{vip}");
        ensure!(!other.reaches("tcp", vip, 80)?, "{vip} is nobody else's");
        ensure!(!solo.reaches("tcp", vip, 81)?, "{vip}");
    }
    // Open for outgoing connections, a neighbour meets the pod's own isolation.
    lab.policy("shop", "closed", &json!({"podSelector": {}, "policyTypes": ["Ingress"]}))?;
    for vip in vips() {
        until(SOON, "it is refused at the other end", || {
            ensure!(!other.reaches("tcp", vip, 80)?, "{vip}");
            Ok(agent.records()?.iter().any(|r| r["direction"] == "ingress" && r["verdict"] == "denied"))
        })?;
        ensure!(solo.reaches("tcp", vip, 80)?, "{vip}");
    }
    // With another pod behind the Service that it may not dial, it is that one's as well.
    lab.policy("shop", "closed", &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))?;
    web(&lab, &|v6| behind(&[&solo, &other], v6))?;
    until(SOON, "another backend that is denied", || Ok(!solo.reaches("tcp", vips()[0], 80)?))?;
    Ok(())
}

/// Connections to such a load balancer's address leave the node as they are: its address is judged, not what the Service has behind it.
#[test]
fn a_load_balancer_that_is_a_proxy_is_judged_by_its_address() -> Result<()> {
    let lab = Lab::new("backends-proxy")?;
    let pod = |name: &str| lab.pod(PodSpec::new("shop", name).layout(Layout::PointToPoint));
    let (good, client) = (pod("good")?, pod("client")?);
    let balancer = [lab.outside_v4(), lab.outside_v6()];
    let _serving = lab.outside().serve("tcp", 80)?;
    web(&lab, &|v6| behind(&[&good], v6))?;
    let service = |mode: &str| {
        let ingress: Value = balancer.iter().map(|ip| json!({"ip": ip.to_string(), "ipMode": mode})).collect();
        lab.manifest(
            "web",
            &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
                "spec": {"type": "LoadBalancer", "clusterIP": VIPS[0], "clusterIPs": VIPS, "ports": [{"port": 80}]},
                "status": {"loadBalancer": {"ingress": ingress}}}),
        )
    };
    let_client_go_to(&lab, &["good"])?;
    service("Proxy")?;
    let agent = Agent::start(&lab, &[])?;
    for ip in balancer {
        ensure!(!client.reaches("tcp", ip, 80)?, "no rule names {ip}");
    }
    let mut spec = app("client");
    spec["policyTypes"] = json!(["Egress"]);
    spec["egress"] = json!([{"to": balancer.iter().map(|ip| json!({"ipBlock": {"cidr": format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 })}})).collect::<Vec<_>>()}]);
    lab.policy("shop", "client", &spec)?;
    for ip in balancer {
        until(SOON, "a rule names it", || client.reaches("tcp", ip, 80))?;
    }
    service("VIP")?;
    for ip in balancer {
        until(SOON, "now it is the Service's", || Ok(!client.reaches("tcp", ip, 80)?))?;
    }
    drop(agent);
    Ok(())
}
