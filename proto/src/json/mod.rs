//! JSON of every message, written by hand: one pass, no tree in between.
//!
//! The names are those of the `.proto` files. A body's fields stand beside the header's. What is not known is absent: an
//! unset optional, an unspecified enum, empty text and, in records, an empty list. Counts are always there, zero included,
//! and so are the `lost` maps of the ledger: they are known to be empty.

mod answers;
mod object;
mod records;
#[cfg(test)]
mod tests;

pub use object::Message;

use object::write_object;

/// A message as one line of JSON, without the line break.
pub fn to_json(message: &dyn Message) -> String {
    let mut out = Vec::with_capacity(1024);
    write_json(message, &mut out);
    String::from_utf8(out).unwrap_or_default()
}

/// A record as one line of JSON, without the line break.
pub fn to_json_line(record: &crate::Record) -> String {
    to_json(record)
}

/// The same, appended to a buffer that the caller keeps.
pub fn write_json(message: &dyn Message, out: &mut Vec<u8>) {
    write_object(out, |object| message.fields(object));
}
