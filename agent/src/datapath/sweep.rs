//! Walking the flow tables: what has changed is shown, what is over is removed, what was evicted is accounted for.
//!
//! Reads go by batches; a removal is one look-up-and-delete, so its totals are final. The caller decides which flows are
//! over; flows of endpoints that are gone are removed here without asking. What user space takes out of a capped table is
//! written to `ENDPOINT_SWEPT`; what an LRU map evicted by itself is found by counting.

use std::collections::HashMap;
use std::io;

use sekisho_core::flows::{Sweep, Table};
use sekisho_core::layout::{Closing, EndpointState, EndpointSwept, Flow, FlowKey4, FlowKey6};

use super::table::{Buffers, Plain, Table as Map};
use super::{Datapath, numbers};

/// Room for reads, kept between sweeps, and what the last one found.
#[derive(Default)]
pub(super) struct Sweeper {
    four: Option<Buffers<FlowKey4, Flow>>,
    six: Option<Buffers<FlowKey6, Flow>>,
    /// Entries per table and family at the last sweep.
    pub(super) entries: HashMap<(Table, u8), u64>,
}

/// Entries that one batched read returns.
const CHUNK: usize = 2048;
/// Closed flows that one call looks at, at most.
const REAP_LIMIT: usize = 4096;

/// A flow key of either family.
pub(super) trait FlowKey: Plain {
    /// In the family-neutral form.
    fn neutral(&self) -> FlowKey6;
    /// From the family-neutral form.
    fn narrow(neutral: &FlowKey6) -> Self;
}

impl FlowKey for FlowKey4 {
    fn neutral(&self) -> FlowKey6 {
        let mut remote = [0; 16];
        remote[10..12].fill(0xff);
        remote[12..].copy_from_slice(&self.remote);
        FlowKey6 {
            endpoint: self.endpoint,
            remote,
            local_port: self.local_port,
            remote_port: self.remote_port,
            protocol: self.protocol,
            cause: self.cause,
            pad: self.pad,
        }
    }

    fn narrow(neutral: &FlowKey6) -> Self {
        let mut remote = [0; 4];
        remote.copy_from_slice(&neutral.remote[12..]);
        Self {
            endpoint: neutral.endpoint,
            remote,
            local_port: neutral.local_port,
            remote_port: neutral.remote_port,
            protocol: neutral.protocol,
            cause: neutral.cause,
            pad: neutral.pad,
        }
    }
}

impl FlowKey for FlowKey6 {
    fn neutral(&self) -> FlowKey6 {
        *self
    }

    fn narrow(neutral: &FlowKey6) -> Self {
        *neutral
    }
}

type Visit<'a> = &'a mut dyn FnMut(Table, u8, &FlowKey6, &Flow) -> Sweep;
type Removed<'a> = &'a mut dyn FnMut(Table, u8, &FlowKey6, &Flow);

/// What one pass over one table yields beside the callbacks.
#[derive(Default)]
struct Pass {
    /// Flows that stay, by endpoint number.
    kept: HashMap<u32, u64>,
    /// Flows removed, by endpoint number.
    removed: HashMap<u32, u64>,
}

fn pass<K: FlowKey>(
    (table, family): (Table, u8),
    map: &Map<K, Flow>,
    buffers: &mut Buffers<K, Flow>,
    slots: &numbers::Slots,
    (visit, removed): (Visit<'_>, Removed<'_>),
) -> io::Result<Pass> {
    let mut result = Pass::default();
    let mut failed = None;
    map.read(buffers, &mut |keys, flows| {
        for (key, flow) in keys.iter().zip(flows) {
            let neutral = key.neutral();
            let live = slots.of(neutral.endpoint).is_some();
            if live && visit(table, family, &neutral, flow) == Sweep::Keep {
                *result.kept.entry(neutral.endpoint).or_default() += 1;
                continue;
            }
            match map.take(key) {
                Ok(Some(last)) => {
                    *result.removed.entry(neutral.endpoint).or_default() += 1;
                    removed(table, family, &neutral, &last);
                }
                Ok(None) => {}
                Err(error) => failed = Some(error),
            }
        }
    })?;
    failed.map_or(Ok(result), Err)
}

impl Datapath {
    /// Shows every flow to `visit`, removes what it says and what belongs to endpoints that are gone, and hands the final
    /// totals of those to `removed`. False = it did not come to its end: what was not shown may still be there.
    pub fn sweep(
        &mut self,
        visit: &mut dyn FnMut(Table, u8, &FlowKey6, &Flow) -> Sweep,
        removed: &mut dyn FnMut(Table, u8, &FlowKey6, &Flow),
    ) -> bool {
        self.slots.sweep_begins();
        match self.sweep_tables(visit, removed) {
            Ok(()) => self.slots.sweep_ended(),
            Err(error) => {
                tracing::warn!(%error, "a sweep of the flow tables did not end");
                return false;
            }
        }
        true
    }

    fn sweep_tables(&mut self, visit: Visit<'_>, removed: Removed<'_>) -> io::Result<()> {
        let mut four = self.sweeper.four.take().unwrap_or_else(|| Buffers::of(CHUNK));
        let mut six = self.sweeper.six.take().unwrap_or_else(|| Buffers::of(CHUNK));
        let before: HashMap<u32, EndpointState> =
            self.slots.numbers().filter_map(|(_, index)| Some((index, self.maps.states.get(&index).ok()??))).collect();
        let mut answered = HashMap::new();
        for table in [Table::Embryonic, Table::Established, Table::Answered] {
            let (map4, map6) = match table {
                Table::Embryonic => (&self.maps.embryonic4, &self.maps.embryonic6),
                Table::Established => (&self.maps.established4, &self.maps.established6),
                Table::Answered => (&self.maps.answered4, &self.maps.answered6),
            };
            let passes = [
                (4, pass((table, 4), map4, &mut four, &self.slots, (&mut *visit, &mut *removed))?),
                (6, pass((table, 6), map6, &mut six, &self.slots, (&mut *visit, &mut *removed))?),
            ];
            for (family, pass) in passes {
                self.sweeper.entries.insert((table, family), pass.kept.values().sum());
                match table {
                    Table::Embryonic => {}
                    Table::Established => pass.removed.iter().for_each(|(number, count)| self.swept(*number, *count, 0)),
                    Table::Answered => pass.kept.iter().for_each(|(number, count)| *answered.entry(*number).or_insert(0) += count),
                }
            }
        }
        self.sweeper.four = Some(four);
        self.sweeper.six = Some(six);
        self.recount_answered(&before, &answered)
    }

    /// Notes that user space took so many established flows of an endpoint out of their table, and so many closed ones out of
    /// the queue.
    fn swept(&self, number: u32, established: u64, closing: u64) {
        let Some(index) = self.slots.of(number) else { return };
        let before = self.maps.swept.get(&index).ok().flatten().unwrap_or(EndpointSwept::ZERO);
        let swept = EndpointSwept { established: before.established + established, closing: before.closing + closing, ..before };
        if let Err(error) = self.maps.swept.put(&index, &swept) {
            tracing::warn!(%error, "removed flows could not be accounted for");
        }
    }

    /// Sets what each endpoint holds in `answered` to what was counted: the map evicts without telling.
    fn recount_answered(&self, before: &HashMap<u32, EndpointState>, held: &HashMap<u32, u64>) -> io::Result<()> {
        for (number, index) in self.slots.numbers() {
            let (Some(before), Some(now)) = (before.get(&index), self.maps.states.get(&index)?) else { continue };
            let swept = self.maps.swept.get(&index)?.unwrap_or(EndpointSwept::ZERO);
            let counted = before.answered_in.saturating_sub(before.answered_out).saturating_sub(held.get(&number).copied().unwrap_or(0));
            // Never more than went in: what came and went meanwhile is counted next time.
            let answered = counted.min(now.answered_in.saturating_sub(now.answered_out));
            if answered != swept.answered {
                self.maps.swept.put(&index, &EndpointSwept { answered, ..swept })?;
            }
        }
        Ok(())
    }

    /// Removes closed flows whose linger is over and hands out their final totals. The programs do the same while there is
    /// traffic; this is for quiet times.
    pub fn reap(&mut self, each: &mut dyn FnMut(&FlowKey6, u8, u8, &Flow)) {
        let now = match self.jiffies() {
            Ok(now) => now,
            Err(error) => return tracing::error!(%error, "the kernel's clocks cannot be read"),
        };
        let due = |closing: &Closing| now.wrapping_sub(closing.deadline) < u32::MAX / 2;
        let (ready, early): (Vec<_>, Vec<_>) = std::mem::take(&mut self.early).into_iter().partition(due);
        self.early = early;
        for closing in &ready {
            self.reap_one(closing, each);
        }
        let mut taken: HashMap<u32, u64> = HashMap::new();
        for _ in 0..REAP_LIMIT {
            match self.maps.closing.peek() {
                Ok(Some(first)) if due(&first) => {}
                _ => break,
            }
            // The kernel may have popped the one that we saw.
            let Ok(Some(closing)) = self.maps.closing.pop() else { break };
            *taken.entry(closing.key.endpoint).or_default() += 1;
            if due(&closing) {
                self.reap_one(&closing, each);
            } else {
                self.early.push(closing);
            }
        }
        for (number, count) in taken {
            self.swept(number, 0, count);
        }
    }

    fn reap_one(&self, closing: &Closing, each: &mut dyn FnMut(&FlowKey6, u8, u8, &Flow)) {
        let flow = match (closing.family, closing.established != 0) {
            (4, true) => reap_from(&self.maps.established4, closing),
            (4, false) => reap_from(&self.maps.embryonic4, closing),
            (_, true) => reap_from(&self.maps.established6, closing),
            (_, false) => reap_from(&self.maps.embryonic6, closing),
        };
        if let Some(flow) = flow {
            if closing.established != 0 {
                self.swept(closing.key.endpoint, 1, 0);
            }
            each(&closing.key, closing.family, closing.end_reason, &flow);
        }
    }
}

/// Takes the flow out if it is the one that closed: a SYN on a closed flow begins another one, with another start.
fn reap_from<K: FlowKey>(map: &Map<K, Flow>, closing: &Closing) -> Option<Flow> {
    let key = K::narrow(&closing.key);
    let flow = map.get(&key).ok()??;
    if flow.start_ns != closing.start_ns {
        return None;
    }
    map.take(&key).ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_keep_their_meaning_in_both_forms() {
        let key = FlowKey4 { endpoint: 7, remote: [10, 1, 2, 3], local_port: 1, remote_port: 2, protocol: 6, cause: 0, pad: [0; 2] };
        assert_eq!(FlowKey4::narrow(&key.neutral()), key);
        assert_eq!(std::net::Ipv6Addr::from(key.neutral().remote).to_ipv4_mapped(), Some([10, 1, 2, 3].into()));
    }
}
