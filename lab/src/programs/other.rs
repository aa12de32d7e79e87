//! Programs of another build, whose map values may have other fields: the type information in the object says where
//! each field stands, and values are written as that build reads them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use sekisho_core::layout::TYPES;

/// Maps that are filled by hand, and the types of their values.
const VALUES: [(&str, &str); 5] =
    [("CONFIG", "Config"), ("ENDPOINTS", "Endpoint"), ("HOLD", "Hold"), ("ADDRESSES", "AddressEntry"), ("RULES", "Rules")];

/// How this build's value of one type becomes the other's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Bytes of theirs.
    size: usize,
    /// Offset here, offset there, bytes.
    moves: Vec<(usize, usize, usize)>,
    /// Fields here that are not there.
    unknown: Vec<&'static str>,
}

impl Plan {
    pub(super) fn convert(&self, ours: &[u8]) -> Vec<u8> {
        let mut theirs = vec![0; self.size];
        for (from, to, bytes) in &self.moves {
            theirs[*to..to + bytes].copy_from_slice(&ours[*from..from + bytes]);
        }
        theirs
    }
}

/// Plans by map, of those whose types the object describes. The compiler describes only types that programs pass by reference;
/// of the others the sizes have to be equal, which a write checks.
pub(super) fn plans(object: &[u8]) -> Result<BTreeMap<&'static str, Plan>> {
    let structures = structures(object)?;
    let mut plans = BTreeMap::new();
    for (map, name) in VALUES {
        let (Some(theirs), Some(ours)) = (structures.get(name), TYPES.iter().find(|each| each.name == name)) else { continue };
        let here = extents(ours.size, ours.fields.iter().map(|field| (field.name, field.offset)));
        let there = extents(theirs.size, theirs.fields.iter().map(|(field, offset)| (field.as_str(), *offset)));
        let mut plan = Plan { size: theirs.size, moves: Vec::new(), unknown: Vec::new() };
        for field in ours.fields {
            let (from, bytes) = here[field.name];
            match there.get(field.name) {
                Some((to, room)) => plan.moves.push((from, *to, bytes.min(*room))),
                None => plan.unknown.push(field.name),
            }
        }
        plans.insert(map, plan);
    }
    Ok(plans)
}

/// Fields that this build fills and the other does not know, as `map.field`.
pub(super) fn unknown(plans: &BTreeMap<&'static str, Plan>) -> Vec<String> {
    plans.iter().flat_map(|(map, plan)| plan.unknown.iter().map(move |field| format!("{map}.{field}"))).collect()
}

/// Offset and bytes of each field: boundary types have no gaps.
fn extents<'a>(size: usize, fields: impl Iterator<Item = (&'a str, usize)> + Clone) -> BTreeMap<&'a str, (usize, usize)> {
    let ends = fields.clone().map(|(_, offset)| offset).skip(1).chain([size]);
    fields.zip(ends).map(|((name, offset), end)| (name, (offset, end.saturating_sub(offset)))).collect()
}

/// A structure that BTF describes.
#[derive(Debug, PartialEq, Eq)]
struct Structure {
    size: usize,
    /// Names and offsets in bytes.
    fields: Vec<(String, usize)>,
}

/// Numbers of an object, little-endian, with bounds checks.
#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn number<const N: usize>(self, at: usize) -> Result<usize> {
        let bytes = self.part(at, N)?.0;
        Ok(usize::try_from(bytes.iter().rev().fold(0u64, |sum, byte| sum << 8 | u64::from(*byte)))?)
    }

    fn part(self, at: usize, length: usize) -> Result<Self> {
        let end = at.checked_add(length).context("an offset beyond all bounds")?;
        self.0.get(at..end).map(Self).context("an offset beyond the object")
    }

    fn text(self, at: usize) -> Result<&'a str> {
        let rest = self.0.get(at..).context("a name beyond the object")?;
        Ok(std::str::from_utf8(rest.split(|byte| *byte == 0).next().unwrap_or_default())?)
    }
}

/// The section `.BTF` of a 64-bit little-endian ELF file.
fn section(object: &[u8]) -> Result<Bytes<'_>> {
    let file = Bytes(object);
    ensure!(object.starts_with(b"\x7fELF\x02\x01"), "this is no object of kernel programs");
    let (table, count, names) = (file.number::<8>(40)?, file.number::<2>(60)?, file.number::<2>(62)?);
    let header = |index: usize| file.part(table + 64 * index, 64);
    let place = |header: Bytes<'_>| Ok::<_, anyhow::Error>((header.number::<8>(24)?, header.number::<8>(32)?));
    let (at, length) = place(header(names)?)?;
    let names = file.part(at, length)?;
    for index in 0..count {
        let header = header(index)?;
        if names.text(header.number::<4>(0)?)? == ".BTF" {
            let (at, length) = place(header)?;
            return file.part(at, length);
        }
    }
    anyhow::bail!("the object does not describe its types: there is no section .BTF")
}

/// Every structure that the object's BTF describes (`Documentation/bpf/btf.rst`), by name.
fn structures(object: &[u8]) -> Result<BTreeMap<String, Structure>> {
    const STRUCT: usize = 4;
    let btf = section(object)?;
    let head = btf.number::<4>(4)?;
    let types = btf.part(head + btf.number::<4>(8)?, btf.number::<4>(12)?)?;
    let texts = btf.part(head + btf.number::<4>(16)?, btf.number::<4>(20)?)?;
    let mut found = BTreeMap::new();
    let mut at = 0;
    while at < types.0.len() {
        let (name, info, size) = (types.number::<4>(at)?, types.number::<4>(at + 4)?, types.number::<4>(at + 8)?);
        let (kind, count) = (info >> 24 & 31, info & 0xffff);
        at += 12;
        if kind == STRUCT {
            let fields = (0..count).map(|index| {
                let member = types.part(at + 12 * index, 12)?;
                Ok((texts.text(member.number::<4>(0)?)?.to_owned(), (member.number::<4>(8)? & 0x00ff_ffff) / 8))
            });
            let structure = Structure { size, fields: fields.collect::<Result<_>>()? };
            found.insert(texts.text(name)?.to_owned(), structure);
        }
        at += match kind {
            // Integers, variables and tags of declarations; arrays; structures, unions, sections and 64-bit enumerations;
            // enumerations and parameters.
            1 | 14 | 17 => 4,
            3 => 12,
            STRUCT | 5 | 15 | 19 => 12 * count,
            6 | 13 => 8 * count,
            _ => 0,
        };
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_moved_field_by_field() {
        let here = extents(12, [("a", 0), ("b", 4), ("c", 8)].into_iter());
        assert_eq!(here["b"], (4, 4));
        let plan = Plan { size: 16, moves: vec![(4, 0, 4), (0, 8, 4)], unknown: vec!["c"] };
        assert_eq!(plan.convert(&[1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]), [2, 2, 2, 2, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn nonsense_is_no_object() {
        for wrong in [&b"#!/bin/sh"[..], b"\x7fELF\x02\x01", &[0x7f; 200]] {
            assert!(structures(wrong).is_err());
        }
    }
}
