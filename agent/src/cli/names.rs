//! Names that a filter asks for and that do not exist: a question about nobody has no records, and the reader should learn why.

use sekisho_proto::{Filter, NamesRequest, NamesResponse, WorkloadName};

use super::client::Client;
use super::{Exit, Failure};

/// What is asked for, in the words in which it is missed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    what: &'static str,
    name: String,
    /// Any of these would do.
    found_as: Vec<Question>,
}

/// One kind of objects in which it may be found.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Question {
    kind: &'static str,
    prefix: String,
    /// The whole name counts and not its beginning.
    whole: bool,
}

fn question(kind: &'static str, prefix: impl Into<String>, whole: bool) -> Question {
    Question { kind, prefix: prefix.into(), whole }
}

impl Question {
    fn is_answered(&self, names: &[String]) -> bool {
        let is = |name: &String| match self.prefix.strip_prefix('/') {
            Some(wanted) => name.rsplit_once('/').is_some_and(|(_, name)| name == wanted),
            None => *name == self.prefix,
        };
        if self.whole { names.iter().any(is) } else { !names.is_empty() }
    }
}

/// Everything that a filter asks for by name.
fn wanted(filter: &Filter) -> Vec<Wanted> {
    let mut all = Vec::new();
    for name in filter.namespaces.iter().chain(&filter.from_namespaces).chain(&filter.to_namespaces) {
        all.push(Wanted { what: "namespace", name: name.clone(), found_as: vec![question("namespaces", name, true)] });
    }
    for name in filter.pods.iter().chain(&filter.from_pods).chain(&filter.to_pods) {
        // The beginning of a pod's name, or the name of what runs it.
        let found_as = vec![question("pods", name, false), question("workloads", name, true)];
        all.push(Wanted { what: "pod", name: name.clone(), found_as });
    }
    for name in filter.services.iter().chain(&filter.from_services).chain(&filter.to_services) {
        all.push(Wanted { what: "service", name: name.clone(), found_as: vec![question("services", name, false)] });
    }
    for name in &filter.policies {
        let whole = !name.ends_with('/');
        all.push(Wanted { what: "policy", name: name.clone(), found_as: vec![question("policies", name, whole)] });
    }
    for workload in filter.workloads.iter().chain(&filter.from_workloads).chain(&filter.to_workloads) {
        let WorkloadName { namespace, kind, name } = workload;
        let prefix = format!("{}/{name}", namespace.as_deref().unwrap_or_default());
        let said: Vec<&str> = [namespace.as_deref(), kind.as_deref(), Some(name)].into_iter().flatten().collect();
        all.push(Wanted { what: "workload", name: said.join("/"), found_as: vec![question("workloads", prefix, true)] });
    }
    all.dedup();
    all
}

/// What does not exist, a sentence; nothing where that is not known for sure.
pub(super) async fn missing(filter: &Filter, mut ask: impl AsyncFnMut(NamesRequest) -> Option<NamesResponse>) -> Option<String> {
    let mut missed = Vec::new();
    for wanted in wanted(filter) {
        let mut found = false;
        for question in &wanted.found_as {
            let limit = u32::from(!question.whole);
            let request = NamesRequest { kind: question.kind.to_owned(), prefix: question.prefix.clone(), limit };
            let answer = ask(request).await.filter(|answer| answer.complete)?;
            found |= answer.more || question.is_answered(&answer.names);
        }
        if !found {
            missed.push(format!("no such {}: {}", wanted.what, wanted.name));
        }
    }
    (!missed.is_empty()).then(|| missed.join("; "))
}

/// The same, asked of one agent.
pub(super) async fn missing_here(filter: &Filter, client: &Client) -> Option<String> {
    missing(filter, async |request| client.clone().names(request).await.ok().map(tonic::Response::into_inner)).await
}

/// How a command ends that had nothing to print.
pub(super) fn nothing(missing: Option<String>) -> Result<Exit, Failure> {
    missing.map_or(Ok(Exit::Done), |text| Err(Failure::new(Exit::NotReady, text)))
}

/// Says that somebody who follows may wait for long.
pub(super) fn warn(missing: Option<String>) {
    if let Some(text) = missing {
        eprintln!("sekisho: {text}; waiting for it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is missing where these objects exist.
    fn missed(filter: &Filter, objects: &[(&str, &str)], complete: bool) -> Option<String> {
        let answer = async |request: NamesRequest| {
            let fits = |name: &str| match request.prefix.strip_prefix('/') {
                Some(rest) => name.split_once('/').is_some_and(|(_, name)| name.starts_with(rest)),
                None => name.starts_with(&request.prefix),
            };
            let names = objects.iter().filter(|(kind, name)| *kind == request.kind && fits(name)).map(|(_, name)| (*name).to_owned());
            Some(NamesResponse { names: names.collect(), more: false, complete })
        };
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(missing(filter, answer))
    }

    fn texts(values: &[&str]) -> Vec<String> {
        values.iter().map(|value| (*value).to_owned()).collect()
    }

    #[test]
    fn what_does_not_exist_is_named() {
        let objects = [
            ("namespaces", "shop"),
            ("pods", "shop/client-1"),
            ("workloads", "shop/nightly"),
            ("policies", "shop/db-in"),
            ("services", "shop/api"),
        ];
        let of = |filter: Filter| missed(&filter, &objects, true);
        assert_eq!(of(Filter { pods: texts(&["shop/cli"]), ..Filter::default() }), None);
        assert_eq!(of(Filter { pods: texts(&["shop/nightly"]), ..Filter::default() }), None);
        assert_eq!(of(Filter { to_pods: texts(&["shop/night"]), ..Filter::default() }), Some("no such pod: shop/night".into()));
        let two = Filter { namespaces: texts(&["shop", "sho"]), policies: texts(&["shop/db"]), ..Filter::default() };
        assert_eq!(of(two), Some("no such namespace: sho; no such policy: shop/db".into()));
        let workload = |namespace: Option<&str>, name: &str| WorkloadName {
            namespace: namespace.map(Into::into),
            kind: Some("Job".into()),
            name: name.into(),
        };
        assert_eq!(of(Filter { workloads: vec![workload(None, "nightly"), workload(Some("shop"), "nightly")], ..Filter::default() }), None);
        let gone = of(Filter { workloads: vec![workload(Some("shop"), "daily")], services: texts(&["shop/ap"]), ..Filter::default() });
        assert_eq!(gone, Some("no such workload: shop/Job/daily".into()));
    }

    #[test]
    fn nobody_is_missed_before_everything_is_known() {
        let filter = Filter { pods: texts(&["shop/cli"]), ..Filter::default() };
        assert!(missed(&filter, &[], true).is_some());
        assert_eq!(missed(&filter, &[], false), None);
    }
}
