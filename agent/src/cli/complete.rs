//! Values that the shell offers: names of objects, asked of the running agent, or of the API server where a plugin of kubectl is
//! completed. Whatever does not answer at once is offered nothing from.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap_complete::engine::CompletionCandidate;
use sekisho_proto::NamesRequest;

use super::args::SOCKET;
use super::{Called, client, cluster};

/// How long somebody who pressed the tab key waits.
const PATIENCE: Duration = Duration::from_secs(2);
/// Names that are offered at most.
const MOST: u32 = 200;

/// Offers names of one kind of objects: namespaces, pods, workloads, services, policies.
pub(super) fn names(kind: &'static str) -> impl Fn(&OsStr) -> Vec<CompletionCandidate> + Send + Sync + 'static {
    move |typed| {
        let words: Vec<OsString> = std::env::args_os().collect();
        typed.to_str().map(|typed| offered(kind, typed, &words)).unwrap_or_default()
    }
}

/// Offers the contexts of the kubeconfig.
pub(super) fn contexts(typed: &OsStr) -> Vec<CompletionCandidate> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let found = cluster::contexts(value_of(&words, &["--kubeconfig"]).map(Path::new));
    let typed = typed.to_str().unwrap_or_default();
    found.into_iter().filter(|name| name.starts_with(typed)).map(CompletionCandidate::new).collect()
}

/// Offers the nodes that the API server knows.
pub(super) fn nodes(typed: &OsStr) -> Vec<CompletionCandidate> {
    let words: Vec<OsString> = std::env::args_os().collect();
    let typed = typed.to_str().unwrap_or_default();
    from_cluster("nodes", typed, &words).into_iter().map(CompletionCandidate::new).collect()
}

fn offered(kind: &str, typed: &str, words: &[OsString]) -> Vec<CompletionCandidate> {
    // A name without a namespace is one of the namespace that -n gives.
    let home = value_of(words, &["-n", "--namespace"]).and_then(OsStr::to_str).filter(|_| kind != "namespaces" && !typed.contains('/'));
    let prefix = home.map_or_else(|| typed.to_owned(), |home| format!("{home}/{typed}"));
    let plugin = Called::by(words.first()) != Called::Plainly;
    let found = if plugin { from_cluster(kind, &prefix, words) } else { from_agent(kind, &prefix, words) };
    let short = |name: String| match home {
        Some(home) => name.strip_prefix(home).and_then(|rest| rest.strip_prefix('/')).map(str::to_owned).unwrap_or(name),
        None => name,
    };
    found.into_iter().map(short).map(CompletionCandidate::new).collect()
}

fn from_agent(kind: &str, prefix: &str, words: &[OsString]) -> Vec<String> {
    let given = value_of(words, &["--socket"]).map(PathBuf::from);
    let socket = given.or_else(|| std::env::var_os("SEKISHO_SOCKET").map(PathBuf::from)).unwrap_or_else(|| PathBuf::from(SOCKET));
    let request = NamesRequest { kind: kind.to_owned(), prefix: prefix.to_owned(), limit: MOST };
    answered(async move {
        let mut client = client::connect(&socket).await.ok()?;
        Some(client.names(request).await.ok()?.into_inner().names)
    })
}

fn from_cluster(kind: &str, prefix: &str, words: &[OsString]) -> Vec<String> {
    let path = value_of(words, &["--kubeconfig"]).map(PathBuf::from);
    let context = value_of(words, &["--context"]).and_then(OsStr::to_str).map(str::to_owned);
    answered(cluster::names(path, context, kind, prefix))
}

/// An answer that comes in time, or none.
fn answered(question: impl Future<Output = Option<Vec<String>>>) -> Vec<String> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let answer = runtime.block_on(async { tokio::time::timeout(PATIENCE, question).await });
    runtime.shutdown_background();
    answer.ok().flatten().unwrap_or_default()
}

/// The value that an option has on a command line which is still being typed; the last one counts.
fn value_of<'a>(words: &'a [OsString], names: &[&str]) -> Option<&'a OsStr> {
    // The last word is being typed: what stands before it may be its option.
    let words = &words[..words.len().saturating_sub(1)];
    let joined = |word: &'a OsString| {
        let (name, value) = word.to_str()?.split_once('=')?;
        names.contains(&name).then(|| OsStr::new(value))
    };
    let apart = words.windows(2).rev().find(|pair| pair[0].to_str().is_some_and(|word| names.contains(&word)));
    words.iter().rev().find_map(joined).or_else(|| apart.map(|pair| pair[1].as_os_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_on_an_unfinished_line_has_its_value() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        let of = |line: &str| value_of(&words(line), &["-n", "--namespace"]).map(|value| value.to_string_lossy().into_owned());
        assert_eq!(of("sekisho -- sekisho observe -n shop --pod w"), Some("shop".into()));
        assert_eq!(of("sekisho observe --namespace=shop --pod w"), Some("shop".into()));
        assert_eq!(of("sekisho observe -n a -n b --pod w"), Some("b".into()));
        assert_eq!(of("sekisho observe --namespace sh"), None);
        assert_eq!(of("sekisho observe --pod w"), None);
    }
}
