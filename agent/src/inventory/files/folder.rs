//! The folder as a value: which file holds which objects, what of it is refused, and the [`Snapshot`] of it all.
//!
//! A file counts whole: any error in it leaves its previous objects in force. An object that another file already holds is such
//! an error of the newer file, which is tried again when the other one lets go.
//!
//! No I/O here; [`Source`](super::Source) reads and watches.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::document;
use crate::inventory::manifest::object::{self, Key, Object};
use crate::inventory::manifest::owners::Owners;
use crate::inventory::{Namespace, Snapshot, in_force};

/// More files than that which come at once are counted, not listed.
const SAID_ONE_BY_ONE: usize = 8;

type Objects = Vec<(Key, Object)>;

/// What happened to a file.
pub(super) enum Change {
    /// It was written or appeared.
    Content(Vec<u8>),
    /// It is there and cannot be read, with the reason.
    Unreadable(String),
    /// It is gone.
    Gone,
}

#[derive(Default)]
struct File {
    /// In force.
    objects: Objects,
    /// Why the newest content is not.
    refused: Option<String>,
    /// Sound by itself, but some object of it may be another file's; with the order in which such files came.
    waiting: Option<(u64, Objects)>,
}

impl File {
    /// Why its newest content is not in force, and what is.
    fn refusal(&self) -> Option<String> {
        Some(format!("{}; {}", self.refused.as_ref()?, in_force(!self.objects.is_empty())))
    }
}

/// All manifest files of a folder.
#[derive(Default)]
pub(super) struct Folder {
    files: BTreeMap<Arc<str>, File>,
    /// Who holds an object.
    held: HashMap<Key, Arc<str>>,
    /// Who holds a pod's UID.
    uids: HashMap<Arc<str>, (Key, Arc<str>)>,
    ignored: HashSet<String>,
    arrived: u64,
    /// Files taken in since it was last said, with how many objects each has.
    taken: Vec<(Arc<str>, usize)>,
    snapshot: Arc<Snapshot>,
}

impl Folder {
    /// The state in force.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.clone()
    }

    /// Applies what happened, in that order; `true` if the snapshot is another one now.
    pub(super) fn apply(&mut self, changes: Vec<(Arc<str>, Change)>) -> bool {
        let mut touched = BTreeSet::new();
        for (name, change) in changes {
            touched.insert(name.clone());
            match change {
                Change::Gone => self.remove(&name),
                Change::Unreadable(why) => self.refuse(&name, format!("{name}: {why}")),
                Change::Content(bytes) => self.content(&name, &bytes),
            }
        }
        self.retry();
        if touched.is_empty() {
            return false;
        }
        self.report(&touched);
        let next = self.build();
        let same = self.snapshot.generation > 0 && is_same(&next, &self.snapshot);
        if !same {
            self.snapshot = Arc::new(Snapshot { generation: self.snapshot.generation + 1, ..next });
        }
        !same
    }

    fn remove(&mut self, name: &Arc<str>) {
        if let Some(file) = self.files.remove(name) {
            self.let_go(&file.objects);
            tracing::info!(file = %name, "a manifest is gone, and what it held with it, {}", counted(file.objects.len()));
        }
    }

    fn refuse(&mut self, name: &Arc<str>, why: String) {
        let file = self.files.entry(name.clone()).or_default();
        file.waiting = None;
        file.refused = Some(why);
    }

    fn content(&mut self, name: &Arc<str>, bytes: &[u8]) {
        match self.read(name, bytes) {
            Err(why) => self.refuse(name, why),
            Ok(objects) => {
                self.arrived += 1;
                let file = self.files.entry(name.clone()).or_default();
                file.refused = None;
                file.waiting = Some((self.arrived, objects));
            }
        }
    }

    fn read(&mut self, name: &str, bytes: &[u8]) -> Result<Objects, String> {
        let json = Path::new(name).extension().is_some_and(|extension| extension == "json");
        let documents = document::parse(bytes, json).map_err(|e| format!("{name}, {e}"))?;
        let mut objects = Objects::new();
        let mut seen: HashMap<Key, usize> = HashMap::new();
        for document in &documents {
            let number = document.number;
            let ignored = &mut self.ignored;
            let mut ignore = |kind: String| {
                if ignored.insert(kind.clone()) {
                    tracing::info!(file = name, document = number, kind, "a kind is not used here and ignored (said once)");
                }
            };
            let found = object::decode(&document.value, &mut ignore).map_err(|e| format!("{name}, document {number}, {e}"))?;
            for (key, object) in found {
                if let Some(first) = seen.insert(key.clone(), number) {
                    return Err(format!("{name}, document {number}, metadata.name: {key} is already in document {first} of this file"));
                }
                objects.push((key, object));
            }
        }
        Ok(objects)
    }

    /// Takes in every waiting file that collides with no other one, until none is left that can be.
    fn retry(&mut self) {
        loop {
            let order = |file: &File| file.waiting.as_ref().map(|(order, _)| *order);
            let mut waiting: Vec<(u64, Arc<str>)> =
                self.files.iter().filter_map(|(name, file)| Some((order(file)?, name.clone()))).collect();
            waiting.sort_unstable();
            let mut progress = false;
            for (_, name) in waiting {
                progress |= self.take_in(&name);
            }
            if !progress {
                return;
            }
        }
    }

    fn take_in(&mut self, name: &Arc<str>) -> bool {
        let Some((order, objects)) = self.files.get_mut(name).and_then(|file| file.waiting.take()) else { return false };
        if let Some(why) = self.collision(name, &objects) {
            let file = self.files.entry(name.clone()).or_default();
            file.refused = Some(why);
            file.waiting = Some((order, objects));
            return false;
        }
        let before = std::mem::take(&mut self.files.entry(name.clone()).or_default().objects);
        self.let_go(&before);
        for (key, object) in &objects {
            self.held.insert(key.clone(), name.clone());
            if let Object::Pod(pod) = object {
                self.uids.insert(pod.uid.clone(), (key.clone(), name.clone()));
            }
        }
        self.taken.push((name.clone(), objects.len()));
        self.files.insert(name.clone(), File { objects, refused: None, waiting: None });
        true
    }

    fn let_go(&mut self, objects: &Objects) {
        for (key, object) in objects {
            self.held.remove(key);
            if let Object::Pod(pod) = object {
                self.uids.remove(&pod.uid);
            }
        }
    }

    fn collision(&self, name: &Arc<str>, objects: &Objects) -> Option<String> {
        let mut uids: HashMap<&Arc<str>, &Key> = HashMap::new();
        for (key, object) in objects {
            if let Some(other) = self.held.get(key).filter(|other| *other != name) {
                return Some(format!("{name}, metadata.name: {key} is already in {other}"));
            }
            let Object::Pod(pod) = object else { continue };
            if let Some((first, other)) = self.uids.get(&pod.uid).filter(|(_, other)| other != name) {
                return Some(format!("{name}, metadata.uid: {} of {key} is already that of {first} in {other}", pod.uid));
            }
            if let Some(first) = uids.insert(&pod.uid, key) {
                return Some(format!("{name}, metadata.uid: {} of {key} is already that of {first}", pod.uid));
            }
        }
        None
    }

    fn report(&mut self, touched: &BTreeSet<Arc<str>>) {
        let taken = std::mem::take(&mut self.taken);
        if taken.len() > SAID_ONE_BY_ONE {
            let objects: usize = taken.iter().map(|(_, objects)| objects).sum();
            tracing::info!(manifests = taken.len(), "manifests are in force, {}", counted(objects));
        } else {
            for (name, objects) in &taken {
                tracing::info!(file = %name, "a manifest is in force, {}", counted(*objects));
            }
        }
        for name in touched {
            let Some(file) = self.files.get(name) else { continue };
            if let Some(refusal) = file.refusal() {
                tracing::error!(file = %name, error = %refusal, "manifest refused");
            }
        }
    }

    fn build(&self) -> Snapshot {
        let (mut namespaces, mut pods, mut nodes) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let (mut services, mut endpoint_slices, mut policies) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let owners = Owners::of(self.files.values().flat_map(|f| &f.objects));
        for (key, object) in self.files.values().flat_map(|f| &f.objects) {
            let name = (key.namespace.clone(), key.name.clone());
            match object {
                Object::Namespace(o) => drop(namespaces.insert(key.name.clone(), o.clone())),
                Object::Node(o) => drop(nodes.insert(key.name.clone(), o.clone())),
                Object::Pod(o) => {
                    let before = self.snapshot.pods.get(&name);
                    drop(pods.insert(name, owners.resolve(o, before)));
                }
                Object::Service(o) => drop(services.insert(name, o.clone())),
                Object::EndpointSlice(o) => drop(endpoint_slices.insert(name, o.clone())),
                Object::NetworkPolicy(o) => drop(policies.insert(name, o.clone())),
                Object::Owner(_) => {}
            }
            if !key.namespace.is_empty() && !namespaces.contains_key(&key.namespace) {
                namespaces.insert(key.namespace.clone(), Arc::new(Namespace::bare(key.namespace.clone())));
            }
        }
        Snapshot {
            generation: 0,
            namespaces: namespaces.into(),
            pods: pods.into(),
            nodes: nodes.into(),
            services: services.into(),
            endpoint_slices: endpoint_slices.into(),
            policies: policies.into(),
            refused: self.files.values().filter_map(File::refusal).collect(),
        }
    }
}

fn counted(objects: usize) -> String {
    format!("{objects} object{}", if objects == 1 { "" } else { "s" })
}

fn is_same(a: &Snapshot, b: &Snapshot) -> bool {
    a.namespaces == b.namespaces
        && a.pods == b.pods
        && a.nodes == b.nodes
        && a.services == b.services
        && a.endpoint_slices == b.endpoint_slices
        && a.policies == b.policies
        && a.refused == b.refused
}
