//! Writing verdict tables: only the difference, in an order in which no packet meets half a policy.
//!
//! What a set needs is there before an address points at a class, and both before an endpoint points at the set; what
//! nobody needs any more goes in the reverse order. Sizes are checked before anything is written, so an overflow leaves
//! the previous tables whole.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::io;

use sekisho_core::layout::{Address, Flow, FlowKey4, FlowKey6, HAIRPIN, PortKey, RuleKey, Rules};

use super::Datapath;
use super::error::ApplyError;
use super::table::{Buffers, CidrPrefix, Plain, PortPrefix, Table};
use crate::policy::{Tables, UsedIds};

/// What an [`apply`](Datapath::apply) did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Whether anything was written.
    pub changed: bool,
    /// The epoch that judges now.
    pub epoch: u32,
}

/// The difference of two tables.
struct Difference<K, V> {
    put: Vec<(K, V)>,
    remove: Vec<K>,
}

impl<K: Plain + Eq + Hash, V: Plain + PartialEq> Difference<K, V> {
    fn between(old: &HashMap<K, V>, new: &HashMap<K, V>) -> Self {
        let put = new.iter().filter(|(key, value)| old.get(key) != Some(value)).map(|(key, value)| (*key, *value)).collect();
        let remove = old.keys().filter(|key| !new.contains_key(key)).copied().collect();
        Self { put, remove }
    }

    fn empty(&self) -> bool {
        self.put.is_empty() && self.remove.is_empty()
    }
}

fn fits<K: Plain + Eq + Hash, V: Plain + PartialEq>(
    map: &'static str,
    table: &Table<K, V>,
    old: usize,
    change: &Difference<K, V>,
    replaced: usize,
) -> Result<(), ApplyError> {
    let needed = old + change.put.len() - replaced;
    if needed > table.max() as usize { Err(ApplyError::Full { map, needed, max: table.max() }) } else { Ok(()) }
}

fn put<K: Plain, V: Plain>(map: &'static str, table: &Table<K, V>, entries: &[(K, V)]) -> Result<(), ApplyError> {
    table.put_all(entries).map_err(|source| ApplyError::Map { map, source })
}

fn remove<K: Plain, V: Plain>(map: &'static str, table: &Table<K, V>, keys: &[K]) -> Result<(), ApplyError> {
    keys.iter().try_for_each(|key| table.remove(key).map(drop)).map_err(|source| ApplyError::Map { map, source })
}

fn cidrs(tables: &Tables) -> HashMap<CidrPrefix, u32> {
    tables
        .cidrs
        .iter()
        .map(|((address, length), class)| (CidrPrefix { length: u32::from(*length).to_ne_bytes(), address: *address }, *class))
        .collect()
}

fn ports(tables: &Tables) -> HashMap<PortPrefix, u32> {
    tables.ports.iter().map(|((key, length), rule)| (PortPrefix { length: u32::from(*length).to_ne_bytes(), key: *key }, *rule)).collect()
}

/// How many of the entries to put replace one that is there.
fn replaced<K: Eq + Hash, V, W>(old: &HashMap<K, V>, put: &[(K, W)]) -> usize {
    put.iter().filter(|(key, _)| old.contains_key(key)).count()
}

impl Datapath {
    /// Brings the kernel's tables to `next`, then the endpoints to their policies, and attaches what is ready. One new epoch
    /// if any verdict could change: a change of a Service's backends alone affects new flows only.
    pub fn apply(&mut self, next: &Tables) -> Result<Applied, ApplyError> {
        let (old_cidrs, new_cidrs) = (cidrs(&self.tables), cidrs(next));
        let (old_ports, new_ports) = (ports(&self.tables), ports(next));
        let port = Difference::between(&old_ports, &new_ports);
        let rule = Difference::between(&self.tables.rules, &next.rules);
        let vip = Difference::between(&self.tables.vips, &next.vips);
        let address = Difference::between(&self.tables.addresses, &next.addresses);
        let cidr = Difference::between(&old_cidrs, &new_cidrs);
        fits("PORTS", &self.maps.ports, old_ports.len(), &port, replaced(&old_ports, &port.put))?;
        fits("RULES", &self.maps.rules, self.tables.rules.len(), &rule, replaced(&self.tables.rules, &rule.put))?;
        fits("VIPS", &self.maps.vips, self.tables.vips.len(), &vip, replaced(&self.tables.vips, &vip.put))?;
        fits("ADDRESSES", &self.maps.addresses, self.tables.addresses.len(), &address, replaced(&self.tables.addresses, &address.put))?;
        fits("CIDRS", &self.maps.cidrs, old_cidrs.len(), &cidr, replaced(&old_cidrs, &cidr.put))?;

        let verdicts = !(port.empty() && rule.empty() && address.empty() && cidr.empty());
        let bridge = self.bridge(next);
        let result = (|| {
            put("PORTS", &self.maps.ports, &port.put)?;
            put("RULES", &self.maps.rules, &rule.put)?;
            put("RULES", &self.maps.rules, &bridge)?;
            put("VIPS", &self.maps.vips, &vip.put)?;
            put("CIDRS", &self.maps.cidrs, &cidr.put)?;
            put("ADDRESSES", &self.maps.addresses, &address.put)
        })();
        if let Err(error) = result {
            // What is in the kernel is neither the old nor the new: read it, so that the next difference is right.
            self.read_tables().map_err(|source| ApplyError::Map { map: "RULES", source })?;
            return Err(error);
        }
        self.tables = next.clone();
        let first = !std::mem::replace(&mut self.applied_once, true);
        let pointed = self.point_endpoints();
        let result = pointed.and_then(|()| {
            remove("RULES", &self.maps.rules, &bridge.iter().map(|(key, _)| *key).collect::<Vec<_>>())?;
            remove("ADDRESSES", &self.maps.addresses, &address.remove)?;
            remove("CIDRS", &self.maps.cidrs, &cidr.remove)?;
            remove("VIPS", &self.maps.vips, &vip.remove)?;
            remove("RULES", &self.maps.rules, &rule.remove)?;
            remove("PORTS", &self.maps.ports, &port.remove)
        });
        let pointed = std::mem::take(&mut self.repointed);
        if verdicts || pointed {
            self.write_backends(first).map_err(|source| ApplyError::Map { map: "BACKENDS", source })?;
            self.notice_mode().map_err(|source| ApplyError::Map { map: "CONFIG", source })?;
            self.bump_epoch()?;
        }
        if let Err(error) = result {
            // What was to go and is still there must be known, or it would stay for ever.
            self.read_tables().map_err(|source| ApplyError::Map { map: "RULES", source })?;
            return Err(error);
        }
        self.leave_passing()?;
        self.attach_ready();
        self.follow_hold();
        Ok(Applied { changed: verdicts || pointed || !vip.empty(), epoch: self.config.epoch })
    }

    /// Where tables are more than half full, takes out what only former sets need: no endpoint points at them any more. So there is
    /// room for whatever comes next.
    fn leave_passing(&mut self) -> Result<(), ApplyError> {
        let tables = &self.tables;
        let half = |entries: usize, max: u32| entries > max as usize / 2;
        let full = half(tables.rules.len(), self.maps.rules.max())
            || half(tables.ports.len(), self.maps.ports.max())
            || half(tables.cidrs.len(), self.maps.cidrs.max());
        if !full || (tables.passing.sets.is_empty() && tables.passing.cidrs.is_empty()) {
            return Ok(());
        }
        let mut lean = tables.clone();
        let passing = std::mem::take(&mut lean.passing);
        lean.rules.retain(|key, _| key.direction == u32::from(HAIRPIN) || !passing.sets.contains(&key.set));
        let spoken: HashSet<[u8; 4]> = lean.rules.values().map(|rules| rules.ports.to_be_bytes()).collect();
        lean.ports.retain(|(key, _), _| spoken.contains(&key.table));
        lean.cidrs.retain(|key, _| !passing.cidrs.contains(key));
        let result = (|| {
            remove("CIDRS", &self.maps.cidrs, &Difference::between(&cidrs(tables), &cidrs(&lean)).remove)?;
            remove("RULES", &self.maps.rules, &Difference::between(&tables.rules, &lean.rules).remove)?;
            remove("PORTS", &self.maps.ports, &Difference::between(&ports(tables), &ports(&lean)).remove)
        })();
        match result {
            Ok(()) => self.tables = lean,
            Err(_) => self.read_tables().map_err(|source| ApplyError::Map { map: "RULES", source })?,
        }
        result
    }

    /// What the kernel's tables hold.
    pub fn tables(&self) -> &Tables {
        &self.tables
    }

    /// How many rows of rules the kernel's table holds at most.
    pub fn room_for_rules(&self) -> usize {
        self.maps.rules.max() as usize
    }

    /// How many addresses the kernel's table holds at most.
    pub fn room_for_addresses(&self) -> usize {
        self.maps.addresses.max() as usize
    }

    /// How many Service ports the kernel's table holds at most.
    pub fn room_for_services(&self) -> usize {
        self.maps.vips.max() as usize
    }

    /// How many networks the kernel can hold, and at least as many prefixes of ports.
    pub fn room_for_networks(&self) -> usize {
        self.maps.cidrs.max().min(self.maps.ports.max()) as usize
    }

    /// Rows that let the old sets know the new numbers of classes until no endpoint points at them any more.
    ///
    /// Where an address changes from a class to one that the old tables do not know (after a restart all of them do), a
    /// set in force would find no row for it, and deny for a moment what old and new policy both allow.
    fn bridge(&self, next: &Tables) -> Vec<(RuleKey, Rules)> {
        // A class without rows is one of which sets say what they say of everyone.
        let (old, mut known) = (&self.tables, HashSet::new());
        known.extend(old.rules.keys().map(|key| key.class));
        known.extend(old.addresses.values().map(|entry| entry.class));
        known.extend(old.cidrs.values());
        known.extend(old.vips.values().map(|vip| vip.class));
        let mut renamed: HashMap<u32, BTreeSet<u32>> = HashMap::new();
        let mut note = |old: Option<u32>, new: u32| {
            if let Some(old) = old.filter(|old| *old != new && !known.contains(&new)) {
                renamed.entry(old).or_default().insert(new);
            }
        };
        next.addresses.iter().for_each(|(key, entry)| note(self.tables.addresses.get(key).map(|old| old.class), entry.class));
        next.cidrs.iter().for_each(|(key, class)| note(self.tables.cidrs.get(key).copied(), *class));
        next.vips.iter().for_each(|(key, vip)| note(self.tables.vips.get(key).map(|old| old.class), vip.class));
        let rows = self.tables.rules.iter().flat_map(|(key, rules)| {
            renamed.get(&key.class).into_iter().flatten().map(|class| (RuleKey { class: *class, ..*key }, *rules))
        });
        let rows: Vec<_> = rows.filter(|(key, _)| !next.rules.contains_key(key)).collect();
        let room = self.maps.rules.max() as usize;
        if self.tables.rules.len() + next.rules.len() + rows.len() > room { Vec::new() } else { rows }
    }

    /// Reads what the kernel holds into [`Datapath::tables`](super::Datapath).
    pub(super) fn read_tables(&mut self) -> io::Result<()> {
        self.tables.addresses = self.maps.addresses.entries()?.into_iter().collect();
        self.tables.vips = self.maps.vips.entries()?.into_iter().collect();
        self.tables.rules = self.maps.rules.entries()?.into_iter().collect();
        let length = |bytes| u8::try_from(u32::from_ne_bytes(bytes)).unwrap_or(u8::MAX);
        let cidrs = self.maps.cidrs.entries()?;
        self.tables.cidrs =
            cidrs.into_iter().map(|(key, class)| ((key.address, length(key.length)), class)).collect::<HashMap<(Address, u8), u32>>();
        let ports = self.maps.ports.entries()?;
        self.tables.ports =
            ports.into_iter().map(|(key, rule)| ((key.key, length(key.length)), rule)).collect::<HashMap<(PortKey, u8), u32>>();
        Ok(())
    }

    /// The highest numbers that the maps still hold, flows included: the compiler starts above them, so that no number
    /// ever changes its meaning.
    pub fn used_ids(&self) -> UsedIds {
        let mut used = UsedIds::default();
        for (key, rules) in &self.tables.rules {
            used.note_rules(key, rules);
        }
        for ((key, _), rule) in &self.tables.ports {
            used.table = used.table.max(u32::from_be_bytes(key.table));
            used.rule = used.rule.max(*rule);
        }
        for entry in self.tables.addresses.values() {
            used.class = used.class.max(entry.class);
            used.instance = used.instance.max(entry.instance);
        }
        for vip in self.tables.vips.values() {
            used.class = used.class.max(vip.class);
            used.instance = used.instance.max(vip.instance);
        }
        used.class = self.tables.cidrs.values().fold(used.class, |class, other| class.max(*other));
        for (_, endpoint) in self.maps.endpoints.entries().unwrap_or_default() {
            used.set = used.set.max(endpoint.set);
            used.instance = used.instance.max(endpoint.instance);
        }
        let mut four: Buffers<FlowKey4, Flow> = Buffers::of(4096);
        for table in [&self.maps.embryonic4, &self.maps.established4, &self.maps.answered4] {
            note(table, &mut four, &mut used);
        }
        let mut six: Buffers<FlowKey6, Flow> = Buffers::of(4096);
        for table in [&self.maps.embryonic6, &self.maps.established6, &self.maps.answered6] {
            note(table, &mut six, &mut used);
        }
        for former in &self.formers {
            if let Err(error) = former.note(&mut used) {
                tracing::warn!(%error, "a former layout could not be read; numbers in use may be re-used");
            }
        }
        used
    }
}

impl UsedIds {
    /// Notes the numbers in a row of rules.
    pub(super) fn note_rules(&mut self, key: &RuleKey, rules: &Rules) {
        // There it is an instance.
        if key.direction != u32::from(HAIRPIN) {
            self.set = self.set.max(key.set);
        }
        self.class = self.class.max(key.class);
        self.rule = rules.rule.iter().fold(self.rule.max(rules.any), |most, rule| most.max(*rule));
        self.table = self.table.max(rules.ports);
    }

    /// Notes the numbers that a flow bears.
    pub(super) fn note_flow(&mut self, flow: &Flow) {
        self.set = self.set.max(flow.set);
        self.class = self.class.max(flow.class);
        self.rule = self.rule.max(flow.rule);
        self.instance = self.instance.max(flow.local_instance).max(flow.remote_instance);
    }
}

/// Notes the numbers that flows bear. A read that fails half-way leaves numbers unnoted; the journal still knows them.
fn note<K: Plain>(table: &Table<K, Flow>, buffers: &mut Buffers<K, Flow>, used: &mut UsedIds) {
    let result = table.read(buffers, &mut |_, flows| {
        for flow in flows {
            used.note_flow(flow);
        }
    });
    if let Err(error) = result {
        tracing::warn!(%error, "a flow table could not be read; numbers in use may be re-used");
    }
}
