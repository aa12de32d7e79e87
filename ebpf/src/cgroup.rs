//! Which endpoint a socket's control group belongs to.

use aya_ebpf::helpers::generated::bpf_skb_ancestor_cgroup_id;

use crate::budget::config;
use crate::kernel::Skb;
use crate::maps::CG_ENDPOINTS;

/// Levels below the root that are looked at; Kubernetes uses 3 to 5.
const DEEPEST: u32 = 16;

/// The endpoint number of the socket's nearest known ancestor from the root.
#[inline(always)]
pub(crate) fn endpoint(skb: Skb) -> Option<u32> {
    let levels = config()?.cgroup_levels;
    for level in 1..DEEPEST {
        if levels & (1 << level) == 0 {
            continue;
        }
        // SAFETY: the context is valid.
        let id = unsafe { bpf_skb_ancestor_cgroup_id(skb.0, level as i32) };
        if id == 0 {
            return None;
        }
        // SAFETY: read at once.
        if let Some(number) = unsafe { CG_ENDPOINTS.get(&id) } {
            return Some(*number);
        }
    }
    None
}
