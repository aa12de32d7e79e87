//! Every field of a message as an aligned `key: value`, nested keys joined by points.

use serde_json::Value;

/// The block of one message, from its JSON.
pub(in crate::cli) fn dict(json: &str) -> String {
    let mut fields = Vec::new();
    if let Ok(value) = serde_json::from_str::<Value>(json) {
        flatten(String::new(), &value, &mut fields);
    }
    let width = fields.iter().map(|(key, _)| key.chars().count()).max().unwrap_or_default();
    let lines: Vec<String> = fields.iter().map(|(key, value)| format!("{key:>width$}: {value}")).collect();
    lines.join("\n")
}

fn flatten(key: String, value: &Value, fields: &mut Vec<(String, String)>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                let key = if key.is_empty() { name.clone() } else { format!("{key}.{name}") };
                flatten(key, value, fields);
            }
        }
        Value::Array(values) if values.iter().any(Value::is_object) => {
            for (index, value) in values.iter().enumerate() {
                flatten(format!("{key}[{index}]"), value, fields);
            }
        }
        Value::Array(values) => fields.push((key, values.iter().map(plain).collect::<Vec<_>>().join(", "))),
        plain_value => fields.push((key, plain(plain_value))),
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
