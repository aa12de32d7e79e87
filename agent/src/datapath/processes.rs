//! Sockets and ports to processes: what the cgroup hooks remembered, and `/proc` for what is older than the agent.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sekisho_core::layout::{ListenerKey, Process, SocketFrame, SocketQuery};
use zerocopy::{FromZeros, IntoBytes};

use super::cgroup::PodCgroup;
use super::endpoint::ListenerInfo;
use super::{Datapath, attach, bpf};

/// How long an answer is believed, and how long "nobody" is.
const KNOWN_FOR: Duration = Duration::from_secs(10);
const UNKNOWN_FOR: Duration = Duration::from_secs(2);
/// Answers kept.
const CACHE: usize = 4096;

/// Answers of the last seconds, by pod, port and protocol.
#[derive(Default)]
pub(super) struct Listeners {
    answers: HashMap<(Arc<str>, u16, u8), (Instant, Option<ListenerInfo>)>,
}

impl Datapath {
    /// The process that used a socket, as a hook saw it.
    pub fn process(&self, cookie: u64) -> Option<Process> {
        self.maps.sockets.get(&cookie).ok().flatten()
    }

    /// The processes that used sockets, in the sockets' order: a system call asks for a whole frame of them.
    pub fn processes(&self, cookies: &[u64]) -> Vec<Option<Process>> {
        let mut found = Vec::with_capacity(cookies.len());
        let mut frame = SocketFrame::new_zeroed();
        for some in cookies.chunks(frame.queries.len()) {
            for (query, cookie) in frame.queries.iter_mut().zip(some) {
                *query = SocketQuery { cookie: *cookie, process: Process::ZERO };
            }
            let length = size_of_val(&frame.link) + size_of_val(&frame.queries[..some.len()]);
            match bpf::test_run_on(attach::fd(&self.programs, "sockets"), &mut frame.as_mut_bytes()[..length]) {
                Ok(()) => found.extend(frame.queries[..some.len()].iter().map(|query| (query.process.pid != 0).then_some(query.process))),
                Err(error) => {
                    tracing::debug!(%error, "sockets are asked for one by one");
                    found.extend(some.iter().map(|cookie| self.process(*cookie)));
                }
            }
        }
        found
    }

    /// Who listens on a pod's port.
    pub fn listener(&mut self, uid: &str, port: u16, protocol: u8) -> Option<ListenerInfo> {
        let endpoint = self.endpoints.get(uid)?;
        let key = (Arc::clone(&endpoint.info.uid), port, protocol);
        let now = Instant::now();
        if let Some((then, answer)) = self.listeners.answers.get(&key) {
            let limit = if answer.is_some() { KNOWN_FOR } else { UNKNOWN_FOR };
            if now.duration_since(*then) < limit {
                return answer.clone();
            }
        }
        let cgroup = endpoint.cgroup.clone()?;
        let answer = self
            .remembered(&cgroup, port, protocol)
            .or_else(|| bound_in_proc(&cgroup, port, protocol).map(|process| self.describe(&process)));
        if self.listeners.answers.len() >= CACHE {
            self.listeners.answers.clear();
        }
        self.listeners.answers.insert(key, (now, answer.clone()));
        answer
    }

    fn remembered(&self, cgroup: &PodCgroup, port: u16, protocol: u8) -> Option<ListenerInfo> {
        let process = cgroup.ids().into_iter().find_map(|(id, _)| {
            let key = ListenerKey { cgroup: id, port, protocol, ..ListenerKey::ZERO };
            self.maps.listeners.get(&key).ok().flatten()
        })?;
        // A binder that has ended left the port to whom it handed the socket.
        fs::metadata(format!("/proc/{}", process.pid)).ok()?;
        Some(self.describe(&process))
    }

    fn describe(&self, process: &Process) -> ListenerInfo {
        ListenerInfo {
            pid: process.pid,
            uid: Some(process.uid),
            comm: command(&process.comm),
            container_id: self.container_id(process.cgroup),
        }
    }

    /// The container that a control group belongs to, from the name of its directory.
    pub fn container_id(&self, cgroup: u64) -> Option<Arc<str>> {
        if let Some(known) = self.containers.borrow().get(&cgroup) {
            return known.clone();
        }
        let mut containers = self.containers.borrow_mut();
        if containers.len() > CACHE {
            containers.clear();
        }
        // Who asks for the first time has mostly come last.
        let mut endpoints: Vec<_> = self.endpoints.values().filter_map(|e| Some((Reverse(e.placed), e.cgroup.as_ref()?))).collect();
        endpoints.sort_unstable_by_key(|(placed, _)| *placed);
        for (_, pod) in endpoints {
            containers.extend(pod.ids());
            if containers.contains_key(&cgroup) {
                break;
            }
        }
        containers.entry(cgroup).or_insert(None).clone()
    }
}

fn command(bytes: &[u8]) -> Arc<str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    Arc::from(String::from_utf8_lossy(&bytes[..end]))
}

/// Finds who holds the socket that is bound to a port, in the namespace of the pod's processes.
fn bound_in_proc(cgroup: &PodCgroup, port: u16, protocol: u8) -> Option<Process> {
    let pids = cgroup.pids();
    let inodes: Vec<u64> = pids.iter().find_map(|pid| {
        let inodes = sockets_on(*pid, port, protocol);
        (!inodes.is_empty()).then_some(inodes)
    })?;
    pids.into_iter().find_map(|pid| holds(pid, &inodes).then(|| process(pid, cgroup.id)).flatten())
}

/// Inodes of the sockets bound to a port, seen from a process.
fn sockets_on(pid: u32, port: u16, protocol: u8) -> Vec<u64> {
    let (tables, listening) = match protocol {
        6 => (["tcp", "tcp6"], Some("0A")),
        17 => (["udp", "udp6"], None),
        _ => return Vec::new(),
    };
    let texts = tables.iter().filter_map(|table| fs::read_to_string(format!("/proc/{pid}/net/{table}")).ok());
    texts.flat_map(|text| bound(&text, port, listening)).collect()
}

/// Inodes of the lines of a `/proc/net` socket table that have this local port, and this state if one is told.
fn bound(table: &str, port: u16, state: Option<&str>) -> Vec<u64> {
    let lines = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let local = u16::from_str_radix(fields.get(1)?.rsplit_once(':')?.1, 16).ok()?;
        let wanted = local == port && state.is_none_or(|state| fields.get(3) == Some(&state));
        if wanted { fields.get(9)?.parse().ok() } else { None }
    });
    lines.collect()
}

fn holds(pid: u32, inodes: &[u64]) -> bool {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return false };
    let targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    let sockets = targets.filter_map(|target| target.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse::<u64>().ok());
    sockets.into_iter().any(|inode| inodes.contains(&inode))
}

fn process(pid: u32, cgroup: u64) -> Option<Process> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let uid = field("Uid:").and_then(|uids| uids.split_whitespace().next()?.parse().ok()).unwrap_or(0);
    let mut comm = [0; 16];
    for (slot, byte) in comm.iter_mut().take(15).zip(field("Name:")?.bytes()) {
        *slot = byte;
    }
    Some(Process { cgroup, pid, uid, comm })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_tables_are_read_by_port_and_state() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
            0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0\n   \
            1: 0100007F:1F90 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 4243 1 0 20 4 30 10 -1\n";
        assert_eq!(bound(table, 8080, Some("0A")), [4242]);
        assert_eq!(bound(table, 8080, None), [4242, 4243]);
        assert!(bound(table, 80, None).is_empty());
    }
}
