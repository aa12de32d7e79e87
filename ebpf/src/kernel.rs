//! What the programs need of the kernel beside maps: the packet, atomics, clocks.

use core::arch::asm;
use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_jiffies64, bpf_ktime_get_boot_ns, bpf_skb_load_bytes};
use sekisho_core::parse::Window;

const RELAXED: AtomicOrdering = AtomicOrdering::Relaxed;

/// Adds to a number that other CPUs add to as well, and returns what it was. By hand: of a relaxed addition the compiler
/// makes the instruction that does not fetch, and then takes the addend for the result.
#[inline(always)]
pub(crate) fn fetch_add(number: &mut u64, value: u64) -> u64 {
    let found: u64;
    // SAFETY: the reference is valid and aligned for the length of the call.
    unsafe {
        asm!("{value} = atomic_fetch_add((u64 *)({number} + 0), {value})", number = in(reg) number, value = inout(reg) value => found);
    }
    found
}

/// Adds to a number that other CPUs add to as well.
#[inline(always)]
pub(crate) fn add(number: &mut u64, value: u64) {
    // SAFETY: as in `fetch_add`.
    let _ = unsafe { atomic_xadd::<u64, u64, RELAXED>(number, value) };
}

/// Writes `new` if the number is still `old`; tells whether it did.
#[inline(always)]
pub(crate) fn swap_if(number: &mut u32, old: u32, new: u32) -> bool {
    let found: u32;
    // SAFETY: as in `fetch_add`. By hand, because rustc's cmpxchg is refused by the linker.
    unsafe {
        asm!("w0 = cmpxchg32_32({number} + 0, w0, {new})", number = in(reg) number, new = in(wreg) new, inout("w0") old => found);
    }
    found == old
}

/// Writes `new` and returns what was there.
#[inline(always)]
pub(crate) fn swap(number: &mut u32, new: u32) -> u32 {
    let found: u32;
    // SAFETY: as in `fetch_add`.
    unsafe {
        asm!("{new} = xchg32_32({number} + 0, {new})", number = in(reg) number, new = inout(wreg) new => found);
    }
    found
}

/// A global function's answer as the verifier sees it: any number. The compiler knows better, would leave out comparisons
/// that only the verifier needs, and then a program's return value has no proven range.
#[inline(always)]
pub(crate) fn answer(mut value: u32) -> u32 {
    // SAFETY: a register is copied to itself.
    unsafe { asm!("{0} = {0}", inout(wreg) value, options(pure, nomem, nostack)) };
    value
}

/// Writes zero, by itself: of several in a row the compiler would make a call that goes byte by byte.
#[inline(always)]
pub(crate) fn zero<T: Default>(number: &mut T) {
    // SAFETY: a reference is valid for writes.
    unsafe { core::ptr::from_mut(number).write_volatile(T::default()) };
}

/// Copies an address in two words, where the compiler would make a call that goes byte by byte.
#[inline(always)]
pub(crate) fn copy16(to: &mut [u8; 16], from: &[u8; 16]) {
    let from = core::ptr::from_ref(from).cast::<u64>();
    let to = core::ptr::from_mut(to).cast::<u64>();
    // SAFETY: 16 bytes each.
    unsafe {
        to.write_unaligned(from.read_unaligned());
        to.add(1).write_unaligned(from.add(1).read_unaligned());
    }
}

/// The low half of the kernel's tick counter.
#[inline(always)]
pub(crate) fn jiffies() -> u32 {
    // SAFETY: a helper without arguments.
    (unsafe { bpf_jiffies64() }) as u32
}

/// Nanoseconds since boot, suspend included.
#[inline(always)]
pub(crate) fn now() -> u64 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

/// A packet's context.
#[derive(Clone, Copy)]
pub(crate) struct Skb(pub(crate) *mut __sk_buff);

macro_rules! fields {
    ($($(#[$meta:meta])* $name:ident,)*) => {
        $($(#[$meta])*
        #[inline(always)]
        pub(crate) fn $name(self) -> u32 {
            // SAFETY: the context is valid as long as the program runs; the verifier rewrites the access.
            unsafe { (*self.0).$name }
        })*
    };
}

impl Skb {
    fields! {
        /// Bytes from the start of data.
        len,
        /// The hook's interface.
        ifindex,
        /// The interface it came in by; 0 = made here.
        ingress_ifindex,
        /// Segments, where known.
        gso_segs,
        /// Payload per segment; 0 = one segment.
        gso_size,
        /// A number that survives the way through a veth.
        tc_index,
    }

    /// Writes it.
    #[inline(always)]
    pub(crate) fn set_tc_index(self, number: u32) {
        // SAFETY: the context is valid; the verifier rewrites the access.
        unsafe { (&raw mut (*self.0).tc_index).write_volatile(number) };
    }

    /// The last words of the control block, which programs of one hook share.
    #[inline(always)]
    pub(crate) fn marks(self) -> [u32; 2] {
        // SAFETY: the context is valid; word by word, as the verifier wants it.
        unsafe { [(&raw const (*self.0).cb[3]).read_volatile(), (&raw const (*self.0).cb[4]).read_volatile()] }
    }

    /// Writes them.
    #[inline(always)]
    pub(crate) fn mark(self, marks: [u32; 2]) {
        // SAFETY: as above.
        unsafe {
            (&raw mut (*self.0).cb[3]).write_volatile(marks[0]);
            (&raw mut (*self.0).cb[4]).write_volatile(marks[1]);
        }
    }

    /// The socket's cookie; 0 = no socket.
    #[inline(always)]
    pub(crate) fn cookie(self) -> u64 {
        if !self.has_socket() {
            return 0;
        }
        // SAFETY: the context is valid.
        unsafe { bpf_get_socket_cookie(self.0.cast()) }
    }

    /// Whether a socket of this node is behind the packet.
    #[inline(always)]
    pub(crate) fn has_socket(self) -> bool {
        const SK: usize = core::mem::offset_of!(__sk_buff, __bindgen_anon_2);
        let socket: u64;
        // By hand, or the compiler would read no more than it needs; the verifier wants the whole pointer.
        // SAFETY: a load from the context, which is valid.
        unsafe { asm!("{0} = *(u64 *)({1} + {2})", out(reg) socket, in(reg) self.0, const SK, options(pure, readonly, nostack)) };
        socket != 0
    }

    /// Copies `count` bytes from the start of data; `count` must be provably 1 to the buffer's size.
    #[inline(always)]
    pub(crate) fn copy(self, buffer: *mut u8, count: u32) -> bool {
        // SAFETY: the verifier proves that the buffer holds `count` bytes.
        unsafe { bpf_skb_load_bytes(self.0.cast(), 0, buffer.cast(), count) == 0 }
    }

    /// Wire segments and IP bytes with every segment's headers, of a packet with `total` IP bytes, `headers` of them headers.
    #[inline(always)]
    pub(crate) fn measure(self, total: u32, headers: u32) -> (u64, u64) {
        let size = self.gso_size();
        if size == 0 {
            return (1, u64::from(total));
        }
        let mut segments = self.gso_segs();
        if segments == 0 {
            let payload = total.saturating_sub(headers);
            segments = (payload + size - 1).checked_div(size).unwrap_or(1);
        }
        if segments == 0 {
            segments = 1;
        }
        (u64::from(segments), u64::from(total) + u64::from(segments - 1) * u64::from(headers))
    }
}

/// Packet bytes that can be read directly.
pub(crate) struct Direct {
    data: usize,
    end: usize,
    length: usize,
}

impl Direct {
    #[inline(always)]
    pub(crate) fn new(skb: Skb) -> Self {
        const DATA: usize = core::mem::offset_of!(__sk_buff, data);
        const END: usize = core::mem::offset_of!(__sk_buff, data_end);
        let (data, end): (usize, usize);
        // The fields are 32 bits wide, but the verifier makes whole pointers of them. By hand, or the compiler would
        // compare only their halves.
        // SAFETY: loads from the context, which is valid.
        unsafe {
            asm!("{0} = *(u32 *)({1} + {2})", out(reg) data, in(reg) skb.0, const DATA, options(pure, readonly, nostack));
            asm!("{0} = *(u32 *)({1} + {2})", out(reg) end, in(reg) skb.0, const END, options(pure, readonly, nostack));
        }
        Self { data, end, length: skb.len() as usize }
    }

    /// The source address of an Ethernet header: its first two and its last four bytes.
    #[inline(always)]
    pub(crate) fn sender(&self) -> Option<(u16, u32)> {
        if self.data + 12 > self.end {
            return None;
        }
        // SAFETY: checked against the end of the packet, which the verifier insists on.
        Some(unsafe { (((self.data + 6) as *const u16).read_unaligned(), ((self.data + 8) as *const u32).read_unaligned()) })
    }

    /// Where a `T` lies in the packet, to be read and written.
    #[inline(always)]
    pub(crate) fn place<T>(&self, offset: usize) -> Option<*mut T> {
        let at = self.data + offset;
        if at + size_of::<T>() > self.end { None } else { Some(at as *mut T) }
    }
}

impl Window for Direct {
    #[inline(always)]
    fn get<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let at = self.data + offset;
        if at + N > self.end {
            return None;
        }
        // SAFETY: checked against the end of the packet, which the verifier insists on.
        Some(unsafe { (at as *const [u8; N]).read_unaligned() })
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.length
    }

    #[inline(always)]
    fn large(&self) -> bool {
        false
    }
}
