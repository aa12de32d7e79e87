//! Pods as the cgroup v2 tree shows them: which directory, which processes, which containers.
//!
//! Any directory that names a pod's UID is the pod's, in the layout of cgroupfs (`pod<uid>`) and of systemd
//! (`...-pod<uid with _ for ->.slice`). Static pods carry their configuration's hash in place of the UID.
//! A cgroup's id is the inode number of its directory.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Directories below a pod's that are looked into.
const DEPTH: usize = 4;
/// Directories above a pod's that are looked into.
const TREE_DEPTH: usize = 12;

/// The mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    /// Where it is mounted.
    pub(super) mount: PathBuf,
    /// Levels between the hierarchy's root and what is mounted.
    pub(super) above: u32,
}

/// A pod's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PodCgroup {
    /// Directory.
    pub(super) path: PathBuf,
    /// Cgroup id.
    pub(super) id: u64,
    /// Levels below the hierarchy's root.
    pub(super) level: u32,
}

impl Hierarchy {
    /// Finds the mount among this process's; the whole tree wins over a part of it.
    pub(super) fn find() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo").ok()?)
    }

    fn parse(mountinfo: &str) -> Option<Self> {
        let mounts = mountinfo.lines().filter_map(|line| {
            let (fields, rest) = line.split_once(" - ")?;
            if rest.split(' ').next()? != "cgroup2" {
                return None;
            }
            let mut fields = fields.split(' ').skip(3);
            let (root, mount) = (fields.next()?, fields.next()?);
            let above = root.split('/').filter(|part| !part.is_empty()).count();
            Some(Self { mount: PathBuf::from(unescape(mount)), above: u32::try_from(above).ok()? })
        });
        mounts.min_by_key(|hierarchy| hierarchy.above)
    }

    /// Every directory that names a pod, by the names that pods may have: their UID, or their configuration's hash.
    pub(super) fn pods(&self, wanted: &HashMap<String, Arc<str>>) -> HashMap<Arc<str>, PodCgroup> {
        let mut found = HashMap::new();
        if !wanted.is_empty() {
            walk(&self.mount, self.above, TREE_DEPTH, wanted, &mut found);
        }
        found
    }
}

/// Directories of wanted pods in `dir` and below.
fn walk(dir: &Path, level: u32, depth: usize, wanted: &HashMap<String, Arc<str>>, found: &mut HashMap<Arc<str>, PodCgroup>) {
    for (name, path) in subdirectories(dir) {
        if let Some(uid) = pod_name(&name).and_then(|name| wanted.get(&name)) {
            if let Ok(metadata) = fs::metadata(&path) {
                found.entry(Arc::clone(uid)).or_insert(PodCgroup { path, id: metadata.ino(), level: level + 1 });
            }
        } else if depth > 0 {
            walk(&path, level + 1, depth - 1, wanted, found);
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
        assert_eq!(Hierarchy::parse(text), Some(Hierarchy { mount: "/sys/fs/cgroup x".into(), above: 0 }));
        assert_eq!(Hierarchy::parse("1 0 0:1 / / rw - ext4 x rw\n"), None);
    }
}
