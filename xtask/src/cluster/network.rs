//! The cluster's wires: one network namespace for the control plane with a bridge, one per node with a link to
//! it, and routes by hand to the other nodes' pods, as a cloud's router would have them.

use std::fs;
use std::net::IpAddr;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use sekisho_lab::{Netns, netlink};

use super::plan::{self, CONTROL_PLANE, Plan};

const BRIDGE: &str = "br0";
const UPLINK: &str = "eth0";

pub(super) fn make(plan: Plan) -> Result<()> {
    fs::create_dir_all(plan::root().join("ns"))?;
    let center = Netns::create(&plan::netns(CONTROL_PLANE))?;
    center.within(|| {
        netlink::add_bridge(BRIDGE).context("cannot make the control plane's bridge")?;
        addresses(BRIDGE, plan::control_plane_addresses())
    })?;
    let nodes = plan
        .numbers()
        .map(|number| {
            let node = Netns::create(&plan::netns(&plan::node_name(number)))?;
            link(&center, &node, number)?;
            Ok((number, node))
        })
        .collect::<Result<Vec<_>>>()?;
    for number in plan.numbers() {
        center.within(|| route_to_pods_of(number, BRIDGE))?;
        for (_, node) in nodes.iter().filter(|(other, _)| *other != number) {
            node.within(|| route_to_pods_of(number, UPLINK))?;
        }
    }
    Ok(())
}

/// A node's link to the bridge, its addresses, and that it forwards.
fn link(center: &Netns, node: &Netns, number: u8) -> Result<()> {
    let port = plan::node_name(number);
    let inside = node.open()?;
    center.within(|| {
        netlink::add_veth(&port, UPLINK, inside.as_fd()).context("cannot make a node's uplink")?;
        netlink::set_master(&port, BRIDGE)?;
        netlink::set_up(&port).context("cannot switch a node's uplink on")
    })?;
    node.within(|| {
        addresses(UPLINK, plan::node_addresses(number))?;
        for (default, via) in ["0.0.0.0", "::"].into_iter().zip(plan::control_plane_addresses()) {
            netlink::add_route(default.parse()?, 0, Some(via), UPLINK)?;
        }
        Ok(())
    })?;
    for name in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        node.sysctl(name, "1")?;
    }
    for name in ["net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables"] {
        // Without it, replies of a Service on the same node take the bridge's short cut around the translation.
        node.sysctl(name, "1").context("this kernel lacks bridge netfilter (br_netfilter)")?;
    }
    Ok(())
}

fn addresses(interface: &str, addresses: [IpAddr; 2]) -> Result<()> {
    for address in addresses {
        let length = if address.is_ipv4() { 24 } else { 64 };
        netlink::add_address(interface, address, length).with_context(|| format!("cannot give {interface} {address}"))?;
    }
    netlink::set_up(interface).with_context(|| format!("cannot switch {interface} on"))
}

fn route_to_pods_of(number: u8, interface: &str) -> Result<()> {
    for ((network, length), via) in plan::pod_networks(number).into_iter().zip(plan::node_addresses(number)) {
        netlink::add_route(network, length, Some(via), interface).with_context(|| format!("cannot route {network}"))?;
    }
    Ok(())
}
