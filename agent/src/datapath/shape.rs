//! What another build's maps hold: its boundary types as it wrote them down, and how a value of one becomes one of ours.
//!
//! An agent pins a description of its own types beside its maps. A build with other types reads it and takes over field by
//! field, by name: a field that moved is found, one that grew is widened, one that is new begins at zero, one that is
//! gone is left out. A number keeps its meaning for ever; what gets another meaning gets another name.
//!
//! It knows text and bytes, no maps and no kernel.

use std::collections::HashMap;
use std::fmt::Write as _;

use sekisho_core::counters;
use sekisho_core::layout::TYPES;

use super::table::Plain;

/// The types of a build.
#[derive(Debug, Default)]
pub(super) struct Shape {
    types: HashMap<String, Type>,
    /// Counter names with their slots.
    pub(super) counters: Vec<(String, u32)>,
}

#[derive(Debug, Default)]
struct Type {
    size: usize,
    /// Name, type as written, offset.
    fields: Vec<(String, String, usize)>,
}

/// A number, or several of the same width in a row.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Leaf {
    path: String,
    width: usize,
    count: usize,
    offset: usize,
}

/// This build's types, as text.
pub(super) fn describe() -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    for each in TYPES {
        let _ = writeln!(text, "type {} {}", each.name, each.size);
        for field in each.fields {
            let _ = writeln!(text, "field {} {} {}", field.name, field.offset, field.kind);
        }
    }
    for (slot, name) in counters::NAMES {
        let _ = writeln!(text, "counter {name} {slot}");
    }
    text
}

impl Shape {
    /// This build's own.
    pub(super) fn ours() -> Self {
        Self::read(&describe())
    }

    /// Reads a description. Lines of a kind that is not known are of a later version, and left out.
    pub(super) fn read(text: &str) -> Self {
        let mut shape = Self::default();
        let mut last = String::new();
        for line in text.lines() {
            let words: Vec<&str> = line.splitn(4, ' ').collect();
            match words[..] {
                ["type", name, size] => {
                    name.clone_into(&mut last);
                    shape.types.insert(last.clone(), Type { size: size.parse().unwrap_or(0), fields: Vec::new() });
                }
                ["field", name, offset, kind] => {
                    if let (Some(each), Ok(offset)) = (shape.types.get_mut(&last), offset.parse()) {
                        each.fields.push((name.to_owned(), kind.replace(' ', ""), offset));
                    }
                }
                ["counter", name, slot] => shape.counters.extend(slot.parse().ok().map(|slot| (name.to_owned(), slot))),
                _ => {}
            }
        }
        shape
    }

    /// Where a number of a type stands: its offset and its width.
    pub(super) fn number(&self, name: &str, field: &str) -> Option<(usize, usize)> {
        let leaf = self.leaves(name)?.into_iter().find(|leaf| leaf.path == field)?;
        Some((leaf.offset, leaf.width))
    }

    fn leaves(&self, name: &str) -> Option<Vec<Leaf>> {
        let mut leaves = Vec::new();
        self.expand(name, "", 0, &mut leaves)?;
        Some(leaves)
    }

    /// Adds the numbers that a type is made of; `None` where it is made of something unknown.
    fn expand(&self, kind: &str, path: &str, offset: usize, leaves: &mut Vec<Leaf>) -> Option<()> {
        if let Some((width, count)) = numbers(kind) {
            leaves.push(Leaf { path: path.to_owned(), width, count, offset });
            return Some(());
        }
        if let Some((each, count)) = array(kind) {
            let size = numbers(each).map_or_else(|| self.types.get(each).map(|each| each.size), |(width, count)| Some(width * count))?;
            return (0..count).try_for_each(|at| self.expand(each, &format!("{path}[{at}]"), offset + at * size, leaves));
        }
        let dot = if path.is_empty() { "" } else { "." };
        self.types
            .get(kind)?
            .fields
            .iter()
            .try_for_each(|(name, kind, at)| self.expand(kind, &format!("{path}{dot}{name}"), offset + at, leaves))
    }
}

fn width(kind: &str) -> Option<usize> {
    [("u8", 1), ("u16", 2), ("u32", 4), ("u64", 8)].into_iter().find(|(name, _)| *name == kind).map(|(_, width)| width)
}

fn array(kind: &str) -> Option<(&str, usize)> {
    let (each, count) = kind.strip_prefix('[')?.strip_suffix(']')?.rsplit_once(';')?;
    Some((each, count.parse().ok()?))
}

/// Width and count of a number or an array of numbers.
fn numbers(kind: &str) -> Option<(usize, usize)> {
    if kind == "Address" {
        return Some((1, 16));
    }
    match array(kind) {
        Some((each, count)) => Some((width(each)?, count)),
        None => Some((width(kind)?, 1)),
    }
}

/// How bytes of another build's value become ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Plan {
    /// Bytes of theirs.
    pub(super) from: usize,
    /// Bytes of ours.
    pub(super) to: usize,
    /// Offset there, offset here, bytes.
    moves: Vec<(usize, usize, usize)>,
}

impl Plan {
    /// For what is no boundary type: plain bytes, as many as both have.
    pub(super) fn plain(from: usize, to: usize) -> Self {
        Self { from, to, moves: vec![(0, 0, from.min(to))] }
    }

    /// For the boundary type `name`; `None` where one side does not know it.
    pub(super) fn between(theirs: &Shape, ours: &Shape, name: &str) -> Option<Self> {
        let (from, to) = (theirs.types.get(name)?.size, ours.types.get(name)?.size);
        let there: HashMap<String, Leaf> = theirs.leaves(name)?.into_iter().map(|leaf| (leaf.path.clone(), leaf)).collect();
        let mut moves: Vec<(usize, usize, usize)> = Vec::new();
        for here in ours.leaves(name)? {
            // What has become narrower may not fit: it begins anew.
            let Some(there) = there.get(&here.path).filter(|there| there.width <= here.width) else { continue };
            for at in 0..there.count.min(here.count) {
                let next = (there.offset + at * there.width, here.offset + at * here.width, there.width);
                match moves.last_mut() {
                    Some(last) if (last.0 + last.2, last.1 + last.2) == (next.0, next.1) => last.2 += next.2,
                    _ => moves.push(next),
                }
            }
        }
        if moves.iter().any(|(there, here, bytes)| there + bytes > from || here + bytes > to) {
            return None;
        }
        Some(Self { from, to, moves })
    }

    /// Their value as ours.
    pub(super) fn convert<T: Plain>(&self, theirs: &[u8]) -> T {
        let mut value = T::new_zeroed();
        let ours = value.as_mut_bytes();
        for (there, here, bytes) in &self.moves {
            if let (Some(from), Some(to)) = (theirs.get(*there..there + bytes), ours.get_mut(*here..here + bytes)) {
                to.copy_from_slice(from);
            }
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sekisho_core::layout::{Closing, Flow, FlowKey6};
    use zerocopy::IntoBytes;

    #[test]
    fn our_own_types_are_understood_whole() {
        let ours = Shape::ours();
        for each in TYPES {
            let plan = Plan::between(&ours, &ours, each.name).expect(each.name);
            assert_eq!(plan.moves, [(0, 0, each.size)], "{}", each.name);
        }
        assert_eq!(ours.counters.len(), counters::COUNT as usize);
    }

    #[test]
    fn fields_are_found_by_name() {
        let theirs = Shape::read(
            "type FlowKey6 33\nfield zone 0 u8\nfield remote 1 Address\nfield endpoint 17 u32\nfield local_port 21 u8\nfield protocol 22 u64\n\
             novelty of another age\ntype Closing 41\nfield key 0 FlowKey6\nfield start_ns 33 u64",
        );
        let plan = Plan::between(&theirs, &Shape::ours(), "Closing").unwrap();
        let mut old = [0u8; 41];
        old[0] = 9;
        old[1..17].fill(7);
        old[17..21].copy_from_slice(&5u32.to_le_bytes());
        old[21] = 80;
        // Wider there than here: it may not fit.
        old[22] = 6;
        old[33..].copy_from_slice(&1234u64.to_le_bytes());
        let new: Closing = plan.convert(&old);
        let key = FlowKey6 { remote: [7; 16], endpoint: 5, local_port: 80, ..FlowKey6::ZERO };
        assert_eq!(new, Closing { key, start_ns: 1234, ..Closing::ZERO });
        assert_eq!(Plan::between(&theirs, &Shape::ours(), "Flow"), None);
    }

    #[test]
    fn a_value_survives_there_and_back() {
        let text = describe().replace("type Flow ", "type Flow 1");
        // Fields of a longer type, all moved by eight bytes.
        let mut inside = false;
        let moved: String = text
            .lines()
            .map(|line| {
                inside = if line.starts_with("type ") { line.starts_with("type Flow ") } else { inside };
                match line.splitn(4, ' ').collect::<Vec<_>>()[..] {
                    ["field", name, offset, kind] if inside => {
                        format!("field {name} {} {kind}\n", offset.parse::<usize>().unwrap() + 8)
                    }
                    _ => format!("{line}\n"),
                }
            })
            .collect();
        let (theirs, ours) = (Shape::read(&moved), Shape::ours());
        let flow = Flow { packets: [1, 2], bytes: [3, 4], start_ns: 5, state: 6, rule: 7, mac: [8; 6], ..Flow::ZERO };
        let mut old = vec![0u8; Plan::between(&theirs, &ours, "Flow").unwrap().from];
        old[8..8 + size_of::<Flow>()].copy_from_slice(flow.as_bytes());
        assert_eq!(Plan::between(&theirs, &ours, "Flow").unwrap().convert::<Flow>(&old), flow);
        assert_eq!(theirs.number("Flow", "epoch").unwrap(), (ours.number("Flow", "epoch").unwrap().0 + 8, 4));
    }
}
