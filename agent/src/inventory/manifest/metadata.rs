//! `metadata` and the small types that several kinds share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::names;
use super::value::{At, FieldError};
use crate::inventory::Labels;

/// What is read of `metadata`.
pub(in crate::inventory) struct Metadata {
    /// `name`.
    pub(in crate::inventory) name: Arc<str>,
    /// `namespace`; `default` where none is given. Means nothing for cluster-scoped kinds.
    pub(in crate::inventory) namespace: Arc<str>,
    /// `uid`.
    pub(in crate::inventory) uid: Option<Arc<str>>,
    /// `labels`.
    pub(in crate::inventory) labels: Labels,
    /// The owner that controls it: `(kind, name)`.
    pub(in crate::inventory) owner: Option<(Arc<str>, Arc<str>)>,
}

impl Metadata {
    /// Reads `metadata` of `object`.
    pub(in crate::inventory) fn of(object: &At<'_>) -> Result<Self, FieldError> {
        let at = object.field("metadata");
        at.mapping()?;
        let name_at = at.field("name");
        let name = name_at.text()?.ok_or_else(|| name_at.error("required"))?;
        checked(&name_at, &name, names::dns_subdomain)?;
        let namespace_at = at.field("namespace");
        let namespace = namespace_at.text()?.unwrap_or_else(|| "default".into());
        checked(&namespace_at, &namespace, names::dns_label)?;
        string_map(&at.field("annotations"), |_, _, _| Ok(()))?;
        Ok(Self { name, namespace, uid: at.field("uid").text()?, labels: labels(&at.field("labels"))?, owner: owner(&at)? })
    }
}

/// Refuses `text` if `check` does.
pub(in crate::inventory) fn checked(at: &At<'_>, text: &str, check: fn(&str) -> names::Check) -> Result<(), FieldError> {
    check(text).map_err(|what| at.error(format_args!("{:?} {what}", super::value::clip(text))))
}

/// A mapping of strings, of which `check` has nothing to say against any.
fn string_map(
    at: &At<'_>,
    check: impl Fn(&At<'_>, &str, &str) -> Result<(), FieldError>,
) -> Result<BTreeMap<Arc<str>, Arc<str>>, FieldError> {
    let mut map = BTreeMap::new();
    for (key, here) in at.fields()? {
        // `null` stands for "" as a map's value.
        let value = here.string()?.unwrap_or_default();
        check(&here, key, &value)?;
        map.insert(key.clone(), value);
    }
    Ok(map)
}

/// `labels`, checked.
pub(in crate::inventory) fn labels(at: &At<'_>) -> Result<Labels, FieldError> {
    let map = string_map(at, |here, key, value| {
        checked(here, key, names::label_key)?;
        checked(here, value, names::label_value)
    })?;
    Ok(Arc::new(map))
}

/// The owner with `controller: true`; the API server admits one at most.
fn owner(metadata: &At<'_>) -> Result<Option<(Arc<str>, Arc<str>)>, FieldError> {
    let mut controller = None;
    for owner in metadata.field("ownerReferences").items()? {
        owner.mapping()?;
        let (kind, name) = (owner.field("kind").text()?, owner.field("name").text()?);
        let (Some(kind), Some(name)) = (kind, name) else { continue };
        if owner.field("controller").bool()? == Some(true) {
            controller.get_or_insert((kind, name));
        }
    }
    Ok(controller)
}

/// A port number, 1 to 65535; `None` where nothing is.
pub(in crate::inventory) fn port(at: &At<'_>) -> Result<Option<u16>, FieldError> {
    let Some(n) = at.int()? else { return Ok(None) };
    match u16::try_from(n) {
        Ok(port) if port > 0 => Ok(Some(port)),
        _ => Err(at.error(format_args!("{n} is no port: must be 1 to 65535"))),
    }
}

/// `protocol` as an IP protocol number; TCP where nothing is.
pub(in crate::inventory) fn protocol(at: &At<'_>) -> Result<u8, FieldError> {
    match at.string()?.as_deref() {
        None | Some("TCP") => Ok(6),
        Some("UDP") => Ok(17),
        Some("SCTP") => Ok(132),
        Some(_) => Err(at.expected("TCP, UDP or SCTP")),
    }
}

/// An address.
pub(in crate::inventory) fn address(at: &At<'_>) -> Result<Option<IpAddr>, FieldError> {
    let Some(text) = at.text()? else { return Ok(None) };
    let address: IpAddr = text.parse().map_err(|_| at.expected("an IP address"))?;
    Ok(Some(address.to_canonical()))
}

/// Addresses of a list of strings, each once.
pub(in crate::inventory) fn addresses(at: &At<'_>, into: &mut Vec<IpAddr>) -> Result<(), FieldError> {
    for item in at.items()? {
        push(into, address(&item)?);
    }
    Ok(())
}

/// Adds what is there and not yet in the list.
pub(in crate::inventory) fn push(into: &mut Vec<IpAddr>, address: Option<IpAddr>) {
    if let Some(address) = address.filter(|a| !into.contains(a)) {
        into.push(address);
    }
}
