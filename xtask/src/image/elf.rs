//! What a program file says of itself: for which processor it is, and whether it needs anything else to start.

use anyhow::{Context, Result, ensure};

/// The kind of a part that names a dynamic linker.
const INTERPRETER: u32 = 3;

/// Fails unless this is a program for `machine` that starts on an empty file system.
pub(super) fn must_be_static(program: &[u8], machine: u16) -> Result<()> {
    ensure!(program.starts_with(b"\x7fELF\x02\x01"), "not a 64-bit little-endian ELF file");
    let found = u16::from_le_bytes(field(program, 18)?);
    ensure!(found == machine, "it is for the processor {found}, not for {machine}");
    let table = usize::try_from(u64::from_le_bytes(field(program, 32)?))?;
    let (size, count) = (u16::from_le_bytes(field(program, 54)?), u16::from_le_bytes(field(program, 56)?));
    ensure!(count > 0, "nothing of it would be loaded");
    for part in 0..usize::from(count) {
        let kind = u32::from_le_bytes(field(program, table + part * usize::from(size))?);
        ensure!(kind != INTERPRETER, "it is not static: it names a dynamic linker");
    }
    Ok(())
}

fn field<const N: usize>(program: &[u8], at: usize) -> Result<[u8; N]> {
    program.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).context("the file is cut off")
}

#[cfg(test)]
mod tests {
    use super::must_be_static;

    fn program(machine: u16, kinds: &[u32]) -> Vec<u8> {
        let mut bytes = b"\x7fELF\x02\x01".to_vec();
        bytes.resize(64, 0);
        bytes[18..20].copy_from_slice(&machine.to_le_bytes());
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = u8::try_from(kinds.len()).unwrap();
        for kind in kinds {
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.resize(bytes.len() + 52, 0);
        }
        bytes
    }

    #[test]
    fn a_program_is_static_and_for_its_processor() {
        assert!(must_be_static(&program(183, &[1, 1, 7]), 183).is_ok());
        assert!(must_be_static(&program(62, &[1, 1, 7]), 183).is_err());
        assert!(must_be_static(&program(183, &[1, 3, 7]), 183).is_err());
        assert!(must_be_static(&program(183, &[]), 183).is_err());
        assert!(must_be_static(&program(183, &[1])[..80], 183).is_ok(), "only the first bytes of a part are read");
        assert!(must_be_static(b"#!/bin/sh", 183).is_err());
    }

    #[test]
    fn this_very_program_is_static() {
        let machine = if cfg!(target_arch = "x86_64") { 62 } else { 183 };
        must_be_static(&std::fs::read("/proc/self/exe").unwrap(), machine).unwrap();
    }
}
