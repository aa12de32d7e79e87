//! The kernel and what this process may do in it.

use std::fs;

use super::Finding;
use crate::datapath::probe;

/// Bits of the capabilities that are needed, by name.
const CAPABILITIES: [(&str, u32); 3] = [("BPF", 39), ("PERFMON", 38), ("NET_ADMIN", 12)];
/// In place of the first two.
const SYS_ADMIN: u32 = 21;
/// Kernels from here on are tested.
const TESTED: (u32, u32) = (6, 1);

/// Which profile of AppArmor holds this process, where there is AppArmor.
const APPARMOR: &str = "/proc/self/attr/apparmor/current";

const NOT_HERE: &str = "no program can be loaded: nothing is seen and nothing enforced";

pub(super) fn examine() -> Vec<Finding> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let missing = missing(&status);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut findings = vec![version(probe::kernel_version(), release.trim()), btf(probe::has_btf()), capabilities(&missing)];
    findings.extend(apparmor(&fs::read_to_string(APPARMOR).unwrap_or_default()));
    if missing.is_empty() {
        findings.push(match probe::bpf_answers() {
            Ok(()) => Finding::good("bpf", "the kernel takes bpf(2) from us"),
            Err(error) => Finding::fatal("bpf", format!("the kernel refuses bpf(2): {error}"), NOT_HERE).remedy(
                "look for a seccomp profile or a kernel lockdown that forbids it; the runtime's default profile allows it to CAP_BPF",
            ),
        });
        findings.push(tcx(probe::has_tcx()));
    }
    findings
}

pub(super) fn version(version: Option<(u32, u32)>, release: &str) -> Finding {
    let found = format!("Linux {release}");
    match version {
        None => Finding::note("kernel", format!("{found}: its version is not understood")),
        Some(version) if version < probe::OLDEST => {
            Finding::fatal("kernel", format!("{found} is too old"), NOT_HERE).remedy("run Linux 5.15 or newer; 6.1 and newer are tested")
        }
        Some(version) if version < TESTED => Finding::note("kernel", format!("{found}; Sekisho is tested on 6.1 and newer")),
        Some(_) => Finding::good("kernel", found),
    }
}

fn btf(there: bool) -> Finding {
    if there {
        Finding::good("btf", "the kernel tells its types (/sys/kernel/btf/vmlinux)")
    } else {
        Finding::fatal("btf", "the kernel does not tell its types: /sys/kernel/btf/vmlinux is missing", NOT_HERE)
            .remedy("run a kernel built with CONFIG_DEBUG_INFO_BTF")
    }
}

/// The capabilities that a process lacks, from its `/proc/PID/status`.
pub(super) fn missing(status: &str) -> Vec<&'static str> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:")).map(str::trim);
    let mask = mask.and_then(|mask| u64::from_str_radix(mask, 16).ok()).unwrap_or(0);
    let has = |bit: u32| mask >> bit & 1 == 1;
    CAPABILITIES.iter().filter(|(name, bit)| !has(*bit) && (*name == "NET_ADMIN" || !has(SYS_ADMIN))).map(|(name, _)| *name).collect()
}

fn capabilities(missing: &[&str]) -> Finding {
    if missing.is_empty() {
        return Finding::good("capabilities", "BPF, PERFMON and NET_ADMIN");
    }
    Finding::fatal("capabilities", format!("this process lacks {}", missing.join(", ")), NOT_HERE)
        .remedy("run as root, or give these capabilities (securityContext.capabilities.add)")
}

/// What a profile that holds this process means.
pub(super) fn apparmor(profile: &str) -> Option<Finding> {
    let (name, mode) = profile.trim().split_once(" (")?;
    if mode != "enforce)" {
        return None;
    }
    let cost = "one that forbids writing below /sys/fs/bpf, as the runtimes' default profiles do, lets no agent start";
    let found = format!("the profile {name} holds this process");
    Some(Finding::lack("apparmor", found, cost).remedy("run it without one (securityContext.appArmorProfile.type: Unconfined)"))
}

fn tcx(there: bool) -> Finding {
    if there {
        return Finding::good("tcx", "programs have an order at an interface: ours is the first");
    }
    let cost = "clsact is used instead: another program may put itself before ours or take ours away, which is noticed within seconds, not at once";
    Finding::lack("tcx", "the kernel has no TCX (Linux 6.6 and newer)", cost).remedy("run Linux 6.6 or newer")
}
