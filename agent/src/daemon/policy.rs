//! The policy's way: snapshot, pods found, compile, journal, kernel, in that order.
//!
//! The order is what keeps every moment consistent: addresses of local pods are found before the compile that needs them,
//! numbers are written down before a packet can bear them, and the engine knows the policy of an epoch before it reads that epoch's events.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sekisho_core::layout::{Address, mode};
use sekisho_proto as proto;
use tracing::{error, info, warn};

use super::pump::{Pump, now};
use crate::api::Refusal;
use crate::cli::Posture;
use crate::datapath::{ChangeKind, Look, ServiceFlow};
use crate::flow::{Body, EndpointView, Explainer};
use crate::inventory::{Pod, Snapshot};
use crate::policy::{self, Compiled, Decision, Input, Lending, Question};

/// When a policy that could not be put in force is tried again, where nothing changes before.
const RETRY: Duration = Duration::from_secs(5);

impl Explainer for Compiled {
    fn explain(&self, question: &Question) -> Decision {
        Compiled::explain(self, question)
    }
}

impl Pump {
    /// Takes the snapshot over: local pods, policy, identities. Tells whether all pods were looked at.
    pub(super) fn take_snapshot(&mut self) -> bool {
        self.synced = true;
        let lending = &self.args.allow_sources_from;
        let local = self.local_pods(&self.base).map(|pod| lent(pod, lending)).collect();
        let former = std::mem::replace(&mut self.local, local);
        let look = self.reconcile(former);
        self.detector.set_snapshot(self.snapshot.clone());
        self.compile();
        look.whole
    }

    /// Pods of this node that still have their addresses.
    pub(super) fn local_pods<'a>(&'a self, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a Arc<Pod>> {
        let node = &self.args.node_name;
        snapshot.pods.values().filter(move |pod| pod_is_here(pod, node))
    }

    /// Looks whether pods, interfaces or addresses of this node have come or gone. Tells whether all pods were looked at.
    pub(super) fn look_for_pods(&mut self) -> bool {
        let look = self.reconcile(Vec::new());
        let moved = look.whole && self.node_moved();
        if !look.changes.is_empty() || moved || self.retry.is_some_and(|at| Instant::now() >= at) {
            self.compile();
        }
        look.whole
    }

    /// Whether the node's addresses are others now.
    fn node_moved(&mut self) -> bool {
        let addresses = self.datapath.node_addresses();
        let moved = addresses != self.node_addresses;
        self.node_addresses = addresses;
        moved
    }

    /// Looks for the local pods; `former` ones may linger.
    fn reconcile(&mut self, former: Vec<Arc<Pod>>) -> Look {
        let look = self.datapath.reconcile(&self.local);
        for change in &look.changes {
            let (namespace, pod) = self.pod_name(&change.uid);
            let uid = &*change.uid;
            match change.kind {
                ChangeKind::Gone => {
                    info!(namespace, pod, uid, "a pod is gone");
                    self.engine.on_endpoint_gone(change.number);
                }
                ChangeKind::Found => info!(namespace, pod, uid, "a pod is found"),
                ChangeKind::Changed => info!(namespace, pod, uid, "a pod is changed"),
            }
        }
        self.keep_lingering(former);
        look
    }

    /// Compiles the snapshot and puts the outcome in force, or keeps what is in force and says why.
    fn compile(&mut self) {
        let mut compiled = self.compiler.compile(&Input {
            snapshot: &self.snapshot,
            node: &self.args.node_name,
            node_addresses: &self.node_addresses,
            found: &self.known,
            in_kernel: self.datapath.tables(),
            room_for_addresses: self.datapath.room_for_addresses(),
            room_for_rules: self.datapath.room_for_rules(),
            room_for_services: self.datapath.room_for_services(),
            room_for_networks: self.datapath.room_for_networks(),
            lending: &self.args.allow_sources_from,
            instances: &self.journal,
        });
        let near: HashSet<Address> = self.known.values().flatten().map(|ip| policy::mapped(*ip)).collect();
        // What goes leaves after what comes is written: not all of the room is used.
        let lent = self.lent_networks();
        let keep = |address: &Address| near.contains(address) || lent.iter().any(|net| net.contains(&policy::unmapped(address)));
        compiled.fit(self.datapath.room_for_addresses() / 16 * 15, &self.args.node_name, keep);
        let now = now(&mut self.datapath);
        let directory = self.journal.refresh(&self.snapshot, &self.known, &compiled.rules, now.boot_ns);
        self.set_directory(directory);
        if !compiled.tables.vips.is_empty() {
            let flows = self.engine.to_services().filter_map(|(key, flow, backend)| ServiceFlow::of(key, flow, backend));
            self.datapath.note_service_flows(flows.collect());
        }
        match self.datapath.apply(&compiled.tables) {
            Ok(applied) => {
                self.datapath.set_hold(self.args.posture() == Posture::Hold && !self.snapshot.policies.is_empty());
                self.warn_anew(&compiled);
                (self.refused, self.retry) = (None, None);
                self.applied_ns = now.wall_ns;
                let compiled = Arc::new(compiled);
                let judges = self.datapath.mode() != mode::OBSERVE;
                let since = self::now(&mut self.datapath).boot_ns;
                self.engine.set_policy(applied.epoch, compiled.clone(), judges, since);
                self.compiled = Some(compiled);
                if applied.changed {
                    self.tell_policy("applied", None);
                }
            }
            Err(e) => {
                self.compiler.take_back();
                self.retry = Some(Instant::now() + RETRY);
                let why = e.to_string();
                if self.refused.as_ref() != Some(&why) {
                    error!(error = %why, "the policy is not in force; the one before it stays");
                    self.notice_refused(&why);
                    self.tell_policy("refused", Some(why.clone()));
                }
                self.refused = Some(why);
            }
        }
        self.tell_endpoints();
        self.tell_ready();
    }

    /// Networks that some pod of this node may speak for. The kernel must know which of their addresses are others'.
    fn lent_networks(&self) -> Vec<ipnet::IpNet> {
        self.local.iter().flat_map(|pod| &pod.allow_sources).copied().collect()
    }

    /// Logs the warnings that the policy before did not have.
    fn warn_anew(&self, compiled: &Compiled) {
        let before = self.compiled.as_ref().map_or(&[][..], |c| &c.warnings);
        for warning in compiled.warnings.iter().filter(|w| !before.contains(w)) {
            let about = &warning.about;
            let [pod, policy, service] = ["Pod", "NetworkPolicy", "Service"].map(|kind| about.name_of(kind));
            warn!(namespace = about.namespace(), pod, policy, service, reason = warning.reason, "{}", warning.text);
            self.notice_warning(warning);
        }
    }

    /// Tells the engine where pods are attached now.
    pub(super) fn tell_endpoints(&mut self) {
        for endpoint in self.datapath.endpoints().filter(|e| e.number != 0) {
            let Some(pod) = self.here(&endpoint.uid) else { continue };
            let view = EndpointView {
                index: endpoint.index,
                instance: crate::policy::Instances::pod(&self.journal, &pod.uid),
                pod: (pod.namespace.clone(), pod.name.clone()),
                interface: endpoint.interface.clone(),
                one_way: endpoint.coverage == crate::datapath::Coverage::OneWay,
            };
            self.engine.set_endpoint(endpoint.number, view);
        }
    }

    fn tell_policy(&mut self, action: &str, error: Option<String>) {
        let change = proto::PolicyChange {
            action: action.to_owned(),
            epoch: self.datapath.epoch(),
            mode: mode::name(self.datapath.mode()).map(str::to_owned),
            error,
            policies: u32::try_from(self.snapshot.policies.len()).unwrap_or(u32::MAX),
        };
        self.engine.push(Body::Policy(Arc::new(change)));
    }

    /// Goes on in a mode that `sekisho mode` has set on the pins while this agent did not answer.
    pub(super) fn notice_mode(&mut self) {
        match self.datapath.notice_mode() {
            Ok(None) => {}
            Ok(Some(epoch)) => self.mode_is_set(epoch),
            Err(error) => error!(%error, "the mode cannot be read"),
        }
    }

    fn mode_is_set(&mut self, epoch: u32) {
        let since = now(&mut self.datapath).boot_ns;
        if let Some(compiled) = &self.compiled {
            self.engine.set_policy(epoch, compiled.clone(), self.datapath.mode() != mode::OBSERVE, since);
        }
        info!(mode = mode::name(self.datapath.mode()), "the mode is set");
        self.tell_policy("mode", None);
    }

    /// Shows the mode; sets it first where one is given.
    pub(super) fn mode(&mut self, set: Option<u32>) -> Result<proto::ModeResponse, Refusal> {
        self.notice_mode();
        if let Some(wanted) = set
            && wanted != self.datapath.mode()
        {
            let epoch = self.datapath.set_mode(wanted).map_err(|e| Refusal::Unavailable(e.to_string()))?;
            self.mode_is_set(epoch);
        }
        let mode = mode::name(self.datapath.mode()).unwrap_or("unknown").to_owned();
        Ok(proto::ModeResponse { mode, epoch: self.datapath.epoch(), node: self.args.node_name.clone() })
    }
}

/// A pod of this node, without the sources that its annotation asks for where the configuration lends it none.
fn lent(pod: &Arc<Pod>, lending: &[Lending]) -> Arc<Pod> {
    if pod.allow_sources.is_empty() || policy::lends(lending, pod) {
        return pod.clone();
    }
    Arc::new(Pod { allow_sources: Vec::new(), ..Pod::clone(pod) })
}

/// Whether a pod is this node's and still has its addresses.
fn pod_is_here(pod: &Pod, node: &str) -> bool {
    !pod.finished && pod.node.as_deref() == Some(node)
}
