//! From one layout to the next: a new version, or another memory budget, gets maps of its own.
//!
//! Flows, totals and the journal are copied when the types are the same; the links change hands one by one, each when its
//! endpoint's policy is in the new maps. Flows that open in between are judged again as if they had begun before we
//! watched. Then the former directory goes.

use std::fs;
use std::io;
use std::path::Path;

use sekisho_core::layout::Config;

use super::Datapath;
use super::load::same_types;
use super::table::{Buffers, Maps, Plain, Table, pins};

impl Datapath {
    /// Copies what a former layout holds into the new maps. Before anything is attached to these.
    pub(super) fn migrate(&mut self) -> io::Result<()> {
        for dir in &self.former {
            if let Ok(owned) = Table::<u32, u32>::open(&dir.join("OWNED")) {
                copy(&owned, &self.maps.owned)?;
            }
            if !same_types(dir) {
                continue;
            }
            // A directory that a killed agent left half-made has nothing to give.
            let Ok(former) = Maps::open(dir) else { continue };
            let Some(config) = former.config.get(&0)?.filter(|config| config.hz != 0) else { continue };
            tracing::info!(from = %dir.display(), "copying flows from a former layout");
            self.config = Config {
                epoch: config.epoch.wrapping_add(1).max(1),
                mode: config.mode,
                spoof_enforce: config.spoof_enforce,
                ..self.config
            };
            copy_all(&former, &self.maps)?;
            copy(&former.live, &self.maps.live)?;
            for (number, endpoint) in former.endpoints.entries()? {
                self.slots.adopt(number, endpoint.index);
            }
        }
        Ok(())
    }

    /// Removes the former directories: everything is attached here.
    pub(super) fn finish_migration(&mut self) {
        for dir in std::mem::take(&mut self.former) {
            if let Err(error) = remove_layout(&dir) {
                tracing::warn!(%error, path = %dir.display(), "a former layout could not be removed");
            }
        }
        self.attacher.former.clear();
    }
}

fn remove_layout(dir: &Path) -> io::Result<()> {
    let links = dir.join("links");
    for name in pins(&links) {
        fs::remove_file(links.join(name))?;
    }
    if links.exists() {
        fs::remove_dir(&links)?;
    }
    for name in pins(dir) {
        fs::remove_file(dir.join(name))?;
    }
    fs::remove_dir(dir)
}

fn copy_all(from: &Maps, to: &Maps) -> io::Result<()> {
    copy(&from.established4, &to.established4)?;
    copy(&from.established6, &to.established6)?;
    copy(&from.answered4, &to.answered4)?;
    copy(&from.answered6, &to.answered6)?;
    copy(&from.embryonic4, &to.embryonic4)?;
    copy(&from.embryonic6, &to.embryonic6)?;
    copy(&from.states, &to.states)?;
    copy(&from.swept, &to.swept)?;
    copy(&from.sockets, &to.sockets)?;
    copy(&from.listeners, &to.listeners)?;
    copy(&from.journal, &to.journal)?;
    from.counters.copy_to(&to.counters)
}

/// Copies entry by entry; what does not fit into a smaller map is left out.
fn copy<K: Plain, V: Plain>(from: &Table<K, V>, to: &Table<K, V>) -> io::Result<()> {
    let mut failed = None;
    from.read(&mut Buffers::of(1024), &mut |keys, values| {
        for (key, value) in keys.iter().zip(values) {
            match to.put(key, value) {
                Err(error) if error.raw_os_error() != Some(libc::E2BIG) => failed = Some(error),
                _ => {}
            }
        }
    })?;
    failed.map_or(Ok(()), Err)
}
