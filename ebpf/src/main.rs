//! The kernel programs of Sekisho: thin shells that gather bytes and call `sekisho-core`.
#![no_std]
#![no_main]

mod maps;

use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, classifier};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockContext, TcContext};
use sekisho_core::layout::Clock;

/// Lets the next program on the hook decide (TCX_NEXT, TC_ACT_UNSPEC).
const NEXT: i32 = -1;
/// A cgroup program's yes.
const PASS: i32 = 1;

/// What the pod sends: on the ingress of its host-side veth.
#[classifier]
pub fn pod_egress(_ctx: TcContext) -> i32 {
    NEXT
}

/// What the pod receives: on the egress of its host-side veth.
#[classifier]
pub fn pod_ingress(_ctx: TcContext) -> i32 {
    NEXT
}

/// What the sockets of a control group send.
#[cgroup_skb(egress)]
pub fn cg_egress(_ctx: SkBuffContext) -> i32 {
    PASS
}

/// What the sockets of a control group receive.
#[cgroup_skb(ingress)]
pub fn cg_ingress(_ctx: SkBuffContext) -> i32 {
    PASS
}

/// A process connects an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(_ctx: SockAddrContext) -> i32 {
    PASS
}

/// A process connects an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn connect6(_ctx: SockAddrContext) -> i32 {
    PASS
}

/// A process sends from an unconnected IPv4 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(_ctx: SockAddrContext) -> i32 {
    PASS
}

/// A process sends from an unconnected IPv6 socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(_ctx: SockAddrContext) -> i32 {
    PASS
}

/// A process has bound an IPv4 socket.
#[cgroup_sock(post_bind4)]
pub fn post_bind4(_ctx: SockContext) -> i32 {
    PASS
}

/// A process has bound an IPv6 socket.
#[cgroup_sock(post_bind6)]
pub fn post_bind6(_ctx: SockContext) -> i32 {
    PASS
}

/// Reads the kernel's clocks together into `CLOCK`; run by the agent, never attached.
#[classifier]
pub fn clock(_ctx: TcContext) -> i32 {
    // SAFETY: helpers without arguments.
    let now = unsafe { Clock { boot_ns: bpf_ktime_get_boot_ns(), jiffies: bpf_jiffies64() } };
    match maps::CLOCK.set(0, &now, 0) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
