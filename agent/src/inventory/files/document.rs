//! Bytes to documents. A file holds many; each has a number, counted from 1 as a person would.

use std::collections::HashSet;
use std::sync::Arc;

use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};

use super::value::Value;
use super::yaml;

/// Files beyond this are refused by name.
pub(super) const MAX_BYTES: u64 = 16 << 20;
/// Nodes of all documents of a file, aliases expanded.
pub(super) const MAX_NODES: usize = 2_000_000;
/// Lists and mappings in one another.
pub(super) const MAX_DEPTH: usize = 100;

/// One document of a file.
#[derive(Debug)]
pub(super) struct Document {
    /// Counted from 1.
    pub(super) number: usize,
    /// What it holds; never [`Value::Null`].
    pub(super) value: Value,
}

/// Why a file cannot be read as documents.
#[derive(Debug, thiserror::Error)]
#[error("document {number}, {message}")]
pub(super) struct DocumentError {
    number: usize,
    message: String,
}

impl DocumentError {
    pub(super) fn new(number: usize, message: impl Into<String>) -> Self {
        Self { number, message: message.into() }
    }
}

/// The documents of a file. Empty ones are counted, not returned.
pub(super) fn parse(bytes: &[u8], json: bool) -> Result<Vec<Document>, DocumentError> {
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let at = e.valid_up_to();
        let before = &bytes[..at];
        let number = if json { 1 } else { documents_begun(before) };
        DocumentError::new(number, format!("byte {at}: not UTF-8 (value 0x{:02x})", bytes[at]))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = if json { parse_json(text)? } else { yaml::parse(text)? };
    documents.retain(|d| d.value != Value::Null);
    Ok(documents)
}

fn documents_begun(before: &[u8]) -> usize {
    let mut number = 1;
    let mut content = false;
    for line in before.split(|b| *b == b'\n') {
        if line.starts_with(b"---") {
            number += usize::from(content);
            content = true;
        } else if !line.trim_ascii().is_empty() && !line.trim_ascii_start().starts_with(b"#") {
            content = true;
        }
    }
    number
}

fn parse_json(text: &str) -> Result<Vec<Document>, DocumentError> {
    let mut documents = Vec::new();
    for value in serde_json::Deserializer::from_str(text).into_iter::<Json>() {
        let number = documents.len() + 1;
        let Json(value) = value.map_err(|e| DocumentError::new(number, format!("not JSON: {e}")))?;
        documents.push(Document { number, value });
    }
    Ok(documents)
}

/// A JSON value whose mappings refuse a key given twice.
struct Json(Value);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Seed.deserialize(deserializer).map(Json)
    }
}

struct Seed;

impl<'de> DeserializeSeed<'de> for Seed {
    type Value = Value;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Seed {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
        while let Some(item) = list.next_element_seed(Seed)? {
            items.push(item);
        }
        Ok(Value::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries: Vec<(Arc<str>, Value)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            entries.push((key.into(), map.next_value_seed(Seed)?));
        }
        match twice(&entries) {
            Some(key) => Err(de::Error::custom(format_args!("key {key:?} twice in one mapping"))),
            None => Ok(Value::Map(entries)),
        }
    }
}

/// A key that a mapping has twice.
pub(super) fn twice(entries: &[(Arc<str>, Value)]) -> Option<Arc<str>> {
    if entries.len() <= 8 {
        let again = entries.iter().enumerate().find(|(i, (key, _))| entries[..*i].iter().any(|(k, _)| k == key));
        return again.map(|(_, (key, _))| key.clone());
    }
    let mut seen = HashSet::with_capacity(entries.len());
    entries.iter().find(|(key, _)| !seen.insert(&**key)).map(|(key, _)| key.clone())
}
