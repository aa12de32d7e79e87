//! Pods as the cgroup v2 tree shows them: which directory, which processes, which containers.
//!
//! Any directory that names a pod's UID is the pod's, in the layout of cgroupfs (`pod<uid>`) and of systemd
//! (`...-pod<uid with _ for ->.slice`). Static pods carry their configuration's hash in place of the UID.
//! A cgroup's id is the inode number of its directory.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directories below a pod's that are looked into.
const DEPTH: usize = 4;
/// Directories above a pod's that are looked into.
const TREE_DEPTH: usize = 12;
/// Directories between the group of all pods and a pod's: that of its class.
const CLASSES: usize = 1;
/// Every level that the kernel programs look at.
const ALL_LEVELS: u32 = 0xfffe;

/// The mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// Levels between the hierarchy's root and what is mounted; `None` where a cgroup namespace hides them.
    pub(super) above: Option<u32>,
}

/// A pod's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodCgroup {
    /// Directory.
    pub(super) path: PathBuf,
    /// Cgroup id.
    pub(super) id: u64,
    /// Levels below the hierarchy's root, where they are known.
    pub(super) level: Option<u32>,
}

/// The bit for the groups `below` levels below one at `level`; of a level that is not known, all that it may be.
pub(super) fn level_bits(level: Option<u32>, below: u32) -> u32 {
    level.map_or(ALL_LEVELS, |level| 1 << (level + below).min(31))
}

impl Hierarchy {
    /// Finds the mount among this process's; the whole tree wins over a part of it.
    pub(super) fn find() -> Option<Self> {
        /// The namespace of a process that nobody put into another one.
        const INITIAL: &str = "cgroup:[4026531835]";
        let (mount, below) = Self::parse(&fs::read_to_string("/proc/self/mountinfo").ok()?)?;
        // Only the root has no type. Else what the kernel says counts from the root of our own cgroup namespace: a container has
        // one of its own, and sees the node's tree above it.
        let above = if !mount.join("cgroup.type").exists() {
            Some(0)
        } else if fs::read_link("/proc/self/ns/cgroup").is_ok_and(|namespace| namespace.as_os_str() == INITIAL) {
            Some(below)
        } else {
            None
        };
        Some(Self { mount, above })
    }

    /// The mount that shows most, and how far below the root of our cgroup namespace it begins.
    fn parse(mountinfo: &str) -> Option<(PathBuf, u32)> {
        let mounts = mountinfo.lines().filter_map(|line| {
            let (fields, rest) = line.split_once(" - ")?;
            if rest.split(' ').next()? != "cgroup2" {
                return None;
            }
            let mut fields = fields.split(' ').skip(3);
            let (root, mount) = (fields.next()?, fields.next()?);
            let (up, down): (Vec<&str>, Vec<&str>) = root.split('/').filter(|part| !part.is_empty()).partition(|part| *part == "..");
            Some((Reverse(up.len()), u32::try_from(down.len()).ok()?, PathBuf::from(unescape(mount))))
        });
        mounts.min().map(|(_, below, mount)| (mount, below))
    }

    /// Every directory that names a pod, by the names that pods may have: their UID, or their configuration's hash.
    pub(super) fn pods(&self, wanted: &HashMap<String, Arc<str>>) -> HashMap<Arc<str>, PodCgroup> {
        let mut search = Search { wanted, within_pods: true, found: HashMap::new() };
        if !wanted.is_empty() {
            search.walk(&self.mount, self.above, TREE_DEPTH);
        }
        search.found
    }
}

/// The same, in the groups that are known to contain all pods only.
pub(super) fn pods_in<'a>(groups: impl Iterator<Item = &'a PodCgroup>, wanted: &HashMap<String, Arc<str>>) -> HashMap<Arc<str>, PodCgroup> {
    let mut search = Search { wanted, within_pods: false, found: HashMap::new() };
    if !wanted.is_empty() {
        groups.for_each(|group| search.walk(&group.path, group.level, CLASSES));
    }
    search.found
}

/// A walk along the tree for pods.
struct Search<'a> {
    wanted: &'a HashMap<String, Arc<str>>,
    /// Directories of other pods may contain a node with pods of its own.
    within_pods: bool,
    found: HashMap<Arc<str>, PodCgroup>,
}

impl Search<'_> {
    /// Looks into `dir`, which lies at `level`.
    fn walk(&mut self, dir: &Path, level: Option<u32>, depth: usize) {
        let level = level.map(|level| level + 1);
        for (name, path) in subdirectories(dir) {
            let pod = pod_name(&name);
            if let Some(uid) = pod.as_ref().and_then(|name| self.wanted.get(name)) {
                if let Ok(metadata) = fs::metadata(&path) {
                    self.found.entry(Arc::clone(uid)).or_insert(PodCgroup { path, id: metadata.ino(), level });
                }
            } else if depth > 0 && (self.within_pods || pod.is_none()) {
                self.walk(&path, level, depth - 1);
            }
        }
    }
}

/// The kernel writes blanks and backslashes as octal.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

fn subdirectories(dir: &Path) -> Vec<(String, PathBuf)> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))).collect()
}

/// The UID or hash that a directory's name has after `pod`, dashes restored and lower case.
pub(super) fn pod_name(name: &str) -> Option<String> {
    let name = name.strip_suffix(".slice").unwrap_or(name);
    let uid = match name.strip_prefix("pod") {
        Some(uid) => uid,
        None => &name[name.find("-pod")? + 4..],
    };
    (!uid.is_empty()).then(|| normal(uid))
}

/// How a UID is compared: systemd writes `_` for `-`.
pub(super) fn normal(uid: &str) -> String {
    uid.replace('_', "-").to_ascii_lowercase()
}

impl PodCgroup {
    /// Whether it is still the same directory.
    pub(super) fn alive(&self) -> bool {
        fs::metadata(&self.path).is_ok_and(|metadata| metadata.ino() == self.id)
    }

    /// Processes in it and below.
    pub(super) fn pids(&self) -> Vec<u32> {
        let mut pids = Vec::new();
        self.below(&mut |path, _| {
            pids.extend(
                fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines().filter_map(|line| line.parse::<u32>().ok()),
            );
        });
        pids.retain(|pid| *pid != 0);
        pids
    }

    /// Ids of it and everything below, with the container's id where the directory names one.
    pub(super) fn ids(&self) -> Vec<(u64, Option<Arc<str>>)> {
        let mut ids = vec![];
        self.below(&mut |path, name| {
            let id = if path == self.path { Some(self.id) } else { fs::metadata(path).ok().map(|metadata| metadata.ino()) };
            ids.extend(id.map(|id| (id, name.and_then(container_name))));
        });
        ids
    }

    fn below(&self, each: &mut dyn FnMut(&Path, Option<&str>)) {
        fn visit(path: &Path, name: Option<&str>, depth: usize, each: &mut dyn FnMut(&Path, Option<&str>)) {
            each(path, name);
            if depth > 0 {
                for (name, path) in subdirectories(path) {
                    visit(&path, Some(&name), depth - 1, each);
                }
            }
        }
        visit(&self.path, None, DEPTH, each);
    }
}

/// The container's id in a leaf's name: `<id>` or `cri-containerd-<id>.scope`.
fn container_name(name: &str) -> Option<Arc<str>> {
    let name = name.strip_suffix(".scope").unwrap_or(name);
    let id = name
        .rsplit_once('-')
        .filter(|(_, id)| id.len() >= 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .map_or(name, |(_, id)| id);
    (!id.is_empty()).then(|| Arc::from(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_name_the_pod() {
        let uid = "0a1b2c3d-1111-2222-3333-444455556666";
        assert_eq!(pod_name(&format!("pod{uid}")).as_deref(), Some(uid));
        assert_eq!(pod_name("kubepods-burstable-pod0a1b2c3d_1111_2222_3333_444455556666.slice").as_deref(), Some(uid));
        assert_eq!(pod_name("kubepods-besteffort.slice"), None);
        assert_eq!(pod_name("user.slice"), None);
    }

    #[test]
    fn containers_are_named_by_their_leaf() {
        let id = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";
        assert_eq!(container_name(&format!("cri-containerd-{id}.scope")).as_deref(), Some(id));
        assert_eq!(container_name(id).as_deref(), Some(id));
        assert_eq!(container_name("main").as_deref(), Some("main"));
    }

    #[test]
    fn the_whole_hierarchy_wins_over_a_part() {
        let text = "41 31 0:38 /a/b /mnt/part rw - cgroup2 cgroup2 rw\n42 31 0:38 / /sys/fs/cgroup\\040x rw,relatime shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(Hierarchy::parse(text), Some(("/sys/fs/cgroup x".into(), 0)));
        assert_eq!(Hierarchy::parse("1 0 0:1 / / rw - ext4 x rw\n"), None);
        let part = "41 31 0:38 /a/b /mnt/part rw - cgroup2 cgroup2 rw\n";
        assert_eq!(Hierarchy::parse(part), Some(("/mnt/part".into(), 2)));
        let container = "41 31 0:38 / /mine rw - cgroup2 c rw\n42 31 0:38 /../../.. /node rw - cgroup2 c rw\n";
        assert_eq!(Hierarchy::parse(container), Some(("/node".into(), 0)), "the node's tree is above the container's own");
    }

    #[test]
    fn a_level_that_is_not_known_may_be_any() {
        assert_eq!(level_bits(Some(2), 1), 1 << 3);
        assert_eq!(level_bits(None, 1), (1 << 16) - 2);
    }
}
