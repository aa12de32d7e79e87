//! Who is who for one moment: what the engine asks when it writes a record. A value, swapped whole.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::number::NumberMap;
use super::record::Identity;
use super::waiting::range;
use crate::policy::RuleRef;

/// How long an address still maps to an owner that left, and how long the owner's number is remembered at least.
pub const TOMBSTONE_NS: u64 = 600 * 1_000_000_000;

/// How much later than a flow its remote's name may come and still be taken for the owner at that time.
pub const LATE_NS: u64 = 10 * 1_000_000_000;

/// An address and who had it, from when to when (boottime).
#[derive(Clone, Debug)]
pub struct Holding {
    /// The owner.
    pub identity: Arc<Identity>,
    /// Known since.
    pub since: u64,
    /// Gone since.
    pub until: Option<u64>,
}

/// Identities by number and by address, and the rules' names.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// The latest version of every identity.
    pub identities: NumberMap<u32, Arc<Identity>>,
    /// Earlier versions, oldest first, each with the moment at which it was replaced.
    pub earlier: NumberMap<u32, Vec<(u64, Arc<Identity>)>>,
    /// Who has an address.
    pub by_address: HashMap<IpAddr, Holding>,
    /// Who had it before, oldest first.
    pub tombstones: HashMap<IpAddr, Vec<Holding>>,
    /// Rules by id.
    pub rules: NumberMap<u32, Arc<RuleRef>>,
    /// Where an address may be given to a pod that runs without one: the ranges of known pods; empty where no pod does.
    pub expecting: Arc<HashSet<IpAddr>>,
}

impl Directory {
    /// The identity of an instance as it was at `boot_ns`.
    pub fn identity(&self, instance: u32, boot_ns: u64) -> Option<&Arc<Identity>> {
        if instance == 0 {
            return None;
        }
        if !self.earlier.is_empty()
            && let Some(versions) = self.earlier.get(&instance)
            && let Some((_, identity)) = versions.iter().find(|(until, _)| boot_ns < *until)
        {
            return Some(identity);
        }
        self.identities.get(&instance)
    }

    /// Whether it was known at `boot_ns` that an instance does not have `address` any more. The kernel's tables change a moment
    /// after the directory: whom a verdict of that moment took for the former owner is not it.
    pub fn had_lost(&self, instance: u32, address: IpAddr, boot_ns: u64) -> bool {
        if !self.tombstones.contains_key(&address) {
            return false;
        }
        let mut held = self.holdings(address).filter(|holding| holding.identity.instance == instance).peekable();
        held.peek().is_some() && held.all(|holding| holding.until.is_some_and(|until| until <= boot_ns))
    }

    /// Who had `address` at `boot_ns`, for a flow whose verdict did not know: an owner of that time, or one whose name came
    /// only a little later. Never a later owner of a used address, and never one that had left: between two owners it is
    /// not known whose a new flow is.
    pub fn late(&self, address: IpAddr, boot_ns: u64) -> Option<&Arc<Identity>> {
        let mut used = false;
        for holding in self.holdings(address) {
            let begun = holding.since <= boot_ns;
            let ended = holding.until.is_some_and(|until| until <= boot_ns);
            match (begun, ended) {
                (true, false) => return Some(&holding.identity),
                (true, true) => used = true,
                (false, _) if !used && holding.since - boot_ns <= LATE_NS => return Some(&holding.identity),
                (false, _) => {}
            }
        }
        None
    }

    /// Who had `address` last before `boot_ns`: whose the late packets of a connection are that began before.
    pub fn former(&self, address: IpAddr, boot_ns: u64) -> Option<&Arc<Identity>> {
        let left = |holding: &&Holding| holding.until.is_some_and(|until| until <= boot_ns && boot_ns - until < TOMBSTONE_NS);
        self.holdings(address).filter(left).last().map(|holding| &holding.identity)
    }

    /// Everyone who had `address`, oldest first.
    fn holdings(&self, address: IpAddr) -> impl Iterator<Item = &Holding> {
        let former = self.tombstones.get(&address).map_or(&[][..], Vec::as_slice);
        former.iter().chain(self.by_address.get(&address))
    }

    /// Whether an owner may soon be known of an address that has none.
    pub fn may_be_named(&self, address: IpAddr) -> bool {
        !self.expecting.is_empty() && self.expecting.contains(&range(address))
    }

    /// Who has `address` now.
    pub fn holder(&self, address: IpAddr) -> Option<&Arc<Identity>> {
        self.by_address.get(&address).map(|h| &h.identity)
    }
}
