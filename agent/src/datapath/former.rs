//! The maps of a former layout, read as ours: of another version of the agent, or of another memory budget.
//!
//! While its links still run its programs, these maps are the ones that count. They are only read, but for the mode.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, RingBuf};
use sekisho_core::counters;
use sekisho_core::flows::Table as Kind;
use sekisho_core::layout::{
    AddressEntry, Closing, Config, Contacts, Endpoint, EndpointState, EndpointSwept, Flow, FlowEvent, FlowKey4, FlowKey6, ListenerKey,
    Process, RuleKey, Rules, Vip,
};

use super::bpf::{self, Cursor, RawMap};
use super::shape::{Plan, Shape};
use super::sweep::FlowKey;
use super::table::{JournalValue, Plain, pins};
use crate::policy::UsedIds;

/// The map that holds a layout's description.
pub(super) const DESCRIPTION: &str = "TYPES";
const CHUNK: usize = 1024;

/// A map of a former layout, its entries as ours.
struct Source<K, V> {
    raw: RawMap,
    key: Plan,
    value: Plan,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Plain, V: Plain> Source<K, V> {
    fn new(path: &Path, key: Plan, value: Plan) -> io::Result<Self> {
        let raw = RawMap::new(bpf::open_pin(path)?)?;
        let fits = (raw.shape.key, raw.shape.value) == (key.from, value.from) && (size_of::<K>(), size_of::<V>()) == (key.to, value.to);
        if fits {
            Ok(Self { raw, key, value, types: PhantomData })
        } else {
            Err(io::Error::new(io::ErrorKind::InvalidData, "another layout"))
        }
    }

    fn read(&self, each: &mut dyn FnMut(K, V)) -> io::Result<()> {
        let mut room = CHUNK.min(self.raw.shape.max as usize).max(1);
        let mut cursor = Cursor::default();
        loop {
            let (mut keys, mut values) = (vec![0; room * self.key.from], vec![0; room * self.value.from]);
            let (count, more) = match self.raw.look_up_batch(&mut cursor, &mut keys, &mut values) {
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 20 => {
                    room *= 2;
                    cursor = Cursor::default();
                    continue;
                }
                other => other?,
            };
            for (key, value) in keys.chunks_exact(self.key.from).zip(values.chunks_exact(self.value.from)).take(count) {
                each(self.key.convert(key), self.value.convert(value));
            }
            if !more {
                return Ok(());
            }
        }
    }
}

/// See the module.
pub(super) struct Former {
    pub(super) dir: PathBuf,
    /// Its configuration, if it ever worked and is understood: of one that did not there is nothing to take over.
    pub(super) config: Option<Config>,
    theirs: Shape,
    ours: Shape,
    /// Endpoints whose flows are here already.
    pub(super) copied: HashSet<u32>,
    rings: Vec<RingBuf<MapData>>,
    events: Option<Plan>,
    /// Everything is taken over; what lies in the rings may be read once more.
    pub(super) done: bool,
}

impl Former {
    /// Opens what is in `dir`. A layout without a description has the types that its name says, or none that we know.
    pub(super) fn open(dir: &Path, same_types: bool) -> Self {
        let theirs = match description(dir) {
            Ok(text) => Shape::read(&text),
            Err(_) if same_types => Shape::ours(),
            Err(_) => Shape::default(),
        };
        let ours = Shape::ours();
        let events = Plan::between(&theirs, &ours, "FlowEvent");
        let rings = if events.is_some() { open_rings(dir) } else { Vec::new() };
        let mut former = Self { dir: dir.into(), config: None, theirs, ours, copied: HashSet::new(), rings, events, done: false };
        former.config = former.read_config();
        former
    }

    fn plan(&self, name: &str) -> io::Result<Plan> {
        let numbers = [("u32", 4), ("u64", 8)];
        if let Some((_, size)) = numbers.iter().find(|(number, _)| *number == name) {
            return Ok(Plan::plain(*size, *size));
        }
        Plan::between(&self.theirs, &self.ours, name).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{name}: unknown")))
    }

    fn source<K: Plain, V: Plain>(&self, map: &str, key: &str, value: &str) -> io::Result<Source<K, V>> {
        Source::new(&self.dir.join(map), self.plan(key)?, self.plan(value)?)
    }

    fn read_config(&self) -> Option<Config> {
        let mut found = None;
        self.source::<u32, Config>("CONFIG", "u32", "Config").ok()?.read(&mut |_, config| found = Some(config)).ok()?;
        found.filter(|config: &Config| config.hz != 0)
    }

    /// Flows of all kinds that `wanted` names by endpoint.
    pub(super) fn flows(&self, wanted: &dyn Fn(u32) -> bool, each: &mut dyn FnMut(Kind, u8, FlowKey6, Flow)) -> io::Result<()> {
        let tables = [("EMBRYONIC", Kind::Embryonic), ("ESTABLISHED", Kind::Established), ("ANSWERED", Kind::Answered)];
        for (name, kind) in tables {
            self.source::<FlowKey4, Flow>(&format!("{name}4"), "FlowKey4", "Flow")?.read(&mut |key, flow| {
                if wanted(key.endpoint) {
                    each(kind, 4, key.neutral(), flow);
                }
            })?;
            self.source::<FlowKey6, Flow>(&format!("{name}6"), "FlowKey6", "Flow")?.read(&mut |key, flow| {
                if wanted(key.endpoint) {
                    each(kind, 6, key, flow);
                }
            })?;
        }
        Ok(())
    }

    /// Endpoints by number.
    pub(super) fn endpoints(&self) -> io::Result<Vec<(u32, Endpoint)>> {
        all(&self.source("ENDPOINTS", "u32", "Endpoint")?)
    }

    /// Endpoint numbers by control group.
    pub(super) fn cgroups(&self) -> io::Result<Vec<(u64, u32)>> {
        all(&self.source("CG_ENDPOINTS", "u64", "u32")?)
    }

    /// Control groups of pods that are not held.
    pub(super) fn live(&self) -> io::Result<Vec<(u64, u32)>> {
        all(&self.source("LIVE", "u64", "u32")?)
    }

    /// Interfaces whose qdisc is ours.
    pub(super) fn owned(&self) -> io::Result<Vec<(u32, u32)>> {
        all(&self.source("OWNED", "u32", "u32")?)
    }

    /// Endpoints' states by slot.
    pub(super) fn states(&self) -> io::Result<Vec<(u32, EndpointState)>> {
        all(&self.source("ENDPOINT_STATES", "u32", "EndpointState")?)
    }

    /// What user space took out, by slot.
    pub(super) fn swept(&self) -> io::Result<Vec<(u32, EndpointSwept)>> {
        all(&self.source("ENDPOINT_SWEPT", "u32", "EndpointSwept")?)
    }

    /// Failed contacts by slot.
    pub(super) fn contacts(&self) -> io::Result<Vec<(u32, Contacts)>> {
        all(&self.source("CONTACTS", "u32", "Contacts")?)
    }

    /// Processes by socket.
    pub(super) fn sockets(&self) -> io::Result<Vec<(u64, Process)>> {
        all(&self.source("SOCKETS", "u64", "Process")?)
    }

    /// Processes by port.
    pub(super) fn listeners(&self) -> io::Result<Vec<(ListenerKey, Process)>> {
        all(&self.source("LISTENERS", "ListenerKey", "Process")?)
    }

    /// What the agent must know after a restart.
    pub(super) fn journal(&self) -> io::Result<Vec<(u64, JournalValue)>> {
        let path = self.dir.join("JOURNAL");
        let theirs = bpf::map_shape(std::os::fd::AsFd::as_fd(&bpf::open_pin(&path)?))?.value;
        all(&Source::new(&path, Plan::plain(8, 8), Plan::plain(theirs, size_of::<JournalValue>()))?)
    }

    /// Takes the closed flows out of the queue.
    pub(super) fn take_closing(&self) -> io::Result<Vec<Closing>> {
        let plan = self.plan("Closing")?;
        let queue = RawMap::new(bpf::open_pin(&self.dir.join("CLOSING"))?)?;
        let mut taken = Vec::new();
        let mut value = vec![0; queue.shape.value];
        while queue.shape.value == plan.from && taken.len() < queue.shape.max as usize && queue.take(&[], &mut value)? {
            taken.push(plan.convert(&value));
        }
        Ok(taken)
    }

    /// Hands out the events that are there.
    pub(super) fn drain(&mut self, each: &mut dyn FnMut(&FlowEvent)) {
        let Some(plan) = &self.events else { return };
        for ring in &mut self.rings {
            while let Some(item) = ring.next() {
                if item.len() == plan.from {
                    each(&plan.convert(&item));
                }
            }
        }
    }

    /// What its programs counted, and those before them, by our slots.
    pub(super) fn counters(&self) -> io::Result<[u64; counters::COUNT as usize]> {
        let mut sums = [0u64; counters::COUNT as usize];
        let map = RawMap::new(bpf::open_pin(&self.dir.join("COUNTERS"))?)?;
        let before = RawMap::new(bpf::open_pin(&self.dir.join(COUNTED))?).ok();
        for (name, slot) in &self.theirs.counters {
            let Some(sum) = counters::NAMES.iter().find(|(_, ours)| ours == name).and_then(|(slot, _)| sums.get_mut(*slot as usize)) else {
                continue;
            };
            let mut shares = vec![0u8; map.shape.value];
            if *slot < map.shape.max && map.look_up(&slot.to_ne_bytes(), &mut shares)? {
                *sum = shares.as_chunks::<8>().0.iter().fold(*sum, |sum, share| sum.wrapping_add(number(share)));
            }
            let mut more = [0u8; 8];
            if let Some(before) = &before
                && before.shape.value == 8
                && *slot < before.shape.max
                && before.look_up(&slot.to_ne_bytes(), &mut more)?
            {
                *sum = sum.wrapping_add(number(&more));
            }
        }
        Ok(sums)
    }

    /// The highest numbers in use.
    pub(super) fn note(&self, used: &mut UsedIds) -> io::Result<()> {
        self.source::<RuleKey, Rules>("RULES", "RuleKey", "Rules")?.read(&mut |key, rules| used.note_rules(&key, &rules))?;
        values::<AddressEntry>(&self.dir, "ADDRESSES", &self.plan("AddressEntry")?, &mut |entry| {
            used.class = used.class.max(entry.class);
            used.instance = used.instance.max(entry.instance);
        })?;
        values::<Vip>(&self.dir, "VIPS", &self.plan("Vip")?, &mut |vip| {
            used.class = used.class.max(vip.class);
            used.instance = used.instance.max(vip.instance);
        })?;
        values::<u32>(&self.dir, "CIDRS", &self.plan("u32")?, &mut |class| used.class = used.class.max(class))?;
        values::<u32>(&self.dir, "PORTS", &self.plan("u32")?, &mut |rule| used.rule = used.rule.max(rule))?;
        for (_, endpoint) in self.endpoints()? {
            used.set = used.set.max(endpoint.set);
            used.instance = used.instance.max(endpoint.instance);
        }
        self.flows(&|_| true, &mut |_, _, _, flow| used.note_flow(&flow))
    }

    /// Sets the mode that its programs obey, and has every cached verdict judged again. Returns the epoch.
    pub(super) fn set_mode(&self, mode: u32) -> io::Result<Option<u32>> {
        let map = match bpf::open_pin(&self.dir.join("CONFIG")) {
            // A killed agent left it half-made, or half-removed: no programs obey it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => RawMap::new(other?)?,
        };
        let places = (self.theirs.number("Config", "mode"), self.theirs.number("Config", "epoch"));
        let (Some((mode_at, 4)), Some((epoch_at, 4))) = places else { return Ok(None) };
        let mut config = vec![0u8; map.shape.value];
        if !map.look_up(&0u32.to_ne_bytes(), &mut config)? || config.len() < mode_at.max(epoch_at) + 4 {
            return Ok(None);
        }
        let mut now = [0; 4];
        now.copy_from_slice(&config[epoch_at..epoch_at + 4]);
        let epoch = u32::from_ne_bytes(now).wrapping_add(1).max(1);
        config[epoch_at..epoch_at + 4].copy_from_slice(&epoch.to_ne_bytes());
        config[mode_at..mode_at + 4].copy_from_slice(&mode.to_ne_bytes());
        map.put(&0u32.to_ne_bytes(), &config, bpf::ANY)?;
        Ok(Some(epoch))
    }
}

/// Removes a layout's names. What still refers to the maps keeps them. The configuration goes first: without it nothing is
/// taken over from here again, should we be killed in between.
pub(super) fn remove(dir: &Path) -> io::Result<()> {
    let links = dir.join("links");
    let (first, rest): (Vec<String>, Vec<String>) = pins(dir).into_iter().filter(|name| name != "links").partition(|name| name == "CONFIG");
    for name in first {
        fs::remove_file(dir.join(name))?;
    }
    for name in pins(&links) {
        fs::remove_file(links.join(name))?;
    }
    if links.exists() {
        fs::remove_dir(&links)?;
    }
    for name in rest {
        fs::remove_file(dir.join(name))?;
    }
    fs::remove_dir(dir)
}

/// The map of what the programs of former layouts counted.
pub(super) const COUNTED: &str = "COUNTED";

fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(0, u64::from_ne_bytes)
}

fn all<K: Plain, V: Plain>(source: &Source<K, V>) -> io::Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    source.read(&mut |key, value| all.push((key, value)))?;
    Ok(all)
}

/// The values of a map whose keys do not matter.
fn values<V: Plain>(dir: &Path, map: &str, plan: &Plan, each: &mut dyn FnMut(V)) -> io::Result<()> {
    let path = dir.join(map);
    let key = bpf::map_shape(std::os::fd::AsFd::as_fd(&bpf::open_pin(&path)?))?.key;
    Source::<[u8; 0], V>::new(&path, Plan::plain(key, 0), plan.clone())?.read(&mut |_, value| each(value))
}

fn open_rings(dir: &Path) -> Vec<RingBuf<MapData>> {
    let names = pins(dir).into_iter().filter(|name| name.starts_with("EVENTS-"));
    let open = |name: String| {
        let data = MapData::from_fd(bpf::open_pin(&dir.join(name)).ok()?).ok()?;
        RingBuf::try_from(Map::RingBuf(data)).ok()
    };
    names.filter_map(open).collect()
}

/// Pins a description of our types, unless there is one.
pub(super) fn write_description(dir: &Path) -> io::Result<()> {
    let path = dir.join(DESCRIPTION);
    if path.exists() {
        return Ok(());
    }
    let text = super::shape::describe();
    let size = u32::try_from(text.len()).map_err(io::Error::other)?;
    let map = RawMap::new(bpf::create_map("TYPES", bpf::MAP_TYPE_ARRAY, 4, size, 1)?)?;
    map.put(&0u32.to_ne_bytes(), text.as_bytes(), bpf::ANY)?;
    bpf::pin(std::os::fd::AsFd::as_fd(&map), &path)
}

fn description(dir: &Path) -> io::Result<String> {
    let map = RawMap::new(bpf::open_pin(&dir.join(DESCRIPTION))?)?;
    let mut text = vec![0; map.shape.value];
    map.look_up(&0u32.to_ne_bytes(), &mut text)?;
    String::from_utf8(text).map_err(io::Error::other)
}
