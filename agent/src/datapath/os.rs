//! The few system calls beside `bpf(2)` that the standard library does not have: netlink sockets, inotify, poll,
//! statfs. The second and last file of this room with `unsafe` in it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// Whether `path` lies on a bpffs.
pub(super) fn is_bpffs(path: &Path) -> io::Result<bool> {
    const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: an all-zero statfs is a valid value of that plain C struct.
    let mut buffer: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: `path` is a terminated string and `buffer` is writable.
    if unsafe { libc::statfs(path.as_ptr(), &raw mut buffer) } < 0 {
        return Err(io::Error::last_os_error());
    }
    #[expect(clippy::cast_possible_truncation, reason = "magic numbers have 32 bits, whatever the field has")]
    let magic = buffer.f_type as u32;
    Ok(i64::from(magic) == BPF_FS_MAGIC)
}

/// The inode by which the caller's network namespace is known.
pub(super) fn network_namespace() -> io::Result<u32> {
    let inode = std::fs::metadata("/proc/thread-self/ns/net")?.ino();
    u32::try_from(inode).map_err(io::Error::other)
}

/// As `sockaddr` has it; libc's constant is an `int`.
const AF_NETLINK: u16 = 16;

/// The size of a type as system calls take it.
const fn length_of<T>() -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "no type here is larger than a page")]
    let length = size_of::<T>() as u32;
    length
}

fn fd(result: i32) -> io::Result<OwnedFd> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this fd for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// A route netlink socket in the caller's network namespace, bound to the multicast groups told.
pub(super) fn netlink(groups: u32) -> io::Result<OwnedFd> {
    netlink_of(libc::NETLINK_ROUTE, groups)
}

/// A netfilter netlink socket in the caller's network namespace.
pub(super) fn netlink_netfilter() -> io::Result<OwnedFd> {
    netlink_of(libc::NETLINK_NETFILTER, 0)
}

fn netlink_of(protocol: i32, groups: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointer is passed.
    let socket = fd(unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: an all-zero sockaddr_nl is a valid value of that plain C struct.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = AF_NETLINK;
    address.nl_groups = groups;
    // SAFETY: `address` is readable for the size told.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length_of::<libc::sockaddr_nl>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(socket)
}

/// Asks for strict checking, without which the kernel ignores the namespace in an address dump.
pub(super) fn netlink_strict(socket: BorrowedFd<'_>) -> io::Result<()> {
    const NETLINK_GET_STRICT_CHK: i32 = 12;
    set_option(socket, libc::SOL_NETLINK, NETLINK_GET_STRICT_CHK, &1)
}

/// Hears the events of every namespace that the own one has a number for.
pub(super) fn netlink_all_namespaces(socket: BorrowedFd<'_>) -> io::Result<()> {
    const NETLINK_LISTEN_ALL_NSID: i32 = 8;
    set_option(socket, libc::SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, &1)
}

/// A receive that takes longer fails with `WouldBlock`.
pub(super) fn receive_timeout(socket: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
    let value = libc::timeval { tv_sec: timeout.as_secs().cast_signed(), tv_usec: i64::from(timeout.subsec_micros()) };
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &value)
}

fn set_option<T>(socket: BorrowedFd<'_>, level: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: `value` is readable for the size told.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, std::ptr::from_ref(value).cast(), length_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Sends one message.
pub(super) fn send(socket: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<()> {
    // SAFETY: `bytes` is readable for its length.
    let result = unsafe { libc::send(socket.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives one message.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `buffer` is writable for its length.
    let result = unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Waits until one of the fds is readable; `false` when the time is up.
pub(super) fn wait_readable(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<bool> {
    let mut polled: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `polled` is readable and writable for its length.
    let result = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, millis) };
    match result {
        0 => Ok(false),
        n if n > 0 => Ok(true),
        _ => {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted { Ok(false) } else { Err(error) }
        }
    }
}

/// Receives and drops what is there.
pub(super) fn discard(socket: BorrowedFd<'_>) {
    let mut buffer = [0u8; 8192];
    // SAFETY: `buffer` is writable for its length.
    while unsafe { libc::recv(socket.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) } > 0 {}
}

/// Number of the running kernel, `(major, minor)`.
pub(super) fn kernel_version() -> Option<(u32, u32)> {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    let mut parts = text.trim().split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Bytes of memory that the machine has.
pub(super) fn memory() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let kibibytes = text.lines().find_map(|line| line.strip_prefix("MemTotal:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    kibibytes.map(|kibibytes| kibibytes << 10).ok_or_else(|| io::Error::other("/proc/meminfo has no MemTotal"))
}

/// Pages are 4 KiB nearly everywhere, but not everywhere.
pub(super) fn page_size() -> u32 {
    // SAFETY: no pointer is passed.
    u32::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// CPUs that the machine may ever have: every one has a share in a per-CPU map.
pub(super) fn possible_cpus() -> io::Result<u32> {
    static COUNT: std::sync::OnceLock<u32> = std::sync::OnceLock::new();
    if let Some(count) = COUNT.get() {
        return Ok(*count);
    }
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = text.trim().rsplit(['-', ',']).next().and_then(|last| last.parse::<u32>().ok());
    let count = last.ok_or(io::ErrorKind::InvalidData)? + 1;
    Ok(*COUNT.get_or_init(|| count))
}
