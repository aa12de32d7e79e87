//! Network namespaces that outlive the thread that made them: held by a bind mount, entered by threads of
//! their own, so the test's threads never move.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{netlink, sys};

/// A network namespace with a name in the file system.
#[derive(Clone, Debug)]
pub struct Netns {
    path: PathBuf,
}

impl Netns {
    /// Makes a namespace and mounts it on `path`, loopback up, IPv6 without duplicate detection.
    pub fn create(path: &Path) -> Result<Self> {
        File::create_new(path).with_context(|| format!("cannot make {}", path.display()))?;
        let target = path.to_owned();
        std::thread::spawn(move || -> Result<()> {
            sys::unshare_net().context("cannot make a network namespace (are you root?)")?;
            sys::mount(Path::new("/proc/thread-self/ns/net"), &target, "").context("cannot hold the network namespace")?;
            write_sysctl("net/ipv6/conf/all/accept_dad", "0")?;
            write_sysctl("net/ipv6/conf/default/accept_dad", "0")?;
            netlink::set_up("lo").context("cannot switch loopback on")
        })
        .join()
        .expect("the thread returns its errors")?;
        Ok(Self { path: path.to_owned() })
    }

    /// One that is mounted on `path` already.
    pub fn at(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// The file that names it; `nsenter --net=FILE` goes inside.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A descriptor of it, for moving an interface there.
    pub fn open(&self) -> Result<OwnedFd> {
        let file = File::open(&self.path).with_context(|| format!("{} is gone", self.path.display()))?;
        Ok(file.into())
    }

    /// Runs `work` in a thread inside the namespace. Sockets made there stay there.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let fd = self.open()?;
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    sys::set_netns(fd.as_fd()).context("cannot enter the network namespace")?;
                    work()
                })
                .join()
                .expect("a thread in a namespace does not panic")
        })
    }

    /// Sets a value below /proc/sys, as this namespace sees it.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        self.within(|| write_sysctl(name, value))
    }
}

fn write_sysctl(name: &str, value: &str) -> Result<()> {
    fs::write(Path::new("/proc/sys").join(name), value).with_context(|| format!("cannot set {name}"))
}
