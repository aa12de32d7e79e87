//! Names for the shell to offer, from the API server: a plugin of kubectl has no agent at hand.

use std::fmt::Debug;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::ListParams;
use kube::config::Kubeconfig;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;

use super::ClusterArgs;

/// Objects that are listed at most.
const MOST: u32 = 500;

/// The contexts of a kubeconfig.
pub(in crate::cli) fn contexts(kubeconfig: Option<&Path>) -> Vec<String> {
    let file = kubeconfig.map_or_else(Kubeconfig::read, Kubeconfig::read_from);
    file.map(|file| file.contexts.into_iter().map(|context| context.name).collect()).unwrap_or_default()
}

/// Names of one kind that begin so: NAMESPACE/NAME of what has a namespace.
pub(in crate::cli) async fn names(kubeconfig: Option<PathBuf>, context: Option<String>, kind: &str, prefix: &str) -> Option<Vec<String>> {
    let args = ClusterArgs { context, kubeconfig, ..ClusterArgs::default() };
    let client = args.client().await.ok()?;
    let home = prefix.split_once('/').map(|(namespace, _)| namespace).filter(|namespace| !namespace.is_empty());
    let mut names = match kind {
        "namespaces" => listed(Api::<Namespace>::all(client)).await,
        "nodes" => listed(Api::<Node>::all(client)).await,
        "pods" => listed(scoped::<Pod>(&client, home)).await,
        "services" => listed(scoped::<Service>(&client, home)).await,
        "policies" => listed(scoped::<NetworkPolicy>(&client, home)).await,
        // What runs a pod is found by following its owners, which is too much for the tab key.
        _ => None,
    }?;
    names.retain(|name| name.starts_with(prefix));
    Some(names)
}

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
{
    namespace.map_or_else(|| Api::all(client.clone()), |namespace| Api::namespaced(client.clone(), namespace))
}

async fn listed<K>(api: Api<K>) -> Option<Vec<String>>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let list = api.list_metadata(&ListParams::default().limit(MOST)).await.ok()?;
    let name = |metadata: kube::api::ObjectMeta| match (metadata.namespace, metadata.name) {
        (Some(namespace), Some(name)) => Some(format!("{namespace}/{name}")),
        (None, name) => name,
        (Some(_), None) => None,
    };
    Some(list.items.into_iter().filter_map(|object| name(object.metadata)).collect())
}
