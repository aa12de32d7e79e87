//! The journal: numbers (instances) for pods, Service ports and nodes, never given twice, remembered over restarts.
//!
//! Nouns. An *instance* is the number the kernel keeps in a flow; an *entry* is what stands behind it. Numbers, and the entries of
//! those whom flows bear, go through a [`JournalStore`](super::JournalStore), a pinned map on a real node. An entry stays at least [`TOMBSTONE_NS`] after its object left, and as long as anything in
//! user space refers to its identity. The journal knows no clock: times are boottimes that the caller passes in.
//!
//! Order for the caller: compile (which draws numbers), then [`Journal::refresh`] and hand out the directory, then apply to
//! the kernel. So no event bears a number whose owner is not written down.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::directory::{Directory, Holding, TOMBSTONE_NS};
use super::journal_entry::{RunState, decode_identity, decode_rule, encode_rule, key, kind, parse_key};
use super::number::NumberMap;
use super::record::{Identity, Owner};
use super::slots::{Slots, digest};
use super::waiting::range;
use super::written::{JournalStore, Written};
use crate::inventory::{ObjectName, Pod, Snapshot};
use crate::policy::{Instances, Relevant, RuleRef, identity_number};

/// How long a rule's name is kept after the rule left: an open flow that idles still bears it.
const RULE_KEPT_NS: u64 = 2 * 3600 * 1_000_000_000 + TOMBSTONE_NS;

/// How many numbers are reserved in the store at once, so that not each new pod costs another write.
const RESERVE: u32 = 256;

/// Gives numbers and remembers who they stand for.
pub struct Journal {
    inner: Mutex<Inner>,
}

struct Inner {
    written: Written,
    /// Next number to give; up to `reserved` the store knows that they may be in use.
    next: u32,
    reserved: u32,
    slots: Slots,
    /// When this run began.
    began: Option<u64>,
    pods: HashMap<Arc<str>, u32>,
    services: HashMap<ObjectName, HashMap<Arc<str>, u32>>,
    nodes: HashMap<Arc<str>, u32>,
    entries: NumberMap<u32, Entry>,
    rules: NumberMap<u32, Rule>,
    by_address: HashMap<IpAddr, Holding>,
    tombstones: HashMap<IpAddr, Vec<Holding>>,
    /// What policies read of labels, at the last refresh.
    relevant: Relevant,
    /// As [`Directory::expecting`].
    expecting: Arc<HashSet<IpAddr>>,
    run: Option<RunState>,
}

struct Entry {
    identity: Arc<Identity>,
    /// The pod as the cluster said it last, where nothing else was known of it: the same again needs no second look.
    said: Option<Arc<Pod>>,
    /// Earlier versions and when each was replaced.
    earlier: Vec<(u64, Arc<Identity>)>,
    left: Option<u64>,
}

struct Rule {
    name: Arc<RuleRef>,
    /// It is in the store.
    kept: bool,
    left: Option<u64>,
}

impl Journal {
    /// Reads the store. Numbers start above everything in it and above `used`, the highest that the kernel's maps still hold.
    pub fn open(store: Box<dyn JournalStore + Send>, used: u32) -> Self {
        let mut inner = Inner {
            next: used + 1,
            reserved: 0,
            slots: Slots::default(),
            began: None,
            pods: HashMap::new(),
            services: HashMap::new(),
            nodes: HashMap::new(),
            entries: NumberMap::default(),
            rules: NumberMap::default(),
            by_address: HashMap::new(),
            tombstones: HashMap::new(),
            relevant: Relevant::default(),
            expecting: Arc::default(),
            run: None,
            written: Written::new(store),
        };
        for (key, value) in inner.written.load() {
            inner.read(key, &value);
        }
        let Inner { slots, entries, .. } = &mut inner;
        slots.settle(|number| entries.contains_key(&number));
        Self { inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the run before left, if there was one.
    pub fn previous_run(&self) -> Option<RunState> {
        self.lock().run.clone()
    }

    /// Writes down how far this run is. Cheap enough for once a second.
    pub fn note_run(&self, state: &RunState) {
        self.lock().written.put(key(kind::RUN, 0), &state.encode());
    }

    /// Takes the cluster as it is now and answers with the directory to use from now on.
    ///
    /// `found` are addresses seen in local pods' namespaces, by UID; they win over the pod's status.
    pub fn refresh(
        &self,
        snapshot: &Snapshot,
        found: &HashMap<Arc<str>, Vec<IpAddr>>,
        rules: &HashMap<u32, RuleRef>,
        boot_ns: u64,
    ) -> Arc<Directory> {
        let mut inner = self.lock();
        inner.began.get_or_insert(boot_ns);
        let relevant = Relevant::of(snapshot);
        let same = inner.relevant == relevant;
        let near = found.keys().map(|uid| inner.pod(uid)).collect();
        inner.written.set_near(near);
        let mut present: HashSet<u32> = HashSet::with_capacity(snapshot.pods.len() + snapshot.nodes.len());
        let mut held: HashMap<IpAddr, u32> = HashMap::new();
        let mut announced: Vec<(IpAddr, u32)> = Vec::new();
        let mut nameless = false;
        for node in snapshot.nodes.values() {
            let instance = inner.node(&node.name);
            let owner = Owner::Node { name: node.name.clone() };
            inner.note(Identity { instance, owner, ips: node.ips.clone(), number: None }, boot_ns);
            present.insert(instance);
            held.extend(node.ips.iter().map(|ip| (*ip, instance)));
        }
        for pod in snapshot.pods.values() {
            let instance = inner.pod(&pod.uid);
            let ips = found.get(&pod.uid);
            if let Some(ips) = ips {
                inner.note_pod(instance, pod, ips, &relevant, boot_ns);
                inner.say(instance, None);
                inner.keep(instance);
            } else if !(same && inner.is_said(instance, pod)) {
                inner.note_pod(instance, pod, pod.addresses(), &relevant, boot_ns);
                inner.say(instance, Some(pod));
            }
            let ips = ips.unwrap_or(&pod.ips);
            present.insert(instance);
            if !pod.host_network && !pod.finished {
                held.extend(ips.iter().map(|ip| (*ip, instance)));
                let hoped: &[IpAddr] = if ips.is_empty() { &pod.announced } else { &[] };
                announced.extend(hoped.iter().map(|ip| (*ip, instance)));
                nameless |= ips.is_empty() && hoped.is_empty() && pod.node.is_some();
            }
        }
        for (ip, instance) in announced {
            held.entry(ip).or_insert(instance);
        }
        inner.relevant = relevant;
        let known = snapshot.pods.values().filter(|pod| nameless && !pod.host_network && !pod.finished);
        inner.expecting = Arc::new(known.flat_map(|pod| pod.ips.iter().map(|ip| range(*ip))).collect());
        for service in snapshot.services.values() {
            let object = (service.namespace.clone(), service.name.clone());
            for port in &service.ports {
                let name = port.name.clone().unwrap_or_else(|| port.port.to_string().into());
                let instance = inner.service(&object, &name);
                let owner = Owner::Service { namespace: object.0.clone(), name: object.1.clone(), port: name };
                inner.note(Identity { instance, owner, ips: service.ips.clone(), number: None }, boot_ns);
                present.insert(instance);
            }
        }
        for (instance, entry) in &mut inner.entries {
            if present.contains(instance) {
                entry.left = None;
            } else {
                entry.left.get_or_insert(boot_ns);
            }
        }
        let Inner { slots, written, .. } = &mut *inner;
        slots.flush(written);
        inner.hold(&held, boot_ns);
        inner.note_rules(rules, boot_ns);
        inner.expire(boot_ns);
        Arc::new(inner.directory(boot_ns))
    }

    /// Flows bear these numbers: whose they are must be known also after a restart.
    pub fn keep(&self, instances: &[u32]) {
        let mut inner = self.lock();
        for instance in instances {
            inner.keep(*instance);
        }
    }

    /// What rule numbers mean, those of an earlier run included; in order of their numbers.
    pub fn rules(&self) -> BTreeMap<u32, RuleRef> {
        self.lock().rules.iter().map(|(id, rule)| (*id, (*rule.name).clone())).collect()
    }

    /// Forgets what left long ago. Answers with a new directory; to be called about once a minute.
    pub fn expire(&self, boot_ns: u64) -> Arc<Directory> {
        let mut inner = self.lock();
        inner.expire(boot_ns);
        Arc::new(inner.directory(boot_ns))
    }

    /// The directory as the store alone gives it: who was who for flows that an earlier run left in the kernel.
    pub fn directory(&self, boot_ns: u64) -> Arc<Directory> {
        Arc::new(self.lock().directory(boot_ns))
    }
}

impl Instances for Journal {
    fn pod(&self, uid: &str) -> u32 {
        self.lock().pod(uid)
    }
    fn service(&self, service: &ObjectName, port: &str) -> u32 {
        self.lock().service(service, port)
    }
    fn node(&self, name: &str) -> u32 {
        self.lock().node(name)
    }
}

impl Inner {
    /// Takes one entry out of the store into memory.
    fn read(&mut self, store_key: u64, value: &[u8]) {
        let (kind, number) = parse_key(store_key);
        match kind {
            kind::META => {
                if let Some(reserved) = value.first_chunk::<4>() {
                    self.next = self.next.max(u32::from_le_bytes(*reserved));
                }
            }
            kind::RUN => self.run = RunState::decode(value),
            kind::RULE => {
                if let Some(rule) = decode_rule(value) {
                    self.rules.insert(number, Rule { name: Arc::new(rule), kept: true, left: None });
                }
            }
            kind::IDENTITY => {
                self.next = self.next.max(number + 1);
                if let Some(identity) = decode_identity(number, value) {
                    self.number_of(&identity.owner, number);
                    self.written.holds(number);
                    self.entries.insert(number, Entry { identity: Arc::new(identity), said: None, earlier: Vec::new(), left: None });
                }
            }
            kind::PAGE => self.next = self.next.max(self.slots.read(number, value) + 1),
            _ => {}
        }
    }

    fn number_of(&mut self, owner: &Owner, number: u32) {
        match owner {
            Owner::Pod { uid, .. } => {
                self.pods.insert(uid.clone(), number);
            }
            Owner::Service { namespace, name, port } => {
                let ports = self.services.entry((namespace.clone(), name.clone())).or_default();
                ports.insert(port.clone(), number);
            }
            Owner::Node { name } => {
                self.nodes.insert(name.clone(), number);
            }
        }
    }

    /// An owner's number: that of an earlier run, else the next free one. The store first learns that it may be in use.
    fn draw(&mut self, owner: &[&str]) -> u32 {
        let digest = digest(owner);
        if let Some(number) = self.slots.claim(&digest) {
            return number;
        }
        let number = self.next;
        self.next += 1;
        if number >= self.reserved {
            self.reserved = number + RESERVE;
            self.written.put(key(kind::META, 0), &self.reserved.to_le_bytes());
        }
        self.slots.enter(&digest, number);
        number
    }

    fn pod(&mut self, uid: &str) -> u32 {
        if let Some(number) = self.pods.get(uid) {
            return *number;
        }
        let number = self.draw(&["pod", uid]);
        self.pods.insert(uid.into(), number);
        number
    }

    fn service(&mut self, service: &ObjectName, port: &str) -> u32 {
        if let Some(number) = self.services.get(service).and_then(|ports| ports.get(port)) {
            return *number;
        }
        let number = self.draw(&["service", &service.0, &service.1, port]);
        self.services.entry(service.clone()).or_default().insert(port.into(), number);
        number
    }

    fn node(&mut self, name: &str) -> u32 {
        if let Some(number) = self.nodes.get(name) {
            return *number;
        }
        let number = self.draw(&["node", name]);
        self.nodes.insert(name.into(), number);
        number
    }

    fn note_pod(&mut self, instance: u32, pod: &Pod, ips: &[IpAddr], relevant: &Relevant, boot_ns: u64) {
        let owner = Owner::Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            labels: pod.labels.clone(),
            workload: pod.workload.clone(),
            service_account: pod.service_account.clone(),
            node: pod.node.clone(),
        };
        let number = identity_number(pod, relevant);
        // A finished pod keeps the addresses that it had: its late packets are its own.
        let ips = match self.entries.get(&instance) {
            Some(entry) if ips.is_empty() => entry.identity.ips.clone(),
            _ => ips.to_vec(),
        };
        self.note(Identity { instance, owner, ips, number: Some(number) }, boot_ns);
    }

    /// Whether an entry is what the cluster said of this very pod.
    fn is_said(&self, instance: u32, pod: &Arc<Pod>) -> bool {
        self.entries.get(&instance).and_then(|entry| entry.said.as_ref()).is_some_and(|said| Arc::ptr_eq(said, pod))
    }

    fn say(&mut self, instance: u32, pod: Option<&Arc<Pod>>) {
        if let Some(entry) = self.entries.get_mut(&instance) {
            entry.said = pod.cloned();
        }
    }

    /// Enters an identity; a changed one becomes a new version, so that flows keep what was true at their start.
    fn note(&mut self, identity: Identity, boot_ns: u64) {
        let instance = identity.instance;
        match self.entries.get_mut(&instance) {
            Some(entry) if *entry.identity == identity => return,
            Some(entry) => {
                entry.said = None;
                let old = std::mem::replace(&mut entry.identity, Arc::new(identity));
                entry.earlier.push((boot_ns, old));
            }
            None => {
                let entry = Entry { identity: Arc::new(identity), said: None, earlier: Vec::new(), left: None };
                self.entries.insert(instance, entry);
            }
        }
        if let Some(entry) = self.entries.get(&instance) {
            self.written.renew(&entry.identity);
        }
    }

    fn keep(&mut self, instance: u32) {
        if let Some(entry) = self.entries.get(&instance) {
            self.written.keep(&entry.identity);
        }
    }

    /// Makes `held` the holders of addresses; who lost one leaves a tombstone.
    fn hold(&mut self, held: &HashMap<IpAddr, u32>, boot_ns: u64) {
        let gone: Vec<IpAddr> =
            self.by_address.iter().filter(|(ip, holding)| held.get(ip) != Some(&holding.identity.instance)).map(|(ip, _)| *ip).collect();
        for ip in gone {
            if let Some(mut holding) = self.by_address.remove(&ip) {
                holding.until = Some(boot_ns);
                self.tombstones.entry(ip).or_default().push(holding);
            }
        }
        for (ip, instance) in held {
            let Some(entry) = self.entries.get(instance) else { continue };
            let holding =
                self.by_address.entry(*ip).or_insert_with(|| Holding { identity: entry.identity.clone(), since: boot_ns, until: None });
            holding.identity = entry.identity.clone();
        }
    }

    fn note_rules(&mut self, rules: &HashMap<u32, RuleRef>, boot_ns: u64) {
        for (id, rule) in rules {
            if self.rules.get(id).is_some_and(|known| known.kept && *known.name == *rule) {
                continue;
            }
            let kept = self.written.put(key(kind::RULE, *id), &encode_rule(rule));
            self.rules.insert(*id, Rule { name: Arc::new(rule.clone()), kept, left: None });
        }
        for (id, rule) in &mut self.rules {
            if rules.contains_key(id) {
                rule.left = None;
            } else {
                rule.left.get_or_insert(boot_ns);
            }
        }
    }

    fn expire(&mut self, boot_ns: u64) {
        let over = |left: Option<u64>, kept: u64| left.is_some_and(|left| boot_ns.saturating_sub(left) >= kept);
        self.tombstones.retain(|_, holdings| {
            holdings.retain(|h| !over(h.until, TOMBSTONE_NS));
            !holdings.is_empty()
        });
        // Who has not been seen for so long since this run began will not come.
        if self.began.is_some_and(|began| boot_ns.saturating_sub(began) >= TOMBSTONE_NS) {
            self.slots.forget_unclaimed();
        }
        let Self { entries, rules, written, pods, services, nodes, slots, .. } = self;
        rules.retain(|id, rule| {
            let keep = !over(rule.left, RULE_KEPT_NS);
            if !keep {
                written.remove(key(kind::RULE, *id));
            }
            keep
        });
        entries.retain(|instance, entry| {
            entry.earlier.retain(|(until, _)| !over(Some(*until), TOMBSTONE_NS));
            // Directories leave it out once its time is over, so what still refers to it is a record or an open flow.
            let keep = !over(entry.left, TOMBSTONE_NS) || Arc::strong_count(&entry.identity) > 1;
            if !keep {
                written.forget(*instance);
                slots.leave(*instance);
                match &entry.identity.owner {
                    Owner::Pod { uid, .. } => drop(pods.remove(uid)),
                    Owner::Node { name } => drop(nodes.remove(name)),
                    Owner::Service { namespace, name, port } => {
                        let service = (namespace.clone(), name.clone());
                        if let Some(ports) = services.get_mut(&service) {
                            ports.remove(port);
                            if ports.is_empty() {
                                services.remove(&service);
                            }
                        }
                    }
                }
            }
            keep
        });
        slots.flush(written);
    }

    fn directory(&self, boot_ns: u64) -> Directory {
        let mut directory = Directory {
            by_address: self.by_address.clone(),
            tombstones: self.tombstones.clone(),
            expecting: self.expecting.clone(),
            rules: self.rules.iter().map(|(id, rule)| (*id, rule.name.clone())).collect(),
            ..Directory::default()
        };
        for (instance, entry) in &self.entries {
            if entry.left.is_some_and(|left| boot_ns.saturating_sub(left) >= TOMBSTONE_NS) {
                continue;
            }
            directory.identities.insert(*instance, entry.identity.clone());
            if !entry.earlier.is_empty() {
                directory.earlier.insert(*instance, entry.earlier.clone());
            }
        }
        directory
    }
}
