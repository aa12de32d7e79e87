//! YAML to [`Value`], with the reading that `kubectl` has of it: plain scalars resolve as in YAML 1.1 (`yes` is a
//! boolean, `0x50` a number), `<<` merges, a key given twice is refused.
//!
//! Aliases are copied, so a budget on nodes and depth keeps a small hostile file small.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::document::{Document, DocumentError, MAX_DEPTH, MAX_NODES};
use crate::inventory::manifest::json::twice;
use crate::inventory::manifest::value::{Value, clip};

/// The documents of a YAML file.
pub(super) fn parse(text: &str) -> Result<Vec<Document>, DocumentError> {
    let options = granit_parser::options! { flow_nesting_limit: MAX_DEPTH, block_nesting_limit: MAX_DEPTH };
    let mut builder = Builder::default();
    for next in Parser::new_from_str_with_options(text, options) {
        let (event, span) = next.map_err(|e| {
            let (line, column) = (e.marker().line(), e.marker().col() + 1);
            builder.error(format!("line {line}, column {column}: not YAML: {}", e.info()))
        })?;
        builder.event(event, &span).map_err(|message| builder.error(format!("line {}: {message}", span.start.line())))?;
    }
    Ok(builder.documents)
}

/// A list or mapping that is still open.
struct Frame {
    anchor: usize,
    kind: FrameKind,
}

enum FrameKind {
    List(Vec<Value>),
    Map { entries: Vec<(Arc<str>, Value)>, merged: Vec<Value>, key: Option<Key> },
}

enum Key {
    Name(Arc<str>),
    Merge,
}

#[derive(Default)]
struct Builder {
    documents: Vec<Document>,
    open: Vec<Frame>,
    /// The document's content, once it is complete.
    done: Option<Value>,
    begun: usize,
    /// `(value, nodes, depth)` by anchor.
    anchors: HashMap<usize, (Value, usize, usize)>,
    nodes: usize,
    /// Label keys and values repeat by the thousand.
    texts: HashSet<Arc<str>>,
}

impl Builder {
    fn error(&self, message: String) -> DocumentError {
        DocumentError::new(self.begun.max(1), message)
    }

    fn event(&mut self, event: Event<'_>, _span: &Span) -> Result<(), String> {
        match event {
            Event::DocumentStart(..) => {
                self.begun += 1;
                self.anchors.clear();
            }
            Event::DocumentEnd => {
                let value = self.done.take().unwrap_or(Value::Null);
                self.documents.push(Document { number: self.begun, value });
            }
            Event::Scalar(text, style, anchor, tag) => return self.scalar(&text, style, anchor, tag.as_deref()),
            Event::SequenceStart(_, anchor, _) => return self.begin(anchor, FrameKind::List(Vec::new())),
            Event::MappingStart(_, anchor, _) => {
                return self.begin(anchor, FrameKind::Map { entries: Vec::new(), merged: Vec::new(), key: None });
            }
            Event::SequenceEnd | Event::MappingEnd => return self.end(),
            Event::Alias(anchor) => return self.alias(anchor),
            _ => {}
        }
        Ok(())
    }

    fn count(&mut self, nodes: usize) -> Result<(), String> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(format!("more than {MAX_NODES} values (aliases expanded)"));
        }
        Ok(())
    }

    fn intern(&mut self, text: &str) -> Arc<str> {
        if text.len() > 64 {
            return text.into();
        }
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let new: Arc<str> = text.into();
        self.texts.insert(new.clone());
        new
    }

    fn wants_key(&self) -> bool {
        matches!(self.open.last(), Some(Frame { kind: FrameKind::Map { key: None, .. }, .. }))
    }

    fn scalar(&mut self, text: &str, style: ScalarStyle, anchor: usize, tag: Option<&Tag>) -> Result<(), String> {
        self.count(1)?;
        let plain = style == ScalarStyle::Plain;
        if self.wants_key() {
            let name = self.intern(text);
            if anchor != 0 {
                self.anchors.insert(anchor, (Value::Text(name.clone()), 1, 0));
            }
            self.key(if plain && text == "<<" { Key::Merge } else { Key::Name(name) });
            return Ok(());
        }
        let value = match tag {
            Some(tag) if tag.suffix() == "str" => Value::Text(self.intern(text)),
            Some(tag) if tag.suffix() == "binary" => return Err("!!binary is not supported".into()),
            _ if plain => resolve(text).unwrap_or_else(|| Value::Text(self.intern(text))),
            _ => Value::Text(self.intern(text)),
        };
        self.value(value, anchor)
    }

    fn key(&mut self, new: Key) {
        if let Some(Frame { kind: FrameKind::Map { key, .. }, .. }) = self.open.last_mut() {
            *key = Some(new);
        }
    }

    fn begin(&mut self, anchor: usize, kind: FrameKind) -> Result<(), String> {
        self.count(1)?;
        if self.wants_key() {
            return Err("a mapping's key must be a string".into());
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH}"));
        }
        self.open.push(Frame { anchor, kind });
        Ok(())
    }

    fn end(&mut self) -> Result<(), String> {
        let Some(frame) = self.open.pop() else { return Ok(()) };
        let value = match frame.kind {
            FrameKind::List(items) => Value::List(items),
            FrameKind::Map { mut entries, merged, .. } => {
                if let Some(key) = twice(&entries) {
                    return Err(format!("key {:?} twice in one mapping", clip(&key)));
                }
                for value in merged {
                    merge(&mut entries, value)?;
                }
                Value::Map(entries)
            }
        };
        self.value(value, frame.anchor)
    }

    fn alias(&mut self, anchor: usize) -> Result<(), String> {
        let Some((value, nodes, depth)) = self.anchors.get(&anchor) else {
            return Err("an alias to something that holds it".into());
        };
        let (nodes, depth) = (*nodes, *depth);
        if self.open.len() + depth > MAX_DEPTH {
            return Err(format!("nested deeper than {MAX_DEPTH}"));
        }
        let value = value.clone();
        self.count(nodes)?;
        if self.wants_key() {
            let Value::Text(name) = value else { return Err("a mapping's key must be a string".into()) };
            self.key(Key::Name(name));
            return Ok(());
        }
        self.value(value, 0)
    }

    fn value(&mut self, value: Value, anchor: usize) -> Result<(), String> {
        if anchor != 0 {
            let (nodes, depth) = measure(&value);
            // What an anchor keeps is a copy, too.
            self.count(nodes)?;
            self.anchors.insert(anchor, (value.clone(), nodes, depth));
        }
        match self.open.last_mut().map(|frame| &mut frame.kind) {
            None => self.done = Some(value),
            Some(FrameKind::List(items)) => items.push(value),
            Some(FrameKind::Map { entries, merged, key }) => match key.take() {
                Some(Key::Name(name)) => entries.push((name, value)),
                Some(Key::Merge) => merged.push(value),
                None => return Err("a mapping's key must be a string".into()),
            },
        }
        Ok(())
    }
}

fn measure(value: &Value) -> (usize, usize) {
    let fold = |(n, d): (usize, usize), value| {
        let (nodes, depth) = measure(value);
        (n + nodes, d.max(depth + 1))
    };
    match value {
        Value::List(items) => items.iter().fold((1, 0), fold),
        Value::Map(entries) => entries.iter().map(|(_, value)| value).fold((1, 0), fold),
        _ => (1, 0),
    }
}

fn merge(entries: &mut Vec<(Arc<str>, Value)>, value: Value) -> Result<(), String> {
    match value {
        Value::Map(more) => {
            let mut known: HashSet<Arc<str>> = entries.iter().map(|(key, _)| key.clone()).collect();
            entries.extend(more.into_iter().filter(|(key, _)| known.insert(key.clone())));
            Ok(())
        }
        Value::List(items) => items.into_iter().try_for_each(|item| merge(entries, item)),
        _ => Err("<< needs a mapping".into()),
    }
}

/// What a plain scalar is if it is no string.
fn resolve(text: &str) -> Option<Value> {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Some(Value::Null),
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Some(Value::Bool(true)),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Some(Value::Bool(false)),
        _ => {}
    }
    if !text.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '+' | '-' | '.')) {
        return None;
    }
    number(text)
}

fn number(text: &str) -> Option<Value> {
    let plain: Cow<'_, str> = if text.contains('_') { text.replace('_', "").into() } else { text.into() };
    let (negative, digits) = match plain.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, plain.strip_prefix('+').unwrap_or(&plain)),
    };
    let (radix, body) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', _, ..] if digits[1..].bytes().all(|b| b.is_ascii_digit()) => (8, &digits[1..]),
        _ => (10, digits),
    };
    let is_number = |c: char| c.is_digit(radix);
    if !body.is_empty() && body.chars().all(is_number) {
        let parsed = i64::from_str_radix(body, radix).ok().map(|n| if negative { -n } else { n });
        return Some(parsed.map_or_else(|| Value::Number(text.into()), Value::Int));
    }
    let special = matches!(digits, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN");
    let float = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
        && digits.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'e' | b'E' | b'+' | b'-'))
        && digits.parse::<f64>().is_ok();
    (special || float).then(|| Value::Number(text.into()))
}
