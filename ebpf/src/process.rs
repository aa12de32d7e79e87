//! Which process a socket belongs to, remembered when it connects, sends or binds, and told for many sockets at once.
//!
//! Never judges: every program lets the call go on.

use core::mem::offset_of;

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use aya_ebpf::helpers::generated::{
    bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_get_socket_cookie,
};
use sekisho_core::layout::{ListenerKey, Process, SocketFrame, SocketQuery};

use crate::kernel::{Direct, Skb};
use crate::maps::{LISTENERS, SOCKETS};
use crate::tables::ANY;

/// The calling process.
#[inline(always)]
fn caller(pid: u32) -> Process {
    let mut process = Process { pid, ..Process::ZERO };
    // SAFETY: helpers without arguments, and one that fills the 16 bytes it is given.
    unsafe {
        process.cgroup = bpf_get_current_cgroup_id();
        process.uid = bpf_get_current_uid_gid() as u32;
        bpf_get_current_comm(process.comm.as_mut_ptr().cast(), 16);
    }
    process
}

#[inline(always)]
fn pid() -> u32 {
    // SAFETY: a helper without arguments.
    (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
}

/// A process uses a socket to reach someone. Fires for every unconnected datagram, so the usual case is one look-up.
#[inline(always)]
pub(crate) fn sends(ctx: *mut bpf_sock_addr) {
    // SAFETY: the context is valid.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.cast()) };
    let pid = pid();
    // SAFETY: read at once.
    if unsafe { SOCKETS.get(&cookie) }.is_some_and(|known| known.pid == pid) {
        return;
    }
    // Full or contended: the record goes without a process.
    let _ = SOCKETS.insert(&cookie, &caller(pid), ANY);
}

/// A process has bound a port.
#[inline(always)]
pub(crate) fn binds(ctx: *mut bpf_sock) {
    // SAFETY: the context is valid; the verifier rewrites the accesses.
    let (port, protocol) = unsafe { ((*ctx).src_port as u16, (*ctx).protocol as u8) };
    let process = caller(pid());
    let key = ListenerKey { cgroup: process.cgroup, port, protocol, ..ListenerKey::ZERO };
    let _ = LISTENERS.insert(&key, &process, ANY);
}

/// Sockets of a [`SocketFrame`].
const QUERIES: usize = (size_of::<SocketFrame>() - offset_of!(SocketFrame, queries)) / size_of::<SocketQuery>();

/// Writes beside every socket of the frame who used it.
#[inline(always)]
pub(crate) fn tell(skb: Skb) {
    let frame = Direct::new(skb);
    for slot in 0..QUERIES {
        let at = offset_of!(SocketFrame, queries) + slot * size_of::<SocketQuery>();
        let Some(query) = frame.place::<SocketQuery>(at) else { return };
        // SAFETY: it lies within the frame, as the verifier insists; the process is read at once, in words that the compiler
        // does not make a call of.
        unsafe {
            let cookie = (&raw const (*query).cookie).read();
            if let Some(process) = SOCKETS.get(&cookie) {
                let process = core::ptr::from_ref(process).cast::<[u64; 4]>();
                core::ptr::copy_nonoverlapping(process, (&raw mut (*query).process).cast(), 1);
            }
        }
    }
}
