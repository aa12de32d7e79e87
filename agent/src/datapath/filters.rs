//! The clsact backend, for kernels without TCX: our two filters on an interface, told from others' by priority,
//! handle and name, replaced in place and found again after a restart. Filters live in the qdisc: a killed agent
//! leaves them at work.
//!
//! A clsact qdisc is removed only where the caller knows that we made it, and only while nobody else has a filter there.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::netlink::{CREATE, EXCLUSIVE, Message, Netlink, attributes, number, text};

const NEW_QDISC: u16 = 36;
const DELETE_QDISC: u16 = 37;
const GET_QDISC: u16 = 38;
const NEW_FILTER: u16 = 44;
const DELETE_FILTER: u16 = 45;
const GET_FILTER: u16 = 46;

const KIND: u16 = 1;
const OPTIONS: u16 = 2;
const BPF_FD: u16 = 6;
const BPF_NAME: u16 = 7;
const BPF_FLAGS: u16 = 8;
const BPF_ID: u16 = 11;
const ACT_DIRECT: u32 = 1;

const CLSACT_PARENT: u32 = 0xffff_fff1;
const CLSACT_HANDLE: u32 = 0xffff_0000;
const ETH_P_ALL: u16 = 3;

/// In front of what others leave to the kernel (49152 and down) and of Cilium's 1-based priorities: ours comes first.
const PRIORITY: u16 = 1;
/// "SEK": nobody picks this by accident.
const HANDLE: u32 = 0x0053_454b;
/// Every filter of ours begins its name so.
const NAME: &str = "sekisho_";

/// A hook of the clsact qdisc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    /// What the interface receives: what the pod sends.
    Ingress,
    /// What the interface sends: what the pod receives.
    Egress,
}

impl Hook {
    fn parent(self) -> u32 {
        match self {
            Self::Ingress => 0xffff_fff2,
            Self::Egress => 0xffff_fff3,
        }
    }
}

/// A filter at a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// Priority.
    pub(super) priority: u16,
    /// Handle; 0 for the chain's own entry.
    pub(super) handle: u32,
    /// Name of a bpf filter.
    pub(super) name: String,
    /// Program of a bpf filter.
    pub(super) program: u32,
}

impl Filter {
    /// Whether we made it.
    pub(super) fn ours(&self) -> bool {
        self.priority == PRIORITY && self.handle == HANDLE && self.name.starts_with(NAME)
    }
}

/// `struct tcmsg`.
fn header(ifindex: u32, handle: u32, parent: u32, info: u32) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[4..8].copy_from_slice(&ifindex.to_ne_bytes());
    bytes[8..12].copy_from_slice(&handle.to_ne_bytes());
    bytes[12..16].copy_from_slice(&parent.to_ne_bytes());
    bytes[16..20].copy_from_slice(&info.to_ne_bytes());
    bytes
}

fn info() -> u32 {
    u32::from(PRIORITY) << 16 | u32::from(ETH_P_ALL.to_be())
}

/// Makes the clsact qdisc; `false` where there is one already.
pub(super) fn add_qdisc(netlink: &mut Netlink, ifindex: u32) -> io::Result<bool> {
    let message = Message::new(NEW_QDISC, CREATE | EXCLUSIVE, &header(ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0)).put(KIND, b"clsact\0");
    match netlink.tell(message) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the interface has a clsact qdisc.
pub(super) fn has_qdisc(netlink: &mut Netlink, ifindex: u32) -> io::Result<bool> {
    let mut found = false;
    netlink.dump(Message::new(GET_QDISC, 0, &header(ifindex, 0, 0, 0)), &mut |_, body| {
        let here = body.get(4..8).and_then(number) == Some(ifindex);
        let kind = attributes(body.get(20..).unwrap_or(&[])).find(|(kind, _)| *kind == KIND).map(|(_, value)| text(value));
        found |= here && kind.as_deref() == Some("clsact");
    })?;
    Ok(found)
}

/// Removes the clsact qdisc with all that is in it.
pub(super) fn remove_qdisc(netlink: &mut Netlink, ifindex: u32) -> io::Result<()> {
    netlink.tell(Message::new(DELETE_QDISC, 0, &header(ifindex, CLSACT_HANDLE, CLSACT_PARENT, 0)))
}

/// The filters at a hook, in the order in which they run.
pub(super) fn list(netlink: &mut Netlink, ifindex: u32, hook: Hook) -> io::Result<Vec<Filter>> {
    let mut filters = Vec::new();
    let result = netlink.dump(Message::new(GET_FILTER, 0, &header(ifindex, 0, hook.parent(), 0)), &mut |kind, body| {
        if kind == NEW_FILTER
            && let Some(filter) = parse(body)
        {
            filters.push(filter);
        }
    });
    match result {
        // No qdisc, no filters.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOENT | libc::ENODEV)) => Ok(Vec::new()),
        other => other.map(|()| filters),
    }
}

fn parse(body: &[u8]) -> Option<Filter> {
    let mut filter = Filter {
        priority: u16::try_from(number(body.get(16..20)?)? >> 16).ok()?,
        handle: number(body.get(8..12)?)?,
        name: String::new(),
        program: 0,
    };
    for (kind, value) in attributes(body.get(20..)?) {
        if kind != OPTIONS {
            continue;
        }
        for (kind, value) in attributes(value) {
            match kind {
                BPF_NAME => filter.name = text(value),
                BPF_ID => filter.program = number(value)?,
                _ => {}
            }
        }
    }
    // The kernel lists a chain's head without a handle before its filters.
    (filter.handle != 0).then_some(filter)
}

/// Puts our program at a hook, replacing in one step what we had there.
pub(super) fn put(netlink: &mut Netlink, ifindex: u32, hook: Hook, program: BorrowedFd<'_>) -> io::Result<()> {
    let name = match hook {
        Hook::Ingress => "sekisho_pod_egress\0",
        Hook::Egress => "sekisho_pod_ingress\0",
    };
    let fd = program.as_raw_fd().cast_unsigned().to_ne_bytes();
    let message = Message::new(NEW_FILTER, CREATE, &header(ifindex, HANDLE, hook.parent(), info()))
        .put(KIND, b"bpf\0")
        .nest(OPTIONS, &[(BPF_FD, &fd), (BPF_NAME, name.as_bytes()), (BPF_FLAGS, &ACT_DIRECT.to_ne_bytes())]);
    netlink.tell(message)
}

/// Removes our filters at a hook, whoever of us made them; returns how many.
pub(super) fn remove(netlink: &mut Netlink, ifindex: u32, hook: Hook) -> io::Result<u32> {
    let mut removed = 0;
    for _ in list(netlink, ifindex, hook)?.iter().filter(|filter| filter.ours()) {
        netlink.tell(Message::new(DELETE_FILTER, 0, &header(ifindex, HANDLE, hook.parent(), info())).put(KIND, b"bpf\0"))?;
        removed += 1;
    }
    Ok(removed)
}
