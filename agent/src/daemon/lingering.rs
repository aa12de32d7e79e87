//! Pods that the cluster does not know any more, and that are still at work on this node.
//!
//! The data path keeps their endpoints (see `datapath::EndpointInfo::orphaned`). Here they stay in the snapshot that is compiled, so
//! that they keep their policy, and that its edits reach them. An address or a name that another pod has by now is not theirs any more.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use sekisho_proto as proto;

use super::pump::Pump;
use crate::datapath::Stranger;
use crate::flow::Owner;
use crate::inventory::{Pod, Snapshot};

impl Pump {
    /// Keeps those of `former` pods, and of those kept already, whose endpoints are still there, and notes the addresses of all endpoints.
    pub(super) fn keep_lingering(&mut self, former: Vec<Arc<Pod>>) {
        let orphans: HashSet<Arc<str>> = self.datapath.endpoints().filter(|e| e.orphaned).map(|e| e.uid.clone()).collect();
        let mut seen = HashSet::new();
        let stays = |pod: &Arc<Pod>| orphans.contains(&pod.uid) && seen.insert(pod.uid.clone());
        self.lingering = former.into_iter().chain(std::mem::take(&mut self.lingering)).filter(stays).collect();
        let taken = if orphans.is_empty() { HashSet::new() } else { addresses(&self.base) };
        self.snapshot = with(&self.base, &self.lingering, &taken);
        let own = |orphaned: bool, ips: &[IpAddr]| ips.iter().filter(|ip| !orphaned || !taken.contains(*ip)).copied().collect();
        self.known = self
            .datapath
            .endpoints()
            .filter(|e| !e.addresses.is_empty() && !e.host_network)
            .map(|e| (e.uid.clone(), own(e.orphaned, &e.addresses)))
            .collect();
    }

    /// A pod of this node, known or lingering.
    pub(super) fn here(&self, uid: &str) -> Option<&Arc<Pod>> {
        self.local.iter().chain(&self.lingering).find(|pod| *pod.uid == *uid)
    }

    /// Endpoints that a former agent left, and that no pod claims, as status shows them.
    pub(super) fn stranger_status(&self) -> Vec<proto::EndpointStatus> {
        self.datapath.strangers().iter().map(|stranger| self.stranger(stranger)).collect()
    }

    fn stranger(&self, stranger: &Stranger) -> proto::EndpointStatus {
        let pod = match self.directory.identities.get(&stranger.instance).map(|identity| &identity.owner) {
            Some(Owner::Pod { namespace, name, uid, .. }) => {
                Some(proto::Pod { namespace: namespace.to_string(), name: name.to_string(), uid: uid.to_string(), ..proto::Pod::default() })
            }
            _ => None,
        };
        let group = stranger.number & sekisho_core::layout::CGROUP_ENDPOINT != 0;
        let [isolated_egress, isolated_ingress] = stranger.isolated;
        proto::EndpointStatus {
            pod,
            ips: stranger.addresses.iter().map(IpAddr::to_string).collect(),
            interface: (!group).then(|| format!("index {}", stranger.number)),
            attach: if group { "cgroup" } else { self.datapath.backend_name() }.to_owned(),
            isolated_ingress,
            isolated_egress,
            coverage: "full".to_owned(),
            ready: true,
            message: Some(
                "orphaned: an earlier agent attached here and no pod claims it; where it is isolated it is denied everything".to_owned(),
            ),
            ..proto::EndpointStatus::default()
        }
    }
}

/// Addresses that pods of the cluster have.
fn addresses(snapshot: &Snapshot) -> HashSet<IpAddr> {
    let pods = snapshot.pods.values().filter(|pod| !pod.finished && !pod.host_network);
    pods.flat_map(|pod| pod.addresses().iter().copied()).collect()
}

/// The snapshot with lingering pods in it, without the addresses in `taken`.
fn with(base: &Arc<Snapshot>, lingering: &[Arc<Pod>], taken: &HashSet<IpAddr>) -> Arc<Snapshot> {
    if lingering.is_empty() {
        return Arc::clone(base);
    }
    let mut snapshot = Snapshot::clone(base);
    let pods = Arc::make_mut(&mut snapshot.pods);
    for pod in lingering {
        let name = (pod.namespace.clone(), pod.name.clone());
        if pods.get(&name).is_some_and(|other| other.uid != pod.uid) {
            continue;
        }
        let ips = pod.ips.iter().filter(|ip| !taken.contains(*ip)).copied().collect();
        pods.insert(name, Arc::new(Pod { ips, finished: false, announced: Box::default(), ..Pod::clone(pod) }));
    }
    Arc::new(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inventory::files;

    fn pods(snapshot: &Snapshot) -> Vec<(&str, &[IpAddr])> {
        snapshot.pods.values().map(|pod| (&*pod.uid, &*pod.ips)).collect()
    }

    #[test]
    fn a_lingering_pod_keeps_neither_a_name_nor_an_address_that_is_anothers() {
        let text = |name: &str, uid: &str, ip: &str| {
            format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, uid: \"{uid}\"}}\nspec: {{nodeName: n}}\nstatus: {{podIP: {ip}}}")
        };
        let before =
            files::snapshot_of(&[text("a", "1", "10.0.0.1"), text("b", "2", "10.0.0.2"), text("c", "3", "10.0.0.3")].join("\n---\n"));
        let base = files::snapshot_of(&[text("a", "7", "10.0.0.7"), text("d", "4", "10.0.0.2")].join("\n---\n"));
        let lingering: Vec<Arc<Pod>> = before.pods.values().cloned().collect();
        let taken = addresses(&base);
        let [four, seven, three]: [IpAddr; 3] = ["10.0.0.2", "10.0.0.7", "10.0.0.3"].map(|ip| ip.parse().unwrap());
        let kept = with(&base, &lingering, &taken);
        assert_eq!(pods(&kept), [("7", &[seven][..]), ("2", &[]), ("3", &[three]), ("4", &[four])]);
        assert!(Arc::ptr_eq(&with(&base, &[], &taken), &base));
    }
}
