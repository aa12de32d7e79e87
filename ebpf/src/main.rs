//! The kernel programs of Sekisho: thin shells that gather bytes and call `sekisho-core`.
#![no_std]
#![no_main]

use aya_ebpf::{macros::classifier, programs::TcContext};

/// What the pod sends: on the ingress of its host-side veth.
#[classifier]
pub fn pod_egress(_ctx: TcContext) -> i32 {
    -1
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
