//! Names of the objects in a snapshot, for completion and for questions about what does not exist.

use std::collections::BTreeSet;

use sekisho_proto as proto;

use super::pump::Pump;
use crate::api::Refusal;
use crate::inventory::Snapshot;

/// How many names are given where nothing else is asked for.
const MANY: usize = 1000;

impl Pump {
    /// Names of objects that begin as asked.
    pub(super) fn names(&self, request: &proto::NamesRequest) -> Result<proto::NamesResponse, Refusal> {
        let found = find(&self.snapshot, request)?;
        Ok(proto::NamesResponse { complete: self.synced && self.source.state().stale_since.is_none(), ..found })
    }
}

fn find(snapshot: &Snapshot, request: &proto::NamesRequest) -> Result<proto::NamesResponse, Refusal> {
    let objects: Box<dyn Iterator<Item = (&str, &str)>> = match request.kind.as_str() {
        "namespaces" => Box::new(snapshot.namespaces.keys().map(|name| ("", &**name))),
        "pods" => Box::new(snapshot.pods.keys().map(|(namespace, name)| (&**namespace, &**name))),
        "services" => Box::new(snapshot.services.keys().map(|(namespace, name)| (&**namespace, &**name))),
        "policies" => Box::new(snapshot.policies.keys().map(|(namespace, name)| (&**namespace, &**name))),
        "workloads" => Box::new(snapshot.pods.values().map(|pod| (&*pod.namespace, &*pod.workload.name))),
        other => {
            let known = "namespaces, pods, workloads, services or policies";
            return Err(Refusal::Invalid(format!("`{other}` is no kind of object whose names are known: ask for {known}")));
        }
    };
    let namespaced = request.kind != "namespaces";
    // `/NAME` looks in every namespace; a beginning without a slash is one of a namespace's name.
    let (namespace, name) = match request.prefix.split_once('/') {
        Some((namespace, name)) if namespaced => (Some(namespace).filter(|namespace| !namespace.is_empty()), name),
        _ => (None, if namespaced { "" } else { request.prefix.as_str() }),
    };
    let part = if namespaced && !request.prefix.contains('/') { request.prefix.as_str() } else { "" };
    let fits =
        |(of, called): &(&str, &str)| namespace.is_none_or(|wanted| wanted == *of) && of.starts_with(part) && called.starts_with(name);
    let whole = |(of, called): (&str, &str)| if namespaced { format!("{of}/{called}") } else { called.to_owned() };
    let limit = if request.limit == 0 { MANY } else { request.limit as usize };
    let mut names: BTreeSet<String> = objects.filter(fits).map(whole).collect();
    let more = names.len() > limit;
    while names.len() > limit {
        names.pop_last();
    }
    Ok(proto::NamesResponse { names: names.into_iter().collect(), more, complete: false })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::inventory::{Namespace, Service};

    fn snapshot() -> Snapshot {
        let service = |namespace: &str, name: &str| {
            let service =
                Service { namespace: namespace.into(), name: name.into(), ips: Vec::new(), node_local_ips: Vec::new(), ports: Vec::new() };
            ((Arc::from(namespace), Arc::from(name)), Arc::new(service))
        };
        let namespace = |name: &str| (Arc::from(name), Arc::new(Namespace::bare(name.into())));
        Snapshot {
            namespaces: Arc::new([namespace("shop"), namespace("shop-test"), namespace("play")].into()),
            services: Arc::new([service("shop", "api"), service("shop", "web"), service("shop-test", "api")].into()),
            ..Snapshot::default()
        }
    }

    fn names(kind: &str, prefix: &str, limit: u32) -> (Vec<String>, bool) {
        let request = proto::NamesRequest { kind: kind.into(), prefix: prefix.into(), limit };
        let found = find(&snapshot(), &request).expect("a kind that is known");
        (found.names, found.more)
    }

    #[test]
    fn names_begin_as_asked() {
        assert_eq!(names("namespaces", "sh", 0).0, ["shop", "shop-test"]);
        assert_eq!(names("services", "", 0).0, ["shop-test/api", "shop/api", "shop/web"]);
        assert_eq!(names("services", "shop", 0).0, ["shop-test/api", "shop/api", "shop/web"]);
        assert_eq!(names("services", "shop/", 0).0, ["shop/api", "shop/web"]);
        assert_eq!(names("services", "shop/w", 0).0, ["shop/web"]);
        assert_eq!(names("services", "/a", 0).0, ["shop-test/api", "shop/api"]);
        assert_eq!(names("services", "play/", 0).0, [""; 0]);
        assert_eq!(names("services", "", 2), (vec!["shop-test/api".to_owned(), "shop/api".to_owned()], true));
    }

    #[test]
    fn a_kind_that_is_not_known_is_refused() {
        let request = proto::NamesRequest { kind: "secrets".into(), ..Default::default() };
        assert!(matches!(find(&snapshot(), &request), Err(Refusal::Invalid(_))));
    }
}
