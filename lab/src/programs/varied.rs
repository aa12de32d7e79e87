//! Running a kernel program on packets that differ from run to run.
//!
//! `BPF_PROG_TEST_RUN` repeats one and the same packet, so that only the first of many runs opens a flow. Here a
//! wrapper of a dozen instructions adds one to a 16-bit field of the packet and then jumps into the program: every
//! run is a flow of its own, and the caches are as warm as the flow tables leave them.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Outcome, Skb, per_run};
use crate::sys;

/// Offsets in `__sk_buff` (`include/uapi/linux/bpf.h`).
const DATA: i16 = 76;
const DATA_END: i16 = 80;
/// The helper `bpf_tail_call`.
const TAIL_CALL: i32 = 12;

/// Commands of bpf(2).
mod command {
    pub(super) const MAP_CREATE: libc::c_int = 0;
    pub(super) const MAP_UPDATE: libc::c_int = 2;
    pub(super) const PROG_LOAD: libc::c_int = 5;
    pub(super) const TEST_RUN: libc::c_int = 10;
}

/// Map and program types of bpf(2).
mod kind {
    pub(super) const PROG_ARRAY: u32 = 3;
    pub(super) const SCHED_CLS: u32 = 3;
    pub(super) const CGROUP_SKB: u32 = 8;
}

/// One instruction: operation, registers, offset, immediate.
const fn instruction(operation: u8, target: u8, source: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let (offset, immediate) = (offset.to_le_bytes(), immediate.to_le_bytes());
    [operation, source << 4 | target, offset[0], offset[1], immediate[0], immediate[1], immediate[2], immediate[3]]
}

/// A program that does nothing, of the kind that hangs on a control group.
#[derive(Debug)]
pub struct Idle(OwnedFd);

impl Idle {
    /// Loads it.
    pub fn new() -> Result<Self> {
        let code = [instruction(0xb7, 0, 0, 0, 1), instruction(0x95, 0, 0, 0, 0)];
        load(kind::CGROUP_SKB, &code.concat()).map(Self).context("loading a program that does nothing")
    }

    /// Runs it `repeat` times on `frame`, which begins with its Ethernet header.
    pub fn run(&self, frame: &[u8], skb: Skb, repeat: u32) -> Result<Outcome> {
        run(self.0.as_fd(), frame, skb, repeat)
    }
}

/// A classifier that adds one to the 16-bit field at `field` and jumps into another.
#[derive(Debug)]
pub struct Varied {
    program: OwnedFd,
    _jumps: OwnedFd,
}

impl Varied {
    /// Wraps `target`, a classifier.
    pub(super) fn around(target: BorrowedFd<'_>, field: u16) -> Result<Self> {
        let jumps = map().context("making the jump table")?;
        jump(jumps.as_fd(), target).context("filling the jump table")?;
        let field = i16::try_from(field)?;
        let code = [
            instruction(0xbf, 6, 1, 0, 0),
            instruction(0x61, 2, 1, DATA, 0),
            instruction(0x61, 3, 1, DATA_END, 0),
            instruction(0xbf, 4, 2, 0, 0),
            instruction(0x07, 4, 0, 0, i32::from(field) + 2),
            instruction(0x2d, 4, 3, 8, 0),
            instruction(0x69, 5, 2, field, 0),
            instruction(0x07, 5, 0, 0, 1),
            instruction(0x6b, 2, 5, field, 0),
            instruction(0xbf, 1, 6, 0, 0),
            instruction(0x18, 2, 1, 0, jumps.as_raw_fd()),
            instruction(0, 0, 0, 0, 0),
            instruction(0xb7, 3, 0, 0, 0),
            instruction(0x85, 0, 0, 0, TAIL_CALL),
            // Where it does not jump: a verdict that no program of ours gives.
            instruction(0xb7, 0, 0, 0, 77),
            instruction(0x95, 0, 0, 0, 0),
        ];
        Ok(Self { program: load(kind::SCHED_CLS, &code.concat()).context("loading the wrapper")?, _jumps: jumps })
    }

    /// Runs it `repeat` times on `frame`; the next call begins with the frame's field anew.
    pub fn run(&self, frame: &[u8], skb: Skb, repeat: u32) -> Result<Outcome> {
        run(self.program.as_fd(), frame, skb, repeat)
    }
}

fn run(program: BorrowedFd<'_>, frame: &[u8], skb: Skb, repeat: u32) -> Result<Outcome> {
    let context = skb.bytes();
    let mut attributes = RunAttributes {
        program: program.as_raw_fd().cast_unsigned(),
        data_size_in: u32::try_from(frame.len())?,
        data_in: frame.as_ptr() as u64,
        repeat,
        context_size_in: u32::try_from(context.len())?,
        context_in: context.as_ptr() as u64,
        ..RunAttributes::default()
    };
    let begin = sys::processor_time()?;
    // SAFETY: frame and context are as long as told and outlive the call; nothing is written but the attributes.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command::TEST_RUN, &raw mut attributes, size_of::<RunAttributes>()) };
    if done < 0 {
        return Err(io::Error::last_os_error()).context("running the wrapper");
    }
    let spent = per_run(sys::processor_time()?.saturating_sub(begin), repeat);
    Ok(Outcome { code: attributes.code.cast_signed(), time: Duration::from_nanos(attributes.duration.into()), spent })
}

/// `bpf_attr` of a test run.
#[repr(C)]
#[derive(Default)]
struct RunAttributes {
    program: u32,
    code: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

fn map() -> io::Result<OwnedFd> {
    let attributes: [u32; 5] = [kind::PROG_ARRAY, 4, 4, 1, 0];
    // SAFETY: the kernel reads as many bytes as it is told of, and no pointers.
    made(unsafe { libc::syscall(libc::SYS_bpf, command::MAP_CREATE, attributes.as_ptr(), size_of_val(&attributes)) })
}

fn jump(map: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let (key, value) = (0u32, target.as_raw_fd());
    let attributes: [u64; 4] = [u64::from(map.as_raw_fd().cast_unsigned()), &raw const key as u64, &raw const value as u64, 0];
    // SAFETY: key and value have the four bytes each that this map's kind has, and outlive the call.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command::MAP_UPDATE, attributes.as_ptr(), size_of_val(&attributes)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn load(kind: u32, code: &[u8]) -> io::Result<OwnedFd> {
    let license = c"GPL";
    let attributes: [u64; 6] = [u64::from(kind) | (code.len() as u64 / 8) << 32, code.as_ptr() as u64, license.as_ptr() as u64, 0, 0, 0];
    // SAFETY: code and licence outlive the call, and the kernel is told how long the code is.
    made(unsafe { libc::syscall(libc::SYS_bpf, command::PROG_LOAD, attributes.as_ptr(), size_of_val(&attributes)) })
}

fn made(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = i32::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
