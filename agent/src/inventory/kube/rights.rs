//! Whether the API server lets us do what watches and Events need: asked of itself, before anything fails.

use std::time::Duration;

use futures_util::future::join_all;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};

use super::connect::{self, Access};
use super::resource::Kind;

/// How long the server may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// What is done with every kind that is watched.
const WATCHED: [&str; 2] = ["list", "watch"];
/// What is done with Events.
const WRITTEN: [&str; 2] = ["create", "patch"];

/// One right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// `list`, `watch`, `create`, `patch`.
    pub verb: &'static str,
    /// As in rules of a role: `pods`, `jobs.batch`.
    pub resource: String,
    /// Whether we have it.
    pub granted: bool,
}

/// Every right that is needed, as the server says. The sentence where it does not.
pub fn rights(access: &Access) -> Result<Vec<Right>, String> {
    // The caller may be on a thread that drives a runtime, where no other one can be waited for.
    let asked = std::thread::scope(|scope| scope.spawn(|| ask_all(access)).join());
    asked.map_err(|_| "the question failed".to_owned())?
}

fn ask_all(access: &Access) -> Result<Vec<Right>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let config = connect::config(access).await.map_err(|e| e.to_string())?;
        let client = Client::try_from(config).map_err(|e| e.to_string())?;
        let watched = Kind::ALL.into_iter().flat_map(|kind| WATCHED.map(|verb| (kind.group(), kind.plural(), verb)));
        let asked = watched.chain(WRITTEN.map(|verb| ("events.k8s.io", "events", verb)));
        let answers = join_all(asked.map(|(group, plural, verb)| ask(&client, group, plural, verb)));
        let answers = tokio::time::timeout(PATIENCE, answers).await.map_err(|_| "it does not answer".to_owned())?;
        answers.into_iter().collect()
    })
}

async fn ask(client: &Client, group: &str, plural: &str, verb: &'static str) -> Result<Right, String> {
    let attributes = ResourceAttributes {
        verb: Some(verb.to_owned()),
        group: Some(group.to_owned()),
        resource: Some(plural.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..SelfSubjectAccessReviewSpec::default() };
    let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = api.create(&PostParams::default(), &review).await.map_err(|e| e.to_string())?;
    let granted = answer.status.is_some_and(|status| status.allowed);
    let resource = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
    Ok(Right { verb, resource, granted })
}
