//! The kernel programs, loaded alone and fed packet by packet with `BPF_PROG_TEST_RUN`.
//!
//! For tests and benches of the data path that need no interface: the maps are filled by hand, a frame goes
//! in, a verdict comes out, and the maps and the rings tell what the program did. Needs root.

mod group;
mod other;
mod said;
mod varied;

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::maps::{ArrayOfMaps, MapData, PerCpuArray, RingBuf};
use aya::programs::{CgroupAttachMode, Program, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use sekisho_core::counters;
use sekisho_core::layout::FlowEvent;
use zerocopy::{FromBytes, Immutable, IntoBytes};

pub use group::Group;
pub use said::Listener;
pub use varied::{Idle, Varied};

use crate::sys;

/// Builds the kernel programs of this repository and returns their object, or reads the one that
/// `SEKISHO_EBPF_OBJECT` names: a machine without a compiler brings it along.
pub fn object() -> Result<Vec<u8>> {
    if let Some(path) = std::env::var_os("SEKISHO_EBPF_OBJECT").map(PathBuf::from) {
        return std::fs::read(&path).with_context(|| path.display().to_string());
    }
    built("ebpf", &[])
}

/// As [`object`], of programs that say what their rare paths meet.
pub fn talking_object() -> Result<Vec<u8>> {
    built("ebpf-log", &["log"])
}

fn built(directory: &str, features: &[&str]) -> Result<Vec<u8>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let path = sekisho_ebpf_build::build(&root, &target.join(directory), features)?;
    std::fs::read(&path).with_context(|| path.display().to_string())
}

/// One packet's circumstances, the part of `__sk_buff` that a test may set.
#[derive(Clone, Copy, Debug)]
pub struct Skb {
    /// Interface of the hook.
    pub ifindex: u32,
    /// Interface the packet came in by; 0 = made on this node.
    pub ingress_ifindex: u32,
    /// Segments of a large packet.
    pub gso_segs: u32,
    /// Payload per segment.
    pub gso_size: u32,
}

impl Default for Skb {
    /// A packet on loopback, which stands for the pod's interface. It came in at another one: at the pod's own comes only what the
    /// pod sends.
    fn default() -> Self {
        Self { ifindex: 1, ingress_ifindex: 2, gso_segs: 0, gso_size: 0 }
    }
}

impl Skb {
    /// The `__sk_buff` that says so. Offsets are of the kernel's ABI (`include/uapi/linux/bpf.h`).
    fn bytes(self) -> [u8; 192] {
        let mut raw = [0; 192];
        for (offset, value) in [(36, self.ingress_ifindex), (40, self.ifindex), (164, self.gso_segs), (176, self.gso_size)] {
            raw[offset..offset + 4].copy_from_slice(&value.to_ne_bytes());
        }
        raw
    }
}

/// What a run returned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// The program's return value.
    pub code: i32,
    /// Mean time per run.
    pub time: Duration,
    /// Processor time of this thread per run, in nanoseconds, the system call's included: as exact as many runs make it, where
    /// [`Self::time`] is whole nanoseconds, and without what other processes took.
    pub spent: f64,
}

/// The loaded programs and their maps.
pub struct Programs {
    bpf: Ebpf,
    rings: Vec<RingBuf<MapData>>,
    /// How values are written, where another build reads them.
    plans: BTreeMap<&'static str, other::Plan>,
}

impl Programs {
    /// Loads the object with rings of `ring_bytes` per CPU and the given map sizes.
    pub fn load(object: &[u8], ring_bytes: u32, sizes: &[(&'static str, u32)]) -> Result<Self> {
        Self::load_some(object, &[], ring_bytes, sizes)
    }

    /// As [`Self::load`], but only the named programs (none: all), since the verifier takes its time for each.
    pub fn load_some(object: &[u8], only: &[&str], ring_bytes: u32, sizes: &[(&'static str, u32)]) -> Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(what, e)| anyhow::anyhow!("{what}: {e}"))?;
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("EVENTS", cpus.get());
        for (name, size) in sizes {
            loader.map_max_entries(name, *size);
        }
        let mut bpf = loader.load(object).context("the object does not load")?;
        for (name, program) in bpf.programs_mut().filter(|(name, _)| only.is_empty() || only.contains(name)) {
            let done = match program {
                Program::SchedClassifier(p) => p.load(),
                Program::CgroupSkb(p) => p.load(),
                Program::CgroupSockAddr(p) => p.load(),
                Program::CgroupSock(p) => p.load(),
                Program::SockOps(p) => p.load(),
                _ => bail!("program {name} is of an unexpected kind"),
            };
            done.map_err(|e| anyhow::anyhow!("program {name}: {e}: {}", last_lines(&format!("{e:?}"), 40)))?;
        }
        let mut rings = Vec::new();
        let mut outer: ArrayOfMaps<_, RingBuf<MapData>> = ArrayOfMaps::try_from(bpf.map_mut("EVENTS").context("no EVENTS")?)?;
        for cpu in 0..cpus.get() {
            let ring = RingBuf::create(ring_bytes, 0)?;
            outer.set(cpu, &ring, 0)?;
            rings.push(ring);
        }
        Ok(Self { bpf, rings, plans: BTreeMap::new() })
    }

    /// As [`Self::load_some`], of an object that another build made: values are written as it reads them.
    pub fn load_other(object: &[u8], only: &[&str], ring_bytes: u32, sizes: &[(&'static str, u32)]) -> Result<Self> {
        let plans = other::plans(object)?;
        Ok(Self { plans, ..Self::load_some(object, only, ring_bytes, sizes)? })
    }

    /// Fields that this build writes and the other does not know, as `MAP.field`.
    pub fn unknown(&self) -> Vec<String> {
        other::unknown(&self.plans)
    }

    /// Runs `program` `repeat` times on `frame`, which begins with its Ethernet header.
    pub fn run(&self, program: &str, frame: &[u8], skb: Skb, repeat: u32) -> Result<Outcome> {
        let ctx = skb.bytes();
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.ctx_in = Some(&ctx);
        options.repeat = repeat;
        let program = self.bpf.program(program).with_context(|| format!("no program {program}"))?;
        let begin = sys::processor_time()?;
        let result = match program {
            Program::SchedClassifier(p) => p.test_run(options)?,
            Program::CgroupSkb(p) => p.test_run(options)?,
            _ => bail!("this kind of program cannot be run on a frame"),
        };
        let spent = per_run(sys::processor_time()?.saturating_sub(begin), repeat);
        Ok(Outcome { code: result.return_value.cast_signed(), time: result.duration, spent })
    }

    /// Runs a classifier once on `frame`; returns the frame as it left it.
    pub fn rewritten(&self, program: &str, frame: &[u8]) -> Result<Vec<u8>> {
        let mut out = vec![0; frame.len()];
        let mut options = TestRunOptions::new();
        options.data_in = Some(frame);
        options.data_out = Some(&mut out);
        options.repeat = 1;
        match self.bpf.program(program).with_context(|| format!("no program {program}"))? {
            Program::SchedClassifier(p) => p.test_run(options)?,
            _ => bail!("{program} is no classifier"),
        };
        Ok(out)
    }

    /// Wraps a classifier so that each of its runs finds the 16-bit field at `field` of the frame one higher.
    pub fn vary(&self, program: &str, field: u16) -> Result<Varied> {
        match self.bpf.program(program).with_context(|| format!("no program {program}"))? {
            Program::SchedClassifier(p) => Varied::around(p.fd()?.as_fd(), field),
            _ => bail!("{program} is no classifier"),
        }
    }

    /// Does something while the program of sockets `program` is attached to a control group.
    pub fn attached<T>(&mut self, program: &str, group: &File, during: impl FnOnce() -> Result<T>) -> Result<T> {
        let Program::CgroupSockAddr(p) = self.bpf.program_mut(program).with_context(|| format!("no program {program}"))? else {
            bail!("{program} judges no addresses of sockets");
        };
        // With links, "single" lets others stay beside it.
        let link = p.attach(group, CgroupAttachMode::Single)?;
        let done = during();
        p.detach(link)?;
        done
    }

    /// A program that does nothing, on the same frame: what the machinery of a run itself costs.
    pub fn floor(&self, frame: &[u8], repeat: u32) -> Result<Outcome> {
        self.run("empty", frame, Skb::default(), repeat)
    }

    /// Instructions that the verifier walked for `program`.
    pub fn verified(&self, program: &str) -> Result<u32> {
        let info = match self.bpf.program(program).with_context(|| format!("no program {program}"))? {
            Program::SchedClassifier(p) => p.info()?,
            Program::CgroupSkb(p) => p.info()?,
            Program::CgroupSockAddr(p) => p.info()?,
            Program::CgroupSock(p) => p.info()?,
            Program::SockOps(p) => p.info()?,
            _ => bail!("program {program} is of an unexpected kind"),
        };
        info.verified_instruction_count().context("the kernel does not tell the verified instructions")
    }

    /// Names of all programs.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.bpf.programs().map(|(name, _)| name.to_owned()).collect();
        names.sort();
        names
    }

    /// Takes every event out of the rings.
    pub fn events(&mut self) -> Vec<FlowEvent> {
        let mut events = Vec::new();
        for ring in &mut self.rings {
            while let Some(item) = ring.next() {
                events.push(FlowEvent::read_from_bytes(&item).expect("a ring holds whole events"));
            }
        }
        events
    }

    /// Empties the rings.
    pub fn drain(&mut self) {
        for ring in &mut self.rings {
            while ring.next().is_some() {}
        }
    }

    /// Every counter, summed over the CPUs.
    pub fn counters(&self) -> Result<Vec<u64>> {
        let map: PerCpuArray<_, u64> = PerCpuArray::try_from(self.bpf.map("COUNTERS").context("no COUNTERS")?)?;
        (0..counters::COUNT).map(|slot| Ok(map.get(&slot, 0)?.iter().sum())).collect()
    }

    /// Writes one entry of a map.
    pub fn put<K: IntoBytes + Immutable + ?Sized, V: IntoBytes + Immutable>(&self, map: &str, key: &K, value: &V) -> Result<()> {
        let value = value.as_bytes();
        let mut value = self.plans.get(map).map_or_else(|| value.to_vec(), |plan| plan.convert(value));
        self.element(map, command::UPDATE, key.as_bytes(), &mut value).with_context(|| format!("update of {map}"))?;
        Ok(())
    }

    /// Reads one entry of a map.
    pub fn get<K: IntoBytes + Immutable + ?Sized, V: FromBytes>(&self, map: &str, key: &K) -> Result<Option<V>> {
        let mut value = vec![0; size_of::<V>()];
        let found = self.element(map, command::LOOKUP, key.as_bytes(), &mut value).with_context(|| format!("look-up in {map}"))?;
        Ok(found.then(|| V::read_from_bytes(&value).expect("the buffer has the value's size")))
    }

    /// Removes one entry of a map; false if it was not there.
    pub fn remove<K: IntoBytes + Immutable + ?Sized>(&self, map: &str, key: &K) -> Result<bool> {
        self.element(map, command::DELETE, key.as_bytes(), &mut []).with_context(|| format!("delete in {map}"))
    }

    /// Empties every table, so that what is left is as after loading; counters only grow.
    pub fn clear(&mut self) -> Result<()> {
        let mut names = Vec::new();
        // What the compiler made (`.rodata`) is not ours to write.
        for (name, map) in self.bpf.maps().filter(|(name, _)| !name.starts_with('.')) {
            let (aya::maps::Map::Array(data)
            | aya::maps::Map::HashMap(data)
            | aya::maps::Map::LruHashMap(data)
            | aya::maps::Map::LpmTrie(data)
            | aya::maps::Map::Queue(data)) = map
            else {
                continue;
            };
            let info = data.info()?;
            names.push((name.to_owned(), matches!(map, aya::maps::Map::Array(_)), info.key_size() as usize, info.value_size() as usize));
        }
        for (name, is_array, key, value) in names {
            self.empty(&name, is_array, key, value)?;
        }
        Ok(())
    }

    fn empty(&self, map: &str, is_array: bool, key_size: usize, value_size: usize) -> Result<()> {
        let mut value = vec![0; value_size];
        if is_array {
            // Tests use the first slots only.
            return (0..4u32).try_for_each(|slot| match self.element(map, command::UPDATE, &slot.to_ne_bytes(), &mut value) {
                Err(error) if slot > 0 && has_code(&error, libc::E2BIG) => Ok(()),
                done => done.map(drop),
            });
        }
        if key_size == 0 {
            while self.element(map, command::TAKE, &[], &mut value)? {}
            return Ok(());
        }
        let mut first = vec![0; key_size];
        while self.element(map, command::NEXT_KEY, &[], &mut first)? {
            self.element(map, command::DELETE, &first, &mut [])?;
        }
        Ok(())
    }

    /// One element command of bpf(2); false where the key is not there.
    fn element(&self, map: &str, command: libc::c_int, key: &[u8], value: &mut [u8]) -> Result<bool> {
        use aya::maps::Map;
        let found = self.bpf.map(map).with_context(|| format!("no map {map}"))?;
        let (Map::Array(data) | Map::HashMap(data) | Map::LruHashMap(data) | Map::LpmTrie(data) | Map::Queue(data)) = found else {
            bail!("map {map} is of an unexpected kind")
        };
        let info = data.info()?;
        let (asked, given) = (info.key_size() as usize, info.value_size() as usize);
        // The first key is asked for without one, and comes where a value would.
        let fits = if command == command::NEXT_KEY {
            value.len() == asked
        } else {
            key.len() == asked && (value.is_empty() || value.len() == given)
        };
        if !fits {
            bail!("{map} has keys of {} and values of {} bytes", info.key_size(), info.value_size());
        }
        let attributes = ElementAttributes {
            map: data.fd().as_fd().as_raw_fd().cast_unsigned(),
            pad: 0,
            key: if key.is_empty() { 0 } else { key.as_ptr() as u64 },
            value: if value.is_empty() { 0 } else { value.as_mut_ptr() as u64 },
            flags: 0,
        };
        // SAFETY: key and value have the sizes that the kernel reads and writes, checked above, and outlive the call.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attributes, size_of::<ElementAttributes>()) };
        if done == 0 {
            return Ok(true);
        }
        let error = std::io::Error::last_os_error();
        if error.raw_os_error() == Some(libc::ENOENT) { Ok(false) } else { Err(error.into()) }
    }
}

/// Nanoseconds of each of `repeat` runs.
fn per_run(spent: Duration, repeat: u32) -> f64 {
    spent.as_secs_f64() * 1e9 / f64::from(repeat)
}

/// `bpf_attr` of the element commands.
#[repr(C)]
struct ElementAttributes {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Commands of bpf(2).
mod command {
    pub(super) const LOOKUP: libc::c_int = 1;
    pub(super) const UPDATE: libc::c_int = 2;
    pub(super) const DELETE: libc::c_int = 3;
    pub(super) const NEXT_KEY: libc::c_int = 4;
    pub(super) const TAKE: libc::c_int = 21;
}

fn has_code(error: &anyhow::Error, code: i32) -> bool {
    error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) == Some(code)
}

fn last_lines(text: &str, count: usize) -> String {
    let text = text.replace("\\n", "\n");
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
