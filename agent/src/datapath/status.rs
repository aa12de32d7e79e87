//! How full the maps are.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use super::Table;
use super::endpoint::MapStatus;
use super::{Datapath, Maps};

impl Datapath {
    /// Every map with its entries, maximum and bytes. Entries of flow tables are those of the last sweep.
    pub fn maps(&self) -> Vec<MapStatus> {
        let Maps { embryonic4, embryonic6, established4, established6, answered4, answered6, .. } = &self.maps;
        let flows = |name, table, family, max, fd| {
            self.map_status(name, Some(self.sweeper.entries.get(&(table, family)).copied().unwrap_or(0)), max, fd)
        };
        let mut all = vec![
            flows("EMBRYONIC4", Table::Embryonic, 4, embryonic4.max(), embryonic4.as_fd()),
            flows("EMBRYONIC6", Table::Embryonic, 6, embryonic6.max(), embryonic6.as_fd()),
            flows("ESTABLISHED4", Table::Established, 4, established4.max(), established4.as_fd()),
            flows("ESTABLISHED6", Table::Established, 6, established6.max(), established6.as_fd()),
            flows("ANSWERED4", Table::Answered, 4, answered4.max(), answered4.as_fd()),
            flows("ANSWERED6", Table::Answered, 6, answered6.max(), answered6.as_fd()),
        ];
        macro_rules! counted {
            ($($name:literal $field:ident,)*) => { $( all.push(self.map_status($name, self.maps.$field.count().ok(), self.maps.$field.max(), self.maps.$field.as_fd())); )* };
        }
        counted! {
            "ENDPOINTS" endpoints, "CG_ENDPOINTS" cgroups, "ADDRESSES" addresses, "CIDRS" cidrs, "VIPS" vips, "BACKENDS" backends, "RULES" rules,
            "PORTS" ports, "SOCKETS" sockets, "LISTENERS" listeners, "JOURNAL" journal, "OWNED" owned, "LIVE" live,
        }
        let fixed = [
            ("ENDPOINT_STATES", self.maps.states.max(), self.maps.states.as_fd()),
            ("ENDPOINT_SWEPT", self.maps.swept.max(), self.maps.swept.as_fd()),
            ("CONTACTS", self.maps.contacts.max(), self.maps.contacts.as_fd()),
        ];
        all.extend(fixed.map(|(name, max, fd)| self.map_status(name, Some(u64::from(self.slots.end())), max, fd)));
        let rings: u64 = self.rings.iter().map(|ring| charged(ring.as_fd())).sum();
        let count = self.rings.len() as u64;
        all.push(MapStatus { name: "EVENTS", entries: count, max: count, bytes: rings });
        all
    }

    #[expect(clippy::unused_self, reason = "reads as a question to the data path beside its siblings")]
    fn map_status(&self, name: &'static str, entries: Option<u64>, max: u32, fd: BorrowedFd<'_>) -> MapStatus {
        MapStatus { name, entries: entries.unwrap_or(0), max: u64::from(max), bytes: charged(fd) }
    }
}

/// Bytes that the kernel charges for a map.
fn charged(fd: BorrowedFd<'_>) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("memlock:")).and_then(|bytes| bytes.trim().parse().ok()).unwrap_or(0)
}
