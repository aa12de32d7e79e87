//! The datapath as the flow engine asks it.

use std::sync::Arc;

use sekisho_core::layout::Process;

use crate::datapath::{Datapath, JournalMap};
use crate::flow::{JournalStore, Kernel, ProcessInfo};

/// Answers the engine's questions from the datapath's maps and, for what is older than the hooks, from /proc.
pub(super) struct Asked<'a>(pub(super) &'a mut Datapath);

impl Kernel for Asked<'_> {
    fn process(&mut self, cookie: u64) -> Option<Process> {
        self.0.process(cookie)
    }

    fn processes(&mut self, cookies: &[u64]) -> Vec<Option<Process>> {
        self.0.processes(cookies)
    }

    fn describe(&mut self, process: &Process) -> ProcessInfo {
        let end = process.comm.iter().position(|b| *b == 0).unwrap_or(process.comm.len());
        let comm: Arc<str> = String::from_utf8_lossy(&process.comm[..end]).into();
        ProcessInfo {
            pid: process.pid,
            exe: executable(process.pid, &comm),
            comm,
            uid: Some(process.uid),
            container_id: self.0.container_id(process.cgroup),
        }
    }

    fn listener(&mut self, endpoint: u32, port: u16, protocol: u8) -> Option<ProcessInfo> {
        let uid = self.0.endpoints().find(|e| e.number == endpoint)?.uid.clone();
        let found = self.0.listener(&uid, port, protocol)?;
        Some(ProcessInfo {
            pid: found.pid,
            exe: executable(found.pid, &found.comm),
            comm: found.comm,
            uid: found.uid,
            container_id: found.container_id,
        })
    }
}

impl JournalStore for JournalMap {
    fn load(&self) -> Vec<(u64, Vec<u8>)> {
        Self::load(self)
    }

    fn put(&mut self, key: u64, value: &[u8]) -> bool {
        Self::put(self, key, value)
    }

    fn remove(&mut self, key: u64) {
        Self::remove(self, key);
    }
}

/// The executable, where it may be read: in a confined pod it may not (it would need SYS_PTRACE). A process of another name
/// has taken the number since: then nothing is said.
fn executable(pid: u32, comm: &str) -> Option<Arc<str>> {
    let now = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if now.trim_end() != comm {
        return None;
    }
    let path = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    path.to_str().map(Arc::from)
}
