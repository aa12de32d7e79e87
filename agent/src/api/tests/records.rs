//! Records to filter and to stream.

use std::net::IpAddr;
use std::sync::Arc;

use sekisho_core::layout::{EGRESS, Flow, FlowKey6, INGRESS, verdict};
use sekisho_proto as proto;

use crate::flow::{Body, FlowRecord, Identity, Moment, Owner};
use crate::inventory::{Labels, Workload};

pub(super) fn mapped(address: &str) -> [u8; 16] {
    match address.parse::<IpAddr>().expect("an address") {
        IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
        IpAddr::V6(address) => address.octets(),
    }
}

pub(super) fn pod(namespace: &str, name: &str) -> Arc<Identity> {
    Arc::new(Identity {
        instance: 1,
        owner: Owner::Pod {
            namespace: namespace.into(),
            name: name.into(),
            uid: format!("uid-{name}").into(),
            labels: Labels::default(),
            workload: Workload { kind: "Pod".into(), name: name.into() },
            service_account: None,
            node: None,
        },
        ips: Vec::new(),
        number: None,
    })
}

/// `shop/web` at 10.1.0.2:40000 opens TCP to `shop/db` at 10.1.0.3:5432, seen at the source, allowed.
pub(super) fn flow() -> FlowRecord {
    let key =
        FlowKey6 { endpoint: 7, remote: mapped("10.1.0.3"), local_port: 40_000, remote_port: 5432, protocol: 6, cause: 0, pad: [0; 2] };
    FlowRecord {
        moment: Moment::Start,
        flow_id: 1,
        key,
        family: 4,
        flow: Flow { local: mapped("10.1.0.2"), opened: EGRESS, verdict: verdict::ALLOWED, ..Flow::ZERO },
        start_ns: 1,
        last_ns: 1,
        delta: None,
        local: Some(pod("shop", "web")),
        remote: Some(pod("shop", "db")),
        late_identity: false,
        translated: None,
        decision: None,
        process: None,
        listener: None,
        interface: None,
    }
}

/// The same flow, seen at `shop/db` and denied.
pub(super) fn denied() -> FlowRecord {
    let seen = flow();
    FlowRecord {
        key: FlowKey6 { remote: mapped("10.1.0.2"), local_port: 5432, remote_port: 40_000, ..seen.key },
        flow: Flow { local: mapped("10.1.0.3"), opened: INGRESS, verdict: verdict::DENIED, reason: 2, ..Flow::ZERO },
        local: seen.remote.clone(),
        remote: seen.local.clone(),
        ..seen
    }
}

pub(super) fn body(flow: FlowRecord) -> Body {
    Body::Flow(Arc::new(flow))
}

pub(super) fn alert() -> Body {
    let peer = |name: &str, ip: &str, port| proto::AlertPeer {
        namespace: Some("shop".into()),
        pod: Some(name.into()),
        ip: Some(ip.into()),
        port,
        ..Default::default()
    };
    Body::Alert(Arc::new(proto::Alert {
        id: "a1".into(),
        rule: "scan.vertical".into(),
        severity: "high".into(),
        source: Some(peer("stranger", "10.1.0.9", None)),
        targets: vec![peer("db", "10.1.0.3", Some(22))],
        evidence: Some(proto::Evidence { ports: vec![22, 23], ..Default::default() }),
        ..Default::default()
    }))
}

pub(super) fn ledger() -> Body {
    Body::Ledger(Arc::default())
}
