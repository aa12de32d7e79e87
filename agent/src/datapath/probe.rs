//! What the doctor looks at in the kernel. It changes nothing and attaches nothing.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use super::bpf::attach_type;
use super::cgroup::Hierarchy;
use super::filters::{self, Hook};
use super::load::layouts;
use super::netlink::Netlink;
use super::{attach, bpf, os};

/// Oldest kernel on which programs load.
pub const OLDEST: (u32, u32) = (5, 15);

/// Version of the running kernel.
pub fn kernel_version() -> Option<(u32, u32)> {
    os::kernel_version()
}

/// Whether the kernel tells its types.
pub fn has_btf() -> bool {
    Path::new("/sys/kernel/btf/vmlinux").exists()
}

/// Whether programs can be put in order at an interface. Needs `NET_ADMIN`.
pub fn has_tcx() -> bool {
    attach::has_tcx()
}

/// Whether the system call is let through: makes a map and drops it.
pub fn bpf_answers() -> io::Result<()> {
    bpf::create_map("doctor", bpf::MAP_TYPE_ARRAY, 4, 4, 1).map(drop)
}

/// Where the cgroup v2 tree is mounted, and whether that is the whole of it.
pub fn cgroup_tree() -> Option<(PathBuf, bool)> {
    Hierarchy::find().map(|hierarchy| (hierarchy.mount, hierarchy.above == Some(0)))
}

/// Whether a directory lies, or would lie, on a bpffs; and the directory that is there.
pub fn on_bpffs(path: &Path) -> io::Result<(bool, PathBuf)> {
    let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    os::is_bpffs(there).map(|is| (is, there.to_owned()))
}

/// Data paths that are pinned below a directory.
pub fn pinned(pin_dir: &Path) -> usize {
    layouts(pin_dir).len()
}

/// An interface behind which a pod may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// `veth`, `netkit`, ..., as the kernel calls it.
    pub kind: String,
    /// Whether its other end is in another network namespace.
    pub leads_out: bool,
}

/// The interfaces of this network namespace.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let links = Netlink::open()?.links(None)?;
    let interface =
        |link: super::netlink::Link| Interface { leads_out: link.nsid.is_some(), kind: link.kind.unwrap_or_default(), name: link.name };
    Ok(links.into_iter().map(interface).collect())
}

/// Another's program at an interface that leads to a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The interface's name.
    pub interface: String,
    /// `tcx` or `tc`.
    pub hook: &'static str,
    /// The program's name, or its number where names are not shown.
    pub program: String,
    /// It runs before ours.
    pub first: bool,
    /// Whose it is.
    pub owner: ProgramOwner,
}

/// Whose a program is that is not the examined agent's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProgramOwner {
    /// Another product's.
    Foreign,
    /// Another Sekisho agent's, with its pin directory where that is visible from here.
    Sekisho(Option<PathBuf>),
}

/// Other programs at interfaces that lead to pods, those of other Sekisho agents included. Needs `NET_ADMIN`.
pub fn neighbours(pin_dir: &Path) -> io::Result<Vec<Neighbour>> {
    let mut netlink = Netlink::open()?;
    let ours = programs(pin_dir);
    let siblings = siblings(pin_dir);
    let mut found = Vec::new();
    for link in netlink.links(None)?.into_iter().filter(|link| link.nsid.is_some()) {
        for side in [attach_type::TCX_INGRESS, attach_type::TCX_EGRESS] {
            let programs = match bpf::query_tcx(link.index, side) {
                Ok(programs) => programs,
                // A kernel without TCX, or an interface that has gone.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENODEV)) => Vec::new(),
                Err(error) => return Err(error),
            };
            let own = programs.iter().position(|id| ours.contains(id));
            for (at, id) in programs.iter().enumerate().filter(|(_, id)| !ours.contains(id)) {
                let program = bpf::program_name(*id).ok().filter(|name| !name.is_empty()).unwrap_or_else(|| format!("program {id}"));
                let owner = match siblings.get(id) {
                    Some(pins) => ProgramOwner::Sekisho(Some(pins.clone())),
                    // Its pins may lie on a bpffs that is not mounted here.
                    None if POD_PROGRAMS.contains(&program.as_str()) => ProgramOwner::Sekisho(None),
                    None => ProgramOwner::Foreign,
                };
                found.push(Neighbour { interface: link.name.clone(), hook: "tcx", program, first: own.is_some_and(|own| at < own), owner });
            }
        }
        for hook in [Hook::Ingress, Hook::Egress] {
            let filters = filters::list(&mut netlink, link.index, hook)?;
            let own = filters.iter().position(filters::Filter::ours);
            for (at, filter) in filters.iter().enumerate().filter(|(_, filter)| !filter.ours() && filter.program != 0) {
                let program = if filter.name.is_empty() { format!("program {}", filter.program) } else { filter.name.clone() };
                let (first, owner) = (own.is_some_and(|own| at < own), ProgramOwner::Foreign);
                found.push(Neighbour { interface: link.name.clone(), hook: "tc", program, first, owner });
            }
        }
    }
    Ok(found)
}

/// The names of our programs at a pod's interface.
const POD_PROGRAMS: [&str; 2] = ["pod_egress", "pod_ingress"];
/// How deep below a bpffs pin directories are looked for, and in how many directories at most.
const DEPTH: usize = 3;
const DIRECTORIES: usize = 4096;

/// Programs of the other agents whose pins are visible, each with its agent's pin directory.
fn siblings(pin_dir: &Path) -> HashMap<u32, PathBuf> {
    let own = pin_dir.canonicalize().unwrap_or_else(|_| pin_dir.to_owned());
    let near = own.parent().filter(|parent| os::is_bpffs(parent).unwrap_or(false));
    let mut left: VecDeque<(PathBuf, usize)> =
        [Path::new("/sys/fs/bpf")].into_iter().chain(near).map(|root| (root.to_owned(), 0)).collect();
    let mut found = HashMap::new();
    for _ in 0..DIRECTORIES {
        let Some((directory, depth)) = left.pop_front() else { break };
        if directory == own {
            continue;
        }
        let programs = programs(&directory);
        if !programs.is_empty() {
            found.extend(programs.into_iter().map(|program| (program, directory.clone())));
        } else if depth < DEPTH {
            let below = fs::read_dir(&directory).into_iter().flatten().flatten();
            left.extend(below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| (entry.path(), depth + 1)));
        }
    }
    found
}

/// Programs behind the links that are pinned below a directory.
fn programs(pin_dir: &Path) -> HashSet<u32> {
    let folders = layouts(pin_dir).into_iter().map(|layout| layout.join("links"));
    let pins = folders.filter_map(|folder| fs::read_dir(folder).ok()).flat_map(Iterator::flatten);
    let links = pins.filter_map(|pin| bpf::open_pin(&pin.path()).ok());
    links.filter_map(|link| bpf::link_info(link.as_fd()).ok()).map(|info| info.program).collect()
}

/// Names of running processes that are visible here, with how many bear each.
pub fn processes() -> BTreeMap<String, u32> {
    let mut names = BTreeMap::new();
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in pids.filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit())) {
        if let Ok(name) = fs::read_to_string(pid.path().join("comm")) {
            *names.entry(name.trim().to_owned()).or_default() += 1;
        }
    }
    names
}
