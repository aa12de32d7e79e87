//! The map `JOURNAL`: small values by number that must survive the agent. Only user space reads and writes it.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::table::{JournalValue, Table};

/// Bytes that one value may have.
pub const JOURNAL_VALUE: usize = size_of::<JournalValue>() - 2;

/// How often entries that are not kept are spoken of.
const SPOKEN_OF: Duration = Duration::from_secs(60);

/// The journal's own handle on its map.
#[derive(Debug)]
pub struct JournalMap {
    table: Table<u64, JournalValue>,
    /// Entries that could not be kept.
    unkept: u64,
    /// When that was said last.
    said: Option<Instant>,
}

impl JournalMap {
    pub(super) fn open(dir: &Path) -> io::Result<Self> {
        Ok(Self { table: Table::open(&dir.join("JOURNAL"))?, unkept: 0, said: None })
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

    /// Writes or replaces a value of at most [`JOURNAL_VALUE`] bytes; tells whether it is kept. A longer one is refused and counted.
    pub fn put(&mut self, key: u64, value: &[u8]) -> bool {
        let result =
            encode(value).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput)).and_then(|value| self.table.put(&key, &value));
        if let Err(error) = &result {
            self.unkept += 1;
            self.speak(error);
        }
        result.is_ok()
    }

    /// A full journal refuses thousands in a row: that is one line.
    fn speak(&mut self, error: &io::Error) {
        if self.said.is_none_or(|said| said.elapsed() >= SPOKEN_OF) {
            self.said = Some(Instant::now());
            let unkept = self.unkept;
            tracing::warn!(%error, unkept, "the journal cannot keep an entry: the next agent will not know its name; a larger --memory-budget makes room");
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
