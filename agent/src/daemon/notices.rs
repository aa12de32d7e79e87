//! What is worth an Event: alerts at their pods, policies that cannot be honoured, a policy that is not in force at its node.

use std::sync::Arc;

use sekisho_proto as proto;

use super::pump::Pump;
use crate::inventory::{About, Notice};
use crate::policy::Warning;

impl Pump {
    /// An alert, at the pod that caused it.
    pub(super) fn notice_alert(&self, alert: &proto::Alert) {
        if alert.status == "closed" {
            return;
        }
        let source = alert.source.as_ref();
        let known = source.and_then(|source| Some((source.namespace.as_deref()?, source.pod.as_deref()?, source.uid.as_deref())));
        let Some((namespace, pod, uid)) = known else { return };
        self.source.notify(Notice {
            about: About { kind: "Pod", namespace: namespace.into(), name: pod.into(), uid: uid.map(Arc::from) },
            reason: camel(&alert.rule),
            action: "Detect",
            text: format!("{}; severity {}, alert {}", alert.title, alert.severity, alert.id),
            series: alert.id.clone(),
            shared: false,
        });
    }

    /// A warning of the compiler.
    pub(super) fn notice_warning(&self, warning: &Warning) {
        self.source.notify(Notice {
            about: warning.about.clone(),
            reason: warning.reason.to_owned(),
            action: "Compile",
            text: warning.text.clone(),
            series: String::new(),
            shared: true,
        });
    }

    /// The policy could not be put in force on this node.
    pub(super) fn notice_refused(&self, why: &str) {
        let name: Arc<str> = self.args.node_name.as_str().into();
        self.source.notify(Notice {
            // Events of nodes bear the name as UID, as the kubelet writes it.
            about: About { kind: "Node", namespace: Arc::default(), name: name.clone(), uid: Some(name) },
            reason: "PolicyNotInForce".to_owned(),
            action: "Apply",
            text: format!("{why}; the policy before it stays in force"),
            series: String::new(),
            shared: false,
        });
    }
}

/// `scan.vertical` as a reason: `ScanVertical`.
fn camel(rule: &str) -> String {
    let words = rule.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(|word| word[..1].to_ascii_uppercase() + &word[1..]).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_rules_name_is_a_reason() {
        assert_eq!(super::camel("scan.vertical"), "ScanVertical");
        assert_eq!(super::camel("edge.first_seen"), "EdgeFirstSeen");
    }
}
