//! Real files in a real folder, under a real inotify watch.

mod manifests;
mod policies;
mod watching;

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Source;
use crate::inventory::{NetworkPolicy, Snapshot};

/// A folder with these files, read once.
fn read(files: &[(&str, &str)]) -> Arc<Snapshot> {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("written");
        // The order in which files came decides which of two is refused.
        std::thread::sleep(Duration::from_millis(5));
    }
    Source::start(folder.path()).expect("a source").current()
}

/// What is refused of one YAML file.
fn refused(text: &str) -> String {
    let snapshot = read(&[("a.yaml", text)]);
    assert!(snapshot.policies.is_empty() && snapshot.pods.is_empty(), "{text}");
    snapshot.refused.first().cloned().unwrap_or_else(|| panic!("accepted:\n{text}"))
}

/// One NetworkPolicy `default/p` with this spec.
fn policy(spec: &str) -> String {
    format!("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p}}\nspec: {spec}\n")
}

fn accepted(spec: &str) -> Arc<NetworkPolicy> {
    let snapshot = read(&[("a.yaml", &policy(spec))]);
    assert_eq!(snapshot.refused, Vec::<String>::new(), "{spec}");
    snapshot.policies[&("default".into(), "p".into())].clone()
}

fn put(folder: &Path, name: &str, text: &str) {
    // As editors and `kubectl` users do it: write beside, then rename.
    let beside = folder.join(format!(".{name}.new"));
    fs::write(&beside, text).expect("written");
    fs::rename(beside, folder.join(name)).expect("renamed");
}
