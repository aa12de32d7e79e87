//! The ports that a pod declares: those of its containers, named or not, those that its probes use, and the annotation
//! `prometheus.io/port`.
//!
//! No verdict depends on them; detections use them to tell a client of a declared port from a scan. So what cannot be read here is
//! passed over: a pod is never refused for it.

use super::value::{At, FieldError, Value};

const TCP: u8 = 6;
const PROBES: [&str; 3] = ["livenessProbe", "readinessProbe", "startupProbe"];

/// `(port, protocol number)`, sorted, each once.
pub(super) fn serves(spec: &At<'_>, annotations: &At<'_>) -> Result<Box<[(u16, u8)]>, FieldError> {
    let mut ports = Vec::new();
    for list in ["containers", "initContainers"] {
        for container in spec.field(list).items()? {
            // An init container that is no sidecar has ended when the pod serves.
            let ends = list == "initContainers" && container.field("restartPolicy").value() != &Value::Text("Always".into());
            if !ends {
                container_ports(&container, &mut ports);
            }
        }
    }
    for text in annotations.field("prometheus.io/port").text().ok().flatten().iter().flat_map(|text| text.split(',')) {
        ports.extend(text.trim().parse().ok().map(|port: u16| (port, TCP)));
    }
    ports.retain(|(port, _)| *port != 0);
    ports.sort_unstable();
    ports.dedup();
    Ok(ports.into())
}

fn container_ports(container: &At<'_>, ports: &mut Vec<(u16, u8)>) {
    let declared = container.field("ports");
    for item in declared.items().into_iter().flatten() {
        let protocol = super::metadata::protocol(&item.field("protocol")).unwrap_or(TCP);
        ports.extend(number(&item.field("containerPort")).map(|port| (port, protocol)));
    }
    for probe in PROBES {
        let probe = container.field(probe);
        // A probe by name uses a container port, which is in the list already.
        for how in ["httpGet", "tcpSocket", "grpc"] {
            ports.extend(number(&probe.field(how).field("port")).map(|port| (port, TCP)));
        }
    }
}

fn number(at: &At<'_>) -> Option<u16> {
    u16::try_from(at.int().ok()??).ok()
}
