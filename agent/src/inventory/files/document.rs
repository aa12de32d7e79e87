//! Bytes to documents. A file holds many; each has a number, counted from 1 as a person would.

use super::yaml;
use crate::inventory::manifest::json::Json;
use crate::inventory::manifest::value::Value;

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
