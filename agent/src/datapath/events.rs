//! Reading what the kernel programs say: events from the rings, failed contacts, counters, the clocks.

use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use sekisho_core::counters;
use sekisho_core::layout::{Clock, Contact, EndpointState, FlowEvent};
use zerocopy::FromBytes;

use super::endpoint::{Clocks, EndpointInfo};
use super::table::Buffers;
use super::{Datapath, attach, bpf};

/// Events of one ring that one call hands out at most, so that a flood on one CPU does not starve the others.
const DRAIN_LIMIT: usize = 65_536;
/// Slots of a [`Contacts`](sekisho_core::layout::Contacts) ring.
const CONTACT_SLOTS: u64 = 32;

impl Datapath {
    /// Hands out all events that are there, without waiting and without copying.
    pub fn drain(&mut self, each: &mut dyn FnMut(&FlowEvent)) {
        self.diagnostics.tell();
        for former in &mut self.formers {
            former.drain(each);
        }
        self.formers.retain(|former| !former.done);
        for ring in &mut self.rings {
            for _ in 0..DRAIN_LIMIT {
                let Some(item) = ring.next() else { break };
                if let Ok(event) = FlowEvent::ref_from_bytes(&item) {
                    each(event);
                } else {
                    tracing::error!(bytes = item.len(), "an event of another size lay in a ring");
                }
            }
        }
    }

    fn states(&self) -> Vec<EndpointState> {
        let mut states = Vec::new();
        let end = self.slots.end() as usize;
        if end == 0 {
            return states;
        }
        let result = self.maps.states.read_some(&mut Buffers::of(end), &mut |_, values| states.extend_from_slice(values));
        if let Err(error) = result {
            tracing::warn!(%error, "the endpoints' states cannot be read");
        }
        states
    }

    /// Hands out the failed contacts that were noted since the last call. Those that the ring of an endpoint lost by going
    /// round are not known.
    pub fn contacts(&mut self, each: &mut dyn FnMut(&EndpointInfo, &Contact)) {
        let states = self.states();
        // Contacts from before this agent started are no news.
        let first = self.contact_heads.len();
        self.contact_heads.extend(states.iter().skip(first).map(|state| if self.adopted { state.contact_head } else { 0 }));
        for endpoint in self.endpoints.values().filter(|endpoint| endpoint.found()) {
            let index = endpoint.info.index as usize;
            let (Some(state), Some(seen)) = (states.get(index), self.contact_heads.get_mut(index)) else { continue };
            if state.contact_head == *seen {
                continue;
            }
            let from = (*seen).max(state.contact_head.saturating_sub(CONTACT_SLOTS));
            *seen = state.contact_head;
            let Ok(Some(contacts)) = self.maps.contacts.get(&endpoint.info.index) else { continue };
            for slot in from..state.contact_head {
                let contact = &contacts.slots[usize::try_from(slot % CONTACT_SLOTS).unwrap_or_default()];
                if contact.time_ns != 0 {
                    each(&endpoint.info, contact);
                }
            }
        }
    }

    /// Every counter, summed over the CPUs.
    pub fn counters(&self) -> [u64; counters::COUNT as usize] {
        let mut values = [0; counters::COUNT as usize];
        for ((slot, value), former) in (0..counters::COUNT).zip(&mut values).zip(self.counted_by_formers()) {
            let before = self.maps.counted.get(&slot).ok().flatten().unwrap_or_default();
            *value = self.maps.counters.sum(slot).unwrap_or_default().wrapping_add(before).wrapping_add(former);
        }
        values
    }

    /// Per endpoint slot: starts that its event budget kept back.
    pub fn summarised(&self) -> Vec<(u32, u64)> {
        (0..).zip(self.states()).filter(|(_, state)| state.summarised != 0).map(|(index, state)| (index, state.summarised)).collect()
    }

    /// The kernel's clocks and the wall clock, read together.
    pub fn clock(&mut self) -> Clocks {
        let read = self.read_clock();
        let wall_ns = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        match read {
            Ok(clock) => Clocks { boot_ns: clock.boot_ns, wall_ns, jiffies: clock.jiffies, hz: self.config.hz },
            Err(error) => {
                tracing::error!(%error, "the kernel's clocks cannot be read");
                Clocks { boot_ns: 0, wall_ns, jiffies: 0, hz: self.config.hz }
            }
        }
    }

    /// The low half of the kernel's jiffies, as flows keep it.
    pub(super) fn jiffies(&self) -> io::Result<u32> {
        #[expect(clippy::cast_possible_truncation, reason = "the low half is what the kernel keeps")]
        self.read_clock().map(|clock| clock.jiffies as u32)
    }

    /// Nanoseconds since boot.
    pub(super) fn boot_ns(&self) -> io::Result<u64> {
        self.read_clock().map(|clock| clock.boot_ns)
    }

    fn read_clock(&self) -> io::Result<Clock> {
        bpf::test_run(attach::fd(&self.programs, "clock"))?;
        self.maps.clock.get(&0)?.ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// Measures how often per second the kernel's tick counts: one of the rates that kernels are built with.
    pub(super) fn measure_hz(&self) -> io::Result<u32> {
        const RATES: [u32; 4] = [100, 250, 300, 1000];
        // Begin on a tick, so that the error is one tick at the most.
        let mut first = self.read_clock()?;
        let patience = Instant::now();
        while patience.elapsed() < Duration::from_millis(30) {
            std::thread::sleep(Duration::from_micros(200));
            let now = self.read_clock()?;
            if now.jiffies != first.jiffies {
                first = now;
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(70));
        let last = self.read_clock()?;
        let ticks = last.jiffies.wrapping_sub(first.jiffies);
        let rate = ticks.saturating_mul(1_000_000_000) / last.boot_ns.saturating_sub(first.boot_ns).max(1);
        let rate = u32::try_from(rate).unwrap_or(u32::MAX);
        Ok(RATES.into_iter().min_by_key(|known| known.abs_diff(rate)).unwrap_or(250))
    }
}
