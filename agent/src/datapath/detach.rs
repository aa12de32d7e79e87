//! Leaving nothing behind: works on the pins alone, without an agent and without its maps' layout.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::attach::{HOME, release_qdisc, remove_link};
use super::error::{DetachError, ModeError, OpenError};
use super::former::Former;
use super::load::{Pins, layouts, same_types};
use super::netlink::Netlink;
use super::os;
use super::table::{Table, pins};

/// What was removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DetachReport {
    /// Pinned links.
    pub links: u32,
    /// clsact filters.
    pub filters: u32,
    /// Pinned maps.
    pub maps: u32,
}

/// Removes everything that Sekisho owns under these pins and in this network namespace. Nothing there is fine.
pub fn detach(pin_dir: &Path) -> Result<DetachReport, DetachError> {
    if !super::load::capable() {
        return Err(DetachError::NotRoot);
    }
    let pins = match Pins::try_lock(pin_dir) {
        Ok(Some(pins)) => pins,
        Ok(None) => return Ok(DetachReport::default()),
        Err(OpenError::PinsInUse { path }) => return Err(DetachError::InUse { path }),
        Err(OpenError::Pins { path, source }) => return Err(DetachError::Remove { what: path.display().to_string(), source }),
        Err(other) => return Err(DetachError::Remove { what: pin_dir.display().to_string(), source: io::Error::other(other.to_string()) }),
    };
    if let Some(path) = elsewhere(&pins.layouts()).map_err(failed(pin_dir))? {
        return Err(DetachError::Elsewhere { path });
    }
    let mut netlink = Netlink::open().map_err(|source| DetachError::Remove { what: "a netlink socket".into(), source })?;
    remove_all(&pins, &mut netlink)
}

/// The network namespace in which the filters are, where that is another one and still there.
fn elsewhere(layouts: &[PathBuf]) -> io::Result<Option<PathBuf>> {
    let here = os::network_namespace()?;
    let homes = layouts.iter().filter_map(|layout| Table::<u32, u32>::open(&layout.join("OWNED")).ok()?.get(&HOME).ok()?);
    Ok(homes.filter(|home| *home != here).find_map(namespace))
}

/// By what path a network namespace can be entered: a process in it, or where it is mounted.
fn namespace(inode: u32) -> Option<PathBuf> {
    let process = fs::read_dir("/proc").ok()?.flatten().map(|entry| entry.path().join("ns/net"));
    let lives = |path: &PathBuf| fs::metadata(path).is_ok_and(|namespace| namespace.ino() == u64::from(inode));
    process.into_iter().find(lives).or_else(|| {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let mounted = format!("net:[{inode}]");
        mounts
            .lines()
            .map(|line| line.split(' '))
            .find_map(|mut fields| (fields.nth(3)? == mounted).then(|| fields.next().map(PathBuf::from))?)
    })
}

/// Removes links, filters, qdiscs, maps and directories, in this order: what is attached goes before what it uses.
pub(super) fn remove_all(locked: &Pins, netlink: &mut Netlink) -> Result<DetachReport, DetachError> {
    let mut report = DetachReport::default();
    let layouts = locked.layouts();
    for layout in &layouts {
        let links = layout.join("links");
        for name in pins(&links) {
            let path = links.join(name);
            remove_link(&path).map_err(failed(&path))?;
            report.links += 1;
        }
        remove_dir(&links)?;
    }
    report.filters = remove_filters(&layouts, netlink)?;
    for layout in &layouts {
        report.maps += remove_files(layout)?;
        remove_dir(layout)?;
    }
    remove_root(&locked.root)?;
    Ok(report)
}

fn failed(what: &Path) -> impl FnOnce(io::Error) -> DetachError + '_ {
    move |source| DetachError::Remove { what: what.display().to_string(), source }
}

fn remove_files(dir: &Path) -> Result<u32, DetachError> {
    let mut removed = 0;
    for name in pins(dir) {
        let path = dir.join(name);
        if path.is_dir() {
            continue;
        }
        fs::remove_file(&path).map_err(failed(&path))?;
        removed += 1;
    }
    Ok(removed)
}

fn remove_dir(dir: &Path) -> Result<(), DetachError> {
    match fs::remove_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(dir)(error)),
        _ => Ok(()),
    }
}

/// Removes the folder itself, unless it is the bpffs' own root or somebody else has something in it.
fn remove_root(root: &Path) -> Result<(), DetachError> {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let mounted = root.canonicalize().ok().and_then(|root| root.parent().map(|parent| device(parent) != device(&root))).unwrap_or(true);
    if mounted || !pins(root).is_empty() {
        return Ok(());
    }
    remove_dir(root)
}

/// Our filters on every interface of the node, and the qdiscs that the notes call ours.
fn remove_filters(layouts: &[std::path::PathBuf], netlink: &mut Netlink) -> Result<u32, DetachError> {
    let mut owned = Vec::new();
    for layout in layouts {
        if let Ok(table) = Table::<u32, u32>::open(&layout.join("OWNED")) {
            owned.extend(table.entries().unwrap_or_default().into_iter().map(|(ifindex, _)| ifindex));
        }
    }
    let links = netlink.links(None).map_err(|source| DetachError::Remove { what: "the list of interfaces".into(), source })?;
    let mut removed = 0;
    for link in links {
        match release_qdisc(netlink, link.index, owned.contains(&link.index)) {
            Ok(count) => removed += count,
            // It went away meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
            Err(source) => return Err(DetachError::Remove { what: format!("the filter on {}", link.name), source }),
        }
    }
    Ok(removed)
}

/// Sets the mode where no agent runs: the programs obey at the next packet. Returns the new epoch.
pub fn set_mode_on_pins(pin_dir: &Path, mode: u32) -> Result<u32, ModeError> {
    let (mut epoch, mut failed) = (None, None);
    for layout in layouts(pin_dir) {
        match Former::open(&layout, same_types(&layout)).set_mode(mode) {
            Ok(set) => epoch = epoch.max(set),
            // The others are to obey in any case.
            Err(source) => failed = Some(ModeError::Map { path: layout, source }),
        }
    }
    failed.map_or(Ok(()), Err)?;
    epoch.ok_or_else(|| ModeError::NoPins { path: pin_dir.into() })
}
