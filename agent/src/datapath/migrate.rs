//! From one layout to the next: another version of the agent, or another memory budget, gets maps of its own.
//!
//! Nouns. A *former* layout's programs judge and count until an endpoint *crosses*: its policy is in the new maps, its flows are
//! copied, its links change hands, and what the old programs counted between copy and change is added. So no packet is judged
//! by nobody, and none is counted twice or not at all. Names, totals and the journal are taken over at once.
//!
//! Cached verdicts are not believed: every copied flow is judged again at its next packet, by this build's tables.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use sekisho_core::counters;
use sekisho_core::flows::Table as Kind;
use sekisho_core::layout::{CGROUP_ENDPOINT, Config, EndpointState, Flow, FlowKey6, Merge};

use super::former::{self, Former};
use super::load::same_types;
use super::sweep::FlowKey;
use super::table::{Plain, Table};
use super::{Datapath, attach, bpf};

/// How long a program that was just replaced may still be at its packet.
const LAST_PACKET: Duration = Duration::from_millis(2);

type FlowName = (Kind, u8, FlowKey6);

/// Endpoints on their way, with what was copied of them.
#[derive(Default)]
pub(super) struct Crossing {
    former: usize,
    numbers: HashSet<u32>,
    flows: HashMap<FlowName, Copied>,
    states: HashMap<u32, EndpointState>,
}

/// What is compared with a flow's copy later.
#[derive(Clone, Copy)]
struct Copied {
    start_ns: u64,
    packets: [u64; 2],
    bytes: [u64; 2],
    state: u8,
}

impl Copied {
    fn of(flow: &Flow) -> Self {
        Self { start_ns: flow.start_ns, packets: flow.packets, bytes: flow.bytes, state: flow.state }
    }
}

impl Datapath {
    /// Opens what earlier layouts left in `dirs`.
    pub(super) fn open_formers(&mut self, dirs: &[PathBuf]) {
        self.formers = dirs.iter().map(|dir| Former::open(dir, same_types(dir))).collect();
        // Of several, left by upgrades that were broken off, what the last one says counts.
        self.formers.sort_by_key(|former| former.config.map(|config| config.epoch));
    }

    /// Takes over what stands still: configuration, names, totals. Before anything is attached here.
    pub(super) fn migrate(&mut self) -> io::Result<()> {
        for former in &self.formers {
            put_all(&self.maps.owned, &former.owned().unwrap_or_default())?;
            // Half-made, as a killed agent leaves it.
            let Some(config) = former.config else { continue };
            tracing::info!(from = %former.dir.display(), "taking over from another layout");
            self.config = Config {
                epoch: config.epoch.wrapping_add(1).max(self.config.epoch),
                mode: config.mode,
                spoof_enforce: config.spoof_enforce,
                ..self.config
            };
            self.adopted = true;
            put_all(&self.maps.journal, &held("journal", former.journal()))?;
            put_all(&self.maps.live, &held("live pods", former.live()))?;
            put_all(&self.maps.cgroups, &held("control groups", former.cgroups()))?;
            let slots: HashSet<u32> = held("endpoints", former.endpoints()).iter().map(|(_, endpoint)| endpoint.index).collect();
            put_all(&self.maps.states, &only(held("endpoints' states", former.states()), &slots))?;
            put_all(&self.maps.swept, &only(held("swept flows", former.swept()), &slots))?;
            put_all(&self.maps.contacts, &only(held("contacts", former.contacts()), &slots))?;
        }
        self.migrating = true;
        self.take_processes();
        Ok(())
    }

    /// Endpoints that have not crossed keep their numbers and slots.
    pub(super) fn adopt_slots_of_formers(&mut self) {
        for former in &self.formers {
            for (number, endpoint) in former.endpoints().unwrap_or_default() {
                if self.slots.of(number).is_none() {
                    self.slots.adopt(number, endpoint.index);
                }
            }
        }
    }

    /// Who holds which socket and port: once before the hooks change hands, and once after.
    pub(super) fn take_processes(&self) {
        for former in &self.formers {
            let taken = former
                .sockets()
                .and_then(|sockets| put_missing(&self.maps.sockets, &sockets))
                .and_then(|()| former.listeners())
                .and_then(|listeners| put_missing(&self.maps.listeners, &listeners));
            if let Err(error) = taken {
                tracing::debug!(%error, "a former layout's processes are not known");
            }
        }
    }

    /// Copies the flows of endpoints that are about to be attached here.
    pub(super) fn begin_crossing(&mut self, endpoints: &[(u32, Option<u64>)]) -> Vec<Crossing> {
        let mut crossings = Vec::new();
        let on_filters = self.on_filters(endpoints);
        for at in 0..self.formers.len() {
            let former = &self.formers[at];
            let waiting = |(number, cgroup): &&(u32, Option<u64>)| {
                !former.done
                    && former.config.is_some()
                    && !former.copied.contains(number)
                    && (on_filters.contains(number) || self.attacher.former_links(&former.dir, *number, *cgroup))
            };
            let numbers: HashSet<u32> = endpoints.iter().filter(waiting).map(|(number, _)| *number).collect();
            if numbers.is_empty() {
                continue;
            }
            match self.copy(at, numbers) {
                Ok(crossing) => crossings.push(crossing),
                Err(error) => tracing::warn!(%error, "flows of a former layout could not be copied: they begin anew"),
            }
        }
        crossings
    }

    /// Interfaces whose filters are a former layout's. They bear no name: what this agent has not attached is the former's.
    fn on_filters(&mut self, endpoints: &[(u32, Option<u64>)]) -> HashSet<u32> {
        let interfaces = endpoints.iter().filter(|(number, _)| self.migrating && number & CGROUP_ENDPOINT == 0).map(|(number, _)| *number);
        interfaces.filter(|ifindex| attach::has_filter(&mut self.netlink, *ifindex).unwrap_or(false)).collect()
    }

    fn copy(&mut self, at: usize, numbers: HashSet<u32>) -> io::Result<Crossing> {
        let former = &mut self.formers[at];
        former.copied.extend(&numbers);
        let mut crossing = Crossing { former: at, numbers, ..Crossing::default() };
        let slots: HashSet<u32> =
            former.endpoints()?.iter().filter(|(number, _)| crossing.numbers.contains(number)).map(|(_, e)| e.index).collect();
        for (slot, state) in only(former.states()?, &slots) {
            self.maps.states.put(&slot, &state)?;
            crossing.states.insert(slot, state);
        }
        let mut failed = 0;
        let (flows, maps) = (&mut crossing.flows, &self.maps);
        former.flows(&|number| crossing.numbers.contains(&number), &mut |kind, family, key, flow| match maps.put_flow(
            (kind, family, key),
            &flow,
            bpf::ANY,
        ) {
            Ok(()) => drop(flows.insert((kind, family, key), Copied::of(&flow))),
            Err(_) => failed += 1,
        })?;
        if failed > 0 {
            tracing::warn!(failed, "flows of a former layout found no room: they begin anew");
        }
        Ok(crossing)
    }

    /// Adds what the old programs have done since the copy. The links are ours.
    pub(super) fn end_crossing(&mut self, crossings: Vec<Crossing>) {
        if crossings.is_empty() {
            return;
        }
        std::thread::sleep(LAST_PACKET);
        for crossing in crossings {
            let count = crossing.numbers.len();
            match self.settle(crossing) {
                Ok(late) => tracing::info!(endpoints = count, late, "endpoints have crossed to this layout"),
                Err(error) => tracing::warn!(%error, "what was counted while layouts changed is lost"),
            }
        }
    }

    fn settle(&mut self, mut crossing: Crossing) -> io::Result<usize> {
        let mut now = Vec::new();
        let former = &self.formers[crossing.former];
        former.flows(&|number| crossing.numbers.contains(&number), &mut |kind, family, key, flow| now.push(((kind, family, key), flow)))?;
        let mut late = 0;
        for (name, flow) in now {
            match crossing.flows.remove(&name) {
                Some(copied) if copied.start_ns == flow.start_ns => {
                    if (copied.packets, copied.state) != (flow.packets, flow.state) {
                        late += 1;
                        self.merge(&difference(&name, &copied, &flow))?;
                    }
                }
                // Another flow has taken the place of the one that was copied.
                Some(_) => self.maps.put_flow(name, &flow, bpf::ANY)?,
                None => {
                    late += 1;
                    match self.maps.put_flow(name, &flow, bpf::NOEXIST) {
                        // It goes on here already, as one that began before we watched.
                        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                        other => other?,
                    }
                }
            }
        }
        // Those that are not there any more have moved to another table, or are over.
        for (name, copied) in crossing.flows {
            let Some(flow) = self.maps.flow(name)?.filter(|flow| flow.start_ns == copied.start_ns) else { continue };
            self.maps.remove_flow(name)?;
            for kind in [Kind::Established, Kind::Answered].into_iter().filter(|kind| *kind != name.0) {
                let there = (kind, name.1, name.2);
                if flow.packets != copied.packets && self.maps.flow(there)?.is_some() {
                    self.merge(&Merge { state_to: copied.state, ..difference(&there, &copied, &flow) })?;
                }
            }
        }
        let slots: HashSet<u32> = crossing.states.keys().copied().collect();
        for (slot, state) in only(self.formers[crossing.former].states()?, &slots) {
            if let Some(copied) = crossing.states.get(&slot) {
                self.merge(&Merge { index: slot, state: more(&state, copied), ..Merge::ZERO })?;
            }
        }
        Ok(late)
    }

    fn merge(&self, merge: &Merge) -> io::Result<()> {
        self.maps.merge.put(&0, merge)?;
        bpf::test_run(attach::fd(&self.programs, "merge"))
    }

    /// Removes what is taken over whole: everything is attached here.
    pub(super) fn finish_migration(&mut self) {
        self.attacher.inherit_holds(&self.programs);
        for at in 0..self.formers.len() {
            if let Err(error) = self.finish_former(at) {
                tracing::warn!(%error, path = %self.formers[at].dir.display(), "a former layout could not be removed");
            }
        }
        self.attacher.former.clear();
        self.migrating = false;
    }

    fn finish_former(&mut self, at: usize) -> io::Result<()> {
        if self.formers[at].done {
            return Ok(());
        }
        self.formers[at].done = true;
        let former = &self.formers[at];
        if former.config.is_some() {
            self.take_rest(former)?;
        }
        former::remove(&former.dir)
    }

    fn take_rest(&self, former: &Former) -> io::Result<()> {
        // Flows of pods that are gone: the next sweep tells their ends. Of the others they are here, or have ended here meanwhile.
        let rest = former.flows(&|number| self.slots.of(number).is_none(), &mut |kind, family, key, flow| {
            // Where there is no room, its end is not told; it is over in any case.
            let _full = self.maps.put_flow((kind, family, key), &flow, bpf::NOEXIST);
        });
        if let Err(error) = rest {
            tracing::warn!(%error, "flows of a former layout cannot be read: their ends are not told");
        }
        for closing in held("closed flows", former.take_closing()) {
            // Where there is no room, a sweep finds them.
            let _full = self.maps.closing.push(&closing);
        }
        let sums = former.counters().unwrap_or_else(|error| {
            tracing::warn!(%error, "what a former layout counted cannot be read");
            [0; counters::COUNT as usize]
        });
        for (slot, sum) in (0..counters::COUNT).zip(sums) {
            let before = self.maps.counted.get(&slot)?.unwrap_or(0);
            self.maps.counted.put(&slot, &before.wrapping_add(sum))?;
        }
        Ok(())
    }

    /// What former layouts' programs count still.
    pub(super) fn counted_by_formers(&self) -> [u64; counters::COUNT as usize] {
        let mut sums = [0u64; counters::COUNT as usize];
        for former in self.formers.iter().filter(|former| !former.done) {
            let counted = former.counters().unwrap_or([0; counters::COUNT as usize]);
            for (sum, more) in sums.iter_mut().zip(counted) {
                *sum = sum.wrapping_add(more);
            }
        }
        sums
    }
}

/// What a former layout's map holds. One that is gone, or is not understood, is missed: the agent starts in any case.
fn held<T>(what: &str, read: io::Result<Vec<T>>) -> Vec<T> {
    read.unwrap_or_else(|error| {
        tracing::warn!(%error, "the {what} of a former layout cannot be read, and are missed");
        Vec::new()
    })
}

fn difference(name: &FlowName, copied: &Copied, now: &Flow) -> Merge {
    let less = |now: [u64; 2], before: [u64; 2]| [now[0].wrapping_sub(before[0]), now[1].wrapping_sub(before[1])];
    Merge {
        key: name.2,
        start_ns: copied.start_ns,
        packets: less(now.packets, copied.packets),
        bytes: less(now.bytes, copied.bytes),
        tcp_flags: now.tcp_flags,
        flags: now.flags,
        state_from: copied.state,
        state_to: now.state,
        family: name.1,
        table: match name.0 {
            Kind::Embryonic => 0,
            Kind::Established => 1,
            Kind::Answered => 2,
        },
        ..Merge::ZERO
    }
}

fn more(now: &EndpointState, copied: &EndpointState) -> EndpointState {
    EndpointState {
        established_in: now.established_in.wrapping_sub(copied.established_in),
        established_out: now.established_out.wrapping_sub(copied.established_out),
        answered_in: now.answered_in.wrapping_sub(copied.answered_in),
        answered_out: now.answered_out.wrapping_sub(copied.answered_out),
        one_way: now.one_way.wrapping_sub(copied.one_way),
        one_way_answers: now.one_way_answers.wrapping_sub(copied.one_way_answers),
        summarised: now.summarised.wrapping_sub(copied.summarised),
        packets: [now.packets[0].wrapping_sub(copied.packets[0]), now.packets[1].wrapping_sub(copied.packets[1])],
        closing: now.closing.wrapping_sub(copied.closing),
        ..EndpointState::ZERO
    }
}

fn only<V>(all: Vec<(u32, V)>, slots: &HashSet<u32>) -> Vec<(u32, V)> {
    all.into_iter().filter(|(slot, _)| slots.contains(slot)).collect()
}

/// Writes what fits into a map that may be smaller.
fn put_all<K: Plain, V: Plain>(to: &Table<K, V>, entries: &[(K, V)]) -> io::Result<()> {
    entries.iter().try_for_each(|(key, value)| match to.put(key, value) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::E2BIG | libc::ENOMEM)) => Ok(()),
        other => other,
    })
}

fn put_missing<K: Plain, V: Plain>(to: &Table<K, V>, entries: &[(K, V)]) -> io::Result<()> {
    entries.iter().try_for_each(|(key, value)| match to.put_new(key, value) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::E2BIG | libc::ENOMEM)) => Ok(()),
        other => other,
    })
}

impl super::table::Maps {
    fn put_flow(&self, (kind, family, key): FlowName, flow: &Flow, how: u64) -> io::Result<()> {
        match family {
            4 => self.flows4(kind).put_as(&FlowKey::narrow(&key), flow, how),
            _ => self.flows6(kind).put_as(&key, flow, how),
        }
    }

    fn flow(&self, (kind, family, key): FlowName) -> io::Result<Option<Flow>> {
        if family == 4 { self.flows4(kind).get(&FlowKey::narrow(&key)) } else { self.flows6(kind).get(&key) }
    }

    fn remove_flow(&self, (kind, family, key): FlowName) -> io::Result<bool> {
        if family == 4 { self.flows4(kind).remove(&FlowKey::narrow(&key)) } else { self.flows6(kind).remove(&key) }
    }
}
