//! System calls that the standard library lacks. All of this crate's `unsafe` code is here.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::{size_of, zeroed};
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

#[expect(clippy::cast_possible_truncation, reason = "sizes of small structures")]
const fn len_of<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

/// Whether this process may do anything here at all.
pub fn is_root() -> bool {
    // SAFETY: takes no arguments and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Processor time that the calling thread has used.
pub(crate) fn processor_time() -> io::Result<Duration> {
    // SAFETY: all zeros is a valid time.
    let mut time: libc::timespec = unsafe { zeroed() };
    // SAFETY: the kernel writes one time into a place of that type.
    check(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) })?;
    let number = |number: i64| u64::try_from(number).map_err(io::Error::other);
    Ok(Duration::from_secs(number(time.tv_sec)?) + Duration::from_nanos(number(time.tv_nsec)?))
}

/// Gives the calling thread a new, empty network namespace.
pub(crate) fn unshare_net() -> io::Result<()> {
    // SAFETY: plain system call; affects the calling thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

/// Moves the calling thread into a network namespace.
pub(crate) fn set_netns(netns: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the descriptor is open for the duration of the call.
    check(unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Mounts `source` on `target`; an empty `kind` makes a bind mount.
pub fn mount(source: &Path, target: &Path, kind: &str) -> io::Result<()> {
    let (source, target) = (path(source)?, path(target)?);
    let (kind, flags) = (CString::new(kind).map_err(io::Error::other)?, if kind.is_empty() { libc::MS_BIND } else { 0 });
    // SAFETY: three zero-terminated strings that outlive the call, and no data argument.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) }).map(drop)
}

/// Detaches what is mounted on `target`.
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    let target = path(target)?;
    // SAFETY: a zero-terminated string that outlives the call.
    check(unsafe { libc::umount2(target.as_ptr(), libc::MNT_DETACH) }).map(drop)
}

/// Sends a signal to one process.
pub fn kill(pid: u32, signal: i32) -> io::Result<()> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    // SAFETY: plain system call. The pid is positive, so no group is meant.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Lets `command` start inside a network namespace and a cgroup.
pub(crate) fn start_inside(command: &mut Command, netns: OwnedFd, cgroup: File) {
    let enter = move || {
        // SAFETY: both descriptors are owned by this closure; setns and write are async-signal-safe.
        unsafe {
            check(libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET))?;
            if libc::write(cgroup.as_raw_fd(), c"0".as_ptr().cast(), 1) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: the closure allocates nothing and calls only async-signal-safe functions.
    unsafe { command.pre_exec(enter) };
}

/// Gives up being root.
pub(crate) fn become_user(id: u32) -> io::Result<()> {
    // SAFETY: plain system call.
    check(unsafe { libc::setuid(id) }).map(drop)
}

/// A new socket, closed on exec.
pub(crate) fn socket(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain system call.
    let fd = check(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })?;
    // SAFETY: the call above has just made it and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets an integer option.
pub(crate) fn set_option(socket: impl AsFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    // SAFETY: pointer and length describe one integer on the stack.
    check(unsafe { libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, (&raw const value).cast(), len_of::<i32>()) }).map(drop)
}

/// Makes a connection end with RST when it is closed, so that its port is free again at once.
pub(crate) fn reset_on_close(socket: impl AsFd) -> io::Result<()> {
    let value = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: pointer and length describe one linger on the stack.
    check(unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), libc::SOL_SOCKET, libc::SO_LINGER, (&raw const value).cast(), len_of::<libc::linger>())
    })
    .map(drop)
}

/// Sets a time to wait for data.
pub(crate) fn set_timeout(socket: impl AsFd, milliseconds: u32) -> io::Result<()> {
    let value = libc::timeval { tv_sec: i64::from(milliseconds / 1000), tv_usec: i64::from(milliseconds % 1000) * 1000 };
    // SAFETY: pointer and length describe one timeval on the stack.
    check(unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&raw const value).cast(),
            len_of::<libc::timeval>(),
        )
    })
    .map(drop)
}

/// Packets that a packet socket saw and dropped since the last call.
pub(crate) fn packet_statistics(socket: impl AsFd) -> io::Result<(u32, u32)> {
    let mut value = [0u32; 2];
    let mut len = len_of::<[u32; 2]>();
    // SAFETY: pointer and length describe the array; the kernel writes two integers.
    check(unsafe {
        libc::getsockopt(socket.as_fd().as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, (&raw mut value).cast(), &raw mut len)
    })?;
    Ok((value[0], value[1]))
}

/// An address in the form that the socket calls take.
pub(crate) struct SocketAddress {
    storage: libc::sockaddr_storage,
    len: libc::socklen_t,
}

impl SocketAddress {
    fn of<T: Copy>(value: T) -> Self {
        assert!(size_of::<T>() <= size_of::<libc::sockaddr_storage>(), "an address fits its storage");
        // SAFETY: all-zero is a valid sockaddr_storage.
        let mut storage: libc::sockaddr_storage = unsafe { zeroed() };
        // SAFETY: the storage is large enough, asserted above, and T is plain data.
        unsafe { std::ptr::copy_nonoverlapping((&raw const value).cast::<u8>(), (&raw mut storage).cast::<u8>(), size_of::<T>()) };
        Self { storage, len: len_of::<T>() }
    }

    /// An IP address and port.
    pub(crate) fn ip(address: IpAddr, port: u16) -> Self {
        match address {
            IpAddr::V4(v4) => Self::of(libc::sockaddr_in {
                sin_family: family(libc::AF_INET),
                sin_port: port.to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.octets()) },
                sin_zero: [0; 8],
            }),
            IpAddr::V6(v6) => Self::of(libc::sockaddr_in6 {
                sin6_family: family(libc::AF_INET6),
                sin6_port: port.to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.octets() },
                sin6_scope_id: 0,
            }),
        }
    }

    /// One interface, every protocol.
    pub(crate) fn packet(interface: u32) -> Self {
        let index = i32::try_from(interface).expect("interface numbers are small");
        Self::of(libc::sockaddr_ll {
            sll_family: family(libc::AF_PACKET),
            sll_protocol: ETH_P_ALL.to_be(),
            sll_ifindex: index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        })
    }
}

fn family(number: i32) -> libc::sa_family_t {
    libc::sa_family_t::try_from(number).expect("address families are small")
}

/// Every protocol, for packet sockets.
pub(crate) const ETH_P_ALL: u16 = 3;

/// Binds a socket.
pub(crate) fn bind(socket: impl AsFd, address: &SocketAddress) -> io::Result<()> {
    // SAFETY: pointer and length describe the address.
    check(unsafe { libc::bind(socket.as_fd().as_raw_fd(), (&raw const address.storage).cast(), address.len) }).map(drop)
}

/// Connects a socket.
pub(crate) fn connect(socket: impl AsFd, address: &SocketAddress) -> io::Result<()> {
    // SAFETY: pointer and length describe the address.
    check(unsafe { libc::connect(socket.as_fd().as_raw_fd(), (&raw const address.storage).cast(), address.len) }).map(drop)
}

/// A TCP connection from a chosen address of this machine.
pub(crate) fn connect_from(from: IpAddr, target: std::net::SocketAddr, milliseconds: u32) -> io::Result<std::net::TcpStream> {
    let domain = if target.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = socket(domain, libc::SOCK_STREAM, 0)?;
    bind(&socket, &SocketAddress::ip(from, 0))?;
    let value = libc::timeval { tv_sec: i64::from(milliseconds / 1000), tv_usec: i64::from(milliseconds % 1000) * 1000 };
    let address = SocketAddress::ip(target.ip(), target.port());
    // SAFETY: pointers and lengths describe the timeval and the address. The send timeout bounds connect as well.
    unsafe {
        check(libc::setsockopt(raw(&socket), libc::SOL_SOCKET, libc::SO_SNDTIMEO, (&raw const value).cast(), len_of::<libc::timeval>()))?;
        check(libc::connect(raw(&socket), (&raw const address.storage).cast(), address.len))?;
    }
    Ok(socket.into())
}

/// Sends one datagram.
pub(crate) fn send_to(socket: impl AsFd, data: &[u8], address: &SocketAddress) -> io::Result<usize> {
    // SAFETY: both pointers come with their lengths.
    let sent = unsafe {
        libc::sendto(socket.as_fd().as_raw_fd(), data.as_ptr().cast(), data.len(), 0, (&raw const address.storage).cast(), address.len)
    };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// Receives one datagram; returns its whole length, which may exceed the buffer's.
pub(crate) fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: pointer and length describe the buffer.
    let got = unsafe { libc::recv(socket.as_fd().as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_TRUNC) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Receives one frame of a packet socket; returns its whole length and its kind (`PACKET_OUTGOING`, ...).
pub(crate) fn receive_frame(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<(usize, u8)> {
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut from: libc::sockaddr_ll = unsafe { zeroed() };
    let mut len = len_of::<libc::sockaddr_ll>();
    // SAFETY: buffer and address come with their lengths.
    let got = unsafe {
        libc::recvfrom(
            socket.as_fd().as_raw_fd(),
            buffer.as_mut_ptr().cast(),
            buffer.len(),
            libc::MSG_TRUNC,
            (&raw mut from).cast(),
            &raw mut len,
        )
    };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    Ok((got, from.sll_pkttype))
}

/// The number of an interface in the calling thread's namespace.
pub(crate) fn interface_index(name: &str) -> io::Result<u32> {
    let c_name = CString::new(name).map_err(io::Error::other)?;
    // SAFETY: a zero-terminated string that outlives the call.
    match unsafe { libc::if_nametoindex(c_name.as_ptr()) } {
        0 => Err(io::Error::last_os_error()),
        index => Ok(index),
    }
}

/// Lets this process have `files` open descriptors.
pub(crate) fn allow_open_files(files: u64) -> io::Result<()> {
    let limit = libc::rlimit { rlim_cur: files, rlim_max: files };
    // SAFETY: the structure outlives the call.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }).map(drop)
}

/// Loads a program of raw instructions for tc and attaches it with TCX to the ingress of an interface of the
/// calling thread's namespace. It stays as long as the returned descriptors.
pub(crate) fn attach_tcx_ingress(instructions: &[u64], interface: u32) -> io::Result<(OwnedFd, OwnedFd)> {
    const PROG_LOAD: libc::c_long = 5;
    const LINK_CREATE: libc::c_long = 28;
    const SCHED_CLS: u32 = 3;
    const TCX_INGRESS: u32 = 46;
    let bpf = |command: libc::c_long, attributes: &[u64; 16]| -> io::Result<OwnedFd> {
        // SAFETY: the attributes are an array of the length given, its pointers outlive the call.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of::<[u64; 16]>()) };
        let fd = check(RawFd::try_from(fd).map_err(io::Error::other)?)?;
        // SAFETY: the call above has just made it and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let licence = c"GPL";
    let count = u64::try_from(instructions.len()).expect("programs are short");
    let mut load = [0u64; 16];
    // prog_type and insn_cnt, insns, license
    load[0] = u64::from(SCHED_CLS) | count << 32;
    load[1] = instructions.as_ptr() as u64;
    load[2] = licence.as_ptr() as u64;
    let program = bpf(PROG_LOAD, &load)?;
    let mut link = [0u64; 16];
    // prog_fd and target_ifindex, attach_type
    link[0] = u64::from(u32::try_from(raw(&program)).map_err(io::Error::other)?) | u64::from(interface) << 32;
    link[1] = u64::from(TCX_INGRESS);
    let link = bpf(LINK_CREATE, &link)?;
    Ok((program, link))
}

/// Loads a kernel module.
pub fn insmod(module: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open and the parameters are an empty string.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, module.as_raw_fd(), c"".as_ptr(), 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Writes out what is pending and switches the machine off. For an init process.
pub fn power_off() -> io::Result<()> {
    // SAFETY: plain system calls.
    unsafe {
        libc::sync();
        check(libc::reboot(libc::RB_POWER_OFF)).map(drop)
    }
}

/// Keeps this process, and every thread that it will start, on one processor.
pub(crate) fn pin(processor: usize) -> io::Result<()> {
    if processor >= usize::try_from(libc::CPU_SETSIZE).unwrap_or(0) {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: all-zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { zeroed() };
    // SAFETY: the number is below the set's size, checked above.
    unsafe { libc::CPU_SET(processor, &mut set) };
    // SAFETY: the set outlives the call and comes with its size.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) }).map(drop)
}

/// Lets this session go before whatever else the machine does: for measuring on a busy one. Where the kernel groups tasks by session
/// (`sched_autogroup`), a task's own priority counts within its session only.
pub fn go_first() -> io::Result<()> {
    match std::fs::write("/proc/self/autogroup", "-10") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => nice(-10),
    }
}

/// Sets the priority of this thread and of everything that it will start: -20 goes first, 19 last.
pub(crate) fn nice(priority: i32) -> io::Result<()> {
    // SAFETY: plain system call.
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, priority) }).map(drop)
}

/// Waits until a signal ends this process.
pub(crate) fn pause() {
    // SAFETY: plain system call.
    unsafe { libc::pause() };
}

extern "C" fn end(_: libc::c_int) {
    // SAFETY: async-signal-safe, and never returns.
    unsafe { libc::_exit(0) };
}

/// The first process of a container: a signal that it does not handle is not delivered, and orphans become its
/// children. So it ends when asked to, and leaves no zombies.
pub(crate) fn live_as_first_process() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let handler: extern "C" fn(libc::c_int) = end;
        // SAFETY: the handler calls nothing but _exit.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
    // SAFETY: no handler at all; the kernel reaps.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on SIGINT and SIGTERM do not end this process; they are told by [`interrupted`].
pub fn on_interrupt() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let handler: extern "C" fn(libc::c_int) = note_interrupt;
        // SAFETY: the handler only stores to an atomic.
        unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    }
}

/// Whether SIGINT or SIGTERM came since [`on_interrupt`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// A descriptor's number, for a netlink attribute.
pub(crate) fn raw(fd: impl AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}

/// A TCP socket whose SYN waits for an answer, from `port` to `target`. Does not wait for it.
pub fn asking(port: u16, target: std::net::SocketAddr) -> anyhow::Result<OwnedFd> {
    let (domain, any) = if target.is_ipv4() {
        (libc::AF_INET, IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
    } else {
        (libc::AF_INET6, IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED))
    };
    let socket = socket(domain, libc::SOCK_STREAM | libc::SOCK_NONBLOCK, 0)?;
    bind(&socket, &SocketAddress::ip(any, port))?;
    match connect(&socket, &SocketAddress::ip(target.ip(), target.port())) {
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
        Ok(()) => anyhow::bail!("it was answered at once"),
    }
}
