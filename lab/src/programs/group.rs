//! A control group of this very process, for programs that hang on one.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::cgroup;

/// The process lives in it until this is dropped, then where it lived before. It lies just below the root.
#[derive(Debug)]
pub struct Group {
    path: PathBuf,
    home: PathBuf,
}

impl Group {
    /// Makes the group `name` and moves this process into it.
    pub fn enter(name: &str) -> Result<Self> {
        let root = cgroup::mount_point()?;
        let lines = fs::read_to_string("/proc/self/cgroup").context("cannot read /proc/self/cgroup")?;
        let home = lines.lines().find_map(|line| line.strip_prefix("0::")).context("this process is in no cgroup v2")?;
        let group = Self { path: root.join(name), home: root.join(home.trim_start_matches('/')) };
        fs::create_dir_all(&group.path).with_context(|| group.path.display().to_string())?;
        move_to(&group.path)?;
        Ok(group)
    }

    /// Its number, as the kernel programs see it.
    pub fn id(&self) -> Result<u64> {
        Ok(fs::metadata(&self.path)?.ino())
    }

    /// To attach programs to.
    pub fn open(&self) -> Result<File> {
        Ok(File::open(&self.path)?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // An empty group that stays costs nothing, and there is nobody to tell.
        let _home = move_to(&self.home);
        let _gone = fs::remove_dir(&self.path);
    }
}

fn move_to(group: &Path) -> Result<()> {
    let path = group.join("cgroup.procs");
    fs::write(&path, std::process::id().to_string()).with_context(|| path.display().to_string())
}
