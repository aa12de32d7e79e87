//! Small pieces from which this room's tests, and detections', are built.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use sekisho_core::layout::{self, Address, Flow, FlowEvent, FlowKey6, event};

use super::{
    Book, BootSeed, Context, Directory, EndpointView, Engine, FlowRecord, Identity, JournalStore, Kernel, Moment, Now, Owner, ProcessInfo,
    Settings, Sighting, Start, Witness,
};
use crate::inventory::Workload;

pub(crate) const SECOND: u64 = 1_000_000_000;

/// A node without anything to ask.
pub(crate) struct Nobody;

impl Kernel for Nobody {
    fn process(&mut self, _: u64) -> Option<layout::Process> {
        None
    }
    fn processes(&mut self, cookies: &[u64]) -> Vec<Option<layout::Process>> {
        vec![None; cookies.len()]
    }
    fn describe(&mut self, process: &layout::Process) -> ProcessInfo {
        ProcessInfo { pid: process.pid, comm: "".into(), uid: None, container_id: None, exe: None }
    }
    fn listener(&mut self, _: u32, _: u16, _: u8) -> Option<ProcessInfo> {
        None
    }
}

/// A store in memory that outlives its journal, and how many values it has room for.
#[derive(Clone, Default)]
pub(crate) struct MemoryStore(pub(crate) Arc<Mutex<BTreeMap<u64, Vec<u8>>>>, pub(crate) Option<usize>);

impl JournalStore for MemoryStore {
    fn load(&self) -> Vec<(u64, Vec<u8>)> {
        self.0.lock().unwrap().iter().map(|(k, v)| (*k, v.clone())).collect()
    }
    fn put(&mut self, key: u64, value: &[u8]) -> bool {
        assert!(value.len() <= 512, "a value must fit the map");
        let mut padded = value.to_vec();
        padded.resize(512, 0);
        let mut values = self.0.lock().unwrap();
        let room = values.contains_key(&key) || self.1.is_none_or(|room| values.len() < room);
        if room {
            values.insert(key, padded);
        }
        room
    }
    fn remove(&mut self, key: u64) {
        self.0.lock().unwrap().remove(&key);
    }
}

pub(crate) fn at(boot_ns: u64) -> Now {
    Now { boot_ns, wall_ns: 1_700_000_000 * SECOND + boot_ns, jiffies: boot_ns / 4_000_000, hz: 250 }
}

pub(crate) fn jiffies(boot_ns: u64) -> u32 {
    u32::try_from(boot_ns / 4_000_000).unwrap()
}

pub(crate) fn ip(text: &str) -> Address {
    match text.parse().unwrap() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

pub(crate) fn pod_identity(instance: u32, name: &str, workload: &str, address: &str) -> Arc<Identity> {
    Arc::new(Identity {
        instance,
        owner: Owner::Pod {
            namespace: "shop".into(),
            name: name.into(),
            uid: format!("uid-{name}").into(),
            labels: Arc::new(BTreeMap::from([("app".into(), name.into())])),
            workload: Workload { kind: "Deployment".into(), name: workload.into() },
            service_account: Some("default".into()),
            node: Some("node-1".into()),
        },
        ips: vec![address.parse().unwrap()],
        number: Some(7),
    })
}

/// A flow of endpoint 5 (instance 1, 10.0.0.1) to instance 2 (10.0.0.2), opened by the endpoint.
pub(crate) fn flow(start: u64, port: u16) -> (FlowKey6, Flow) {
    let key = FlowKey6 { endpoint: 5, remote: ip("10.0.0.2"), local_port: 40_000, remote_port: port, protocol: 6, ..FlowKey6::ZERO };
    let flow = Flow {
        packets: [1, 0],
        bytes: [60, 0],
        last: jiffies(start),
        local: ip("10.0.0.1"),
        tcp_flags: [2, 0],
        first_flags: 2,
        opened: layout::EGRESS,
        start_ns: start,
        born_ns: start,
        local_instance: 1,
        remote_instance: 2,
        ..Flow::ZERO
    };
    (key, flow)
}

pub(crate) fn event(kind: u8, end_reason: u8, key: FlowKey6, flow: Flow) -> FlowEvent {
    FlowEvent { key, kind, family: 4, end_reason, pad: 0, time_ns: flow.start_ns, flow }
}

/// What a witness was told.
#[derive(Default)]
pub(crate) struct Told(pub(crate) Vec<(Sighting, u64)>);

impl Witness for Told {
    fn saw(&mut self, sighting: Sighting, record: &FlowRecord, _: bool, _: &Now) {
        self.0.push((sighting, record.flow_id));
    }
}

/// An engine with its endpoint, two pods, and a book.
pub(crate) struct Bench {
    pub(crate) engine: Engine,
    pub(crate) book: Arc<Book>,
    pub(crate) told: Told,
}

impl Bench {
    pub(crate) fn new(began: u64) -> Self {
        let mut directory = Directory::default();
        for identity in [pod_identity(1, "web-1", "web", "10.0.0.1"), pod_identity(2, "db-1", "db", "10.0.0.2")] {
            directory.identities.insert(identity.instance, identity);
        }
        let mut engine = Engine::new(BootSeed::new("boot"), &at(began), Arc::new(directory), Settings::default());
        engine.set_endpoint(5, view(1));
        Self { engine, book: Arc::new(Book::new(100_000)), told: Told::default() }
    }

    pub(crate) fn event(&mut self, kind: u8, end_reason: u8, key: FlowKey6, flow: Flow, now: u64) {
        let mut context = Context { now: at(now), kernel: &mut Nobody, witness: &mut self.told };
        self.engine.on_event(&event(kind, end_reason, key, flow), &mut context);
    }

    pub(crate) fn start(&mut self, key: FlowKey6, flow: Flow) {
        self.event(event::START, 0, key, flow, flow.start_ns);
    }

    /// A sweep over this table content; answers with what was removed.
    pub(crate) fn sweep(&mut self, now: u64, created: u64, table: &mut HashMap<FlowKey6, (super::Table, Flow)>) {
        let mut counters = vec![0; layout_counters()];
        counters[sekisho_core::counters::CREATED as usize] = created;
        counters[sekisho_core::counters::START_SENT as usize] = created;
        self.engine.begin_sweep(&counters);
        let mut removed = Vec::new();
        for (key, (place, flow)) in table.iter() {
            if self.engine.on_swept(*place, 4, key, flow, &at(now)) == super::Sweep::Remove {
                removed.push(*key);
            }
        }
        for key in removed {
            let (place, flow) = table.remove(&key).unwrap();
            self.engine.on_removed(place, 4, &key, &flow);
        }
        let mut context = Context { now: at(now), kernel: &mut Nobody, witness: &mut self.told };
        self.engine.end_sweep(&mut context);
    }

    /// Every flow record so far.
    pub(crate) fn records(&mut self) -> Vec<Arc<FlowRecord>> {
        self.engine.flush(&self.book, &at(0));
        let mut reader = self.book.reader("test", None, Start::Oldest, false);
        let mut records = Vec::new();
        while let Some(record) = reader.try_next() {
            if let super::Body::Flow(flow) = record.body {
                records.push(flow);
            }
        }
        records
    }

    pub(crate) fn moments(&mut self) -> Vec<Moment> {
        self.records().iter().map(|r| r.moment).collect()
    }
}

pub(crate) fn layout_counters() -> usize {
    sekisho_core::counters::COUNT as usize
}

pub(crate) fn view(instance: u32) -> EndpointView {
    EndpointView { index: 0, instance, pod: ("shop".into(), "web-1".into()), interface: Some("veth1".into()), one_way: false }
}
