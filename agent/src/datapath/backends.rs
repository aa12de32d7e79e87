//! Open flows to Services are judged by the backend that they use.
//!
//! At a pod's interface such a flow bears the Service's address; which backend it was given, the node's connection tracking knows.
//! Before an epoch makes kernel programs judge again, the agent compares: what would the tables say of the Service, and what of the
//! backend? Where the second decides otherwise, or denies, the flow's backend is written beside it, and the programs judge that. So
//! a Service whose backends change ends no flow, and a policy that shuts a flow's own backend out ends it, whatever the others are.
//! The programs themselves keep a flow whose backend nobody knows for as long as its pod's rules are the same.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use sekisho_core::flows::Table as Kind;
use sekisho_core::layout::{Address, AddressEntry, Backend, EGRESS, Flow, FlowKey4, FlowKey6, Rules, Vip, VipKey, flow_flags, verdict};
use sekisho_core::layout::{PortKey, RuleKey, endpoint_flags};
use sekisho_core::verdict::{Question, judge};

use super::conntrack::Conntrack;
use super::endpoint::boundary;
use super::sweep::FlowKey as _;
use super::table::Buffers;
use super::{Datapath, policy};

/// How long connection tracking is asked about flows whose backend is not known.
const PATIENCE: Duration = Duration::from_millis(300);

/// An open flow to a Service.
#[derive(Clone, Copy, Debug)]
pub struct ServiceFlow {
    /// The flow, IPv4 remote v4-mapped.
    pub key: FlowKey6,
    /// When it began, as the kernel says.
    pub born_ns: u64,
    /// The pod's address.
    pub local: IpAddr,
    /// Policy set that judged it.
    pub set: u32,
    /// It was stopped. What it used is not forgotten for that, or the next epoch would let it go on.
    pub denied: bool,
    /// What stands behind the Service's address for it, where that is known.
    pub backend: Option<(IpAddr, u16)>,
}

impl ServiceFlow {
    /// The flow under `key`, if it is one to a Service.
    pub fn of(key: &FlowKey6, flow: &Flow, backend: Option<(IpAddr, u16)>) -> Option<Self> {
        let to_service = flow.flags & flow_flags::SERVICE != 0 && flow.opened == EGRESS;
        to_service.then(|| Self {
            key: *key,
            born_ns: flow.born_ns,
            local: IpAddr::from(flow.local).to_canonical(),
            set: flow.set,
            denied: flow.verdict == verdict::DENIED,
            backend,
        })
    }
}

/// Tables that are asked as the kernel asks them.
struct Asked<'a> {
    tables: &'a policy::Tables,
    /// Prefix lengths of networks, longest first.
    lengths: Vec<u8>,
}

impl<'a> Asked<'a> {
    fn of(tables: &'a policy::Tables) -> Self {
        let mut lengths: Vec<u8> = tables.cidrs.keys().map(|(_, length)| *length).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        Self { tables, lengths }
    }
}

impl sekisho_core::verdict::Tables for Asked<'_> {
    fn address(&self, address: &Address) -> Option<AddressEntry> {
        self.tables.addresses.get(address).copied()
    }

    fn cidr(&self, address: &Address) -> Option<u32> {
        let bits = u128::from_be_bytes(*address);
        let network = |length: u8| (bits & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)).to_be_bytes();
        self.lengths.iter().find_map(|length| self.tables.cidrs.get(&(network(*length), *length))).copied()
    }

    fn vip(&self, address: &Address, port: u16, protocol: u8) -> Option<Vip> {
        self.tables.vips.get(&VipKey { address: *address, port, protocol, pad: 0 }).copied()
    }

    fn rules(&self, set: u32, class: u32, direction: u8) -> Option<Rules> {
        self.tables.rules.get(&RuleKey { set, class, direction: u32::from(direction) }).copied()
    }

    fn port(&self, table: u32, protocol: u8, port: u16) -> Option<u32> {
        let prefix = |bits: u8| if bits == 0 { 0 } else { port >> (16 - u32::from(bits)) << (16 - u32::from(bits)) };
        let found = |bits: u8| {
            let key = PortKey { table: table.to_be_bytes(), protocol, port: prefix(bits).to_be_bytes() };
            self.tables.ports.get(&(key, 40 + bits))
        };
        (0..=16).rev().find_map(found).copied()
    }
}

impl Datapath {
    /// Open flows to Services whose backends the caller knows; for the next [`apply`](Datapath::apply).
    pub fn note_service_flows(&mut self, flows: Vec<ServiceFlow>) {
        self.service_flows = flows;
    }

    /// Writes the backends of the flows that are to be judged by them from the next epoch on.
    pub(super) fn write_backends(&mut self, first: bool) -> std::io::Result<()> {
        let flows = self.open_service_flows()?;
        if first {
            self.backends = self.maps.backends.entries()?.into_iter().collect();
        }
        let wanted = self.by_backend(&flows);
        // First what goes, for what comes may need its room.
        let gone: Vec<FlowKey6> = self.backends.keys().filter(|key| !wanted.contains_key(*key)).copied().collect();
        for key in gone {
            self.maps.backends.remove(&key)?;
            self.backends.remove(&key);
        }
        for (key, backend) in wanted {
            if self.backends.get(&key) == Some(&backend) {
                continue;
            }
            if let Err(error) = self.maps.backends.put(&key, &backend) {
                tracing::warn!(%error, "BACKENDS has no room: some open flows to Services are judged by all backends");
                break;
            }
            self.backends.insert(key, backend);
        }
        Ok(())
    }

    /// Which of these flows have to be judged by their backend, and which it is.
    fn by_backend(&self, flows: &[ServiceFlow]) -> HashMap<FlowKey6, Backend> {
        let mut wanted = HashMap::new();
        if flows.is_empty() {
            return wanted;
        }
        let asked = Asked::of(&self.tables);
        let endpoints: HashMap<u32, _> = self
            .endpoints
            .values()
            .filter_map(|endpoint| {
                let policy = self.tables.endpoints.get(&endpoint.info.uid).filter(|policy| policy.isolated[usize::from(EGRESS)])?;
                Some((endpoint.info.number, (policy, &endpoint.info.addresses)))
            })
            .collect();
        let (mut conntrack, began) = (None, Instant::now());
        for flow in flows {
            let Some((policy, own)) = endpoints.get(&flow.key.endpoint) else { continue };
            let allowed = |remote: &Address, port: u16| {
                let question = Question {
                    set: policy.set,
                    instance: policy.instance,
                    endpoint_flags: endpoint_flags::ISOLATED_EGRESS,
                    remote,
                    protocol: flow.key.protocol,
                    port,
                    direction: EGRESS,
                    own_node: false,
                };
                judge(&asked, &question).allowed != 0
            };
            let service = allowed(&flow.key.remote, flow.key.remote_port);
            let known = self.backends.get(&flow.key).filter(|backend| backend.born_ns == flow.born_ns);
            let known = known.map(|backend| (IpAddr::from(backend.address).to_canonical(), backend.port));
            let backend = flow.backend.or(known).or_else(|| {
                // Other rules than those that let it open may shut out its own backend and allow those of today.
                let ask = (!service || flow.set != policy.set) && !flow.denied && began.elapsed() < PATIENCE;
                ask.then(|| behind(&mut conntrack, flow)).flatten()
            });
            let Some((address, port)) = backend else { continue };
            let remote = boundary(address);
            if !service || !(own.contains(&address) || allowed(&remote, port)) {
                wanted.insert(flow.key, Backend { born_ns: flow.born_ns, address: remote, port, pad: [0; 6] });
            }
        }
        wanted
    }

    /// Open flows to Services, with the backends that the caller knows. The kernel's tables alone have every flow: an agent knows
    /// those of an earlier one, and the youngest, only after a while. Nothing is read where no pod's egress is restricted.
    fn open_service_flows(&mut self) -> std::io::Result<Vec<ServiceFlow>> {
        let mut flows = Vec::new();
        let known = std::mem::take(&mut self.service_flows);
        let restricts = self.tables.endpoints.values().any(|policy| policy.isolated[usize::from(EGRESS)]);
        if !restricts || self.tables.vips.is_empty() {
            return Ok(flows);
        }
        let known: HashMap<(FlowKey6, u64), _> = known.into_iter().map(|flow| ((flow.key, flow.born_ns), flow.backend)).collect();
        let mut four: Buffers<FlowKey4, Flow> = Buffers::of(2048);
        let mut six: Buffers<FlowKey6, Flow> = Buffers::of(2048);
        for kind in [Kind::Embryonic, Kind::Established, Kind::Answered] {
            self.maps.flows4(kind).read(&mut four, &mut |keys, values| {
                flows.extend(keys.iter().zip(values).filter_map(|(key, flow)| ServiceFlow::of(&key.neutral(), flow, None)));
            })?;
            self.maps.flows6(kind).read(&mut six, &mut |keys, values| {
                flows.extend(keys.iter().zip(values).filter_map(|(key, flow)| ServiceFlow::of(key, flow, None)));
            })?;
        }
        for flow in &mut flows {
            flow.backend = known.get(&(flow.key, flow.born_ns)).copied().flatten();
        }
        Ok(flows)
    }
}

/// What connection tracking says of a flow. It is opened for the first question; where it cannot be, it knows nothing.
fn behind(conntrack: &mut Option<Conntrack>, flow: &ServiceFlow) -> Option<(IpAddr, u16)> {
    if conntrack.is_none() {
        *conntrack = Conntrack::open().ok();
    }
    let destination = (IpAddr::from(flow.key.remote).to_canonical(), flow.key.remote_port);
    let source = (flow.local, flow.key.local_port);
    let (_, backend) = conntrack.as_mut()?.behind(flow.key.protocol, source, destination).ok()??;
    Some(backend)
}
