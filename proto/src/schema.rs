//! JSON Schemas (draft 2020-12) of what the agent prints as JSON, made from the `.proto` files: names, types and descriptions are
//! theirs, the rules for presence and numbers are those of [`json`](crate::json). `cargo xtask gen` writes them to `docs/schemas`.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message as _;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use serde_json::{Map, Value, json};

use crate::{Direction, EndReason, Kind, Mismatch, Name, Outcome, Reason, Verdict, Zone};

/// Messages that the command line prints whole, with their files' names.
const ANSWERS: [(&str, &str); 3] = [("StatusResponse", "status"), ("ExplainResponse", "explain"), ("ModeResponse", "mode")];

/// Numbers that use all 64 bits and are text.
const DIGITS: [&str; 1] = ["Peer.identity"];

/// What is always there although the `.proto` files cannot say so.
const REQUIRED: [(&str, &[&str]); 6] = [
    ("Record", &["kind", "run", "time", "node"]),
    ("Flow", &["flow_id", "start", "last", "direction", "verdict", "source", "destination", "protocol", "packets", "bytes", "attach"]),
    ("Peer", &["ip"]),
    ("Pod", &["namespace", "name", "uid"]),
    ("Alert", &["id", "rule", "severity", "status", "first", "last"]),
    ("Ledger", &["kernel", "flows", "sinks"]),
];

/// Every schema with its file's name.
pub fn all() -> Result<Vec<(String, Value)>, SchemaError> {
    let protocol = Protocol::read()?;
    let mut schemas = vec![("record.schema.json".to_owned(), protocol.record()?)];
    for (message, name) in ANSWERS {
        schemas.push((format!("{name}.schema.json"), protocol.answer(message, name)?));
    }
    Ok(schemas)
}

/// What in the `.proto` files no schema can be made of.
#[derive(Debug)]
pub struct SchemaError(String);

impl std::fmt::Display for SchemaError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for SchemaError {}

/// The messages by name without the package, and the comments.
struct Protocol {
    messages: BTreeMap<String, DescriptorProto>,
    /// By `Message` and `Message.field`.
    comments: BTreeMap<String, String>,
}

impl Protocol {
    fn read() -> Result<Self, SchemaError> {
        let set = FileDescriptorSet::decode(crate::DESCRIPTORS).map_err(|e| SchemaError(e.to_string()))?;
        let mut protocol = Self { messages: BTreeMap::new(), comments: BTreeMap::new() };
        for file in set.file.iter().filter(|file| file.package() == "sekisho.v1") {
            for (index, message) in file.message_type.iter().enumerate() {
                protocol.add(file, String::new(), &[4, number(index)], message);
            }
        }
        Ok(protocol)
    }

    fn add(&mut self, file: &FileDescriptorProto, outer: String, path: &[i32], message: &DescriptorProto) {
        let name = outer + message.name();
        self.note(file, path, name.clone());
        for (index, field) in message.field.iter().enumerate() {
            self.note(file, &[path, &[2, number(index)]].concat(), format!("{name}.{}", field.name()));
        }
        for (index, nested) in message.nested_type.iter().enumerate() {
            self.add(file, format!("{name}."), &[path, &[3, number(index)]].concat(), nested);
        }
        self.messages.insert(name, message.clone());
    }

    fn note(&mut self, file: &FileDescriptorProto, path: &[i32], name: String) {
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        let comment = locations.filter(|location| location.path == path).find_map(|location| location.leading_comments.as_deref());
        if let Some(comment) = comment {
            self.comments.insert(name, comment.split_whitespace().collect::<Vec<_>>().join(" "));
        }
    }

    fn message(&self, name: &str) -> Result<&DescriptorProto, SchemaError> {
        self.messages.get(name).ok_or_else(|| SchemaError(format!("there is no message {name}")))
    }

    /// A record: its header with the fields of one body beside it.
    fn record(&self) -> Result<Value, SchemaError> {
        let record = self.message("Record")?;
        let (bodies, header): (Vec<_>, Vec<_>) =
            record.field.iter().partition(|field| field.oneof_index.is_some() && !field.proto3_optional());
        let mut used = BTreeSet::new();
        let mut defs = Map::new();
        let mut choices = Vec::new();
        for body in bodies {
            let name = short(body);
            let mut object = self.object("Record", header.iter().copied(), &mut used)?;
            object.extend(self.object(&name, &self.message(&name)?.field, &mut used)?)?;
            let kinds = kinds_of(&name)?;
            object.properties.insert("kind".to_owned(), json!({ "enum": kinds }));
            let def = format!("{name}Record");
            choices.push(json!({ "$ref": format!("#/$defs/{def}") }));
            defs.insert(def, object.schema(self.comments.get(&name)));
        }
        self.define(&mut defs, used)?;
        Ok(json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "$id": "urn:sekisho.v1:record",
            "title": "A record of Sekisho",
            "description": self.comments.get("Record"),
            "oneOf": choices,
            "$defs": defs,
        }))
    }

    fn answer(&self, message: &str, name: &str) -> Result<Value, SchemaError> {
        let mut used = BTreeSet::new();
        let object = self.object(message, &self.message(message)?.field, &mut used)?;
        let mut defs = Map::new();
        self.define(&mut defs, used)?;
        let mut schema = object.schema(self.comments.get(message));
        schema["$schema"] = "https://json-schema.org/draft/2020-12/schema".into();
        schema["$id"] = format!("urn:sekisho.v1:{name}").into();
        schema["title"] = format!("What `sekisho {name} -o json` prints").into();
        schema["$defs"] = defs.into();
        schema.sort_all_objects();
        Ok(schema)
    }

    /// The messages that are used, and those that they use.
    fn define(&self, defs: &mut Map<String, Value>, mut used: BTreeSet<String>) -> Result<(), SchemaError> {
        while let Some(name) = used.pop_first() {
            if !defs.contains_key(&name) {
                let object = self.object(&name, &self.message(&name)?.field, &mut used)?;
                defs.insert(name.clone(), object.schema(self.comments.get(&name)));
            }
        }
        defs.sort_keys();
        Ok(())
    }

    fn object<'a>(
        &self,
        message: &str,
        fields: impl IntoIterator<Item = &'a FieldDescriptorProto>,
        used: &mut BTreeSet<String>,
    ) -> Result<Object, SchemaError> {
        let mut object = Object::default();
        for field in fields {
            let name = field.name();
            let whole = format!("{message}.{name}");
            let mut value = self.value(&whole, field, used)?;
            // Counts and flags that are not optional are always there, and maps of counts.
            let repeated = field.label() == Label::Repeated;
            let counted = matches!(field.r#type(), Type::Uint32 | Type::Uint64 | Type::Bool) && !field.proto3_optional() && !repeated;
            if counted || value["additionalProperties"]["type"] == "integer" {
                object.required.insert(name.to_owned());
            }
            if let Some(comment) = self.comments.get(&whole) {
                value["description"] = comment.clone().into();
            }
            object.properties.insert(name.to_owned(), value);
        }
        let always = REQUIRED.iter().filter(|(known, _)| *known == message).flat_map(|(_, fields)| fields.iter());
        object.required.extend(always.map(|field| (*field).to_owned()));
        Ok(object)
    }

    fn value(&self, whole: &str, field: &FieldDescriptorProto, used: &mut BTreeSet<String>) -> Result<Value, SchemaError> {
        let repeated = field.label() == Label::Repeated;
        let one = match field.r#type() {
            Type::String => json!({ "type": "string" }),
            Type::Bool => json!({ "type": "boolean" }),
            Type::Uint32 => json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX }),
            Type::Uint64 if DIGITS.contains(&whole) => json!({ "type": "string", "pattern": "^[0-9]{1,20}$" }),
            Type::Uint64 => json!({ "type": "integer", "minimum": 0 }),
            Type::Enum => json!({ "enum": names_of(&short(field))? }),
            Type::Message if field.type_name() == ".google.protobuf.Timestamp" => json!({ "type": "string", "format": "date-time" }),
            Type::Message => {
                let name = short(field);
                let message = self.message(&name)?;
                if message.options.as_ref().is_some_and(prost_types::MessageOptions::map_entry) {
                    let values = message.field.iter().find(|field| field.name() == "value");
                    let values = values.ok_or_else(|| SchemaError(format!("{whole} has no values")))?;
                    return Ok(json!({ "type": "object", "additionalProperties": self.value(whole, values, used)? }));
                }
                used.insert(name.clone());
                json!({ "$ref": format!("#/$defs/{name}") })
            }
            other => return Err(SchemaError(format!("{whole} has a type without a rule: {other:?}"))),
        };
        Ok(if repeated { json!({ "type": "array", "items": one }) } else { one })
    }
}

#[derive(Default)]
struct Object {
    properties: Map<String, Value>,
    required: BTreeSet<String>,
}

impl Object {
    /// Takes in the fields of another, which must have other names.
    fn extend(&mut self, other: Self) -> Result<(), SchemaError> {
        for (name, value) in other.properties {
            if self.properties.insert(name.clone(), value).is_some() {
                return Err(SchemaError(format!("both the header and a body of records have a field {name}")));
            }
        }
        self.required.extend(other.required);
        Ok(())
    }

    fn schema(self, description: Option<&String>) -> Value {
        let mut schema = json!({
            "type": "object",
            "properties": self.properties,
            "required": self.required,
            "additionalProperties": false,
        });
        if let Some(description) = description {
            schema["description"] = description.clone().into();
        }
        schema
    }
}

/// A field's type without the package.
fn short(field: &FieldDescriptorProto) -> String {
    field.type_name().trim_start_matches(".sekisho.v1.").to_owned()
}

fn number(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

fn spelled<E: Name>() -> Vec<&'static str> {
    E::NAMES.iter().map(|(_, name)| *name).collect()
}

fn names_of(name: &str) -> Result<Vec<&'static str>, SchemaError> {
    Ok(match name {
        "Kind" => spelled::<Kind>(),
        "Verdict" => spelled::<Verdict>(),
        "Outcome" => spelled::<Outcome>(),
        "Reason" => spelled::<Reason>(),
        "EndReason" => spelled::<EndReason>(),
        "Direction" => spelled::<Direction>(),
        "Mismatch" => spelled::<Mismatch>(),
        "Zone" => spelled::<Zone>(),
        other => return Err(SchemaError(format!("the names of {other} are not known here"))),
    })
}

/// Which kinds of records have that body.
fn kinds_of(body: &str) -> Result<&'static [&'static str], SchemaError> {
    Ok(match body {
        "Flow" => &["start", "update", "end"],
        "Alert" => &["alert"],
        "Ledger" => &["ledger"],
        "PolicyChange" => &["policy"],
        "Coverage" => &["coverage"],
        "Summary" => &["summarised"],
        other => return Err(SchemaError(format!("the kind of records with {other} is not known here"))),
    })
}
