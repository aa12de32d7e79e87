//! The lab itself: what it claims to make is there, and gone afterwards. Needs root.

use std::path::Path;

use anyhow::Result;
use sekisho_lab::{Heading, Lab, Layout, PodSpec, Sniffer};

/// Pods in both layouts reach each other, the node and the outside, over both families.
#[test]
fn everyone_reaches_everyone() -> Result<()> {
    let lab = Lab::new("lab-reach")?;
    let [bridged, neighbour] = lab.pods("shop", ["a", "b"])?;
    let routed = lab.pod(PodSpec::new("shop", "c").layout(Layout::PointToPoint))?;
    let other = lab.pod(PodSpec::new("shop", "d").layout(Layout::PointToPoint))?;
    let _servers = [bridged.serve("tcp", 80)?, bridged.serve("udp", 53)?, routed.serve("tcp", 80)?, routed.serve("udp", 53)?];
    for client in [&*neighbour, &*other, lab.node(), lab.outside()] {
        for server in [&bridged, &routed] {
            for v6 in [false, true] {
                let what = format!("{} -> {} v6 {v6}", client.name(), server.name());
                assert!(client.reaches("tcp", server.address(v6), 80)?, "tcp {what}");
                assert!(client.reaches("udp", server.address(v6), 53)?, "udp {what}");
                assert!(client.pings(server.address(v6))?, "ping {what}");
            }
        }
    }
    assert!(!neighbour.reaches("tcp", bridged.v4(), 81)?, "nobody listens there");
    Ok(())
}

/// A sniffer at one end counts wire packets, although large frames travel whole.
#[test]
fn sniffer_counts_wire_packets() -> Result<()> {
    let lab = Lab::new("lab-sniff")?;
    let [server, client] = lab.pods("shop", ["a", "b"])?;
    let _serving = server.serve("tcp", 80)?;
    let sniffer = Sniffer::start(server.netns(), "eth0")?;
    let target = format!("{}:80", server.v4());
    assert!(client.tool(&["dial", "tcp", &target, "--bytes", "1000000"])?.success());
    let count = sniffer.total(|flow| flow.heading == Heading::In && flow.protocol == 6)?;
    // 1 MB in segments of 1448 bytes is 691 packets; acknowledgements come on top.
    assert!(count.packets >= 691, "{count:?}");
    assert!(count.bytes >= 1_000_000 + 691 * 52, "{count:?}");
    Ok(())
}

/// Dropping a lab leaves neither files nor control groups.
#[test]
fn nothing_is_left() -> Result<()> {
    let lab = Lab::new("lab-gone")?;
    let pod = lab.pod(PodSpec::new("shop", "a"))?;
    let (directory, cgroup) = (lab.directory().to_owned(), pod.cgroup().to_owned());
    assert!(directory.join("manifests/pod-shop-a.json").exists() && cgroup.exists());
    pod.delete()?;
    assert!(!directory.join("manifests/pod-shop-a.json").exists() && !cgroup.exists());
    let again = lab.pod(PodSpec::new("shop", "a"))?;
    let cgroup = again.cgroup().to_owned();
    drop(lab);
    assert!(!directory.exists() && !cgroup.exists());
    assert!(!Path::new("/run/sekisho-lab/lab-gone").exists());
    Ok(())
}
