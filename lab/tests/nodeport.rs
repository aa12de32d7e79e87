//! The way around: a NodePort with masquerade makes an outsider look like the node. It is judged as what it
//! is, while the node's own processes get through. Needs root and nft.

use anyhow::{Result, ensure};
use sekisho_lab::{Agent, Heading, Lab, Layout, PodSpec, Sniffer};
use serde_json::json;

fn journey(name: &str, layout: Layout) -> Result<()> {
    let lab = Lab::new(name)?;
    let server = lab.pod(PodSpec::new("shop", "server").layout(layout))?;
    let neighbour = lab.pod(PodSpec::new("shop", "neighbour").layout(layout))?;
    let _serving = server.serve("tcp", 80)?;
    let rules = format!(
        "table ip nodeport {{
            chain prerouting {{ type nat hook prerouting priority dstnat; ip daddr {node} tcp dport 30080 dnat to {pod}:80; }}
            chain postrouting {{ type nat hook postrouting priority srcnat; ip daddr {pod} tcp dport 80 masquerade; }}
        }}",
        node = lab.node_v4(),
        pod = server.v4()
    );
    let file = lab.directory().join("nodeport.nft");
    std::fs::write(&file, rules)?;
    let nft = lab.node().run("nft", &["-f", &file.display().to_string()])?;
    ensure!(nft.success(), "nft: {}", nft.stderr);
    for (who, place) in [("outside", lab.outside()), ("neighbour", &*neighbour)] {
        ensure!(place.reaches("tcp", lab.node_v4(), 30080)?, "without policy the {who} gets through: the road exists");
    }
    lab.admit("shop", "server", &json!([]))?;
    let agent = Agent::start(&lab, &[])?;
    for (who, place) in [("outside", lab.outside()), ("neighbour", &*neighbour)] {
        let sniffer = Sniffer::start(server.netns(), "eth0")?;
        ensure!(!place.reaches("tcp", lab.node_v4(), 30080)?, "the {who} is turned back");
        let arrived = sniffer.total(|flow| flow.heading == Heading::In && flow.protocol == 6)?;
        ensure!(arrived.packets == 0, "from {who}: {arrived:?} arrived");
    }
    let denied = agent.record("a denial that says who hid", std::time::Duration::from_secs(5), |record| {
        record["kind"] == "start"
            && record["verdict"] == "denied"
            && record["direction"] == "ingress"
            && record["source"]["client"] == "hidden_by_snat"
    })?;
    ensure!(denied["reason"] == "default_deny", "{denied:#}");
    for v6 in [false, true] {
        ensure!(lab.node().reaches("tcp", server.address(v6), 80)?, "the node's own process gets through (v6 {v6})");
    }
    // From every address of the node, the bridge's included.
    for from in [lab.node_v4(), lab.node_v6(), lab.bridge_v4(), lab.bridge_v6()] {
        let target = std::net::SocketAddr::new(server.address(from.is_ipv6()), 80).to_string();
        ensure!(lab.node().tool(&["dial", "tcp", &target, "--bind", &from.to_string()])?.success(), "the node's own process, from {from}");
    }
    Ok(())
}

#[test]
fn bridge() -> Result<()> {
    journey("nodeport-bridge", Layout::Bridge)
}

#[test]
fn point_to_point() -> Result<()> {
    journey("nodeport-ptp", Layout::PointToPoint)
}
