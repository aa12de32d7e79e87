//! What the watches have told so far, and the [`Snapshot`] of it. No I/O and no clock.
//!
//! Events of one kind come in the server's order; between kinds there is no order: a pod may come before its namespace or its
//! ReplicaSet. Nothing is given out before every kind has been listed once.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::resource::{Arrived, Kind, label};
use super::table::Table;
use super::texts::Texts;
use crate::inventory::manifest::object::Object;
use crate::inventory::manifest::owners::{Owner, is_between, top};
use crate::inventory::{
    About, EndpointSlice, Namespace, NetworkPolicy, Node, Notice, ObjectName, Pod, Service, Snapshot, Workload, in_force,
};

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Event {
    /// A list begins.
    Init,
    /// An object of the list.
    InitApply(Arrived),
    /// The list is complete.
    InitDone,
    /// An object came or changed.
    Apply(Arrived),
    /// An object is gone.
    Delete(Arrived),
    /// The server does not let us see this kind.
    Denied,
}

/// See the module.
#[derive(Default)]
pub(super) struct Store {
    namespaces: Table<Arc<str>, Arc<Namespace>>,
    pods: Table<ObjectName, Arc<Pod>>,
    nodes: Table<Arc<str>, Arc<Node>>,
    services: Table<ObjectName, Arc<Service>>,
    endpoint_slices: Table<ObjectName, Arc<EndpointSlice>>,
    policies: Table<ObjectName, Arc<NetworkPolicy>>,
    replica_sets: Table<ObjectName, Owner>,
    jobs: Table<ObjectName, Owner>,
    /// Direct owners of pods that a ReplicaSet or Job owns.
    owned: HashMap<ObjectName, Workload>,
    /// ReplicaSets and Jobs whose owner is another one since the last snapshot.
    moved: HashSet<(&'static str, ObjectName)>,
    /// Kinds that are not waited for.
    denied: HashSet<Kind>,
    texts: Texts,
    notices: Vec<Notice>,
    snapshot: Arc<Snapshot>,
}

impl Store {
    /// Takes one event in.
    pub(super) fn take(&mut self, kind: Kind, event: Event) {
        match event {
            Event::Init => self.begin(kind),
            Event::InitDone => self.finish(kind),
            Event::InitApply(arrived) => self.apply(kind, arrived, true),
            Event::Apply(arrived) => self.apply(kind, arrived, false),
            Event::Delete(arrived) => self.delete(kind, &arrived),
            Event::Denied => {
                self.denied.insert(kind);
            }
        }
    }

    /// Kinds that have not been listed yet. Those that only give names are not waited for where we may not see them.
    pub(super) fn missing(&self) -> Vec<Kind> {
        let waived = |kind: &Kind| kind.only_names() && self.denied.contains(kind);
        Kind::ALL.into_iter().filter(|kind| !self.synced(*kind) && !waived(kind)).collect()
    }

    /// The snapshot, if all kinds are there and it is another one than the last.
    pub(super) fn snapshot(&mut self) -> Option<Arc<Snapshot>> {
        if !self.missing().is_empty() {
            return None;
        }
        self.follow_owners();
        self.texts.sweep();
        let mut changed = self.snapshot.generation == 0;
        changed |= self.namespaces.take_changed();
        changed |= self.pods.take_changed();
        changed |= self.nodes.take_changed();
        changed |= self.services.take_changed();
        changed |= self.endpoint_slices.take_changed();
        changed |= self.policies.take_changed();
        // Owners show in their pods only, which are followed above; what is refused of them shows.
        let owners = [self.replica_sets.take_changed(), self.jobs.take_changed()];
        let refused = self.refused();
        changed |= owners.contains(&true) && refused != self.snapshot.refused;
        if !changed {
            return None;
        }
        let next = Snapshot {
            generation: self.snapshot.generation + 1,
            namespaces: self.all_namespaces(),
            pods: self.pods.live().clone(),
            nodes: self.nodes.live().clone(),
            services: self.services.live().clone(),
            endpoint_slices: self.endpoint_slices.live().clone(),
            policies: self.policies.live().clone(),
            refused,
        };
        self.snapshot = Arc::new(next);
        Some(self.snapshot.clone())
    }

    fn begin(&mut self, kind: Kind) {
        match kind {
            Kind::Namespace => self.namespaces.begin(),
            Kind::Pod => self.pods.begin(),
            Kind::Node => self.nodes.begin(),
            Kind::Service => self.services.begin(),
            Kind::EndpointSlice => self.endpoint_slices.begin(),
            Kind::NetworkPolicy => self.policies.begin(),
            Kind::ReplicaSet => self.replica_sets.begin(),
            Kind::Job => self.jobs.begin(),
        }
    }

    fn finish(&mut self, kind: Kind) {
        match kind {
            Kind::Namespace => self.namespaces.finish(),
            Kind::Pod => {
                self.pods.finish();
                let Self { pods, owned, .. } = self;
                owned.retain(|name, _| pods.live().contains_key(name));
            }
            Kind::Node => self.nodes.finish(),
            Kind::Service => self.services.finish(),
            Kind::EndpointSlice => self.endpoint_slices.finish(),
            Kind::NetworkPolicy => self.policies.finish(),
            Kind::ReplicaSet => {
                let before = self.replica_sets.live().clone();
                self.replica_sets.finish();
                self.note_moved(kind, &before);
            }
            Kind::Job => {
                let before = self.jobs.live().clone();
                self.jobs.finish();
                self.note_moved(kind, &before);
            }
        }
    }

    /// After a relist of owners: which of them are others.
    fn note_moved(&mut self, kind: Kind, before: &BTreeMap<ObjectName, Owner>) {
        let now = if kind == Kind::Job { self.jobs.live() } else { self.replica_sets.live() };
        let gone = before.keys().filter(|name| !now.contains_key(*name));
        let new = now.iter().filter(|(name, owner)| before.get(*name) != Some(*owner)).map(|(name, _)| name);
        self.moved.extend(gone.chain(new).map(|name| (kind.name(), name.clone())));
    }

    fn synced(&self, kind: Kind) -> bool {
        match kind {
            Kind::Namespace => self.namespaces.synced(),
            Kind::Pod => self.pods.synced(),
            Kind::Node => self.nodes.synced(),
            Kind::Service => self.services.synced(),
            Kind::EndpointSlice => self.endpoint_slices.synced(),
            Kind::NetworkPolicy => self.policies.synced(),
            Kind::ReplicaSet => self.replica_sets.synced(),
            Kind::Job => self.jobs.synced(),
        }
    }

    fn apply(&mut self, kind: Kind, arrived: Arrived, listed: bool) {
        let Arrived { name, version, uid, object, ignored } = arrived;
        match object {
            Ok(object) => {
                self.put(kind, name.clone(), version, object, listed);
                match ignored {
                    Some(what) => self.ignore(&name, uid, version, &what),
                    None if kind == Kind::Pod => self.pods.unremark(&name),
                    None => {}
                }
            }
            Err(why) => self.refuse(kind, name, uid, version, &why),
        }
    }

    fn put(&mut self, kind: Kind, name: ObjectName, version: u64, object: Object, listed: bool) {
        match object {
            Object::Namespace(o) => put(&mut self.namespaces, name.1, version, o, listed),
            Object::Node(o) => put(&mut self.nodes, name.1, version, o, listed),
            Object::Service(o) => put(&mut self.services, name, version, o, listed),
            Object::EndpointSlice(o) => {
                let slice = self.shared_slice(&o);
                put(&mut self.endpoint_slices, name, version, slice, listed);
            }
            Object::NetworkPolicy(o) => put(&mut self.policies, name, version, o, listed),
            Object::Pod(o) => self.put_pod(&o, version, listed),
            Object::Owner(owner) => {
                let owner = owner.map(|(kind, name)| (self.texts.text(&kind), self.texts.text(&name)));
                let name = (self.texts.text(&name.0), self.texts.text(&name.1));
                let table = if kind == Kind::Job { &mut self.jobs } else { &mut self.replica_sets };
                if !listed && table.live().get(&name) != Some(&owner) {
                    self.moved.insert((kind.name(), name.clone()));
                }
                put(table, name, version, owner, listed);
            }
        }
    }

    fn put_pod(&mut self, pod: &Pod, version: u64, listed: bool) {
        let mut pod = self.texts.pod(pod);
        let name = (pod.namespace.clone(), pod.name.clone());
        let direct = pod.workload.clone();
        if is_between(&direct.kind) {
            pod.workload = self.top(&pod, &direct);
            self.owned.insert(name.clone(), direct);
        } else {
            self.owned.remove(&name);
        }
        put(&mut self.pods, name, version, Arc::new(pod), listed);
    }

    fn top(&mut self, pod: &Pod, direct: &Workload) -> Workload {
        let (replica_sets, jobs) = (self.replica_sets.live(), self.jobs.live());
        let top = top(pod, direct, |namespace, owner| {
            let table = match &*owner.kind {
                "ReplicaSet" => replica_sets,
                "Job" => jobs,
                _ => return None,
            };
            table.get(&(namespace.clone(), owner.name.clone())).cloned()
        });
        self.texts.workload(&top)
    }

    /// Gives pods their workload anew where a ReplicaSet or Job between has come, gone or changed hands.
    fn follow_owners(&mut self) {
        let moved = std::mem::take(&mut self.moved);
        if moved.is_empty() {
            return;
        }
        let pods = self.pods.live().clone();
        let touched = self.owned.iter().filter(|((namespace, _), direct)| {
            // The kinds of owners are few and known: see `put_pod`.
            let kind = if &*direct.kind == "Job" { Kind::Job } else { Kind::ReplicaSet };
            moved.contains(&(kind.name(), (namespace.clone(), direct.name.clone())))
        });
        let touched: Vec<_> = touched.map(|(name, direct)| (name.clone(), direct.clone())).collect();
        let mut others = Vec::new();
        for (name, direct) in touched {
            let Some(pod) = pods.get(&name) else { continue };
            let workload = self.top(pod, &direct);
            if workload != pod.workload {
                others.push((name, Arc::new(Pod { workload, ..(**pod).clone() })));
            }
        }
        // Our own hold on the map would make the change copy it.
        drop(pods);
        self.pods.replace(others);
    }

    fn shared_slice(&mut self, slice: &EndpointSlice) -> Arc<EndpointSlice> {
        let mut slice = slice.clone();
        slice.namespace = self.texts.text(&slice.namespace);
        slice.service = slice.service.map(|service| self.texts.text(&service));
        for endpoint in &mut slice.endpoints {
            endpoint.node = endpoint.node.take().map(|node| self.texts.text(&node));
            endpoint.pod = endpoint.pod.take().map(|pod| match self.pods.live().get_key_value(&pod) {
                Some((known, _)) => known.clone(),
                None => (self.texts.text(&pod.0), pod.1),
            });
        }
        Arc::new(slice)
    }

    /// A pod is in force without what is wrong in its annotations.
    fn ignore(&mut self, name: &ObjectName, uid: Option<Arc<str>>, version: u64, what: &str) {
        let text = format!("{}, {what}", label(Kind::Pod, name));
        if self.pods.remark(name.clone(), version, text.clone()) {
            tracing::error!(namespace = &*name.0, pod = &*name.1, error = what, "annotation passed over");
            self.notice(Kind::Pod, name, uid, "AnnotationIgnored", format!("{what}; the annotation is not used"));
        }
    }

    /// What an operator should find at the object.
    fn notice(&mut self, kind: Kind, (namespace, name): &ObjectName, uid: Option<Arc<str>>, reason: &str, text: String) {
        let about = About { kind: kind.name(), namespace: namespace.clone(), name: name.clone(), uid };
        self.notices.push(Notice { about, reason: reason.to_owned(), action: "Read", series: text.clone(), text, shared: true });
    }

    /// Notices since the last call.
    pub(super) fn notices(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.notices)
    }

    fn refuse(&mut self, kind: Kind, name: ObjectName, uid: Option<Arc<str>>, version: u64, why: &str) {
        let text = format!("{}, {why}", label(kind, &name));
        let about = name.clone();
        let news = match kind {
            Kind::Namespace => self.namespaces.refuse(name.1, version, text.clone()),
            Kind::Pod => self.pods.refuse(name, version, text.clone()),
            Kind::Node => self.nodes.refuse(name.1, version, text.clone()),
            Kind::Service => self.services.refuse(name, version, text.clone()),
            Kind::EndpointSlice => self.endpoint_slices.refuse(name, version, text.clone()),
            Kind::NetworkPolicy => self.policies.refuse(name, version, text.clone()),
            Kind::ReplicaSet => self.replica_sets.refuse(name, version, text.clone()),
            Kind::Job => self.jobs.refuse(name, version, text.clone()),
        };
        if news {
            let state = in_force(self.is_live(kind, &about));
            let named = |wanted| (kind == wanted).then_some(&*about.1);
            tracing::error!(
                kind = kind.name(),
                namespace = &*about.0,
                name = &*about.1,
                pod = named(Kind::Pod),
                policy = named(Kind::NetworkPolicy),
                error = why,
                "object refused: {state}"
            );
            self.notice(kind, &about, uid, "Refused", format!("{why}; {state}"));
        }
    }

    fn is_live(&self, kind: Kind, name: &ObjectName) -> bool {
        match kind {
            Kind::Namespace => self.namespaces.live().contains_key(&name.1),
            Kind::Pod => self.pods.live().contains_key(name),
            Kind::Node => self.nodes.live().contains_key(&name.1),
            Kind::Service => self.services.live().contains_key(name),
            Kind::EndpointSlice => self.endpoint_slices.live().contains_key(name),
            Kind::NetworkPolicy => self.policies.live().contains_key(name),
            Kind::ReplicaSet => self.replica_sets.live().contains_key(name),
            Kind::Job => self.jobs.live().contains_key(name),
        }
    }

    fn delete(&mut self, kind: Kind, arrived: &Arrived) {
        let (name, version) = (&arrived.name, arrived.version);
        match kind {
            Kind::Namespace => self.namespaces.remove(&name.1, version),
            Kind::Pod => {
                self.pods.remove(name, version);
                if !self.pods.live().contains_key(name) {
                    self.owned.remove(name);
                }
            }
            Kind::Node => self.nodes.remove(&name.1, version),
            Kind::Service => self.services.remove(name, version),
            Kind::EndpointSlice => self.endpoint_slices.remove(name, version),
            Kind::NetworkPolicy => self.policies.remove(name, version),
            Kind::ReplicaSet => {
                self.replica_sets.remove(name, version);
                self.moved.insert((kind.name(), name.clone()));
            }
            Kind::Job => {
                self.jobs.remove(name, version);
                self.moved.insert((kind.name(), name.clone()));
            }
        }
    }

    fn refused(&self) -> Vec<String> {
        let all = self.namespaces.refused().chain(self.pods.refused()).chain(self.nodes.refused());
        let all = all.chain(self.services.refused()).chain(self.endpoint_slices.refused()).chain(self.policies.refused());
        all.chain(self.replica_sets.refused()).chain(self.jobs.refused()).collect()
    }

    /// Every namespace, those included of which only objects are known yet.
    fn all_namespaces(&self) -> Arc<BTreeMap<Arc<str>, Arc<Namespace>>> {
        let live = self.namespaces.live();
        let mut named: HashSet<Arc<str>> = HashSet::new();
        names_of(self.pods.live(), &mut named);
        names_of(self.services.live(), &mut named);
        names_of(self.endpoint_slices.live(), &mut named);
        names_of(self.policies.live(), &mut named);
        names_of(self.replica_sets.live(), &mut named);
        names_of(self.jobs.live(), &mut named);
        named.retain(|name| !live.contains_key(name));
        if named.is_empty() {
            return live.clone();
        }
        let mut all = (**live).clone();
        for name in named {
            let before = self.snapshot.namespaces.get(&name).filter(|n| n.labels.len() == 1).cloned();
            all.insert(name.clone(), before.unwrap_or_else(|| Arc::new(Namespace::bare(name))));
        }
        Arc::new(all)
    }
}

fn put<K: Ord + std::hash::Hash + Clone, V: Clone + PartialEq>(table: &mut Table<K, V>, key: K, version: u64, value: V, listed: bool) {
    if listed {
        table.collect(key, version, value);
    } else {
        table.put(key, version, value);
    }
}

/// The namespaces of a map's keys, by leaps from one to the next.
fn names_of<V>(map: &BTreeMap<ObjectName, V>, into: &mut HashSet<Arc<str>>) {
    let mut next = map.keys().next();
    while let Some((namespace, _)) = next {
        into.insert(namespace.clone());
        // No namespace's name has a NUL, so this comes after all of its objects and before the next namespace's.
        let beyond: ObjectName = (format!("{namespace}\0").into(), Arc::default());
        next = map.range(beyond..).next().map(|(name, _)| name);
    }
}
