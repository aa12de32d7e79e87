//! Which notices become Events: the first of its kind is written, repeats are counted under it, and a flood is cut off. No
//! I/O and no clock.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use sha1::{Digest, Sha1};

use crate::inventory::{About, Notice};

/// Events that may be written at once, and how long until one more may.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(5);
/// How often a count is brought up to date.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// A notice that was not repeated for so long is a new one when it comes again; the API server keeps Events for an hour.
const FORGET: Duration = Duration::from_mins(30);
/// How many are remembered.
const ROOM: usize = 1024;
/// How long a name may be with its suffix.
const NAME: usize = 253;

/// What is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// A new Event of this name.
    Create(String, Box<Notice>),
    /// So many by now.
    Count {
        /// Where the Event is.
        namespace: String,
        /// Its name.
        name: String,
        /// How many.
        count: i32,
    },
}

struct Told {
    namespace: String,
    count: i32,
    written: i32,
    written_at: Instant,
    seen: Instant,
}

/// See the module.
pub(super) struct Desk {
    node: String,
    told: HashMap<String, Told>,
    left: u32,
    filled: Instant,
    suppressed: u64,
}

impl Desk {
    pub(super) fn new(node: &str, now: Instant) -> Self {
        Self { node: node.to_owned(), told: HashMap::new(), left: BURST, filled: now, suppressed: 0 }
    }

    /// Notices cut off.
    pub(super) fn suppressed(&self) -> u64 {
        self.suppressed
    }

    /// Takes a notice in.
    pub(super) fn take(&mut self, notice: Notice, now: Instant) -> Option<Write> {
        let name = self.name(&notice);
        if let Some(told) = self.told.get_mut(&name) {
            told.count = told.count.saturating_add(1);
            told.seen = now;
            // The first repeat at once: it makes a series of it.
            let due = told.written == 1 || now.saturating_duration_since(told.written_at) >= COUNT_EVERY;
            return due.then(|| told.write(name, now));
        }
        let refilled = now.saturating_duration_since(self.filled).as_secs() / REFILL.as_secs();
        if refilled > 0 {
            self.left = self.left.saturating_add(u32::try_from(refilled).unwrap_or(u32::MAX)).min(BURST);
            self.filled = now;
        }
        if self.left == 0 || self.told.len() >= ROOM {
            self.suppressed += 1;
            return None;
        }
        self.left -= 1;
        let namespace = if notice.about.namespace.is_empty() { "default" } else { &notice.about.namespace };
        let told = Told { namespace: namespace.to_owned(), count: 1, written: 1, written_at: now, seen: now };
        self.told.insert(name.clone(), told);
        Some(Write::Create(name, Box::new(notice)))
    }

    /// Counts that are due, and forgets what is over.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Write> {
        self.told.retain(|_, told| now.saturating_duration_since(told.seen) < FORGET);
        let due = self
            .told
            .iter_mut()
            .filter(|(_, told)| told.count != told.written && now.saturating_duration_since(told.written_at) >= COUNT_EVERY);
        due.map(|(name, told)| told.write(name.clone(), now)).collect()
    }

    /// The Event could not be written, or is there no more: the next notice begins anew.
    pub(super) fn forget(&mut self, name: &str) {
        self.told.remove(name);
    }

    /// The Event's name: the same for the same notice, from every node where it is shared.
    fn name(&self, notice: &Notice) -> String {
        let About { kind, namespace, name, uid } = &notice.about;
        let node = if notice.shared { "" } else { &self.node };
        let mut hash = Sha1::new();
        for part in [kind, &**namespace, name, uid.as_deref().unwrap_or_default(), &notice.reason, &notice.series, node] {
            hash.update(part.as_bytes());
            hash.update([0]);
        }
        let digits: String = hash.finalize().iter().take(8).fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
        let room = NAME - digits.len() - 1;
        let name = name.get(..room).unwrap_or(name).trim_end_matches(['.', '-']);
        format!("{name}.{digits}")
    }
}

impl Told {
    fn write(&mut self, name: String, now: Instant) -> Write {
        (self.written, self.written_at) = (self.count, now);
        Write::Count { namespace: self.namespace.clone(), name, count: self.count }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notice(name: &str, series: &str, shared: bool) -> Notice {
        Notice {
            about: About { kind: "Pod", namespace: "shop".into(), name: name.into(), uid: Some("u".into()) },
            reason: "ScanVertical".into(),
            action: "Detect",
            text: "shop/web scans".into(),
            series: series.into(),
            shared,
        }
    }

    fn created(write: Option<Write>) -> String {
        match write {
            Some(Write::Create(name, _)) => name,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn repeats_are_counted_under_the_first() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut desk = Desk::new("node-1", begin);
        let name = created(desk.take(notice("web", "a", false), at(0)));
        assert!(name.starts_with("web.") && name.len() == 4 + 16, "{name}");
        let count = |count| Write::Count { namespace: "shop".into(), name: name.clone(), count };
        assert_eq!(desk.take(notice("web", "a", false), at(1)), Some(count(2)));
        for second in 2..50 {
            assert_eq!(desk.take(notice("web", "a", false), at(second)), None);
        }
        assert_eq!(desk.due(at(59)), []);
        assert_eq!(desk.due(at(62)), [count(50)]);
        assert_eq!(desk.due(at(200)), []);
        // Another one at the same pod is another Event; so is the same after a long time, or once it is lost.
        assert_ne!(created(desk.take(notice("web", "b", false), at(63))), name);
        desk.forget(&name);
        assert_eq!(created(desk.take(notice("web", "a", false), at(64))), name);
        desk.due(at(64 + 1800));
        assert_eq!(created(desk.take(notice("web", "a", false), at(64 + 1801))), name);
    }

    #[test]
    fn a_flood_is_cut_off_and_counted() {
        let begin = Instant::now();
        let mut desk = Desk::new("node-1", begin);
        let written = (0..500).filter(|n| desk.take(notice(&format!("web-{n}"), "", false), begin).is_some()).count();
        assert_eq!((written, desk.suppressed()), (25, 475));
        let later = begin + Duration::from_secs(50);
        let written = (500..600).filter(|n| desk.take(notice(&format!("web-{n}"), "", false), later).is_some()).count();
        assert_eq!(written, 10);
    }

    #[test]
    fn nodes_agree_on_what_is_shared_and_on_nothing_else() {
        let now = Instant::now();
        let names = |shared| {
            let of = |node| created(Desk::new(node, now).take(notice("web", "", shared), now));
            of("node-1") == of("node-2")
        };
        assert!(names(true) && !names(false));
        let long = created(Desk::new("n", now).take(notice(&"a.b-".repeat(63), "", true), now));
        assert!(long.len() <= 253 && !long.contains("-.") && !long.contains(".."), "{long}");
    }
}
