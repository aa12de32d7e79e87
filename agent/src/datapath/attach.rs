//! Programs onto hooks: TCX links and clsact filters on interfaces, links on control groups.
//!
//! Links are pinned, so they work on without an agent; a restarted agent puts its programs behind the old links without
//! a gap. A link that an earlier layout pinned is taken over the same way, one at a time, so that no packet passes
//! unjudged while layouts change. What others attached is never touched.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use sekisho_core::layout::CGROUP_ENDPOINT;

use super::bpf::{self, attach_type};
use super::cgroup::PodCgroup;
use super::filters::{self, Hook};
use super::load::{Loaded, Programs};
use super::netlink::Netlink;
use super::os;
use super::table::{Maps, pins};

/// Where interface programs go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Backend {
    /// TCX, Linux 6.6 and newer.
    Tcx,
    /// clsact.
    Clsact,
}

/// The two directions of an endpoint: suffix of the pin, program on an interface and on a cgroup, TCX and cgroup
/// attach types, clsact hook. What a pod sends arrives at the host side of its veth.
const SIDES: [Side; 2] = [
    Side {
        name: "egress",
        interface: "pod_egress",
        cgroup: "cg_egress",
        tcx: attach_type::TCX_INGRESS,
        cgroup_type: attach_type::CGROUP_INET_EGRESS,
        hook: Hook::Ingress,
    },
    Side {
        name: "ingress",
        interface: "pod_ingress",
        cgroup: "cg_ingress",
        tcx: attach_type::TCX_EGRESS,
        cgroup_type: attach_type::CGROUP_INET_INGRESS,
        hook: Hook::Egress,
    },
];

struct Side {
    name: &'static str,
    interface: &'static str,
    cgroup: &'static str,
    tcx: u32,
    cgroup_type: u32,
    hook: Hook,
}

/// Hooks at the root of the cgroup tree, which tie sockets to processes.
const SOCKET_HOOKS: [(&str, u32); 6] = [
    ("connect4", attach_type::CGROUP_INET4_CONNECT),
    ("connect6", attach_type::CGROUP_INET6_CONNECT),
    ("sendmsg4", attach_type::CGROUP_UDP4_SENDMSG),
    ("sendmsg6", attach_type::CGROUP_UDP6_SENDMSG),
    ("post_bind4", attach_type::CGROUP_INET4_POST_BIND),
    ("post_bind6", attach_type::CGROUP_INET6_POST_BIND),
];

/// Hooks at the group that contains all pods: suffix of the pin, program, attach type.
const HOLD_HOOKS: [(&str, &str, u32); 5] = [
    ("egress", "hold_egress", attach_type::CGROUP_INET_EGRESS),
    ("ingress", "hold_ingress", attach_type::CGROUP_INET_INGRESS),
    ("connect4", "hold_connect4", attach_type::CGROUP_INET4_CONNECT),
    ("connect6", "hold_connect6", attach_type::CGROUP_INET6_CONNECT),
    ("timeout", "hold_timeout", attach_type::CGROUP_SOCK_OPS),
];

/// What a check of an endpoint's hooks found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// Our program runs first at both hooks.
    Good,
    /// Our program, or the whole hook, is not ours any more.
    Missing,
    /// Somebody runs before us.
    NotFirst,
}

/// Attaches and detaches.
#[derive(Debug)]
pub(super) struct Attacher {
    /// `<pin-dir>/<layout>/links`.
    links: PathBuf,
    /// The same of other layouts, whose links are taken over.
    pub(super) former: Vec<PathBuf>,
    pub(super) backend: Backend,
}

/// Whether this kernel has TCX.
pub(super) fn has_tcx() -> bool {
    const LOOPBACK: u32 = 1;
    bpf::query_tcx(LOOPBACK, attach_type::TCX_INGRESS).is_ok()
}

impl Attacher {
    /// Keeps links below `dir`.
    pub(super) fn new(dir: &Path, former: &[PathBuf], backend: Backend) -> io::Result<Self> {
        let links = dir.join("links");
        fs::create_dir_all(&links)?;
        Ok(Self { links, former: former.iter().map(|dir| dir.join("links")).collect(), backend })
    }

    /// Puts `program` behind the link pinned as `name`, or makes that link with `make`.
    fn link(
        &self,
        name: &str,
        program: &Loaded,
        alive: impl Fn(&bpf::LinkInfo) -> bool,
        make: impl FnOnce() -> io::Result<OwnedFd>,
    ) -> io::Result<()> {
        let path = self.links.join(name);
        if let Some(link) = usable(&path, &alive)? {
            return if bpf::link_info(link.as_fd())?.program == program.id {
                Ok(())
            } else {
                bpf::update_link(link.as_fd(), program.as_fd())
            };
        }
        for former in &self.former {
            let old = former.join(name);
            if let Some(link) = usable(&old, &alive)? {
                bpf::update_link(link.as_fd(), program.as_fd())?;
                bpf::pin(link.as_fd(), &path)?;
                return fs::remove_file(&old);
            }
        }
        bpf::pin(make()?.as_fd(), &path)
    }

    /// Whether the layout in `dir` still holds a link of this endpoint.
    pub(super) fn former_links(&self, dir: &Path, number: u32, cgroup: Option<u64>) -> bool {
        let interface = number != 0 && number & CGROUP_ENDPOINT == 0;
        let name = cgroup.filter(|_| !interface).map_or_else(|| tcx_pin(number, &SIDES[0]), |id| cgroup_pin(id, &SIDES[0]));
        let links = dir.join("links");
        self.former.contains(&links) && links.join(name).exists()
    }

    /// Attaches to both hooks of an interface.
    pub(super) fn interface(&self, netlink: &mut Netlink, maps: &Maps, programs: &Programs, ifindex: u32) -> io::Result<()> {
        match self.backend {
            Backend::Tcx => {
                for side in &SIDES {
                    let program = &programs[side.interface];
                    self.link(
                        &tcx_pin(ifindex, side),
                        program,
                        |info| info.ifindex == ifindex,
                        || bpf::link_tcx(program.as_fd(), ifindex, side.tcx),
                    )?;
                }
                // The qdisc stays: a device that loses one drops packets for a moment.
                Self::leave_filters(netlink, ifindex)
            }
            Backend::Clsact => {
                Self::filters(netlink, maps, programs, ifindex)?;
                self.leave_links(ifindex)
            }
        }
    }

    /// Puts filters at both hooks of an interface.
    pub(super) fn filters(netlink: &mut Netlink, maps: &Maps, programs: &Programs, ifindex: u32) -> io::Result<()> {
        own_qdisc(netlink, maps, ifindex)?;
        SIDES.iter().try_for_each(|side| filters::put(netlink, ifindex, side.hook, programs[side.interface].as_fd()))
    }

    /// Whether somebody else has TCX programs at an interface.
    pub(super) fn is_shared(programs: &Programs, ifindex: u32) -> io::Result<bool> {
        for side in &SIDES {
            if bpf::query_tcx(ifindex, side.tcx)?.iter().any(|id| *id != programs[side.interface].id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether links are at an interface, ours or a former layout's.
    pub(super) fn is_linked(&self, ifindex: u32) -> bool {
        let dirs = || std::iter::once(&self.links).chain(&self.former);
        SIDES.iter().all(|side| dirs().any(|dir| dir.join(tcx_pin(ifindex, side)).exists()))
    }

    /// Attaches to a pod's cgroup.
    pub(super) fn cgroup(&self, programs: &Programs, cgroup: &PodCgroup) -> io::Result<()> {
        let dir = File::open(&cgroup.path)?;
        for side in &SIDES {
            let program = &programs[side.cgroup];
            self.link(
                &cgroup_pin(cgroup.id, side),
                program,
                |info| u64::from(info.ifindex) == cgroup.id & 0xffff_ffff,
                || bpf::link_cgroup(program.as_fd(), dir.as_fd(), side.cgroup_type),
            )?;
        }
        Ok(())
    }

    /// Takes over the links on a control group of which only the id is known.
    pub(super) fn take_group(&self, programs: &Programs, id: u64) -> io::Result<()> {
        SIDES.iter().try_for_each(|side| {
            let gone = || Err(io::Error::other("the group is gone"));
            self.link(&cgroup_pin(id, side), &programs[side.cgroup], |info| info.ifindex != 0, gone)
        })
    }

    /// Attaches what holds new pods to the group that contains them all.
    pub(super) fn hold(&self, programs: &Programs, root: &PodCgroup) -> io::Result<()> {
        let dir = File::open(&root.path)?;
        for (suffix, name, kind) in HOLD_HOOKS {
            let program = &programs[name];
            self.link(
                &hold_pin(root.id, suffix),
                program,
                |info| u64::from(info.ifindex) == root.id & 0xffff_ffff,
                || bpf::link_cgroup(program.as_fd(), dir.as_fd(), kind),
            )?;
        }
        Ok(())
    }

    /// Whether all links on a group that is held are pinned.
    pub(super) fn holds(&self, root: u64) -> bool {
        HOLD_HOOKS.iter().all(|(suffix, ..)| self.links.join(hold_pin(root, suffix)).exists())
    }

    /// Takes over what former layouts hold new pods with: groups that no pod of this node has shown us yet.
    pub(super) fn inherit_holds(&self, programs: &Programs) {
        for former in &self.former {
            for name in pins(former).into_iter().filter(|name| name.starts_with("hold-")) {
                if let Some(program) = program_of(&name).and_then(|program| programs.get(program)) {
                    let gone = || Err(io::Error::other("the group is gone"));
                    if let Err(error) = self.link(&name, program, |info| info.ifindex != 0, gone) {
                        tracing::debug!(%error, name, "nothing is held here any more");
                    }
                }
            }
        }
    }

    /// Attaches the hooks that tie sockets to processes to the root of the tree.
    pub(super) fn sockets(&self, programs: &Programs, root: &Path) -> io::Result<()> {
        let dir = File::open(root)?;
        for (name, kind) in SOCKET_HOOKS {
            let program = &programs[name];
            self.link(&format!("root-{name}"), program, |info| info.ifindex != 0, || bpf::link_cgroup(program.as_fd(), dir.as_fd(), kind))?;
        }
        Ok(())
    }

    /// Puts the programs behind every link that is pinned here: adoption without a gap. Links whose device or cgroup is
    /// gone are dropped. Returns the interfaces and cgroups that are attached.
    pub(super) fn adopt(&self, programs: &Programs) -> io::Result<()> {
        for name in pins(&self.links) {
            let path = self.links.join(&name);
            let Some(link) = usable(&path, &|info| info.ifindex != 0)? else { continue };
            if let Some(program) = program_of(&name).and_then(|program| programs.get(program)) {
                bpf::update_link(link.as_fd(), program.as_fd())?;
            }
        }
        Ok(())
    }

    /// Removes links of ours that are no endpoint's, as `ours` says where the name tells, and others whose group is gone.
    pub(super) fn sweep(&self, ours: &dyn Fn(&str) -> Option<bool>) -> io::Result<()> {
        for name in pins(&self.links) {
            match ours(&name) {
                // How it is with an endpoint's its check sees.
                Some(true) => {}
                Some(false) => self.unpin(|pinned| pinned == name)?,
                None => drop(usable(&self.links.join(&name), &|info| info.ifindex != 0)?),
            }
        }
        Ok(())
    }

    /// Detaches from an interface: links, filters, and the qdisc where we made it and nobody else uses it.
    pub(super) fn leave_interface(&self, netlink: &mut Netlink, maps: &Maps, ifindex: u32) -> io::Result<()> {
        self.leave_links(ifindex)?;
        self.remove_filters(netlink, maps, ifindex)
    }

    /// Detaches from a cgroup.
    pub(super) fn leave_cgroup(&self, id: u64) -> io::Result<()> {
        self.unpin(|name| SIDES.iter().any(|side| name == cgroup_pin(id, side)))
    }

    fn remove_filters(&self, netlink: &mut Netlink, maps: &Maps, ifindex: u32) -> io::Result<()> {
        if self.backend == Backend::Tcx && maps.owned.get(&ifindex)?.is_none() && !has_filter(netlink, ifindex)? {
            return Ok(());
        }
        let ours = maps.owned.get(&ifindex)?.is_some();
        release_qdisc(netlink, ifindex, ours)?;
        maps.owned.remove(&ifindex).map(drop)
    }

    fn unpin(&self, which: impl Fn(&str) -> bool) -> io::Result<()> {
        for dir in std::iter::once(&self.links).chain(&self.former) {
            for name in pins(dir).into_iter().filter(|name| which(name)) {
                remove_link(&dir.join(name))?;
            }
        }
        Ok(())
    }

    /// Takes our links off an interface.
    pub(super) fn leave_links(&self, ifindex: u32) -> io::Result<()> {
        self.unpin(|name| SIDES.iter().any(|side| name == tcx_pin(ifindex, side)))
    }

    /// Takes our filters off an interface.
    pub(super) fn leave_filters(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
        SIDES.iter().try_for_each(|side| filters::remove(netlink, ifindex, side.hook).map(drop))
    }

    /// Whether our programs run, and run first, at both hooks of an interface.
    pub(super) fn check_interface(netlink: &mut Netlink, programs: &Programs, ifindex: u32, backend: Backend) -> io::Result<Finding> {
        let mut finding = Finding::Good;
        for side in &SIDES {
            let id = programs[side.interface].id;
            let running: Vec<u32> = match backend {
                Backend::Tcx => bpf::query_tcx(ifindex, side.tcx)?,
                Backend::Clsact => filters::list(netlink, ifindex, side.hook)?.iter().map(|filter| filter.program).collect(),
            };
            match running.iter().position(|program| *program == id) {
                Some(0) => {}
                Some(_) => finding = Finding::NotFirst,
                None => return Ok(Finding::Missing),
            }
        }
        Ok(finding)
    }

    /// Whether both links on a cgroup are there and run our programs.
    pub(super) fn check_cgroup(&self, programs: &Programs, id: u64) -> io::Result<Finding> {
        for side in &SIDES {
            let Some(link) = usable(&self.links.join(cgroup_pin(id, side)), &|info| info.ifindex != 0)? else {
                return Ok(Finding::Missing);
            };
            if bpf::link_info(link.as_fd())?.program != programs[side.cgroup].id {
                return Ok(Finding::Missing);
            }
        }
        Ok(Finding::Good)
    }
}

fn tcx_pin(ifindex: u32, side: &Side) -> String {
    format!("tcx-{ifindex}-{}", side.name)
}

fn cgroup_pin(id: u64, side: &Side) -> String {
    format!("cg-{id}-{}", side.name)
}

fn hold_pin(root: u64, suffix: &str) -> String {
    format!("hold-{root}-{suffix}")
}

/// Which program runs behind a link of this name.
fn program_of(name: &str) -> Option<&str> {
    if let Some(hook) = name.strip_prefix("root-") {
        return Some(hook);
    }
    let (kind, suffix) = (name.split('-').next()?, name.rsplit('-').next()?);
    if kind == "hold" {
        return HOLD_HOOKS.iter().find(|(hook, ..)| *hook == suffix).map(|(_, program, _)| *program);
    }
    let side = SIDES.iter().find(|side| side.name == suffix)?;
    Some(if kind == "cg" { side.cgroup } else { side.interface })
}

/// The interface index in a TCX link's name.
pub(super) fn interface_of(name: &str) -> Option<u32> {
    name.strip_prefix("tcx-")?.split('-').next()?.parse().ok()
}

/// The cgroup id in a cgroup link's name.
pub(super) fn cgroup_of(name: &str) -> Option<u64> {
    name.strip_prefix("cg-")?.split('-').next()?.parse().ok()
}

/// Opens a pinned link; an empty shell is removed.
fn usable(path: &Path, alive: &impl Fn(&bpf::LinkInfo) -> bool) -> io::Result<Option<OwnedFd>> {
    let link = match bpf::open_pin(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if alive(&bpf::link_info(link.as_fd())?) {
        return Ok(Some(link));
    }
    fs::remove_file(path)?;
    Ok(None)
}

/// Takes a pinned link off its hook and removes its name.
pub(super) fn remove_link(path: &Path) -> io::Result<()> {
    // A link whose device is gone is off its hook already.
    if let Ok(link) = bpf::open_pin(path)
        && let Err(error) = bpf::detach_link(link.as_fd())
    {
        tracing::debug!(%error, path = %path.display(), "a link was not on its hook any more");
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// No interface has this index: under it `OWNED` has the inode of the network namespace whose interfaces bear filters of ours.
pub(super) const HOME: u32 = 0;

/// Makes the clsact qdisc where there is none. That we made it is written down first: a kill in between leaves a note
/// without a qdisc, never a qdisc without a note.
fn own_qdisc(netlink: &mut Netlink, maps: &Maps, ifindex: u32) -> io::Result<()> {
    maps.owned.put(&HOME, &os::network_namespace()?)?;
    if filters::has_qdisc(netlink, ifindex)? {
        return Ok(());
    }
    maps.owned.put(&ifindex, &1)?;
    if !filters::add_qdisc(netlink, ifindex)? {
        maps.owned.remove(&ifindex)?;
    }
    Ok(())
}

/// Whether a filter of ours is at an interface.
pub(super) fn has_filter(netlink: &mut Netlink, ifindex: u32) -> io::Result<bool> {
    for side in &SIDES {
        if filters::list(netlink, ifindex, side.hook)?.iter().any(filters::Filter::ours) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes our filters from an interface, and its qdisc where it is ours and empty. Returns how many filters went.
pub(super) fn release_qdisc(netlink: &mut Netlink, ifindex: u32, ours: bool) -> io::Result<u32> {
    let mut removed = 0;
    let mut others = false;
    for side in &SIDES {
        removed += filters::remove(netlink, ifindex, side.hook)?;
        others |= !filters::list(netlink, ifindex, side.hook)?.is_empty();
    }
    if ours && !others && filters::has_qdisc(netlink, ifindex)? {
        filters::remove_qdisc(netlink, ifindex)?;
    }
    Ok(removed)
}

/// A program's fd, for callers that run it.
pub(super) fn fd<'a>(programs: &'a Programs, name: &str) -> BorrowedFd<'a> {
    programs[name].as_fd()
}
