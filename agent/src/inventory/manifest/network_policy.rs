//! NetworkPolicy as the API server takes it: strict on fields, with its defaults and its validation
//! (`pkg/apis/networking/validation`). What it would refuse is refused here, and nothing else.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};

use super::metadata::{Metadata, checked, labels, port, protocol};
use super::names;
use super::value::{At, FieldError, Value};
use crate::inventory::{NetworkPolicy, PolicyPeer, PolicyPort, PolicyRule, PortMatch, Requirement, Selector};

const METADATA: [&str; 15] = [
    "name",
    "generateName",
    "namespace",
    "selfLink",
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
    "managedFields",
];

/// Reads a NetworkPolicy.
pub(in crate::inventory) fn decode(at: &At<'_>) -> Result<NetworkPolicy, FieldError> {
    // `status` was part of the kind for a few releases, and dumps have it.
    at.only(&["apiVersion", "kind", "metadata", "spec", "status"])?;
    at.field("metadata").only(&METADATA)?;
    let metadata = Metadata::of(at)?;
    let spec = at.field("spec");
    spec.only(&["podSelector", "ingress", "egress", "policyTypes"])?;
    let ingress = rules(&spec.field("ingress"), "from")?;
    let egress = rules(&spec.field("egress"), "to")?;
    let (isolates_ingress, isolates_egress) = policy_types(&spec.field("policyTypes"), !egress.is_empty())?;
    Ok(NetworkPolicy {
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        pod_selector: selector(&spec.field("podSelector"))?,
        ingress: isolates_ingress.then_some(ingress),
        egress: isolates_egress.then_some(egress),
    })
}

/// `(Ingress, Egress)`. Without a list: Ingress, and Egress if there is an egress rule.
fn policy_types(at: &At<'_>, has_egress: bool) -> Result<(bool, bool), FieldError> {
    let (mut ingress, mut egress, mut count) = (false, false, 0);
    for item in at.items()? {
        count += 1;
        match item.string()?.as_deref() {
            Some("Ingress") => ingress = true,
            Some("Egress") => egress = true,
            _ => return Err(item.expected("Ingress or Egress")),
        }
    }
    match count {
        0 => Ok((true, has_egress)),
        1 | 2 => Ok((ingress, egress)),
        _ => Err(at.error("may not have more than two policyTypes")),
    }
}

fn rules(at: &At<'_>, peers: &str) -> Result<Vec<PolicyRule>, FieldError> {
    at.items()?
        .map(|rule| {
            rule.only(&["ports", peers])?;
            Ok(PolicyRule {
                ports: rule.field("ports").items()?.map(|p| policy_port(&p)).collect::<Result<_, _>>()?,
                peers: rule.field(peers).items()?.map(|p| peer(&p)).collect::<Result<_, _>>()?,
            })
        })
        .collect()
}

fn policy_port(at: &At<'_>) -> Result<PolicyPort, FieldError> {
    at.only(&["protocol", "port", "endPort"])?;
    let protocol = protocol(&at.field("protocol"))?;
    let (port_at, end_at) = (at.field("port"), at.field("endPort"));
    let end = end_at.int()?;
    let matched = match port_at.value() {
        Value::Null if end.is_some() => return Err(end_at.error("may not be given without port")),
        Value::Null => PortMatch::All,
        Value::Text(_) if end.is_some() => return Err(end_at.error("may not be given where port is a name")),
        Value::Text(name) => {
            checked(&port_at, name, names::port_name)?;
            PortMatch::Named(name.clone())
        }
        Value::Int(_) => {
            let first = port(&port_at)?.unwrap_or_default();
            let last = match end {
                Some(last) if last < i64::from(first) => {
                    return Err(end_at.error(format_args!("{last} is below port {first}")));
                }
                _ => port(&end_at)?.unwrap_or(first),
            };
            PortMatch::Range(first, last)
        }
        _ => return Err(port_at.expected("a port number or a port's name")),
    };
    Ok(PolicyPort { protocol, port: matched })
}

fn peer(at: &At<'_>) -> Result<PolicyPeer, FieldError> {
    at.only(&["podSelector", "namespaceSelector", "ipBlock"])?;
    let (pods, namespaces, block) = (at.field("podSelector"), at.field("namespaceSelector"), at.field("ipBlock"));
    let selects = pods.present() || namespaces.present();
    if block.present() {
        if selects {
            return Err(at.error("may not have both ipBlock and a selector"));
        }
        return ip_block(&block);
    }
    if !selects {
        return Err(at.error("must have a peer: podSelector, namespaceSelector or ipBlock"));
    }
    let optional = |at: &At<'_>| at.present().then(|| selector(at)).transpose();
    Ok(PolicyPeer::Pods { namespaces: optional(&namespaces)?, pods: optional(&pods)? })
}

fn ip_block(at: &At<'_>) -> Result<PolicyPeer, FieldError> {
    at.only(&["cidr", "except"])?;
    let cidr_at = at.field("cidr");
    let cidr = cidr(&cidr_at)?;
    let mut except = Vec::new();
    for item in at.field("except").items()? {
        let inner = self::cidr(&item)?;
        if !cidr.contains(&inner) || cidr.prefix_len() >= inner.prefix_len() {
            return Err(item.error(format_args!("{inner} must be a strict subset of cidr {cidr}")));
        }
        except.push(inner);
    }
    except.sort_unstable();
    except.dedup();
    Ok(PolicyPeer::Block { cidr, except })
}

/// A CIDR; host bits are dropped and v4-mapped ones become IPv4, as Go's parser does.
fn cidr(at: &At<'_>) -> Result<IpNet, FieldError> {
    let text = at.text()?.ok_or_else(|| at.error("required"))?;
    let net: IpNet = text.parse().map_err(|_| at.expected("a CIDR such as 10.0.0.0/8"))?;
    Ok(canonical(net.trunc()))
}

fn canonical(net: IpNet) -> IpNet {
    match (net.addr().to_canonical(), net.prefix_len().checked_sub(96)) {
        (IpAddr::V4(v4), Some(length)) if net.addr().is_ipv6() => Ipv4Net::new(v4, length).map_or(net, IpNet::V4),
        _ => net,
    }
}

/// A LabelSelector, in a canonical form: equal selectors compare equal.
pub(in crate::inventory) fn selector(at: &At<'_>) -> Result<Selector, FieldError> {
    at.only(&["matchLabels", "matchExpressions"])?;
    let mut requirements = Vec::new();
    for (key, value) in labels(&at.field("matchLabels"))?.iter() {
        requirements.push(Requirement::In(key.clone(), vec![value.clone()]));
    }
    for item in at.field("matchExpressions").items()? {
        requirements.push(requirement(&item)?);
    }
    requirements.sort_unstable();
    requirements.dedup();
    Ok(Selector { requirements })
}

fn requirement(at: &At<'_>) -> Result<Requirement, FieldError> {
    at.only(&["key", "operator", "values"])?;
    let key_at = at.field("key");
    let key = key_at.text()?.ok_or_else(|| key_at.error("required"))?;
    checked(&key_at, &key, names::label_key)?;
    let values_at = at.field("values");
    let values = values(&values_at)?;
    let operator_at = at.field("operator");
    let operator = operator_at.string()?;
    match (operator.as_deref(), values.is_empty()) {
        (Some("In" | "NotIn"), true) => Err(values_at.error("must be given with the operators In and NotIn")),
        (Some("Exists" | "DoesNotExist"), false) => Err(values_at.error("may not be given with the operators Exists and DoesNotExist")),
        (Some("In"), _) => Ok(Requirement::In(key, values)),
        (Some("NotIn"), _) => Ok(Requirement::NotIn(key, values)),
        (Some("Exists"), _) => Ok(Requirement::Exists(key)),
        (Some("DoesNotExist"), _) => Ok(Requirement::DoesNotExist(key)),
        _ => Err(operator_at.expected("In, NotIn, Exists or DoesNotExist")),
    }
}

fn values(at: &At<'_>) -> Result<Vec<Arc<str>>, FieldError> {
    let mut values = Vec::new();
    for item in at.items()? {
        let value = item.string()?.unwrap_or_default();
        checked(&item, &value, names::label_value)?;
        values.push(value);
    }
    values.sort_unstable();
    values.dedup();
    Ok(values)
}
