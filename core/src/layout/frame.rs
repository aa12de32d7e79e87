//! What programs are run over that are no packet's.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::Process;

/// What the program `sockets` is run over: after room for a link's header, sockets and the processes that used them. It lies
/// in no map, and so is no part of the layout.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SocketFrame {
    /// Zero.
    pub link: [u8; 16],
    /// As many as the kernel takes in a page.
    pub queries: [SocketQuery; 88],
}

/// A socket, and who used it.
#[repr(C)]
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct SocketQuery {
    /// Its cookie, written by user space.
    pub cookie: u64,
    /// Written by the program; `pid` 0 = nobody is known.
    pub process: Process,
}
