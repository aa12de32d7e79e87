//! Which CNI made the pods' networks, as far as it shows: its configuration, its interfaces, its processes; and what its own
//! programs mean for ours.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::Finding;
use crate::datapath::probe::{self, Interface, Neighbour, ProgramOwner};

/// Where configurations lie; the second is the node's, seen from a pod with its processes.
const FOLDERS: [&str; 2] = ["/etc/cni/net.d", "/proc/1/root/etc/cni/net.d"];
/// Interfaces' or programs' names in one sentence.
const NAMED: usize = 3;

/// A CNI, and how it gives itself away.
struct Known {
    name: &'static str,
    /// Types in its configuration.
    types: &'static [&'static str],
    /// Beginnings of its interfaces' names.
    interfaces: &'static [&'static str],
    /// Its processes, as the kernel cuts their names.
    processes: &'static [&'static str],
    meaning: Meaning,
}

/// What it means for us.
#[derive(Clone, Copy)]
enum Meaning {
    /// It only connects.
    Plain,
    /// It judges NetworkPolicies too.
    Engine,
    /// It judges, and may hand packets to pods past the host's end of the veth.
    Bypass,
    /// It adds interfaces that no policy speaks of.
    Several,
    /// There is no host's end.
    NoVeth,
}

const KNOWN: [Known; 16] = [
    Known {
        name: "Cilium",
        types: &["cilium-cni"],
        interfaces: &["cilium_host", "cilium_net"],
        processes: &["cilium-agent"],
        meaning: Meaning::Bypass,
    },
    Known { name: "Calico with eBPF", types: &[], interfaces: &["bpfin.cali", "bpfout.cali"], processes: &[], meaning: Meaning::Bypass },
    Known {
        name: "Calico",
        types: &["calico"],
        interfaces: &["cali", "vxlan.calico"],
        processes: &["calico-node", "calico-felix"],
        meaning: Meaning::Engine,
    },
    Known { name: "Antrea", types: &["antrea"], interfaces: &["antrea-gw0"], processes: &["antrea-agent"], meaning: Meaning::Engine },
    Known {
        name: "OVN-Kubernetes",
        types: &["ovn-k8s-cni-overlay"],
        interfaces: &["ovn-k8s-mp0"],
        processes: &["ovnkube"],
        meaning: Meaning::Engine,
    },
    Known { name: "kube-router", types: &[], interfaces: &["kube-bridge"], processes: &["kube-router"], meaning: Meaning::Engine },
    Known { name: "Weave Net", types: &["weave-net"], interfaces: &["weave"], processes: &["weaver"], meaning: Meaning::Engine },
    Known { name: "AWS VPC CNI", types: &["aws-cni"], interfaces: &[], processes: &["aws-k8s-agent"], meaning: Meaning::Engine },
    Known { name: "Azure CNI", types: &["azure-vnet"], interfaces: &["azv"], processes: &["azure-vnet"], meaning: Meaning::Plain },
    Known { name: "flannel", types: &["flannel"], interfaces: &["flannel."], processes: &["flanneld"], meaning: Meaning::Plain },
    Known { name: "kindnet", types: &["kindnet"], interfaces: &[], processes: &["kindnetd"], meaning: Meaning::Engine },
    Known { name: "Multus", types: &["multus", "multus-shim"], interfaces: &[], processes: &["multus-daemon"], meaning: Meaning::Several },
    Known { name: "bridge", types: &["bridge"], interfaces: &["cni0"], processes: &[], meaning: Meaning::Plain },
    Known { name: "ptp", types: &["ptp"], interfaces: &[], processes: &[], meaning: Meaning::Plain },
    Known { name: "macvlan", types: &["macvlan"], interfaces: &[], processes: &[], meaning: Meaning::NoVeth },
    Known { name: "ipvlan", types: &["ipvlan"], interfaces: &[], processes: &[], meaning: Meaning::NoVeth },
];

/// What remains where only sockets are seen.
const NO_VETH: &str = "pods have no interface on the node that can be judged at: they are judged at their control groups, which see sockets \
     only. AF_PACKET frames, replies to pings, RSTs and virtual machines pass unjudged, denied datagrams enter the pod's namespace, and MAC \
     addresses are not seen";

pub(super) fn examine(pin_dir: &Path) -> Vec<Finding> {
    let interfaces = probe::interfaces();
    let names = interfaces.as_deref().unwrap_or_default();
    let types = FOLDERS.iter().find_map(|folder| types(Path::new(folder)));
    let mut findings = recognised(types.as_ref(), names, &probe::processes());
    match interfaces {
        Ok(interfaces) => findings.extend(ends(&interfaces)),
        Err(error) => findings.push(Finding::note("interfaces", format!("they cannot be listed: {error}"))),
    }
    match probe::neighbours(pin_dir) {
        Ok(neighbours) => {
            let (foreign, own): (Vec<_>, Vec<_>) = neighbours.into_iter().partition(|other| other.owner == ProgramOwner::Foreign);
            findings.push(others(&foreign));
            findings.extend(siblings(&own));
        }
        Err(error) => findings.push(Finding::note("hooks", format!("others' programs at pods' interfaces cannot be seen: {error}"))),
    }
    findings
}

/// Other Sekisho agents whose programs are at pods' interfaces of this node.
pub(super) fn siblings(programs: &[Neighbour]) -> Vec<Finding> {
    let mut agents: BTreeMap<Option<&Path>, BTreeSet<&str>> = BTreeMap::new();
    for program in programs {
        if let ProgramOwner::Sekisho(pins) = &program.owner {
            agents.entry(pins.as_deref()).or_default().insert(&program.interface);
        }
    }
    let finding = |(pins, interfaces): (Option<&Path>, BTreeSet<&str>)| {
        let pins = pins.map_or_else(|| "whose pins are not visible here".to_owned(), |pins| format!("with pin dir {}", pins.display()));
        let first = interfaces.first().copied().unwrap_or_default();
        let place = if interfaces.len() == 1 { first.to_owned() } else { format!("{} interfaces, {first} among them", interfaces.len()) };
        let cost = "both judge: a flow passes only if both allow it, and each records it; what one drops first the other does not see";
        let found = format!("another Sekisho agent, {pins}, has programs on {place}");
        let remedy = "if only one is meant to run, stop the other and remove what it left with `sekisho detach --pin-dir`; \
                      to examine the other, name its pins with --pin-dir";
        Finding { cost: Some(cost.to_owned()), ..Finding::note("hooks", found) }.remedy(remedy)
    };
    agents.into_iter().map(finding).collect()
}

/// The plugins of the configuration that is in use: of the file whose name sorts first, as runtimes choose it.
pub(super) fn types(folder: &Path) -> Option<(String, Vec<String>)> {
    let files = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
    let is_one = |path: &Path| path.extension().is_some_and(|end| ["conf", "conflist", "json"].iter().any(|known| end == *known));
    let mut files: Vec<_> = files.filter(|path| is_one(path)).collect();
    files.sort();
    files.into_iter().find_map(|path| {
        let value: Value = serde_json::from_str(&fs::read_to_string(&path).ok()?).ok()?;
        let kind = |plugin: &Value| plugin["type"].as_str().map(str::to_owned);
        let kinds: Vec<String> = match value["plugins"].as_array() {
            Some(plugins) => plugins.iter().filter_map(kind).collect(),
            None => kind(&value).into_iter().collect(),
        };
        let name = path.file_name()?.to_string_lossy().into_owned();
        (!kinds.is_empty()).then_some((name, kinds))
    })
}

pub(super) fn recognised(
    types: Option<&(String, Vec<String>)>,
    interfaces: &[Interface],
    processes: &BTreeMap<String, u32>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut calico_bypasses = false;
    for known in &KNOWN {
        let configured = types.filter(|(_, kinds)| known.types.iter().any(|kind| kinds.iter().any(|found| found == kind)));
        let interface = interfaces.iter().find(|found| known.interfaces.iter().any(|start| found.name.starts_with(start)));
        let process = known.processes.iter().find(|name| processes.contains_key(&name[..name.len().min(15)]));
        let seen = match (configured, process, interface) {
            (Some((file, _)), ..) => format!("/etc/cni/net.d/{file}"),
            (None, Some(process), _) => format!("its process {process}"),
            (None, None, Some(interface)) => format!("its interface {}", interface.name),
            (None, None, None) => continue,
        };
        if known.name == "Calico" && calico_bypasses {
            continue;
        }
        calico_bypasses |= known.name == "Calico with eBPF";
        findings.push(known.finding(&seen));
    }
    if findings.is_empty() {
        let found = match types {
            Some((file, kinds)) => format!("{} ({file}): none of those that are known here", kinds.join(", ")),
            None => "none is recognised: no configuration, interface or process of one is visible from here".to_owned(),
        };
        findings.push(Finding::note("cni", found));
    }
    findings
}

impl Known {
    fn finding(&self, seen: &str) -> Finding {
        let found = format!("{}, by {seen}", self.name);
        let note = |meaning: &str| Finding { cost: Some(meaning.to_owned()), ..Finding::note("cni", found.clone()) };
        match self.meaning {
            Meaning::Plain => Finding::good("cni", format!("{found}: it connects pods and leaves judging to others")),
            Meaning::Engine => note(
                "it may judge NetworkPolicies too: a flow passes only if both allow it, and what it alone drops is `allowed` in our records",
            ),
            Meaning::Bypass => note(
                "it judges NetworkPolicies too, and with eBPF host routing (bpf_redirect_peer) packets enter pods past the veth's host end: \
                 the agent notices, and attaches to such a pod's control group as well (tcx+cgroup in `sekisho status`; one_way where it has \
                 none). What the pod sends is judged at its veth; denied datagrams may enter its namespace, and do not reach its sockets",
            ),
            Meaning::Several => note("interfaces beyond a pod's first are not judged; they are counted or reported unseen"),
            Meaning::NoVeth => note(NO_VETH),
        }
    }
}

/// The interfaces behind which pods are.
fn ends(interfaces: &[Interface]) -> Vec<Finding> {
    let out = |kind: &str| interfaces.iter().filter(|interface| interface.leads_out && interface.kind == kind).count();
    let (veths, netkits) = (out("veth"), out("netkit"));
    let mut findings = vec![match veths {
        0 => Finding::note(
            "interfaces",
            "no veth leads to another network from here: no pod with one runs, or this is not its node's network",
        ),
        _ => Finding::good("interfaces", format!("{veths} veths lead to other networks")),
    }];
    if netkits > 0 {
        let cost = "those without Ethernet headers (mode l3) are no place to judge at";
        findings.push(Finding {
            cost: Some(format!("{cost}: {NO_VETH}")),
            ..Finding::note("interfaces", format!("{netkits} netkit devices lead to other networks"))
        });
    }
    findings
}

/// Others' programs at the hooks that we use.
pub(super) fn others(neighbours: &[Neighbour]) -> Finding {
    let named = |all: &[&Neighbour]| {
        let mut names: Vec<String> = all.iter().map(|other| format!("{} ({})", other.program, other.hook)).collect();
        names.sort();
        names.dedup();
        let more = names.len().saturating_sub(NAMED);
        names.truncate(NAMED);
        let interfaces: BTreeSet<&str> = all.iter().map(|other| other.interface.as_str()).collect();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let first = interfaces.first().copied().unwrap_or_default();
        let place = if interfaces.len() == 1 { first.to_owned() } else { format!("{} interfaces, {first} among them", interfaces.len()) };
        format!("{}{more} on {place}", names.join(", "))
    };
    let before: Vec<&Neighbour> = neighbours.iter().filter(|other| other.first).collect();
    if !before.is_empty() {
        let cost = "what it drops or redirects is never seen by us; the agent puts itself first again where the kernel has TCX";
        return Finding::lack("hooks", format!("others' programs run before ours: {}", named(&before)), cost);
    }
    if neighbours.is_empty() {
        return Finding::good("hooks", "no other's program is at a pod's interface");
    }
    let all: Vec<&Neighbour> = neighbours.iter().collect();
    let cost = "they run behind ours and get what we let pass; what they drop is `allowed` in our records";
    Finding { cost: Some(cost.to_owned()), ..Finding::note("hooks", format!("others' programs are at pods' interfaces: {}", named(&all))) }
}
