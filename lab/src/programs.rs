//! The kernel programs, loaded alone and fed packet by packet with `BPF_PROG_TEST_RUN`.
//!
//! For tests and benches of the data path that need no interface: the maps are filled by hand, a frame goes
//! in, a verdict comes out, and the maps and the rings tell what the program did. Needs root.

use std::collections::HashMap as Table;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::{Array, ArrayOfMaps, HashMap, LpmTrie, Map, MapData, PerCpuArray, RingBuf, lpm_trie};
use aya::programs::{CgroupSkb, CgroupSock, CgroupSockAddr, Program, SchedClassifier, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use sekisho_core::counters;
use sekisho_core::layout::FlowEvent;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Builds the kernel programs of this repository and returns the object's path.
pub fn object() -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    sekisho_ebpf_build::build(&root, &target.join("ebpf"))
}

/// One packet's circumstances, the part of `__sk_buff` that a test may set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Skb {
    /// Interface the packet came in by; 0 = made on this node.
    pub ingress_ifindex: u32,
    /// Segments of a large packet.
    pub gso_segs: u32,
    /// Payload per segment.
    pub gso_size: u32,
}

/// The loaded programs and their maps.
pub struct Programs {
    bpf: Ebpf,
    rings: Vec<RingBuf<MapData>>,
}

/// What a run returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The program's return value.
    pub code: i32,
    /// Mean time per run.
    pub time: Duration,
}

impl Programs {
    /// Loads the object with rings of `ring_bytes` per CPU and the given map sizes.
    pub fn load(object: &[u8], ring_bytes: u32, sizes: &[(&'static str, u32)]) -> Result<Self> {
        let mut loader = EbpfLoader::new();
        let cpus = aya::util::nr_cpus().map_err(|(what, e)| anyhow::anyhow!("{what}: {e}"))?;
        loader.map_max_entries("EVENTS", u32::try_from(cpus)?);
        for (name, size) in sizes {
            loader.map_max_entries(name, *size);
        }
        let mut bpf = loader.load(object).context("the object does not load")?;
        for (name, program) in bpf.programs_mut() {
            let done = match program {
                Program::SchedClassifier(p) => p.load(),
                Program::CgroupSkb(p) => p.load(),
                Program::CgroupSockAddr(p) => p.load(),
                Program::CgroupSock(p) => p.load(),
                _ => bail!("program {name} is of an unexpected kind"),
            };
            done.map_err(|e| anyhow::anyhow!("program {name}: {e:#?}"))?;
        }
        let mut rings = Vec::new();
        let mut outer: ArrayOfMaps<_, RingBuf<MapData>> = ArrayOfMaps::try_from(bpf.map_mut("EVENTS").context("no EVENTS")?)?;
        for cpu in 0..u32::try_from(cpus)? {
            let ring = RingBuf::create(ring_bytes, 0)?;
            outer.set(cpu, &ring, 0)?;
            rings.push(ring);
        }
        Ok(Self { bpf, rings })
    }
}
