//! What an operator should find at an object of the cluster, beside log and status: written as an Event where the source
//! is an API server.

use std::sync::Arc;

/// The object that a notice is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct About {
    /// `Pod`, `NetworkPolicy`, ...
    pub kind: &'static str,
    /// Empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// UID, where it is known.
    pub uid: Option<Arc<str>>,
}

impl About {
    /// The namespace, where the kind has one: a field of log lines.
    pub fn namespace(&self) -> Option<&str> {
        Some(&*self.namespace).filter(|namespace| !namespace.is_empty())
    }

    /// The name, where the object is of that kind: log lines have a field for each kind.
    pub fn name_of(&self, kind: &str) -> Option<&str> {
        (self.kind == kind).then_some(&*self.name)
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// Where it is to be found.
    pub about: About,
    /// One word in camel case.
    pub reason: String,
    /// What the agent was doing, one word.
    pub action: &'static str,
    /// One sentence or two.
    pub text: String,
    /// Tells it from others of the same reason at the same object; those that agree in it are one, and counted.
    pub series: String,
    /// Every node says the same: once for the whole cluster is enough.
    pub shared: bool,
}
