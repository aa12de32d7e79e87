//! The writer: one JSON object at a time, fields in the order in which they are given.

use std::collections::BTreeMap;

use prost_types::Timestamp;

use crate::{Name, rfc3339};

/// A message that knows its JSON fields.
pub trait Message {
    /// Writes them.
    fn fields(&self, object: &mut Object<'_>);
}

/// A JSON object that is being written.
pub struct Object<'a> {
    out: &'a mut Vec<u8>,
    empty: bool,
}

/// Writes `{...}`.
pub(super) fn write_object(out: &mut Vec<u8>, fields: impl FnOnce(&mut Object<'_>)) {
    out.push(b'{');
    fields(&mut Object { out, empty: true });
    out.push(b'}');
}

impl Object<'_> {
    fn key(&mut self, key: &str) -> &mut Vec<u8> {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    /// Absent where empty.
    pub(super) fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            write_text(self.key(key), value);
        }
    }

    /// Absent where unset or empty.
    pub(super) fn maybe_text(&mut self, key: &str, value: Option<&String>) {
        self.text(key, value.map_or("", String::as_str));
    }

    /// Always there.
    pub(super) fn number(&mut self, key: &str, value: impl Into<u64>) {
        write_number(self.key(key), value.into());
    }

    /// Absent where unset.
    pub(super) fn maybe_number(&mut self, key: &str, value: Option<impl Into<u64>>) {
        if let Some(value) = value {
            self.number(key, value);
        }
    }

    /// As text, absent where unset: for numbers that use all 64 bits, such as hashes. Readers that keep numbers as doubles (jq,
    /// JavaScript, Elasticsearch) round them beyond 2^53.
    pub(super) fn maybe_digits(&mut self, key: &str, value: Option<u64>) {
        if let Some(value) = value {
            write_text(self.key(key), &value.to_string());
        }
    }

    /// Always there.
    pub(super) fn flag(&mut self, key: &str, value: bool) {
        self.key(key).extend_from_slice(if value { b"true" } else { b"false" });
    }

    /// Absent where unset.
    pub(super) fn maybe_flag(&mut self, key: &str, value: Option<bool>) {
        if let Some(value) = value {
            self.flag(key, value);
        }
    }

    /// Absent where unset.
    pub(super) fn time(&mut self, key: &str, value: Option<&Timestamp>) {
        if let Some(value) = value {
            self.text(key, &rfc3339(value));
        }
    }

    /// Absent where unspecified.
    pub(super) fn name<E: Name>(&mut self, key: &str, value: i32) {
        if let Some(name) = E::name_of(value) {
            write_text(self.key(key), name);
        }
    }

    /// Absent where unset.
    pub(super) fn message<M: Message>(&mut self, key: &str, value: Option<&M>) {
        if let Some(value) = value {
            write_object(self.key(key), |object| value.fields(object));
        }
    }

    /// Always there, an empty list included.
    pub(super) fn list<T>(&mut self, key: &str, values: &[T], write: impl Fn(&mut Vec<u8>, &T)) {
        let out = self.key(key);
        out.push(b'[');
        for (index, value) in values.iter().enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write(out, value);
        }
        out.push(b']');
    }

    /// Absent where empty.
    pub(super) fn texts(&mut self, key: &str, values: &[String]) {
        if !values.is_empty() {
            self.every_text(key, values);
        }
    }

    /// Always there, an empty list included.
    pub(super) fn every_text(&mut self, key: &str, values: &[String]) {
        self.list(key, values, |out, value| write_text(out, value));
    }

    /// Absent where empty.
    pub(super) fn numbers(&mut self, key: &str, values: &[u32]) {
        if !values.is_empty() {
            self.list(key, values, |out, value| write_number(out, u64::from(*value)));
        }
    }

    /// Absent where empty.
    pub(super) fn names<E: Name>(&mut self, key: &str, values: &[i32]) {
        if !values.is_empty() {
            self.list(key, values, |out, value| write_text(out, E::name_of(*value).unwrap_or("unknown")));
        }
    }

    /// Absent where empty.
    pub(super) fn messages<M: Message>(&mut self, key: &str, values: &[M]) {
        if !values.is_empty() {
            self.every_message(key, values);
        }
    }

    /// Always there, an empty list included.
    pub(super) fn every_message<M: Message>(&mut self, key: &str, values: &[M]) {
        self.list(key, values, |out, value| write_object(out, |object| value.fields(object)));
    }

    /// Always there, an empty map included.
    pub(super) fn counts(&mut self, key: &str, values: &BTreeMap<String, u64>) {
        write_object(self.key(key), |object| {
            for (name, value) in values {
                object.free_key(name);
                write_number(object.out, *value);
            }
        });
    }

    /// Absent where empty.
    pub(super) fn labels(&mut self, key: &str, values: &BTreeMap<String, String>) {
        if values.is_empty() {
            return;
        }
        write_object(self.key(key), |object| {
            for (name, value) in values {
                object.free_key(name);
                write_text(object.out, value);
            }
        });
    }

    /// A key that is not ours and may need escapes.
    fn free_key(&mut self, key: &str) {
        if !self.empty {
            self.out.push(b',');
        }
        self.empty = false;
        write_text(self.out, key);
        self.out.push(b':');
    }
}

fn write_text(out: &mut Vec<u8>, value: &str) {
    if value.bytes().any(|byte| byte < 0x20 || byte == b'"' || byte == b'\\') {
        // Writing text into memory cannot fail.
        let _ = serde_json::to_writer(out, value);
        return;
    }
    out.push(b'"');
    out.extend_from_slice(value.as_bytes());
    out.push(b'"');
}

fn write_number(out: &mut Vec<u8>, value: u64) {
    use std::io::Write as _;
    // Writing into memory cannot fail.
    let _ = write!(out, "{value}");
}
