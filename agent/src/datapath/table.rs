//! Kernel maps with the types of their keys and values.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use sekisho_core::flows::Table as Kind;
use sekisho_core::layout::{
    Address, AddressEntry, Backend, Clock, Closing, Config, Contacts, Endpoint, EndpointState, EndpointSwept, Flow, FlowKey4, FlowKey6,
    Hold, ListenerKey, Merge, PortKey, Process, RuleKey, Rules, Vip, VipKey,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::bpf::{self, Cursor, RawMap};

/// Entries that one batched system call moves.
const CHUNK: usize = 4096;

/// A boundary type: any bytes are a value of it.
pub(super) trait Plain: FromBytes + IntoBytes + Immutable + KnownLayout + Copy {}
impl<T: FromBytes + IntoBytes + Immutable + KnownLayout + Copy> Plain for T {}

/// A kernel map.
#[derive(Debug)]
pub(super) struct Table<K, V> {
    raw: RawMap,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: Plain, V: Plain> Table<K, V> {
    /// Opens a pinned map and checks that keys and values have the sizes of the types.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let raw = RawMap::new(bpf::open_pin(path)?)?;
        if raw.shape.key != size_of::<K>() || raw.shape.value != size_of::<V>() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "another layout"));
        }
        Ok(Self { raw, types: PhantomData })
    }

    /// Entries that fit.
    pub(super) fn max(&self) -> u32 {
        self.raw.shape.max
    }

    /// Reads an entry.
    pub(super) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::new_zeroed();
        Ok(self.raw.look_up(key.as_bytes(), value.as_mut_bytes())?.then_some(value))
    }

    /// Reads and removes an entry in one step.
    pub(super) fn take(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = V::new_zeroed();
        Ok(self.raw.take(key.as_bytes(), value.as_mut_bytes())?.then_some(value))
    }

    /// Writes an entry.
    pub(super) fn put(&self, key: &K, value: &V) -> io::Result<()> {
        self.raw.put(key.as_bytes(), value.as_bytes(), bpf::ANY)
    }

    /// Writes an entry that is not there; `EEXIST` where it is.
    pub(super) fn put_new(&self, key: &K, value: &V) -> io::Result<()> {
        self.put_as(key, value, bpf::NOEXIST)
    }

    /// Writes an entry, with one of the update flags.
    pub(super) fn put_as(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        self.raw.put(key.as_bytes(), value.as_bytes(), flags)
    }

    /// Removes an entry; `false` where there was none.
    pub(super) fn remove(&self, key: &K) -> io::Result<bool> {
        self.raw.remove(key.as_bytes())
    }

    /// Writes many entries.
    pub(super) fn put_all(&self, entries: &[(K, V)]) -> io::Result<()> {
        if entries.len() < 32 {
            return entries.iter().try_for_each(|(key, value)| self.put(key, value));
        }
        for chunk in entries.chunks(CHUNK) {
            let keys: Vec<K> = chunk.iter().map(|(key, _)| *key).collect();
            let values: Vec<V> = chunk.iter().map(|(_, value)| *value).collect();
            self.raw.put_batch(keys.as_bytes(), values.as_bytes())?;
        }
        Ok(())
    }

    /// Reads everything, by batches; `each` sees whole chunks.
    pub(super) fn read(&self, buffers: &mut Buffers<K, V>, each: &mut dyn FnMut(&[K], &[V])) -> io::Result<()> {
        let mut cursor = Cursor::default();
        loop {
            match self.raw.look_up_batch(&mut cursor, buffers.keys.as_mut_bytes(), buffers.values.as_mut_bytes()) {
                Ok((count, more)) => {
                    each(&buffers.keys[..count], &buffers.values[..count]);
                    if !more {
                        return Ok(());
                    }
                }
                // One bucket is larger than the chunk.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && buffers.keys.len() < 1 << 20 => {
                    *buffers = Buffers::of(buffers.keys.len() * 2);
                    cursor = Cursor::default();
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads the first entries, as many as the buffers hold: the low slots of an array.
    pub(super) fn read_some(&self, buffers: &mut Buffers<K, V>, each: &mut dyn FnMut(&[K], &[V])) -> io::Result<()> {
        let mut cursor = Cursor::default();
        let (count, _) = self.raw.look_up_batch(&mut cursor, buffers.keys.as_mut_bytes(), buffers.values.as_mut_bytes())?;
        each(&buffers.keys[..count], &buffers.values[..count]);
        Ok(())
    }

    /// Everything in it, for small maps and start-up.
    pub(super) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut all = Vec::new();
        self.read(&mut Buffers::of(self.max().min(1024) as usize), &mut |keys, values| {
            all.extend(keys.iter().copied().zip(values.iter().copied()));
        })?;
        Ok(all)
    }

    /// How many entries there are, by walking the keys.
    pub(super) fn count(&self) -> io::Result<u64> {
        let mut count = 0;
        self.read(&mut Buffers::of(CHUNK), &mut |keys, _| count += keys.len() as u64)?;
        Ok(count)
    }
}

impl<K, V> AsFd for Table<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.raw.as_fd()
    }
}

/// Room for one chunk of a batched read.
pub(super) struct Buffers<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K: Plain, V: Plain> Buffers<K, V> {
    /// Room for `count` entries.
    pub(super) fn of(count: usize) -> Self {
        Self { keys: vec![K::new_zeroed(); count], values: vec![V::new_zeroed(); count] }
    }
}

/// The queue `CLOSING`.
#[derive(Debug)]
pub(super) struct Queue(RawMap);

impl Queue {
    /// Looks at the oldest.
    pub(super) fn peek(&self) -> io::Result<Option<Closing>> {
        let mut value = Closing::ZERO;
        Ok(self.0.look_up(&[], value.as_mut_bytes())?.then_some(value))
    }

    /// Adds one.
    pub(super) fn push(&self, closing: &Closing) -> io::Result<()> {
        self.0.put(&[], closing.as_bytes(), bpf::ANY)
    }

    /// Takes the oldest.
    pub(super) fn pop(&self) -> io::Result<Option<Closing>> {
        let mut value = Closing::ZERO;
        Ok(self.0.take(&[], value.as_mut_bytes())?.then_some(value))
    }
}

/// The per-CPU array `COUNTERS`.
#[derive(Debug)]
pub(super) struct PerCpu(RawMap);

impl PerCpu {
    /// The sum over all CPUs of a slot.
    pub(super) fn sum(&self, slot: u32) -> io::Result<u64> {
        let mut shares = vec![0u64; self.0.shape.value / 8];
        self.0.look_up(slot.as_bytes(), shares.as_mut_bytes())?;
        Ok(shares.iter().fold(0, |sum, share| sum.wrapping_add(*share)))
    }
}

/// The array of maps `EVENTS`.
#[derive(Debug)]
pub(super) struct MapArray(RawMap);

impl MapArray {
    /// Id of the map in a slot.
    pub(super) fn id(&self, slot: u32) -> io::Result<Option<u32>> {
        let mut id = 0u32;
        Ok(self.0.look_up(slot.as_bytes(), id.as_mut_bytes())?.then_some(id))
    }

    /// Puts a map into a slot.
    pub(super) fn put(&self, slot: u32, map: BorrowedFd<'_>) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        self.0.put(slot.as_bytes(), map.as_raw_fd().as_bytes(), bpf::ANY)
    }
}

/// Key of `CIDRS` as the kernel sees it: the prefix length in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct CidrPrefix {
    /// Prefix length in bits, native order.
    pub(super) length: [u8; 4],
    /// Network.
    pub(super) address: Address,
}

/// Key of `PORTS` as the kernel sees it: the prefix length in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(super) struct PortPrefix {
    /// Prefix length in bits, native order.
    pub(super) length: [u8; 4],
    /// Table, protocol, port.
    pub(super) key: PortKey,
}

/// A stored journal value: its length, then its bytes.
pub(super) type JournalValue = [u8; 512];

macro_rules! maps {
    ($($field:ident $name:literal: $type:ty = $open:expr;)*) => {
        /// Every map that user space touches.
        #[derive(Debug)]
        pub(super) struct Maps { $(pub(super) $field: $type,)* }

        impl Maps {
            /// Opens all of them in a pin directory.
            pub(super) fn open(dir: &Path) -> io::Result<Self> {
                Ok(Self { $($field: {
                    let path = dir.join($name);
                    let open: fn(&Path) -> io::Result<$type> = $open;
                    open(&path).map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?
                },)* })
            }
        }
    };
}

impl Maps {
    /// IPv4 flows of a kind.
    pub(super) fn flows4(&self, kind: Kind) -> &Table<FlowKey4, Flow> {
        match kind {
            Kind::Embryonic => &self.embryonic4,
            Kind::Established => &self.established4,
            Kind::Answered => &self.answered4,
        }
    }

    /// IPv6 flows of a kind.
    pub(super) fn flows6(&self, kind: Kind) -> &Table<FlowKey6, Flow> {
        match kind {
            Kind::Embryonic => &self.embryonic6,
            Kind::Established => &self.established6,
            Kind::Answered => &self.answered6,
        }
    }
}

fn raw(path: &Path) -> io::Result<RawMap> {
    RawMap::new(bpf::open_pin(path)?)
}

maps! {
    embryonic4 "EMBRYONIC4": Table<FlowKey4, Flow> = Table::open;
    embryonic6 "EMBRYONIC6": Table<FlowKey6, Flow> = Table::open;
    established4 "ESTABLISHED4": Table<FlowKey4, Flow> = Table::open;
    established6 "ESTABLISHED6": Table<FlowKey6, Flow> = Table::open;
    answered4 "ANSWERED4": Table<FlowKey4, Flow> = Table::open;
    answered6 "ANSWERED6": Table<FlowKey6, Flow> = Table::open;
    endpoints "ENDPOINTS": Table<u32, Endpoint> = Table::open;
    states "ENDPOINT_STATES": Table<u32, EndpointState> = Table::open;
    swept "ENDPOINT_SWEPT": Table<u32, EndpointSwept> = Table::open;
    contacts "CONTACTS": Table<u32, Contacts> = Table::open;
    cgroups "CG_ENDPOINTS": Table<u64, u32> = Table::open;
    config "CONFIG": Table<u32, Config> = Table::open;
    hold "HOLD": Table<u32, Hold> = Table::open;
    live "LIVE": Table<u64, u32> = Table::open;
    addresses "ADDRESSES": Table<Address, AddressEntry> = Table::open;
    cidrs "CIDRS": Table<CidrPrefix, u32> = Table::open;
    vips "VIPS": Table<VipKey, Vip> = Table::open;
    backends "BACKENDS": Table<FlowKey6, Backend> = Table::open;
    rules "RULES": Table<RuleKey, Rules> = Table::open;
    ports "PORTS": Table<PortPrefix, u32> = Table::open;
    sockets "SOCKETS": Table<u64, Process> = Table::open;
    listeners "LISTENERS": Table<ListenerKey, Process> = Table::open;
    closing "CLOSING": Queue = |path| raw(path).map(Queue);
    counters "COUNTERS": PerCpu = |path| raw(path).map(PerCpu);
    journal "JOURNAL": Table<u64, JournalValue> = Table::open;
    owned "OWNED": Table<u32, u32> = Table::open;
    counted "COUNTED": Table<u32, u64> = Table::open;
    merge "MERGE": Table<u32, Merge> = Table::open;
    clock "CLOCK": Table<u32, Clock> = Table::open;
    events "EVENTS": MapArray = |path| raw(path).map(MapArray);
}

/// Names of the pinned objects in a directory; empty where there is none.
pub(super) fn pins(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}
