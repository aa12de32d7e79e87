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
use crate::datapath::{ChangeKind, Look};
use crate::flow::{Body, EndpointView, Explainer};
use crate::inventory::{Pod, Snapshot};
use crate::policy::{self, Compiled, Decision, Input, Question};

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
        self.local = self.local_pods(&self.snapshot).cloned().collect();
        let look = self.reconcile();
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
        let look = self.reconcile();
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

    fn reconcile(&mut self) -> Look {
        let look = self.datapath.reconcile(&self.local);
        for change in &look.changes {
            let pod = self.pod_text(&change.uid);
            match change.kind {
                ChangeKind::Gone => {
                    info!("{pod}: gone");
                    self.engine.on_endpoint_gone(change.number);
                }
                ChangeKind::Found => info!("{pod}: found"),
                ChangeKind::Changed => info!("{pod}: changed"),
            }
        }
        self.known = self
            .datapath
            .endpoints()
            .filter(|e| !e.addresses.is_empty() && !e.host_network)
            .map(|e| (e.uid.clone(), e.addresses.clone()))
            .collect();
        look
    }

    /// Compiles the snapshot and puts the outcome in force, or keeps what is in force and says why.
    fn compile(&mut self) {
        let mut compiled = self.compiler.compile(&Input {
            snapshot: &self.snapshot,
            node: &self.args.node_name,
            node_addresses: &self.node_addresses,
            found: &self.known,
            room_for_services: self.datapath.room_for_services(),
            room_for_networks: self.datapath.room_for_networks(),
            instances: &self.journal,
        });
        let near: HashSet<Address> = self.known.values().flatten().map(|ip| policy::mapped(*ip)).collect();
        // What goes leaves after what comes is written: not all of the room is used.
        compiled.fit(self.datapath.room_for_addresses() / 16 * 15, &self.args.node_name, |address| near.contains(address));
        let now = now(&mut self.datapath);
        let directory = self.journal.refresh(&self.snapshot, &self.known, &compiled.rules, now.boot_ns);
        self.set_directory(directory);
        match self.datapath.apply(&compiled.tables) {
            Ok(applied) => {
                self.datapath.set_hold(self.args.posture() == Posture::Hold && !self.snapshot.policies.is_empty());
                self.warn_anew(&compiled);
                (self.refused, self.retry) = (None, None);
                self.applied_ns = now.wall_ns;
                let compiled = Arc::new(compiled);
                self.engine.set_policy(applied.epoch, compiled.clone());
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
                    error!("{why}");
                    self.notice_refused(&why);
                    self.tell_policy("refused", Some(why.clone()));
                }
                self.refused = Some(why);
            }
        }
        self.tell_endpoints();
        self.tell_ready();
    }

    /// Logs the warnings that the policy before did not have.
    fn warn_anew(&self, compiled: &Compiled) {
        let before = self.compiled.as_ref().map_or(&[][..], |c| &c.warnings);
        for warning in compiled.warnings.iter().filter(|w| !before.contains(w)) {
            warn!("{}", warning.text);
            self.notice_warning(warning);
        }
    }

    /// Tells the engine where pods are attached now.
    pub(super) fn tell_endpoints(&mut self) {
        for endpoint in self.datapath.endpoints().filter(|e| e.number != 0) {
            let Some(pod) = self.local.iter().find(|p| p.uid == endpoint.uid) else { continue };
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
            Err(e) => error!("the mode cannot be read: {e}"),
        }
    }

    fn mode_is_set(&mut self, epoch: u32) {
        if let Some(compiled) = &self.compiled {
            self.engine.set_policy(epoch, compiled.clone());
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

/// Whether a pod is this node's and still has its addresses.
fn pod_is_here(pod: &Pod, node: &str) -> bool {
    !pod.finished && pod.node.as_deref() == Some(node)
}
