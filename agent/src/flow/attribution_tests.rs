use sekisho_core::layout::{self, FlowEvent, event};

use super::testing::{Bench, Nobody, SECOND, at, event as told, flow};
use super::{Context, Kernel, ProcessInfo};

/// Knows the processes behind odd sockets, and counts how it was asked.
#[derive(Default)]
struct Asked {
    singly: usize,
    together: usize,
}

impl Kernel for Asked {
    fn process(&mut self, cookie: u64) -> Option<layout::Process> {
        self.singly += 1;
        (cookie % 2 == 1).then(|| layout::Process { pid: u32::try_from(cookie).unwrap(), ..layout::Process::ZERO })
    }
    fn processes(&mut self, cookies: &[u64]) -> Vec<Option<layout::Process>> {
        self.together += 1;
        let found = cookies.iter().map(|cookie| self.process(*cookie)).collect();
        self.singly -= cookies.len();
        found
    }
    fn describe(&mut self, process: &layout::Process) -> ProcessInfo {
        Nobody.describe(process)
    }
    fn listener(&mut self, _: u32, _: u16, _: u8) -> Option<ProcessInfo> {
        None
    }
}

#[test]
fn sockets_of_many_flows_are_asked_for_together() {
    let mut bench = Bench::new(SECOND);
    let mut kernel = Asked::default();
    let starts = |cookies: std::ops::Range<u64>| -> Vec<FlowEvent> {
        let start = |cookie| {
            let (mut key, mut flow) = flow(2 * SECOND, 80);
            (key.local_port, flow.cookie) = (u16::try_from(cookie).unwrap(), cookie);
            told(event::START, 0, key, flow)
        };
        cookies.map(start).collect()
    };
    // A hundred, the same again, then a single one.
    for cookies in [1..101, 1..101, 101..102] {
        let mut context = Context { now: at(2 * SECOND), kernel: &mut kernel, witness: &mut () };
        bench.engine.on_events(&mut starts(cookies), &mut context);
    }
    assert_eq!((kernel.together, kernel.singly), (1, 1));
    let pids: Vec<Option<u32>> = bench.records().iter().map(|record| record.process.as_ref().map(|process| process.pid)).collect();
    assert_eq!((pids.len(), pids[0], pids[1], pids[198], pids[200]), (201, Some(1), None, Some(99), Some(101)));
}
