//! A manifest as data, and a cursor over it that knows where it stands.
//!
//! YAML and JSON both become a [`Value`]. Decoders walk it with [`At`], whose errors name the field's path
//! (`spec.ingress[0].ports[1].port`), so that a broken manifest is refused with the place to look at. `null` and a missing
//! field are the same thing, as they are to the API server.

use std::fmt;
use std::sync::Arc;

/// One node of a document.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::inventory) enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// A boolean.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number, as written.
    Number(Arc<str>),
    /// A string.
    Text(Arc<str>),
    /// A list.
    List(Vec<Value>),
    /// A mapping, in the order of the document, keys distinct.
    Map(Vec<(Arc<str>, Value)>),
}

static NULL: Value = Value::Null;

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => write!(f, "nothing"),
            Self::Bool(b) => write!(f, "the boolean {b}"),
            Self::Int(n) => write!(f, "the number {n}"),
            Self::Number(n) => write!(f, "the number {n}"),
            Self::Text(t) => write!(f, "the string {:?}", clip(t)),
            Self::List(_) => write!(f, "a list"),
            Self::Map(_) => write!(f, "a mapping"),
        }
    }
}

/// At most 80 characters of what may be megabytes of hostile text.
pub(in crate::inventory) fn clip(text: &str) -> &str {
    text.char_indices().nth(80).map_or(text, |(end, _)| &text[..end])
}

/// What is wrong, and where in the document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::inventory) struct FieldError {
    /// `spec.podSelector.matchLabels`; empty for the document itself.
    pub(in crate::inventory) path: String,
    /// One clause.
    pub(in crate::inventory) message: String,
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() { f.write_str(&self.message) } else { write!(f, "{}: {}", self.path, self.message) }
    }
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Root,
    Field(&'a At<'a>, &'a str),
    Item(&'a At<'a>, usize),
    /// A field of something that has none.
    Wrong(&'a At<'a>),
}

/// A value with the way that led to it.
#[derive(Clone, Copy)]
pub(in crate::inventory) struct At<'a> {
    value: &'a Value,
    step: Step<'a>,
}

impl<'a> At<'a> {
    /// The document.
    pub(in crate::inventory) fn root(value: &'a Value) -> Self {
        Self { value, step: Step::Root }
    }

    /// The bare value.
    pub(in crate::inventory) fn value(&self) -> &'a Value {
        self.value
    }

    /// Whether something other than `null` is here.
    pub(in crate::inventory) fn present(&self) -> bool {
        !matches!(self.value, Value::Null)
    }

    /// A field of this mapping; `null` where it is missing. Where this is no mapping, reading the field is an error.
    pub(in crate::inventory) fn field(&'a self, name: &'a str) -> At<'a> {
        let found = match self.value {
            Value::Map(entries) => entries.iter().find(|(key, _)| &**key == name).map(|(_, value)| value),
            Value::Null if !matches!(self.step, Step::Wrong(_)) => None,
            _ => return At { value: &NULL, step: Step::Wrong(self) },
        };
        At { value: found.unwrap_or(&NULL), step: Step::Field(self, name) }
    }

    fn absent<T>(&self, nothing: T) -> Result<T, FieldError> {
        match self.step {
            Step::Wrong(parent) => Err(parent.absent(()).err().unwrap_or_else(|| parent.expected("a mapping"))),
            _ => Ok(nothing),
        }
    }

    /// Checks that this is a mapping or nothing.
    pub(in crate::inventory) fn mapping(&self) -> Result<&'a [(Arc<str>, Value)], FieldError> {
        match self.value {
            Value::Map(entries) => Ok(entries),
            Value::Null => self.absent(&[][..]),
            _ => Err(self.expected("a mapping")),
        }
    }

    /// The fields of a mapping; none where nothing is.
    pub(in crate::inventory) fn fields(&'a self) -> Result<impl Iterator<Item = (&'a Arc<str>, At<'a>)>, FieldError> {
        Ok(self.mapping()?.iter().map(move |(name, value)| (name, At { value, step: Step::Field(self, name) })))
    }

    /// Checks that this is a mapping with no other fields than `known`, or nothing.
    pub(in crate::inventory) fn only(&self, known: &[&str]) -> Result<(), FieldError> {
        match self.mapping()?.iter().find(|(key, _)| !known.contains(&&**key)) {
            None => Ok(()),
            Some((key, _)) => {
                let here = At { value: self.value, step: self.step };
                Err(At { value: &NULL, step: Step::Field(&here, key) }.error("unknown field"))
            }
        }
    }

    /// The items of a list; none where nothing is.
    pub(in crate::inventory) fn items(&'a self) -> Result<impl Iterator<Item = At<'a>>, FieldError> {
        let items: &'a [Value] = match self.value {
            Value::List(items) => items,
            Value::Null => self.absent(&[][..])?,
            _ => return Err(self.expected("a list")),
        };
        Ok(items.iter().enumerate().map(move |(i, value)| At { value, step: Step::Item(self, i) }))
    }

    /// A string; `None` where nothing or nothing but `""` is.
    pub(in crate::inventory) fn text(&self) -> Result<Option<Arc<str>>, FieldError> {
        Ok(self.string()?.filter(|text| !text.is_empty()))
    }

    /// A string, `""` included; `None` where nothing is.
    pub(in crate::inventory) fn string(&self) -> Result<Option<Arc<str>>, FieldError> {
        match self.value {
            Value::Text(text) => Ok(Some(text.clone())),
            Value::Null => self.absent(None),
            _ => Err(self.expected("a string (put it in quotes)")),
        }
    }

    /// A whole number; `None` where nothing is.
    pub(in crate::inventory) fn int(&self) -> Result<Option<i64>, FieldError> {
        match self.value {
            Value::Int(n) => Ok(Some(*n)),
            Value::Null => self.absent(None),
            _ => Err(self.expected("a whole number")),
        }
    }

    /// A boolean; `None` where nothing is.
    pub(in crate::inventory) fn bool(&self) -> Result<Option<bool>, FieldError> {
        match self.value {
            Value::Bool(b) => Ok(Some(*b)),
            Value::Null => self.absent(None),
            _ => Err(self.expected("true or false")),
        }
    }

    /// An error about this place.
    pub(in crate::inventory) fn error(&self, message: impl fmt::Display) -> FieldError {
        FieldError { path: self.path(), message: message.to_string() }
    }

    /// An error that says what should be here, and what is.
    pub(in crate::inventory) fn expected(&self, what: &str) -> FieldError {
        self.error(format_args!("must be {what}, is {}", self.value))
    }

    fn path(&self) -> String {
        match self.step {
            Step::Root => String::new(),
            Step::Wrong(parent) => parent.path(),
            Step::Field(parent, name) => {
                let path = parent.path();
                // Label and annotation keys have dots of their own.
                if name.contains(['.', '/']) {
                    format!("{path}[{}]", clip(name))
                } else if path.is_empty() {
                    clip(name).to_owned()
                } else {
                    format!("{path}.{}", clip(name))
                }
            }
            Step::Item(parent, index) => format!("{}[{index}]", parent.path()),
        }
    }
}
