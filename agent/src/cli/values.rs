//! Values on the command line: each parser answers with a sentence that says what is expected.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use prost_types::Timestamp;
use sekisho_proto::{Name, from_nanoseconds};

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

/// A duration of one or more parts: `500ms`, `30s`, `1h30m`, `2d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const WRONG: &str = "give a duration such as 500ms, 30s, 5m or 1h30m";
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        let number: u64 = rest[..digits].parse().map_err(|_| WRONG)?;
        rest = &rest[digits..];
        let letters = rest.bytes().take_while(u8::is_ascii_alphabetic).count();
        let milliseconds = match &rest[..letters] {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(WRONG.to_owned()),
        };
        rest = &rest[letters..];
        let part = number.checked_mul(milliseconds).map(Duration::from_millis).ok_or(WRONG)?;
        total = total.checked_add(part).ok_or(WRONG)?;
    }
    if total.is_zero() { Err(WRONG.to_owned()) } else { Ok(total) }
}

/// A moment: RFC 3339, or how long ago.
pub(super) fn since(text: &str) -> Result<Timestamp, String> {
    if let Ok(ago) = duration(text) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let then = now.saturating_sub(ago).as_nanos();
        return Ok(from_nanoseconds(u64::try_from(then).unwrap_or(u64::MAX)));
    }
    // The protobuf library would take a date without a zone as UTC; a person may have meant local time.
    let zoned = text.ends_with(['Z', 'z']) || text.get(19..).is_some_and(|rest| rest.contains(['+', '-']));
    if !zoned {
        return Err("give a time such as 2026-11-21T12:00:00Z, or how long ago, such as 5m".to_owned());
    }
    Timestamp::from_str(text).map_err(|_| "give a time such as 2026-11-21T12:00:00Z, or how long ago, such as 5m".to_owned())
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

/// `NAMESPACE/POD`; a pod alone is one of namespace `default`.
pub(super) fn pod(text: &str) -> Result<String, String> {
    let parts: Vec<&str> = text.split('/').collect();
    match parts.as_slice() {
        [name] if !name.is_empty() => Ok(format!("default/{name}")),
        [namespace, name] if !namespace.is_empty() && !name.is_empty() => Ok(text.to_owned()),
        _ => Err("give NAMESPACE/POD".to_owned()),
    }
}

/// As [`pod`]; empty where the option came without a value.
pub(super) fn pod_or_bare(text: &str) -> Result<String, String> {
    if text.is_empty() { Ok(String::new()) } else { pod(text) }
}

/// `TCP`, `UDP`, `SCTP`, `ICMP` (both families), `ICMPv4`, `ICMPv6`, or a protocol number.
pub(super) fn protocol(text: &str) -> Result<String, String> {
    const NAMES: [&str; 6] = ["TCP", "UDP", "SCTP", "ICMP", "ICMPv4", "ICMPv6"];
    let known = NAMES.iter().any(|name| name.eq_ignore_ascii_case(text)) || text.parse::<u8>().is_ok();
    if known { Ok(text.to_owned()) } else { Err(format!("give one of {}, or a protocol number", NAMES.join(", "))) }
}

/// One of an enum's names.
pub(super) fn name<E: Name + Send + Sync>() -> impl TypedValueParser<Value = E> {
    let names = PossibleValuesParser::new(E::NAMES.iter().map(|(_, name)| *name));
    names.try_map(|text| E::from_name(&text).ok_or("it is none of the names"))
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
