//! Values on the command line: each parser answers with a sentence that says what is expected.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use jiff::civil::{DateTime, Time};
use jiff::{Span, SpanRelativeTo, Zoned};
use prost_types::Timestamp;
use sekisho_proto::from_nanoseconds;

use crate::api::End;
use crate::inventory::Selector;

/// `--last N` or `--last all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Last {
    All,
    Count(u64),
}

pub(super) fn last(text: &str) -> Result<Last, String> {
    if text.eq_ignore_ascii_case("all") {
        return Ok(Last::All);
    }
    text.parse().map(Last::Count).map_err(|_| "give a number of records, or `all`".to_owned())
}

/// A size with a unit: `64M`, `256Mi`, `1G`, or plain bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || "give a size such as 64M, 256Mi or 1G".to_owned();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.to_ascii_lowercase().trim_end_matches('b') {
        "" => 1,
        "k" => 1_000,
        "m" => 1_000_000,
        "g" => 1_000_000_000,
        "ki" => 1 << 10,
        "mi" => 1 << 20,
        "gi" => 1 << 30,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(factor).filter(|size| *size > 0).ok_or_else(wrong)
}

/// A size that the kernel's maps can live with.
pub(super) fn budget(text: &str) -> Result<u64, String> {
    let least = crate::datapath::LEAST_BUDGET;
    let size = size(text)?;
    if size < least { Err(format!("give at least {}Mi, or the tables hold too few flows to be of use", least >> 20)) } else { Ok(size) }
}

/// A level, or levels by module.
pub(super) fn log_level(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("give error, warn, info, debug or trace, or levels by module as in info,sekisho::datapath=debug".to_owned()),
    }
}

/// A duration: `500ms`, `30s`, `1h30m`, `2d`, `5 minutes`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const WRONG: &str = "give a duration such as 500ms, 30s, 5m or 1h30m";
    let span: Span = text.parse().map_err(|_| WRONG)?;
    let length = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| WRONG)?;
    let length = Duration::try_from(length).map_err(|_| WRONG)?;
    if length.is_zero() { Err(WRONG.to_owned()) } else { Ok(length) }
}

/// A moment: how long ago, or a time. A time without a zone is one of this machine's zone.
pub(super) fn moment(text: &str) -> Result<Timestamp, String> {
    moment_at(text, &Zoned::now())
}

/// The same at a given time.
pub(super) fn moment_at(text: &str, now: &Zoned) -> Result<Timestamp, String> {
    const WRONG: &str =
        "give how long ago, such as 5m, or a time such as 2026-11-21T12:00:00Z, 2026-11-21 12:00 (local time) or 12:00 (today)";
    let time = match duration(text) {
        Ok(ago) => now.timestamp().checked_sub(ago).map_err(|_| WRONG)?,
        Err(_) => absolute(text, now).ok_or(WRONG)?,
    };
    let nanoseconds = u64::try_from(time.as_nanosecond()).map_err(|_| WRONG)?;
    Ok(from_nanoseconds(nanoseconds))
}

fn absolute(text: &str, now: &Zoned) -> Option<jiff::Timestamp> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Some(time);
    }
    let local = match (text.parse::<DateTime>(), text.parse::<Time>()) {
        (Ok(date_and_time), _) => date_and_time,
        (_, Ok(time)) => now.date().to_datetime(time),
        _ => return None,
    };
    local.to_zoned(now.time_zone().clone()).ok().map(|zoned| zoned.timestamp())
}

/// An address and port.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    let text = text.strip_prefix("localhost:").map_or_else(|| text.to_owned(), |port| format!("127.0.0.1:{port}"));
    text.parse().map_err(|_| "give an address and a port, such as 127.0.0.1:4317".to_owned())
}

/// An address or a CIDR.
pub(super) fn network(text: &str) -> Result<String, String> {
    let known = text.parse::<IpAddr>().is_ok() || text.parse::<ipnet::IpNet>().is_ok();
    if known { Ok(text.to_owned()) } else { Err("give an address or a CIDR, such as 10.1.0.3 or 10.1.0.0/16".to_owned()) }
}

/// `NAMESPACE/POD`, or a part of it: `NAMESPACE/`, `/POD`, `POD`.
pub(super) fn pod(text: &str) -> Result<String, String> {
    in_namespace(text)
        .ok_or_else(|| "give NAMESPACE/POD, where POD may be the beginning of a name; NAMESPACE/ is every pod in it".to_owned())
}

/// An end of a connection: an address, `NAMESPACE/POD`, or a pod alone.
pub(super) fn end(text: &str) -> Result<String, String> {
    let bare = !text.is_empty() && !text.contains('/');
    if bare || text.parse::<End>().is_ok() { Ok(text.to_owned()) } else { Err("give NAMESPACE/POD or an address".to_owned()) }
}

/// As [`pod`]; empty where the option came without a value.
pub(super) fn pod_or_bare(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { pod(text) }
}

/// The name of a Service or policy in its namespace.
pub(super) fn name_of(text: &str) -> Result<String, String> {
    in_namespace(text).ok_or_else(|| "give NAMESPACE/NAME".to_owned())
}

fn in_namespace(text: &str) -> Option<String> {
    let name = text.split_once('/').map_or(text, |(_, name)| name);
    (!text.is_empty() && text != "/" && !name.contains('/')).then(|| text.to_owned())
}

/// Kinds of workloads, with the short names that kubectl knows.
const WORKLOADS: [(&str, &[&str]); 8] = [
    ("Deployment", &["deployments", "deploy"]),
    ("StatefulSet", &["statefulsets", "sts"]),
    ("DaemonSet", &["daemonsets", "ds"]),
    ("ReplicaSet", &["replicasets", "rs"]),
    ("ReplicationController", &["replicationcontrollers", "rc"]),
    ("Job", &["jobs"]),
    ("CronJob", &["cronjobs", "cj"]),
    ("Pod", &["pods", "po"]),
];

/// `NAME`, `KIND/NAME`, `NAMESPACE/NAME` or `NAMESPACE/KIND/NAME`, written out as the last with what is missing left empty.
pub(super) fn workload(text: &str) -> Result<String, String> {
    let known = |kind: &str| {
        let is = |(name, others): &&(&str, &[&str])| name.eq_ignore_ascii_case(kind) || others.iter().any(|o| o.eq_ignore_ascii_case(kind));
        WORKLOADS.iter().find(is).map(|(name, _)| *name)
    };
    let parts: Vec<&str> = text.split('/').collect();
    let (namespace, kind, name) = match parts.as_slice() {
        [name] => ("", "", *name),
        [first, name] => known(first).map_or((*first, "", *name), |kind| ("", kind, *name)),
        // A custom resource may own pods too.
        [namespace, kind, name] => (*namespace, known(kind).unwrap_or(kind), *name),
        _ => ("", "", ""),
    };
    if name.is_empty() {
        return Err("give a workload as NAME, KIND/NAME, NAMESPACE/NAME or NAMESPACE/KIND/NAME, such as deployment/web".to_owned());
    }
    Ok(format!("{namespace}/{kind}/{name}"))
}

/// A label selector as kubectl takes it.
pub(super) fn selector(text: &str) -> Result<String, String> {
    text.parse::<Selector>().map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// A port.
pub(super) fn port(text: &str) -> Result<String, String> {
    match text.parse::<u16>() {
        Ok(1..) => Ok(text.to_owned()),
        _ => Err(format!("`{text}` is not a port: give a number from 1 to 65535")),
    }
}

/// `TCP`, `UDP`, `SCTP`, `ICMP` (both families), `ICMPv4`, `ICMPv6`, or a protocol number.
pub(super) fn protocol(text: &str) -> Result<String, String> {
    const NAMES: [&str; 6] = ["TCP", "UDP", "SCTP", "ICMP", "ICMPv4", "ICMPv6"];
    let known = NAMES.iter().any(|name| name.eq_ignore_ascii_case(text)) || text.parse::<u8>().is_ok();
    if known { Ok(text.to_owned()) } else { Err(format!("give one of {}, or a protocol number", NAMES.join(", "))) }
}

/// The port and protocol of `explain`: `80`, `80/TCP`, `53/UDP`, or `ICMP` without a port.
pub(super) fn port_and_protocol(text: &str) -> Result<(u16, String), String> {
    if text.to_ascii_uppercase().starts_with("ICMP") {
        return protocol(text).map(|protocol| (0, protocol));
    }
    let (port, protocol) = text.split_once('/').unwrap_or((text, "TCP"));
    if !["TCP", "UDP", "SCTP"].iter().any(|known| known.eq_ignore_ascii_case(protocol)) {
        return Err(format!("`{protocol}` is no protocol with ports: give PORT/TCP, PORT/UDP or PORT/SCTP"));
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok((port, protocol.to_ascii_uppercase())),
        Ok(_) => Err("port 0 does not exist".to_owned()),
        Err(_) if port.starts_with(|c: char| c.is_ascii_alphabetic()) => {
            Err(format!("`{port}` is a name; give the port's number, such as 80/TCP, since pods may number a named port differently"))
        }
        Err(_) => Err("give a port from 1 to 65535 and a protocol, such as 80/TCP".to_owned()),
    }
}
