//! Where a pod is not.

use std::sync::Arc;

use anyhow::{Result, ensure};
use sekisho::datapath::{Datapath, TcBackend};
use sekisho_lab::{Lab, PodSpec};

use super::{Manifest, all, manifest, options};

/// A container's first process is in the pod's group before it enters the pod's namespace.
#[test]
fn a_container_that_still_is_in_the_nodes_namespace_is_not_taken_for_the_pod() -> Result<()> {
    let lab = Lab::new("dp-begin")?;
    let (there, begins) = (lab.pod(PodSpec::new("shop", "there"))?, lab.pod(PodSpec::new("shop", "begins").host_network())?);
    let begins = Arc::new(Manifest { ips: Vec::new(), ..(*manifest(&begins, false)).clone() });
    let pods = [manifest(&there, false), begins];
    lab.node().netns().within(|| {
        let mut datapath = Datapath::open(&options(&lab, TcBackend::Auto))?;
        // By the second look the node has a number in its own namespace: the look at the first pod's interface gives it one.
        for _ in 0..2 {
            datapath.reconcile(&pods);
            for endpoint in all(&datapath) {
                let is_there = endpoint.uid == pods[0].uid;
                ensure!((endpoint.number != 0) == is_there && endpoint.addresses.is_empty() != is_there, "{endpoint:#?}");
            }
        }
        datapath.leave(true)?;
        Ok(())
    })
}
