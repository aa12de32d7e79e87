//! Whose annotation `sekisho.dev/allow-sources` counts. Whoever may annotate a pod can write it, so the agent's own configuration
//! has the word: it names namespaces, and pods in them.

use std::str::FromStr;

use super::Input;
use super::compiler::local_pods;
use super::warning::Warning;
use crate::inventory::Pod;

/// One entry of the agent's configuration: `NAMESPACE`, `NAMESPACE/POD`, or `NAMESPACE/PREFIX*`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lending {
    namespace: String,
    /// A name, and whether it is only the beginning of one; `None` = every pod.
    pod: Option<(String, bool)>,
}

impl FromStr for Lending {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || "give NAMESPACE, NAMESPACE/POD or NAMESPACE/PREFIX*".to_owned();
        let name = |text: &str, further: &[u8]| {
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || further.contains(&b))
        };
        let (namespace, pod) = text.split_once('/').map_or((text, None), |(namespace, pod)| (namespace, Some(pod)));
        if !name(namespace, b"-") {
            return Err(wrong());
        }
        let pod = match pod.map(|pod| pod.strip_suffix('*').map_or((pod, false), |prefix| (prefix, true))) {
            None | Some(("", true)) => None,
            Some((pod, prefix)) if name(pod, b"-.") => Some((pod.to_owned(), prefix)),
            Some(_) => return Err(wrong()),
        };
        Ok(Self { namespace: namespace.to_owned(), pod })
    }
}

impl Lending {
    /// Whether it names `pod`.
    fn names(&self, pod: &Pod) -> bool {
        let of_pod = |(name, prefix): &(String, bool)| if *prefix { pod.name.starts_with(&**name) } else { *pod.name == **name };
        *pod.namespace == *self.namespace && self.pod.as_ref().is_none_or(of_pod)
    }
}

/// Whether the sources that a pod's annotation asks for are lent to it.
pub fn lends(lending: &[Lending], pod: &Pod) -> bool {
    lending.iter().any(|entry| entry.names(pod))
}

/// Says which local pods ask for sources and do not get them.
pub(super) fn not_lent(input: &Input<'_>, warnings: &mut Vec<Warning>) {
    let asking = local_pods(input).filter(|pod| !pod.host_network && !pod.allow_sources.is_empty());
    warnings.extend(asking.filter(|pod| !lends(input.lending, pod)).map(|pod| Warning::not_lent(pod)));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::{one_pod, pod};

    fn lends_to(entry: &str, name: &str) -> bool {
        let snapshot = one_pod(&pod(name, "10.0.0.1", "", ""));
        lends(&[entry.parse().unwrap()], &snapshot)
    }

    #[test]
    fn an_entry_names_a_namespace_or_pods_in_it() {
        for (entry, name, named) in [
            ("vpn", "vpn/gateway-1", true),
            ("vpn", "vpn2/gateway-1", false),
            ("vpn/*", "vpn/gateway-1", true),
            ("vpn/gateway-*", "vpn/gateway-1", true),
            ("vpn/gateway-*", "vpn/other", false),
            ("vpn/gateway", "vpn/gateway-1", false),
            ("vpn/gateway-1", "vpn/gateway-1", true),
            ("vpn/gateway-1", "shop/gateway-1", false),
        ] {
            assert_eq!(lends_to(entry, name), named, "{entry} {name}");
        }
        assert!(!lends(&[], &one_pod(&pod("vpn/gateway-1", "10.0.0.1", "", ""))), "by default nobody's");
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        for text in ["", "*", "*/gateway", "vpn/", "vpn/a*b", "Vpn", "vpn/a/b", "a b"] {
            assert!(text.parse::<Lending>().is_err(), "{text:?}");
        }
    }
}
