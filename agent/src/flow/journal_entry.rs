//! How the journal's entries are written: compact JSON of at most [`MAX`] bytes, or less of it where more does not fit.
//!
//! What is left out first is what a record can best do without: labels, then service account, then node, then addresses, then the owner.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::record::{Identity, Owner};
use crate::inventory::Workload;
use crate::policy::RuleRef;

/// Size of a value in the store.
pub(super) const MAX: usize = 510;

/// The high byte of a key says what the entry is; the rest is its number.
pub(super) mod kind {
    pub(in crate::flow) const META: u8 = 0;
    pub(in crate::flow) const IDENTITY: u8 = 1;
    pub(in crate::flow) const RULE: u8 = 2;
    pub(in crate::flow) const RUN: u8 = 3;
    pub(in crate::flow) const PAGE: u8 = 4;
}

/// The store's key of an entry.
pub(super) const fn key(kind: u8, number: u32) -> u64 {
    (kind as u64) << 56 | number as u64
}

/// `(kind, number)` of a store's key.
pub(super) fn parse_key(key: u64) -> (u8, u32) {
    #[expect(clippy::cast_possible_truncation, reason = "the two fields that key() joined")]
    let parts = ((key >> 56) as u8, key as u32);
    parts
}

/// An identity as it is written down, without its number.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredIdentity {
    /// `p`od, `s`ervice, `n`ode.
    t: char,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    ns: Arc<str>,
    n: Arc<str>,
    #[serde(default, skip_serializing_if = "str::is_empty")]
    u: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    w: Option<(Arc<str>, Arc<str>)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sa: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    on: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    ip: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    l: BTreeMap<Arc<str>, Arc<str>>,
}

impl StoredIdentity {
    /// What is to be written of an identity.
    pub fn of(identity: &Identity) -> Self {
        let empty: Arc<str> = Arc::from("");
        let mut stored = Self {
            t: 'n',
            ns: empty.clone(),
            n: empty.clone(),
            u: empty,
            w: None,
            sa: None,
            on: None,
            ip: identity.ips.clone(),
            id: identity.number,
            l: BTreeMap::new(),
        };
        match &identity.owner {
            Owner::Pod { namespace, name, uid, labels, workload, service_account, node } => {
                stored.t = 'p';
                stored.ns = namespace.clone();
                stored.n = name.clone();
                stored.u = uid.clone();
                stored.w = Some((workload.kind.clone(), workload.name.clone()));
                stored.sa.clone_from(service_account);
                stored.on.clone_from(node);
                stored.l = (**labels).clone();
            }
            Owner::Service { namespace, name, port } => {
                stored.t = 's';
                stored.ns = namespace.clone();
                stored.n = name.clone();
                stored.u = port.clone();
            }
            Owner::Node { name } => stored.n = name.clone(),
        }
        stored
    }

    /// The identity with its number; `None` of a kind that this version does not know.
    pub fn into_identity(self, instance: u32) -> Option<Identity> {
        let owner = match self.t {
            'p' => Owner::Pod {
                workload: match self.w {
                    Some((kind, name)) => Workload { kind, name },
                    None => Workload { kind: Arc::from("Pod"), name: self.n.clone() },
                },
                namespace: self.ns,
                name: self.n,
                uid: self.u,
                labels: Arc::new(self.l),
                service_account: self.sa,
                node: self.on,
            },
            's' => Owner::Service { namespace: self.ns, name: self.n, port: self.u },
            'n' => Owner::Node { name: self.n },
            _ => return None,
        };
        Some(Identity { instance, owner, ips: self.ip, number: self.id })
    }
}

/// An identity as text that fits the store.
pub(super) fn encode_identity(identity: &Identity) -> Vec<u8> {
    let mut stored = StoredIdentity::of(identity);
    let drop_one: [fn(&mut StoredIdentity); 5] = [|s| s.l.clear(), |s| s.sa = None, |s| s.on = None, |s| s.ip.clear(), |s| s.w = None];
    let mut text = serde_json::to_vec(&stored).unwrap_or_default();
    for drop in drop_one {
        if text.len() <= MAX {
            break;
        }
        drop(&mut stored);
        text = serde_json::to_vec(&stored).unwrap_or_default();
    }
    text
}

/// An identity out of the store; `None` for what no version of ours wrote.
pub(super) fn decode_identity(instance: u32, bytes: &[u8]) -> Option<Identity> {
    serde_json::from_slice::<StoredIdentity>(trimmed(bytes)).ok()?.into_identity(instance)
}

#[derive(Serialize, Deserialize)]
struct StoredRule {
    k: Arc<str>,
    ns: Arc<str>,
    n: Arc<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    u: Option<Arc<str>>,
    d: u8,
    i: u32,
}

/// A rule's name as text that fits the store.
pub(super) fn encode_rule(rule: &RuleRef) -> Vec<u8> {
    let stored = StoredRule {
        k: Arc::from(rule.kind),
        ns: rule.namespace.clone(),
        n: rule.name.clone(),
        u: rule.uid.clone(),
        d: rule.direction,
        i: rule.index,
    };
    serde_json::to_vec(&stored).unwrap_or_default()
}

/// A rule's name out of the store.
pub(super) fn decode_rule(bytes: &[u8]) -> Option<RuleRef> {
    let stored: StoredRule = serde_json::from_slice(trimmed(bytes)).ok()?;
    let kind = match &*stored.k {
        "NetworkPolicy" => "NetworkPolicy",
        "ClusterNetworkPolicy" => "ClusterNetworkPolicy",
        _ => return None,
    };
    Some(RuleRef { kind, namespace: stored.ns, name: stored.n, uid: stored.u, direction: stored.d, index: stored.i })
}

/// What a run leaves for the next one: who it was, how far it counted, and the kernel counters at that moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RunState {
    /// UUID of the run.
    pub run: String,
    /// Last sequence number that is known to have been used.
    pub seq: u64,
    /// Kernel counters by slot.
    pub counters: Vec<u64>,
}

impl RunState {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![u8::try_from(self.run.len()).unwrap_or(0)];
        bytes.extend_from_slice(&self.run.as_bytes()[..usize::from(bytes[0])]);
        bytes.extend_from_slice(&self.seq.to_le_bytes());
        // A count in front: the store pads with zeros, which would read as more counters.
        bytes.push(u8::try_from(self.counters.len()).unwrap_or(0));
        for counter in &self.counters {
            if bytes.len() + 8 > MAX {
                break;
            }
            bytes.extend_from_slice(&counter.to_le_bytes());
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&len, rest) = bytes.split_first()?;
        let (run, rest) = rest.split_at_checked(usize::from(len))?;
        let (seq, rest) = rest.split_first_chunk::<8>()?;
        let (&count, rest) = rest.split_first()?;
        let counters = rest.as_chunks::<8>().0.iter().take(usize::from(count)).map(|c| u64::from_le_bytes(*c)).collect();
        Some(Self { run: String::from_utf8(run.to_vec()).ok()?, seq: u64::from_le_bytes(*seq), counters })
    }
}

/// JSON without the zeros with which the store fills a value.
fn trimmed(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|b| *b != 0).map_or(0, |i| i + 1);
    &bytes[..end]
}
