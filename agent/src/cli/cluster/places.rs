//! Which nodes there are, and which pod is the agent of each.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, Client};

use super::super::{Exit, Failure};
use super::ClusterArgs;
use super::tunnel::PATIENCE;

/// The agents' pods bear it, whatever release and chart are called.
const AGENTS: &str = "app.kubernetes.io/part-of=sekisho";

/// A node, and where its agent is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// The node's name.
    pub(super) node: String,
    /// The agent's pod, or why there is none to ask.
    pub(super) pod: Result<String, String>,
}

/// Every place that is meant, by node. Fails where there is no agent at all.
pub(super) async fn find(client: &Client, args: &ClusterArgs) -> Result<Vec<Place>, Failure> {
    let pods = agents(client, args, of_agents()).await?;
    if pods.is_empty() {
        let text = format!("no agent runs in namespace {}: name another with --agents-namespace", args.agents_namespace);
        return Err(Failure::new(Exit::NotReady, text));
    }
    let nodes = match nodes(client).await {
        Ok(nodes) => Some(nodes),
        Err(error) => {
            eprintln!("sekisho: nodes cannot be listed, so one without an agent goes unnoticed: {error}");
            None
        }
    };
    Ok(places(&pods, nodes.as_deref(), &args.node))
}

/// Places of agents on nodes that are not among those known; none where the API server does not tell.
pub(super) async fn find_new(client: &Client, args: &ClusterArgs, known: &[String]) -> Vec<Place> {
    let Ok(pods) = agents(client, args, of_agents().match_any()).await else { return Vec::new() };
    let mut places = places(&pods, None, &[]);
    // A node that is just being made has no agent yet.
    places.retain(|place| place.pod.is_ok() && !known.contains(&place.node));
    places
}

/// Where a node's agent is now; it may have been replaced.
pub(super) async fn find_again(client: &Client, args: &ClusterArgs, node: &str) -> Result<String, String> {
    let parameters = of_agents().fields(&format!("spec.nodeName={node}")).match_any();
    let pods = agents(client, args, parameters).await.map_err(|failure| failure.to_string())?;
    let wanted = [node.to_owned()];
    places(&pods, None, &wanted).pop().map_or_else(|| Err(absent()), |place| place.pod)
}

/// The agents' pods, of now; with `match_any` out of the API server's memory, for those who ask again and again: what is a moment
/// old there is asked for once more anyway.
fn of_agents() -> ListParams {
    ListParams::default().labels(AGENTS)
}

async fn agents(client: &Client, args: &ClusterArgs, parameters: ListParams) -> Result<Vec<Pod>, Failure> {
    let api: Api<Pod> = Api::namespaced(client.clone(), &args.agents_namespace);
    let list = tokio::time::timeout(PATIENCE, api.list(&parameters)).await;
    let list = list.map_err(|_| "no answer".to_owned()).and_then(|list| list.map_err(|e| reason(&e)));
    let list = list.map_err(|e| Failure::new(Exit::NotReady, format_args!("the API server does not tell where the agents are: {e}")))?;
    // Anybody who may make a pod can label it; only a DaemonSet's are agents.
    let owned = |pod: &Pod| pod.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "DaemonSet");
    Ok(list.items.into_iter().filter(owned).collect())
}

async fn nodes(client: &Client) -> Result<Vec<Node>, String> {
    let api: Api<Node> = Api::all(client.clone());
    let list = tokio::time::timeout(PATIENCE, api.list(&ListParams::default())).await.map_err(|_| "no answer".to_owned())?;
    Ok(list.map_err(|e| reason(&e))?.items)
}

/// The shortest text that says it.
pub(super) fn reason(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return status.message.clone();
    }
    let mut current: &dyn std::error::Error = error;
    while let Some(source) = current.source() {
        current = source;
    }
    current.to_string()
}

fn absent() -> String {
    "no agent runs on it".to_owned()
}

/// The places of the nodes that are wanted, or of all.
pub(super) fn places(pods: &[Pod], nodes: Option<&[Node]>, wanted: &[String]) -> Vec<Place> {
    let mut found: BTreeMap<&str, Result<String, String>> = BTreeMap::new();
    for name in wanted {
        let known = nodes.is_none_or(|nodes| nodes.iter().any(|node| node.metadata.name.as_deref() == Some(name)));
        found.insert(name, Err(if known { absent() } else { "there is no such node".to_owned() }));
    }
    for node in nodes.into_iter().flatten().filter(|node| wanted.is_empty() && wants_agent(node)) {
        found.insert(node.metadata.name.as_deref().unwrap_or_default(), Err(absent()));
    }
    for pod in pods {
        let Some(node) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else { continue };
        if !wanted.is_empty() && !found.contains_key(node) {
            continue;
        }
        // While agents are replaced, the one that lives is meant.
        let pod = state(pod);
        let entry = found.entry(node).or_insert_with(|| Err(absent()));
        if pod.is_ok() || entry.as_ref().is_err_and(|why| *why == absent()) {
            *entry = pod;
        }
    }
    let unready: Vec<&str> =
        nodes.into_iter().flatten().filter(|node| !is_ready(node)).filter_map(|n| n.metadata.name.as_deref()).collect();
    let note = |node: &str, why: String| if unready.contains(&node) { format!("{why}; the node is not ready") } else { why };
    found.into_iter().map(|(node, pod)| Place { node: node.to_owned(), pod: pod.map_err(|why| note(node, why)) }).collect()
}

/// Whether the chart puts an agent there: on Linux, and on machines.
fn wants_agent(node: &Node) -> bool {
    let label = |key: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
    label("kubernetes.io/os").is_none_or(|os| os == "linux")
        && label("eks.amazonaws.com/compute-type") != Some("fargate")
        && label("type") != Some("virtual-kubelet")
}

fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// A pod's name if its container runs, else what it does instead.
fn state(pod: &Pod) -> Result<String, String> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let status = pod.status.clone().unwrap_or_default();
    let phase = status.phase.unwrap_or_default();
    let container = status.container_statuses.into_iter().flatten().find(|container| container.name == super::tunnel::CONTAINER);
    let state = container.and_then(|container| container.state).unwrap_or_default();
    if phase == "Running" && state.running.is_some() {
        return Ok(name);
    }
    let waiting = state.waiting.and_then(|waiting| waiting.reason);
    let ended = state.terminated.map(|ended| ended.reason.unwrap_or_else(|| format!("ended with {}", ended.exit_code)));
    let why = waiting.or(ended).or(status.reason).map(|why| format!(" ({why})")).unwrap_or_default();
    Err(format!("its agent {name} does not run: {}{why}", if phase.is_empty() { "Unknown" } else { &phase }))
}
