//! Label selectors (apimachinery `LabelSelector`): matchLabels and the four matchExpressions operators, and the form in which
//! kubectl takes them.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::str::FromStr;
use std::sync::Arc;

/// Labels of an object.
pub type Labels = Arc<BTreeMap<Arc<str>, Arc<str>>>;

/// A label selector; empty matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector {
    /// All must hold. `matchLabels` are `In` with one value.
    pub requirements: Vec<Requirement>,
}

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Requirement {
    /// The label is there and has one of the values.
    In(Arc<str>, Vec<Arc<str>>),
    /// The label is absent or has none of the values.
    NotIn(Arc<str>, Vec<Arc<str>>),
    /// The label is there.
    Exists(Arc<str>),
    /// The label is absent.
    DoesNotExist(Arc<str>),
}

impl Selector {
    /// Whether `labels` fulfil every requirement.
    pub fn matches<S: Borrow<str> + Ord>(&self, labels: &BTreeMap<S, S>) -> bool {
        self.requirements.iter().all(|r| match r {
            Requirement::In(key, values) => labels.get(&**key).is_some_and(|v| is_among(v.borrow(), values)),
            Requirement::NotIn(key, values) => labels.get(&**key).is_none_or(|v| !is_among(v.borrow(), values)),
            Requirement::Exists(key) => labels.contains_key(&**key),
            Requirement::DoesNotExist(key) => !labels.contains_key(&**key),
        })
    }
}

fn is_among(value: &str, values: &[Arc<str>]) -> bool {
    values.iter().any(|known| **known == *value)
}

/// Text that is no selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a label selector: give requirements such as app=web, tier!=db, env in (dev,test), env notin (prod), canary or !canary, joined by commas"
)]
pub struct SelectorError(String);

/// As kubectl takes it. The comparisons `<` and `>`, which kubectl knows too, are refused.
impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        let mut requirements = Vec::new();
        let mut depth = 0_u32;
        let outside = |c: char| {
            depth = if c == '(' { depth + 1 } else { depth.saturating_sub(u32::from(c == ')')) };
            c == ',' && depth == 0
        };
        for part in text.split(outside) {
            requirements.push(requirement(part.trim()).ok_or_else(|| SelectorError(text.to_owned()))?);
        }
        Ok(Self { requirements })
    }
}

fn requirement(text: &str) -> Option<Requirement> {
    if let Some(key) = text.strip_prefix('!') {
        return Some(Requirement::DoesNotExist(label_key(key.trim())?));
    }
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || "-_./".contains(c))).unwrap_or(text.len());
    let (key, rest) = (label_key(&text[..end])?, text[end..].trim());
    if rest.is_empty() {
        return Some(Requirement::Exists(key));
    }
    if let Some(value) = rest.strip_prefix("!=") {
        return Some(Requirement::NotIn(key, vec![label_value(value)?]));
    }
    if let Some(value) = rest.strip_prefix("==").or_else(|| rest.strip_prefix('=')) {
        return Some(Requirement::In(key, vec![label_value(value)?]));
    }
    let values = |list: &str| {
        let list = list.trim().strip_prefix('(')?.strip_suffix(')')?;
        list.split(',').map(label_value).collect::<Option<Vec<_>>>()
    };
    match rest.strip_prefix("notin") {
        Some(list) => Some(Requirement::NotIn(key, values(list)?)),
        None => Some(Requirement::In(key, values(rest.strip_prefix("in")?)?)),
    }
}

/// `name`, or `prefix/name` as Kubernetes writes keys.
fn label_key(text: &str) -> Option<Arc<str>> {
    let name = text.rsplit_once('/').map_or(text, |(_, name)| name);
    let one_prefix = text.matches('/').count() <= 1 && !text.starts_with('/');
    (one_prefix && !name.is_empty() && is_name(name)).then(|| text.into())
}

/// A value, which may be empty.
fn label_value(text: &str) -> Option<Arc<str>> {
    let text = text.trim();
    (text.is_empty() || is_name(text)).then(|| text.into())
}

fn is_name(text: &str) -> bool {
    let ends = text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.ends_with(|c: char| c.is_ascii_alphanumeric());
    ends && text.len() <= 63 && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_kubectl_takes_is_taken() {
        let matches = |text: &str, pairs: &[(&str, &str)]| text.parse::<Selector>().expect(text).matches(&labels(pairs));
        let web = &[("app", "web"), ("tier", "front"), ("app.kubernetes.io/name", "x")][..];
        for text in [
            "app=web",
            "app==web",
            "app = web , tier=front",
            "app!=db",
            "missing!=db",
            "app in (db, web)",
            "app in (web),tier notin (back,db)",
            "app notin(db)",
            "tier",
            "!canary",
            "app.kubernetes.io/name=x",
        ] {
            assert!(matches(text, web), "{text}");
        }
        for text in ["app=db", "app!=web", "app in (db)", "tier notin (front)", "canary", "!tier", "app=web,tier=back", "app="] {
            assert!(!matches(text, web), "{text}");
        }
        assert!(matches("app=", &[("app", "")]));
    }

    #[test]
    fn what_kubectl_refuses_is_refused() {
        for text in
            ["", ",", "app=web,", "=web", "app=we b", "app in web", "app in (web", "app in (web))", "app>5", "a/b/c=d", "-a=b", "app=-x"]
        {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }
}
