//! The map `JOURNAL`: small values by number that must survive the agent. Only user space reads and writes it.

use std::io;
use std::path::Path;

use super::table::{JournalValue, Table};

/// Bytes that one value may have.
pub const JOURNAL_VALUE: usize = size_of::<JournalValue>() - 2;

/// The journal's own handle on its map.
#[derive(Debug)]
pub struct JournalMap {
    table: Table<u64, JournalValue>,
}

impl JournalMap {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self { table: Table::open(&dir.join("JOURNAL"))? })
    }

    /// Everything that is kept.
    pub fn load(&self) -> Vec<(u64, Vec<u8>)> {
        match self.table.entries() {
            Ok(entries) => entries.into_iter().filter_map(|(key, value)| Some((key, decode(&value)?))).collect(),
            Err(error) => {
                tracing::error!(%error, "the journal cannot be read; pods of before are not known by name");
                Vec::new()
            }
        }
    }

    /// Writes or replaces a value of at most [`JOURNAL_VALUE`] bytes. A longer one is refused and logged.
    pub fn put(&mut self, key: u64, value: &[u8]) {
        let result =
            encode(value).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput)).and_then(|value| self.table.put(&key, &value));
        if let Err(error) = result {
            tracing::warn!(%error, key, bytes = value.len(), "the journal cannot keep an entry");
        }
    }

    /// Forgets one.
    pub fn remove(&mut self, key: u64) {
        if let Err(error) = self.table.remove(&key) {
            tracing::warn!(%error, key, "the journal cannot forget an entry");
        }
    }
}

fn encode(value: &[u8]) -> Option<JournalValue> {
    let mut stored = [0; size_of::<JournalValue>()];
    stored.get_mut(2..2 + value.len())?.copy_from_slice(value);
    stored[..2].copy_from_slice(&u16::try_from(value.len()).ok()?.to_le_bytes());
    Some(stored)
}

fn decode(stored: &JournalValue) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_le_bytes([stored[0], stored[1]]));
    Some(stored.get(2..2 + length)?.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_keep_their_length() {
        for value in [&b""[..], b"a\0\0", &[7; JOURNAL_VALUE]] {
            assert_eq!(decode(&encode(value).unwrap()).unwrap(), value);
        }
        assert!(encode(&[0; JOURNAL_VALUE + 1]).is_none());
    }
}
