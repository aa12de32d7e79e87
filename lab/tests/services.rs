//! Behind a Service: the client's record names what its connection really became, so that it joins with the record of
//! the server's end. The translation is the kernel's own, as kube-proxy sets it up. Needs root and nft.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use sekisho_lab::{Agent, Lab, Layout, Pod, PodSpec};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(8);

struct Shop {
    lab: Lab,
    client: Pod,
    server: Pod,
}

const ADDRESSES: [&str; 2] = ["10.96.0.10", "fd96::10"];

/// A Service `web` of both families in front of `server`, made by `nft` on the node; `masqueraded` ones show the node as
/// their client.
fn shop(name: &str, masqueraded: bool) -> Result<Shop> {
    let lab = Lab::new(name)?;
    let client = lab.pod(PodSpec::new("shop", "client").layout(Layout::PointToPoint))?;
    let server = lab.pod(PodSpec::new("shop", "server").layout(Layout::PointToPoint))?;
    let mut rules = String::new();
    for (family, (at, to)) in [("ip", (ADDRESSES[0], server.v4().to_string())), ("ip6", (ADDRESSES[1], format!("[{}]", server.v6())))] {
        let masquerade = if masqueraded { format!("{family} daddr {} masquerade;", to.trim_matches(['[', ']'])) } else { String::new() };
        write!(
            rules,
            "table {family} services {{
                chain prerouting {{
                    type nat hook prerouting priority dstnat;
                    {family} daddr {at} tcp dport 80 dnat to {to}:8080;
                    {family} daddr {at} udp dport 53 dnat to {to}:5353;
                }}
                chain postrouting {{ type nat hook postrouting priority srcnat; {masquerade} }}
            }}\n"
        )?;
    }
    let file = lab.directory().join("services.nft");
    std::fs::write(&file, rules)?;
    let nft = lab.node().run("nft", &["-f", &file.display().to_string()])?;
    ensure!(nft.success(), "nft: {}", nft.stderr);
    lab.manifest(
        "web",
        &json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": "shop", "name": "web"},
            "spec": {"clusterIP": ADDRESSES[0], "clusterIPs": ADDRESSES,
                "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}}),
    )?;
    for (family, address) in [("IPv4", server.v4()), ("IPv6", server.v6())] {
        let name = format!("web-{}", family.to_lowercase());
        lab.manifest(
            &name,
            &json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {"namespace": "shop", "name": name, "labels": {"kubernetes.io/service-name": "web"}},
                "ports": [{"name": "http", "port": 8080}, {"name": "dns", "port": 5353, "protocol": "UDP"}],
                "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true},
                    "targetRef": {"kind": "Pod", "name": "server"}}]}),
        )?;
    }
    Ok(Shop { lab, client, server })
}

/// The client's record of a kind joins with the server's of the same flow.
fn joined(agent: &Agent, shop: &Shop, kind: &str, at: IpAddr, (port, behind): (u16, u16)) -> Result<()> {
    let wanted = if at.is_ipv4() { shop.server.v4() } else { shop.server.v6() };
    let of_client = agent.record("the client's record", SOON, |record| {
        record["kind"] == kind
            && record["direction"] == "egress"
            && record["destination"]["ip"] == at.to_string()
            && record["destination"]["port"] == port
    })?;
    let translated = &of_client["destination"]["translated"];
    ensure!(translated["ip"] == wanted.to_string() && translated["port"] == behind, "{of_client:#}");
    ensure!(translated["pod"]["uid"] == shop.server.uid(), "{of_client:#}");
    ensure!(of_client["destination"]["service"]["name"] == "web", "{of_client:#}");
    let of_server = agent.record("the server's record", SOON, |record| {
        record["kind"] == kind && record["direction"] == "ingress" && record["community_id"] == of_client["community_id_translated"]
    })?;
    ensure!(of_server["destination"]["ip"] == wanted.to_string() && of_server["destination"]["port"] == behind, "{of_server:#}");
    Ok(())
}

fn journey(shop: &Shop) -> Result<Value> {
    let _serving = [shop.server.serve("tcp", 8080)?, shop.server.serve("udp", 5353)?];
    let agent = Agent::start(&shop.lab, &["--first-update", "500ms"])?;
    for address in ADDRESSES {
        let address: IpAddr = address.parse()?;
        ensure!(shop.client.reaches("tcp", address, 80)?, "the Service answers at {address}");
        for kind in ["start", "end"] {
            joined(&agent, shop, kind, address, (80, 8080))?;
        }
        ensure!(shop.client.reaches("udp", address, 53)?, "the Service answers datagrams at {address}");
        joined(&agent, shop, "start", address, (53, 5353))?;
    }
    Ok(agent.status()?["translations"].clone())
}

#[test]
fn the_clients_record_joins_with_the_servers() -> Result<()> {
    let shop = shop("services-direct", false)?;
    let tally = journey(&shop)?;
    ensure!(tally["found"].as_u64() >= Some(4) && tally["failed"] == 0 && tally["not_asked"] == 0, "{tally}");
    // What does not get there is not found, and keeps nobody waiting.
    let agent = Agent::start(&shop.lab, &["--first-update", "500ms"])?;
    ensure!(!shop.client.reaches("tcp", ADDRESSES[0].parse()?, 80)?, "nobody serves any more");
    let start = agent.record("its start", SOON, |record| record["kind"] == "start" && record["destination"]["port"] == 80)?;
    ensure!(start["destination"]["service"]["name"] == "web", "{start:#}");
    Ok(())
}

#[test]
fn so_it_does_where_the_node_hides_the_client() -> Result<()> {
    journey(&shop("services-hidden", true)?).map(drop)
}
