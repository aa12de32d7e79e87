//! Opening the data path: the pin directory and its lock, the maps in it (adopted or made), the programs.
//!
//! All that is pinned lies in `<pin-dir>/<layout>/`, where `layout` names the types that cross the boundary and the
//! shape of every map: an agent never adopts maps of another shape. Programs are not pinned; the links hold them.
//! The directory itself carries the lock, so that a second agent is refused and a killed one leaves nothing stale.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aya::EbpfLoader;
use aya::maps::{Map, MapData, RingBuf};
use aya::programs::{Program, ProgramError};
use sekisho_core::layout::LAYOUT;

use super::diagnostics::Diagnostics;
use super::error::OpenError;
use super::sizes::Sizes;
use super::table::Maps;
use super::{bpf, former, os};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("SEKISHO_EBPF"));

/// How long a lock may outlive its owner.
const LETTING_GO: Duration = Duration::from_millis(200);

/// The pin directory, locked.
#[derive(Debug)]
pub(super) struct Pins {
    /// As the operator named it.
    pub(super) root: PathBuf,
    /// Holds the lock for as long as it is open.
    _lock: File,
}

impl Pins {
    /// Makes the directory if it is missing, and locks it.
    pub(super) fn lock(root: &Path) -> Result<Self, OpenError> {
        require_bpffs(root)?;
        for _ in 0..16 {
            fs::create_dir_all(root).map_err(|source| OpenError::Pins { path: root.into(), source })?;
            if let Some(pins) = Self::try_lock(root)? {
                return Ok(pins);
            }
        }
        Err(OpenError::PinsInUse { path: root.into() })
    }

    /// Locks the directory that is there; `None` where it is missing or was replaced under our hands.
    pub(super) fn try_lock(root: &Path) -> Result<Option<Self>, OpenError> {
        let wrong = |source| OpenError::Pins { path: root.into(), source };
        let lock = match File::open(root) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(error)),
        };
        let begin = Instant::now();
        loop {
            match lock.try_lock() {
                Ok(()) => break,
                // Who has just let go may have been about to start a program, whose process holds the lock until it is that program.
                Err(fs::TryLockError::WouldBlock) if begin.elapsed() < LETTING_GO => std::thread::sleep(LETTING_GO / 20),
                Err(fs::TryLockError::WouldBlock) => return Err(OpenError::PinsInUse { path: root.into() }),
                Err(fs::TryLockError::Error(source)) => return Err(wrong(source)),
            }
        }
        let held = lock.metadata().map_err(wrong)?;
        let same = fs::metadata(root).is_ok_and(|now| (now.dev(), now.ino()) == (held.dev(), held.ino()));
        Ok(same.then(|| Self { root: root.into(), _lock: lock }))
    }

    /// Directories of data paths below, ours of any layout.
    pub(super) fn layouts(&self) -> Vec<PathBuf> {
        layouts(&self.root)
    }
}

/// Directories under `root` that bear a layout's name.
pub(super) fn layouts(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    let names = entries.flatten().map(|entry| entry.path());
    names.filter(|path| path.is_dir() && path.file_name().and_then(|name| name.to_str()).is_some_and(is_layout)).collect()
}

fn is_layout(name: &str) -> bool {
    name.len() == 33 && name.bytes().enumerate().all(|(at, byte)| if at == 16 { byte == b'-' } else { byte.is_ascii_hexdigit() })
}

/// Whether the directory `path` holds maps whose types are ours (their sizes may differ).
pub(super) fn same_types(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(&format!("{LAYOUT:016x}-")))
}

/// The nearest ancestor of `root` that exists must lie on a bpffs.
fn require_bpffs(root: &Path) -> Result<(), OpenError> {
    let ancestor = root.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    match os::is_bpffs(ancestor) {
        Ok(true) => Ok(()),
        Ok(false) => Err(OpenError::NotBpffs { path: root.into(), mount: mount_point_for(root) }),
        Err(source) => Err(OpenError::Pins { path: ancestor.into(), source }),
    }
}

/// Where a bpffs would have to be mounted.
fn mount_point_for(root: &Path) -> PathBuf {
    if root.starts_with("/sys/fs/bpf") { PathBuf::from("/sys/fs/bpf") } else { root.parent().unwrap_or(root).into() }
}

/// A loaded program.
#[derive(Debug)]
pub(super) struct Loaded {
    fd: OwnedFd,
    /// Its id in this kernel.
    pub(super) id: u32,
}

impl AsFd for Loaded {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Programs by name. The ones that the object must have are checked at load.
pub(super) type Programs = BTreeMap<String, Loaded>;

const REQUIRED: &[&str] = &[
    "pod_egress",
    "pod_ingress",
    "cg_egress",
    "cg_ingress",
    "hold_egress",
    "hold_ingress",
    "hold_connect4",
    "hold_connect6",
    "hold_timeout",
    "connect4",
    "connect6",
    "sendmsg4",
    "sendmsg6",
    "post_bind4",
    "post_bind6",
    "clock",
    "merge",
    "sockets",
];

/// What loading gives.
pub(super) struct DataPlane {
    /// `<pin-dir>/<layout>`.
    pub(super) dir: PathBuf,
    /// Maps.
    pub(super) maps: Maps,
    /// Programs.
    pub(super) programs: Programs,
    /// One ring per CPU.
    pub(super) rings: Vec<RingBuf<MapData>>,
    /// The programs' voice.
    pub(super) diagnostics: Diagnostics,
}

/// Name of the directory for these sizes.
fn layout_name(sizes: &Sizes) -> Result<String, OpenError> {
    let object = aya_obj::Object::parse(OBJECT)
        .map_err(|error| OpenError::Load { step: "reading the kernel programs".into(), reason: error.to_string() })?;
    let mut shapes: Vec<String> = object
        .maps
        .iter()
        .filter(|(name, _)| !name.starts_with('.'))
        .map(|(name, map)| {
            let max = sizes.entries.iter().find(|(map, _)| map == name).map_or(map.max_entries(), |(_, max)| *max);
            format!("{name} {} {} {} {max} {}", map.map_type(), map.key_size(), map.value_size(), map.map_flags())
        })
        .collect();
    shapes.sort_unstable();
    shapes.push(format!("ring {}", sizes.ring));
    let hash = shapes.concat().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
    Ok(format!("{LAYOUT:016x}-{hash:016x}"))
}

/// Makes or adopts the maps and loads the programs.
pub(super) fn load(pins: &Pins, sizes: &Sizes) -> Result<DataPlane, OpenError> {
    let dir = pins.root.join(layout_name(sizes)?);
    let new = !dir.exists();
    fs::create_dir_all(&dir).map_err(|source| OpenError::Pins { path: dir.clone(), source })?;
    make(&dir, sizes).inspect_err(|_| {
        // What did not fit into memory must not stay there.
        if new && let Err(error) = former::remove(&dir) {
            tracing::warn!(%error, path = %dir.display(), "half-made maps could not be removed");
        }
    })
}

fn make(dir: &Path, sizes: &Sizes) -> Result<DataPlane, OpenError> {
    let (programs, diagnostics) = load_programs(dir, sizes)?;
    make_own(dir).map_err(|source| OpenError::Load { step: "making the maps".into(), reason: source.to_string() })?;
    let maps = Maps::open(dir).map_err(|source| OpenError::Load { step: "opening the maps".into(), reason: source.to_string() })?;
    let rings = open_rings(dir, &maps, sizes).map_err(|reason| OpenError::Load { step: "making the event rings".into(), reason })?;
    Ok(DataPlane { dir: dir.into(), maps, programs, rings, diagnostics })
}

/// Makes what no program uses: the description of our types, and what the programs of former layouts counted.
fn make_own(dir: &Path) -> io::Result<()> {
    former::write_description(dir)?;
    let path = dir.join(former::COUNTED);
    if path.exists() {
        return Ok(());
    }
    bpf::pin(bpf::create_map("COUNTED", bpf::MAP_TYPE_ARRAY, 4, 8, sekisho_core::counters::COUNT)?.as_fd(), &path)
}

/// Names of the object's maps that are pinned: all but the compiler's own sections.
fn map_names() -> Result<Vec<String>, OpenError> {
    let object = aya_obj::Object::parse(OBJECT)
        .map_err(|error| OpenError::Load { step: "reading the kernel programs".into(), reason: error.to_string() })?;
    Ok(object.maps.into_keys().filter(|name| !name.starts_with('.')).collect())
}

fn load_programs(dir: &Path, sizes: &Sizes) -> Result<(Programs, Diagnostics), OpenError> {
    let names = map_names()?;
    let mut loader = EbpfLoader::new();
    for (name, max) in &sizes.entries {
        loader.map_max_entries(name, *max);
    }
    for name in &names {
        loader.map_pin_path(name, dir.join(name));
    }
    let mut object = loader.load(OBJECT).map_err(|error| OpenError::Load { step: "making the maps".into(), reason: chain(&error) })?;
    let mut programs = Programs::new();
    for (name, program) in object.programs_mut() {
        let loaded = load_program(program)
            .map_err(|error| OpenError::Load { step: format!("loading the kernel program {name}"), reason: program_error(&error) })?;
        programs.insert(name.to_owned(), loaded);
    }
    match REQUIRED.iter().find(|name| !programs.contains_key(**name)) {
        Some(missing) => Err(OpenError::Load { step: "reading the kernel programs".into(), reason: format!("{missing} is missing") }),
        None => Ok((programs, Diagnostics::of(&mut object))),
    }
}

fn load_program(program: &mut Program) -> Result<Loaded, ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load()?,
        Program::CgroupSkb(program) => program.load()?,
        Program::CgroupSockAddr(program) => program.load()?,
        Program::CgroupSock(program) => program.load()?,
        Program::SockOps(program) => program.load()?,
        _ => return Err(ProgramError::UnexpectedProgramType),
    }
    let fd = program.fd()?.as_fd().try_clone_to_owned()?;
    let id = bpf::program_id(fd.as_fd())?;
    Ok(Loaded { fd, id })
}

/// What went wrong, in one line; the verifier's whole log goes to the debug log.
fn program_error(error: &ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = error {
        tracing::debug!(%verifier_log, "the verifier refused a program");
        return io_error.to_string();
    }
    chain(error)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        if !text.contains(&cause.to_string()) {
            text = format!("{text}: {cause}");
        }
        source = cause.source();
    }
    text.lines().next().unwrap_or_default().to_owned()
}

/// Opens the ring of every CPU, makes the missing ones, and sees that `EVENTS` holds them.
fn open_rings(dir: &Path, maps: &Maps, sizes: &Sizes) -> Result<Vec<RingBuf<MapData>>, String> {
    let cpus = os::possible_cpus().map_err(|error| error.to_string())?;
    (0..cpus).map(|cpu| open_ring(dir, maps, cpu, sizes.ring).map_err(|error| format!("CPU {cpu}: {error}"))).collect()
}

fn open_ring(dir: &Path, maps: &Maps, cpu: u32, size: u32) -> Result<RingBuf<MapData>, String> {
    let path = dir.join(format!("EVENTS-{cpu}"));
    let fd = match bpf::open_pin(&path) {
        Ok(fd) => fd,
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_ring(&path, size).map_err(|error| error.to_string())?,
        Err(error) => return Err(error.to_string()),
    };
    let shape = bpf::map_shape(fd.as_fd()).map_err(|error| error.to_string())?;
    if maps.events.id(cpu).map_err(|error| error.to_string())? != Some(shape.id) {
        maps.events.put(cpu, fd.as_fd()).map_err(|error| error.to_string())?;
    }
    let data = MapData::from_fd(fd).map_err(|error| error.to_string())?;
    RingBuf::try_from(Map::RingBuf(data)).map_err(|error| error.to_string())
}

fn make_ring(path: &Path, size: u32) -> io::Result<OwnedFd> {
    let fd = bpf::create_map("EVENTS_RING", bpf::MAP_TYPE_RINGBUF, 0, 0, size)?;
    bpf::pin(fd.as_fd(), path)?;
    Ok(fd)
}

/// What must be true of the machine before anything is touched. Cheap, so that the answer comes at once.
pub(super) fn require_machine() -> Result<(), OpenError> {
    let version = os::kernel_version().unwrap_or((0, 0));
    if version < (5, 15) {
        return Err(OpenError::KernelTooOld { major: version.0, minor: version.1 });
    }
    if !capable() {
        return Err(OpenError::NotRoot);
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        return Err(OpenError::NoBtf);
    }
    Ok(())
}

/// Whether this process has `CAP_BPF`, `CAP_PERFMON` and `CAP_NET_ADMIN`, or `CAP_SYS_ADMIN` in place of the first two.
pub(super) fn capable() -> bool {
    const NET_ADMIN: u64 = 1 << 12;
    const SYS_ADMIN: u64 = 1 << 21;
    const BPF_AND_PERFMON: u64 = 1 << 39 | 1 << 38;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    effective & NET_ADMIN != 0 && (effective & BPF_AND_PERFMON == BPF_AND_PERFMON || effective & SYS_ADMIN != 0)
}
