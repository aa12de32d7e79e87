//! JSON to [`Value`], whole or trimmed while it is read: what no one keeps is skipped, not built.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::value::Value;

/// Which fields of a document are kept.
#[derive(Debug)]
pub(in crate::inventory) enum Keep {
    /// This value and all below it.
    All,
    /// Of a mapping, or of each mapping of a list, these fields.
    Fields(&'static [(&'static str, Keep)]),
}

impl Keep {
    fn of(&'static self, field: &str) -> Option<&'static Self> {
        match self {
            Self::All => Some(self),
            Self::Fields(fields) => fields.iter().find(|(name, _)| *name == field).map(|(_, keep)| keep),
        }
    }
}

/// A whole JSON value whose mappings refuse a key given twice.
pub(in crate::inventory) struct Json(pub(in crate::inventory) Value);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        trimmed(deserializer, &Keep::All).map(Json)
    }
}

/// A JSON value of which only `keep` is kept.
pub(in crate::inventory) fn trimmed<'de, D: Deserializer<'de>>(deserializer: D, keep: &'static Keep) -> Result<Value, D::Error> {
    Seed(keep).deserialize(deserializer)
}

#[derive(Clone, Copy)]
struct Seed(&'static Keep);

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }
    fn visit_i64<E>(self, n: i64) -> Result<Value, E> {
        Ok(Value::Int(n))
    }
    fn visit_u64<E>(self, n: u64) -> Result<Value, E> {
        Ok(i64::try_from(n).map_or_else(|_| Value::Number(n.to_string().into()), Value::Int))
    }
    fn visit_f64<E>(self, n: f64) -> Result<Value, E> {
        Ok(Value::Number(n.to_string().into()))
    }
    fn visit_str<E>(self, text: &str) -> Result<Value, E> {
        Ok(Value::Text(text.into()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries: Vec<(Arc<str>, Value)> = Vec::new();
        while let Some(key) = map.next_key_seed(Field(self.0))? {
            match key {
                Some((name, keep)) => entries.push((name, map.next_value_seed(Seed(keep))?)),
                None => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        match twice(&entries) {
            Some(key) => Err(de::Error::custom(format_args!("key {key:?} twice in one mapping"))),
            None => Ok(Value::Map(entries)),
        }
    }
}

/// A field's name, if it is kept.
struct Field(&'static Keep);

impl<'de> DeserializeSeed<'de> for Field {
    type Value = Option<(Arc<str>, &'static Keep)>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Field {
    type Value = Option<(Arc<str>, &'static Keep)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }
    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.of(name).map(|keep| (name.into(), keep)))
    }
}

/// A key that a mapping has twice.
pub(in crate::inventory) fn twice(entries: &[(Arc<str>, Value)]) -> Option<Arc<str>> {
    if entries.len() <= 8 {
        let again = entries.iter().enumerate().find(|(i, (key, _))| entries[..*i].iter().any(|(k, _)| k == key));
        return again.map(|(_, (key, _))| key.clone());
    }
    let mut seen = HashSet::with_capacity(entries.len());
    entries.iter().find(|(key, _)| !seen.insert(&**key)).map(|(key, _)| key.clone())
}
