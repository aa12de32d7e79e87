//! What can go wrong, each as one sentence that says what to do.

use std::io;
use std::path::PathBuf;

/// Why the data path could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Capabilities are missing.
    #[error("Sekisho needs the capabilities BPF, PERFMON and NET_ADMIN: run it as root")]
    NotRoot,
    /// No BTF.
    #[error("this kernel has no BTF (/sys/kernel/btf/vmlinux is missing): run a kernel built with CONFIG_DEBUG_INFO_BTF")]
    NoBtf,
    /// No cgroup v2 tree.
    #[error("no cgroup v2 hierarchy is mounted: mount one with `mount -t cgroup2 none /sys/fs/cgroup/unified`")]
    NoCgroup2,
    /// The pin directory does not lie on a bpffs.
    #[error("{} is not on a bpffs: mount one with `mount -t bpf bpf {}`, or name another place with --pin-dir", path.display(), mount.display())]
    NotBpffs {
        /// The pin directory.
        path: PathBuf,
        /// Where to mount.
        mount: PathBuf,
    },
    /// Another agent holds the lock.
    #[error("another agent runs on the pins in {}: stop it, or name another place with --pin-dir", path.display())]
    PinsInUse {
        /// The pin directory.
        path: PathBuf,
    },
    /// Kernel older than 5.15.
    #[error("Linux {major}.{minor} is too old: Sekisho needs 5.15 or newer")]
    KernelTooOld {
        /// Running version.
        major: u32,
        /// Running version.
        minor: u32,
    },
    /// TCX was asked for by name and the kernel has none.
    #[error("this kernel has no TCX (Linux 6.6 or newer): use --tc-backend clsact or auto")]
    NoTcx,
    /// More memory than there is.
    #[error("a memory budget of {asked} MiB is more than the {most} MiB that this machine has: give less with --memory-budget")]
    Budget {
        /// MiB asked for.
        asked: u64,
        /// MiB there are.
        most: u64,
    },
    /// The pin directory cannot be used.
    #[error("the pin directory {} cannot be used: {source}", path.display())]
    Pins {
        /// The pin directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused maps or programs.
    #[error("the kernel refused {step}: {reason}")]
    Load {
        /// What was being done.
        step: String,
        /// The kernel's answer.
        reason: String,
    },
    /// A system call failed.
    #[error("{step} failed: {source}")]
    System {
        /// What was being done.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Why verdict tables could not be written. What was in force stays in force.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A policy map would overflow; nothing was written.
    #[error("the policy needs {needed} entries in {map}, which holds {max}: raise --memory-budget; the previous policy stays in force")]
    Full {
        /// Map.
        map: &'static str,
        /// Entries needed, old and new together while they are swapped.
        needed: usize,
        /// Entries that fit.
        max: u32,
    },
    /// The kernel refused an update.
    #[error("writing {map} failed: {source}")]
    Map {
        /// Map.
        map: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Why `detach` did not remove anything.
#[derive(Debug, thiserror::Error)]
pub enum DetachError {
    /// An agent runs on these pins.
    #[error("an agent runs on the pins in {}: stop it first", path.display())]
    InUse {
        /// The pin directory.
        path: PathBuf,
    },
    /// clsact filters cannot be reached from here.
    #[error("the filters of these pins are on interfaces of another network namespace: run it there (nsenter --net={} sekisho detach)", path.display())]
    Elsewhere {
        /// That namespace.
        path: PathBuf,
    },
    /// Rights are missing.
    #[error("detach needs the capabilities BPF and NET_ADMIN: run it as root")]
    NotRoot,
    /// Something could not be removed.
    #[error("{what} could not be removed: {source}")]
    Remove {
        /// What.
        what: String,
        /// Why.
        source: io::Error,
    },
}

/// Why the mode could not be set on the pins of a dead agent.
#[derive(Debug, thiserror::Error)]
pub enum ModeError {
    /// There are none of this version.
    #[error("no agent of this version has pins in {}: nothing is enforced from there", path.display())]
    NoPins {
        /// The pin directory.
        path: PathBuf,
    },
    /// The map refused.
    #[error("the mode could not be written to {}: {source}", path.display())]
    Map {
        /// The pin directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}
