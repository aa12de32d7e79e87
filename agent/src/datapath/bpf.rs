//! The `bpf(2)` system call, where aya has no wrapper or one that fits badly: batches, links by number, queries.
//!
//! One of the two files of this room with `unsafe` in it (the other is [`os`](super::os)). Every wrapper checks the
//! sizes that the kernel will copy, so that callers stay safe. It knows nothing of flows or pods.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::os;

const MAP_CREATE: i32 = 0;
const MAP_LOOKUP: i32 = 1;
const MAP_UPDATE: i32 = 2;
const MAP_DELETE: i32 = 3;
const OBJ_PIN: i32 = 6;
const OBJ_GET: i32 = 7;
const PROG_TEST_RUN: i32 = 10;
const PROG_BY_ID: i32 = 13;
const INFO_BY_FD: i32 = 15;
const PROG_QUERY: i32 = 16;
const MAP_LOOKUP_DELETE: i32 = 21;
const MAP_LOOKUP_BATCH: i32 = 24;
const MAP_UPDATE_BATCH: i32 = 26;
const LINK_CREATE: i32 = 28;
const LINK_UPDATE: i32 = 29;
const LINK_DETACH: i32 = 34;

/// Attach types of `bpf_attach_type` that we use.
pub(super) mod attach_type {
    pub(crate) const CGROUP_INET_INGRESS: u32 = 0;
    pub(crate) const CGROUP_INET_EGRESS: u32 = 1;
    pub(crate) const CGROUP_SOCK_OPS: u32 = 3;
    pub(crate) const CGROUP_INET4_CONNECT: u32 = 10;
    pub(crate) const CGROUP_INET6_CONNECT: u32 = 11;
    pub(crate) const CGROUP_INET4_POST_BIND: u32 = 12;
    pub(crate) const CGROUP_INET6_POST_BIND: u32 = 13;
    pub(crate) const CGROUP_UDP4_SENDMSG: u32 = 14;
    pub(crate) const CGROUP_UDP6_SENDMSG: u32 = 15;
    pub(crate) const TCX_INGRESS: u32 = 46;
    pub(crate) const TCX_EGRESS: u32 = 47;
}

const F_BEFORE: u32 = 1 << 3;

const MAP_TYPE_PERCPU_HASH: u32 = 5;
const MAP_TYPE_PERCPU_ARRAY: u32 = 6;
const MAP_TYPE_LRU_PERCPU_HASH: u32 = 10;
/// Array, `bpf_map_type`.
pub(super) const MAP_TYPE_ARRAY: u32 = 2;
/// Ring buffer, `bpf_map_type`.
pub(super) const MAP_TYPE_RINGBUF: u32 = 27;
/// Update flag: create or replace.
pub(super) const ANY: u64 = 0;
/// Update flag: create only.
pub(super) const NOEXIST: u64 = 1;

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct CreateAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_fd: u32,
    numa: u32,
    name: [u8; 16],
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct ObjectAttr {
    path: u64,
    fd: u32,
    flags: u32,
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

#[derive(Default, IntoBytes, Immutable)]
#[repr(C)]
struct LinkAttr {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

/// Calls `bpf(2)`; the result is what the kernel returned, an fd or zero.
///
/// # Safety
/// Every pointer in `attr` is valid for the command and for as many bytes as the kernel reads or writes there.
unsafe fn call<A: IntoBytes + Immutable>(command: i32, attr: &mut A) -> io::Result<i32> {
    // SAFETY: the caller vouches for the pointers within; the attribute itself is ours and of the size told.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<A>()) };
    match i32::try_from(result) {
        Ok(value) if value >= 0 => Ok(value),
        _ => Err(io::Error::last_os_error()),
    }
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as u64
}

fn address_mut(bytes: &mut [u8]) -> u64 {
    bytes.as_mut_ptr() as u64
}

fn small(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: only called with an fd that the kernel has just made for us; nobody else owns it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// What a map is, as the kernel says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MapShape {
    /// `bpf_map_type`.
    pub(super) kind: u32,
    /// Id.
    pub(super) id: u32,
    /// Bytes of a key.
    pub(super) key: usize,
    /// Bytes of a value as user space sees it: of per-CPU maps every CPU's share, each rounded up to 8.
    pub(super) value: usize,
    /// Maximum of entries.
    pub(super) max: u32,
}

#[derive(IntoBytes, FromBytes)]
#[repr(C)]
struct MapInfo {
    kind: u32,
    id: u32,
    key: u32,
    value: u32,
    max: u32,
    flags: u32,
    rest: [u8; 64],
}

/// Reads the shape of a map.
pub(super) fn map_shape(fd: BorrowedFd<'_>) -> io::Result<MapShape> {
    let mut info = MapInfo::new_zeroed();
    object_info(fd, info.as_mut_bytes())?;
    let mut value = info.value as usize;
    if matches!(info.kind, MAP_TYPE_PERCPU_HASH | MAP_TYPE_PERCPU_ARRAY | MAP_TYPE_LRU_PERCPU_HASH) {
        value = value.next_multiple_of(8) * os::possible_cpus()? as usize;
    }
    Ok(MapShape { kind: info.kind, id: info.id, key: info.key as usize, value, max: info.max })
}

fn object_info(fd: BorrowedFd<'_>, info: &mut [u8]) -> io::Result<()> {
    let mut attr = InfoAttr { fd: raw(fd), len: small(info.len()), info: address_mut(info) };
    // SAFETY: `info` is writable for `len` bytes.
    unsafe { call(INFO_BY_FD, &mut attr) }.map(drop)
}

/// Makes a map without key and value types.
pub(super) fn create_map(name: &str, map_type: u32, key: u32, value: u32, max: u32) -> io::Result<OwnedFd> {
    let mut attr = CreateAttr { map_type, key_size: key, value_size: value, max_entries: max, ..CreateAttr::default() };
    for (slot, byte) in attr.name.iter_mut().take(15).zip(name.bytes()) {
        *slot = byte;
    }
    // SAFETY: the attribute holds no pointer.
    unsafe { call(MAP_CREATE, &mut attr) }.map(owned)
}

/// Names an object in a bpffs.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: raw(fd), flags: 0 };
    // SAFETY: `path` is a terminated string that outlives the call.
    unsafe { call(OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjectAttr { path: path.as_ptr() as u64, fd: 0, flags: 0 };
    // SAFETY: `path` is a terminated string that outlives the call.
    unsafe { call(OBJ_GET, &mut attr) }.map(owned)
}

/// A map and its shape; every access checks the sizes.
#[derive(Debug)]
pub(super) struct RawMap {
    fd: OwnedFd,
    /// As the kernel says.
    pub(super) shape: MapShape,
}

impl AsFd for RawMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl RawMap {
    /// Takes a map's fd.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        let shape = map_shape(fd.as_fd())?;
        Ok(Self { fd, shape })
    }

    fn element(&self, command: i32, key: &[u8], value: u64, flags: u64) -> io::Result<()> {
        assert_eq!(key.len(), self.shape.key, "a key has the map's key size");
        let key = if key.is_empty() { 0 } else { address(key) };
        let mut attr = ElementAttr { map_fd: raw(self.fd.as_fd()), pad: 0, key, value, flags };
        // SAFETY: the key has the map's key size; callers pass a value pointer of the map's value size, or null.
        unsafe { call(command, &mut attr) }.map(drop)
    }

    /// Whether there was such an entry; its value is in `value` then.
    pub(super) fn look_up(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        assert!(value.len() >= self.shape.value, "room for a whole value");
        found(self.element(MAP_LOOKUP, key, address_mut(value), 0))
    }

    /// Looks up and removes in one step.
    pub(super) fn take(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        assert!(value.len() >= self.shape.value, "room for a whole value");
        found(self.element(MAP_LOOKUP_DELETE, key, address_mut(value), 0))
    }

    /// Writes an entry.
    pub(super) fn put(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        assert!(value.len() >= self.shape.value, "a whole value");
        self.element(MAP_UPDATE, key, address(value), flags)
    }

    /// Removes an entry; `false` where there was none.
    pub(super) fn remove(&self, key: &[u8]) -> io::Result<bool> {
        found(self.element(MAP_DELETE, key, 0, 0))
    }

    /// Reads up to `keys.len() / key size` entries from the cursor on; returns how many, and whether there is more.
    pub(super) fn look_up_batch(&self, cursor: &mut Cursor, keys: &mut [u8], values: &mut [u8]) -> io::Result<(usize, bool)> {
        let count = (keys.len() / self.shape.key).min(values.len() / self.shape.value);
        let mut next = Cursor::default();
        assert!(self.shape.key <= next.token.len(), "a cursor may be a key");
        let mut attr = BatchAttr {
            in_batch: if cursor.begun { address(&cursor.token) } else { 0 },
            out_batch: address_mut(&mut next.token),
            keys: address_mut(keys),
            values: address_mut(values),
            count: small(count),
            map_fd: raw(self.fd.as_fd()),
            ..BatchAttr::default()
        };
        // SAFETY: keys and values have room for `count` entries; both cursors are larger than any map's token or key.
        let result = unsafe { call(MAP_LOOKUP_BATCH, &mut attr) };
        next.begun = true;
        *cursor = next;
        match result {
            Ok(_) => Ok((attr.count as usize, true)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count as usize, false)),
            Err(error) => Err(error),
        }
    }

    /// Writes many entries; `keys` and `values` hold whole entries one after another.
    pub(super) fn put_batch(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let count = keys.len() / self.shape.key;
        assert_eq!(values.len(), count * self.shape.value, "as many values as keys");
        if count == 0 {
            return Ok(());
        }
        let mut attr = BatchAttr {
            keys: address(keys),
            values: address(values),
            count: small(count),
            map_fd: raw(self.fd.as_fd()),
            ..BatchAttr::default()
        };
        // SAFETY: keys and values hold `count` entries; the kernel only reads them.
        unsafe { call(MAP_UPDATE_BATCH, &mut attr) }.map(drop)
    }
}

/// Where a batched look-up goes on. As large as the largest key, for maps whose token is a key.
pub(super) struct Cursor {
    begun: bool,
    token: [u8; 64],
}

impl Default for Cursor {
    fn default() -> Self {
        Self { begun: false, token: [0; 64] }
    }
}

fn found(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// What a link says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// Program id.
    pub(super) program: u32,
    /// Interface of a TCX link; 0 once the device is gone.
    pub(super) ifindex: u32,
}

#[derive(IntoBytes, FromBytes)]
#[repr(C)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    pad: u32,
    /// TCX: interface index; cgroup: low half of the cgroup id.
    target: u32,
    rest: [u8; 60],
}

/// Reads a link.
pub(super) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = RawLinkInfo::new_zeroed();
    object_info(fd, info.as_mut_bytes())?;
    Ok(LinkInfo { program: info.program, ifindex: info.target })
}

/// Attaches a program in front of all others on an interface.
pub(super) fn link_tcx(program: BorrowedFd<'_>, ifindex: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr { prog_fd: raw(program), target: ifindex, attach_type, flags: F_BEFORE, ..LinkAttr::default() };
    // SAFETY: the attribute holds no pointer.
    unsafe { call(LINK_CREATE, &mut attr) }.map(owned)
}

/// Attaches a program to a cgroup beside others: through a link, no flags mean "multi".
pub(super) fn link_cgroup(program: BorrowedFd<'_>, cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr { prog_fd: raw(program), target: raw(cgroup), attach_type, ..LinkAttr::default() };
    // SAFETY: the attribute holds no pointer.
    unsafe { call(LINK_CREATE, &mut attr) }.map(owned)
}

/// Puts another program behind a link, without a gap.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [raw(link), raw(program), 0u32, 0];
    // SAFETY: the attribute holds no pointer.
    unsafe { call(LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes a link off its hook at once. Dropping the last name of a link does so too, but only some time later.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = [raw(link), 0u32];
    // SAFETY: the attribute holds no pointer.
    unsafe { call(LINK_DETACH, &mut attr) }.map(drop)
}

/// Ids of the programs at a TCX hook, in the order in which they run.
pub(super) fn query_tcx(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let mut attr = QueryAttr { target: ifindex, attach_type, prog_ids: address_mut(ids.as_mut_bytes()), count: 64, ..QueryAttr::default() };
    // SAFETY: `ids` has room for `count` ids.
    unsafe { call(PROG_QUERY, &mut attr) }?;
    Ok(ids.iter().take(attr.count as usize).copied().collect())
}

/// Id and name of a program.
pub(super) fn program_id(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut info = [0u32; 2];
    object_info(fd, info.as_mut_bytes())?;
    Ok(info[1])
}

/// Name of a program by its id. Needs `CAP_SYS_ADMIN`.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    const NAME: std::ops::Range<usize> = 64..80;
    let mut attr = [id, 0u32, 0];
    // SAFETY: the attribute holds no pointer.
    let program = unsafe { call(PROG_BY_ID, &mut attr) }.map(owned)?;
    let mut info = [0u8; NAME.end];
    object_info(program.as_fd(), &mut info)?;
    Ok(String::from_utf8_lossy(&info[NAME]).trim_end_matches('\0').to_owned())
}

/// Runs a classifier once over a dummy frame.
pub(super) fn test_run(program: BorrowedFd<'_>) -> io::Result<()> {
    let frame = [0u8; 64];
    let mut attr = TestRunAttr {
        prog_fd: raw(program),
        data_size_in: small(frame.len()),
        data_in: address(&frame),
        repeat: 1,
        ..TestRunAttr::default()
    };
    // SAFETY: `frame` is readable for the size told; no output is asked for.
    unsafe { call(PROG_TEST_RUN, &mut attr) }.map(drop)
}

/// Runs a classifier once over a frame and leaves in it what the program wrote there.
pub(super) fn test_run_on(program: BorrowedFd<'_>, frame: &mut [u8]) -> io::Result<()> {
    let size = small(frame.len());
    let mut attr = TestRunAttr {
        prog_fd: raw(program),
        data_size_in: size,
        data_size_out: size,
        data_in: address(frame),
        data_out: address_mut(frame),
        repeat: 1,
        ..TestRunAttr::default()
    };
    // SAFETY: `frame` is readable and writable for the size told; the kernel reads all of it before it writes.
    unsafe { call(PROG_TEST_RUN, &mut attr) }.map(drop)
}
