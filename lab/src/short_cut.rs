//! A short cut into a pod, as some CNIs take it: packets that arrive on the uplink are handed to the pod's own
//! interface by `bpf_redirect_peer`, so the host side of its veth never sees them.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::pod::Pod;
use crate::sys;

/// While this lives, everything that arrives on the node's uplink goes straight into one pod.
#[derive(Debug)]
pub struct ShortCut {
    _program: OwnedFd,
    _link: OwnedFd,
}

impl ShortCut {
    /// Takes the short cut into `pod`.
    pub fn into_pod(lab: &Lab, pod: &Pod) -> Result<Self> {
        let target = pod.interface().context("a hostNetwork pod has no veth")?;
        let (program, link) = lab.node().netns().within(|| {
            let target = u64::from(sys::interface_index(target)?);
            // Opcode, registers and offset in the low half, the immediate in the high half.
            let program = [
                // r0 = skb->protocol; anything but IPv4 passes, so that ARP works
                0x0010_1061,
                0x0004_0055 | u64::from(0x0800_u16.to_be()) << 32,
                // r1 = the veth; r2 = 0; r0 = bpf_redirect_peer(r1, r2); return r0
                0x0000_01b7 | target << 32,
                0x0000_02b7,
                0x0000_0085 | 155 << 32,
                0x0000_0095,
                // pass: r0 = TCX_NEXT; return r0
                0x0000_00b7 | 0xffff_ffff << 32,
                0x0000_0095,
            ];
            sys::attach_tcx_ingress(&program, sys::interface_index("eth0")?).context("cannot attach the short cut")
        })?;
        Ok(Self { _program: program, _link: link })
    }

    /// No short cut, but another's program on the way: it lets everything pass.
    pub fn onto(lab: &Lab, interface: &str) -> Result<Self> {
        let (program, link) = lab.node().netns().within(|| {
            let pass = [0x0000_00b7 | 0xffff_ffff << 32, 0x0000_0095];
            sys::attach_tcx_ingress(&pass, sys::interface_index(interface)?).context("cannot attach the program")
        })?;
        Ok(Self { _program: program, _link: link })
    }
}
