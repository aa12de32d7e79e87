//! `cargo xtask setup`: what a fresh machine lacks. Idempotent; looks before it installs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{output, say, step};

/// A program that must be there, the Debian package that has it, and what it is for.
struct Need {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

const NEEDS: [Need; 4] = [
    Need { program: "nmap", package: "nmap", why: "the scan tests use the scanner that attackers use" },
    Need { program: "nft", package: "nftables", why: "the NodePort tests translate addresses" },
    Need { program: "ip", package: "iproute2", why: "some tests look at interfaces from outside" },
    Need { program: "openssl", package: "openssl", why: "the key of the API server that tests start" },
];

const KERNEL_NEEDS: [Need; 3] = [
    Need { program: "qemu-system-x86_64", package: "qemu-system-x86", why: "boots other kernels" },
    Need { program: "xz", package: "xz-utils", why: "unpacks kernel modules" },
    Need { program: "dpkg", package: "dpkg", why: "unpacks kernels" },
];

const CLUSTER_NEEDS: [Need; 8] = [
    Need { program: "runc", package: "runc", why: "starts the cluster's containers" },
    Need { program: "/usr/lib/cni/host-local", package: "containernetworking-plugins", why: "connects the cluster's pods" },
    Need { program: "conntrack", package: "conntrack", why: "kube-proxy cleans up with it" },
    Need { program: "iptables", package: "iptables", why: "kube-proxy's iptables mode" },
    Need { program: "nft", package: "nftables", why: "kube-proxy's nftables mode" },
    Need { program: "openssl", package: "openssl", why: "the cluster's certificates" },
    Need { program: "nsenter", package: "util-linux", why: "enters the cluster's nodes" },
    Need { program: "umount", package: "mount", why: "kubelets mount volumes" },
];

/// Compiles the parts in C for 64-bit Arm.
pub(crate) const ARM_COMPILER: &str = "aarch64-linux-gnu-gcc";

const ARM_NEEDS: [Need; 2] = [
    Need { program: ARM_COMPILER, package: "gcc-aarch64-linux-gnu", why: "compiles the TLS provider's arithmetic for 64-bit Arm" },
    Need { program: "/usr/aarch64-linux-gnu/include/string.h", package: "libc6-dev-arm64-cross", why: "the headers that it reads" },
];

/// What building for another processor needs.
pub(crate) fn cross(target: &str) -> Result<()> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    if !Path::new(sysroot.trim()).join("lib/rustlib").join(target).is_dir() {
        step(&format!("Rust's library for {target}"), Command::new("rustup").args(["target", "add", target]))?;
    }
    packages(&ARM_NEEDS)
}

/// What the cluster needs beside its own programs.
pub(crate) fn cluster() -> Result<()> {
    packages(&CLUSTER_NEEDS)
}

/// What building needs.
pub(crate) fn build_tools() -> Result<()> {
    toolchain()?;
    say("the BPF linker (two minutes the first time)");
    let linker = sekisho_ebpf_build::ensure_linker()?;
    eprintln!("    {}", linker.display());
    Ok(())
}

/// What building and testing need, and with `kernel` what booting other kernels needs.
pub(crate) fn run(kernel: bool) -> Result<()> {
    build_tools()?;
    packages(&NEEDS)?;
    if kernel {
        packages(&KERNEL_NEEDS)?;
    }
    say("everything is here");
    Ok(())
}

/// The kernel programs need `core` built for them, so its source.
fn toolchain() -> Result<()> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    if Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir() {
        return Ok(());
    }
    step("the source of Rust's core library", Command::new("rustup").args(["component", "add", "rust-src"]))
}

fn packages(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| find(need.program).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    for need in &missing {
        say(&format!("{} is missing: {}", need.program, need.why));
    }
    let names: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if find("apt-get").is_none() {
        bail!("please install {}: there is no apt-get here to do it", names.join(", "));
    }
    if !sekisho_lab::is_root() {
        bail!("please install {} (`apt-get install {}`), or run this as root", names.join(", "), names.join(" "));
    }
    let install = |what: &str| {
        step(
            what,
            Command::new("apt-get")
                .args(["install", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"])
                .args(&names)
                .env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    let what = format!("install {}", names.join(", "));
    if install(&what).is_err() {
        step("refresh Debian's list of packages", Command::new("apt-get").args(["update", "-o", "DPkg::Lock::Timeout=300"]))?;
        install(&what)?;
    }
    for need in needs {
        find(need.program).with_context(|| format!("{} is still missing after its installation", need.program))?;
    }
    Ok(())
}

/// A program on the path, the administrator's directories included.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].into_iter().map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| candidate.is_file())
}
