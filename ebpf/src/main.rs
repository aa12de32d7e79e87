//! The kernel programs of Sekisho: thin shells that gather bytes and call `sekisho-core`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch, core_intrinsics)]
#![expect(internal_features, reason = "BPF has atomics that core offers only as intrinsics")]

mod budget;
mod cgroup;
mod change;
mod close;
mod diagnose;
mod emit;
mod error;
mod hold;
mod hot;
mod kernel;
mod maps;
mod merge;
mod open;
mod origin;
mod own_node;
mod process;
mod promote;
mod read;
mod scratch;
mod slow;
mod sockets;
mod source;
mod tables;

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::generated::{bpf_jiffies64, bpf_ktime_get_boot_ns};
use aya_ebpf::macros::{cgroup_skb, cgroup_sock, cgroup_sock_addr, classifier, sock_ops};
use aya_ebpf::programs::{SkBuffContext, SockAddrContext, SockContext, SockOpsContext, TcContext};
use sekisho_core::layout::{Clock, EGRESS, INGRESS};

use crate::hot::{Cgroup, Fate, Tc};

/// Lets the next program on the hook decide (TCX_NEXT, TC_ACT_UNSPEC).
const NEXT: i32 = -1;
/// Ends the packet (TCX_DROP, TC_ACT_SHOT).
const SHOT: i32 = 2;
/// A cgroup program's no.
const BLOCK: i32 = 0;
/// A cgroup program's yes.
const PASS: i32 = 1;
/// A cgroup program's no to what is sent, without an error for the sender.
const LOSE: i32 = 2;

#[inline(always)]
fn tc(ctx: &TcContext, direction: u8) -> i32 {
    if hot::packet::<Tc>(ctx.as_ptr().cast(), direction) == Fate::Pass { NEXT } else { SHOT }
}

#[inline(always)]
fn cgroup(ctx: &SkBuffContext, direction: u8) -> i32 {
    if hot::packet::<Cgroup>(ctx.as_ptr().cast(), direction) == Fate::Pass { PASS } else { BLOCK }
}

/// What the pod sends: on the ingress of its host-side veth.
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    tc(&ctx, EGRESS)
}

/// What the pod receives: on the egress of its host-side veth.
#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    tc(&ctx, INGRESS)
}

/// What the sockets of a control group send.
#[cgroup_skb(egress)]
pub fn cg_egress(ctx: SkBuffContext) -> i32 {
    cgroup(&ctx, EGRESS)
}

/// What the sockets of a control group receive.
#[cgroup_skb(ingress)]
pub fn cg_ingress(ctx: SkBuffContext) -> i32 {
    cgroup(&ctx, INGRESS)
}

/// What sockets of any pod send.
#[cgroup_skb(egress)]
pub fn hold_egress(ctx: SkBuffContext) -> i32 {
    let skb = kernel::Skb(ctx.as_ptr().cast());
    match hold::packet(skb, EGRESS) {
        Fate::Pass => PASS,
        // TCP takes a silent loss for congestion at home, and then waits for half a second.
        Fate::Drop if hold::is_tcp(skb) => BLOCK,
        // Lost as on a wire: the sender's call does not fail.
        Fate::Drop => LOSE,
    }
}

/// What sockets of any pod receive.
#[cgroup_skb(ingress)]
pub fn hold_ingress(ctx: SkBuffContext) -> i32 {
    if hold::packet(kernel::Skb(ctx.as_ptr().cast()), INGRESS) == Fate::Pass { PASS } else { BLOCK }
}

/// A process of any pod connects an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn hold_connect4(ctx: SockAddrContext) -> i32 {
    hold::connects(ctx.as_ptr().cast());
    PASS
}

/// A process of any pod connects an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn hold_connect6(ctx: SockAddrContext) -> i32 {
    hold::connects(ctx.as_ptr().cast());
    PASS
}

/// The kernel asks for a TCP socket's parameters, that of any pod.
#[sock_ops]
pub fn hold_timeout(ctx: SockOpsContext) -> u32 {
    if let Some(timeout) = hold::first_timeout(ctx.ops) {
        ctx.set_reply(timeout);
    }
    1
}

/// A process connects an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    process::sends(ctx.as_ptr().cast());
    PASS
}

/// A process connects an IPv6 socket.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    process::sends(ctx.as_ptr().cast());
    PASS
}

/// A process sends from an unconnected IPv4 socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    process::sends(ctx.as_ptr().cast());
    PASS
}

/// A process sends from an unconnected IPv6 socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    process::sends(ctx.as_ptr().cast());
    PASS
}

/// A process has bound an IPv4 socket.
#[cgroup_sock(post_bind4)]
pub fn post_bind4(ctx: SockContext) -> i32 {
    process::binds(ctx.as_ptr().cast());
    PASS
}

/// A process has bound an IPv6 socket.
#[cgroup_sock(post_bind6)]
pub fn post_bind6(ctx: SockContext) -> i32 {
    process::binds(ctx.as_ptr().cast());
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

/// Adds what `MERGE` holds to a flow or an endpoint's state; run by the agent, never attached.
#[classifier]
pub fn merge(_ctx: TcContext) -> i32 {
    i32::from(!merge::merge())
}

/// Tells who used the sockets of a frame; run by the agent, never attached.
#[classifier]
pub fn sockets(ctx: TcContext) -> i32 {
    process::tell(kernel::Skb(ctx.as_ptr().cast()));
    NEXT
}

/// Does nothing: what benches compare with. Never attached.
#[classifier]
pub fn empty(_ctx: TcContext) -> i32 {
    NEXT
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
