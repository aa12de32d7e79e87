//! Settling: a new pod's interface gets filters at once, and links when there is time.
//!
//! The kernel takes its time over a TCX link: it waits for every packet that is under way, for tens of milliseconds, and nobody
//! else makes or changes an interface meanwhile. A pod that is held must not wait for that, nor the next one. A clsact filter is in
//! place at once. So where both can be had, a pod that has just come begins with filters, and *settles* when no pod is expected.
//! While it does, a packet may meet two programs of ours; `Config::settling` tells the second one to look whether the first has
//! seen it.
//!
//! Only interfaces that came after the agent are treated so: a device that gets its clsact qdisc drops packets for a moment, and
//! nobody's connection may be cut. And only where nobody else uses TCX: others' programs would run before a filter, and might
//! send packets past it.

use std::collections::HashSet;
use std::io;

use super::Datapath;
use super::attach::{self, Attacher, Backend};
use super::endpoint::Attach;
use super::follow::Endpoint;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Settler {
    /// Interfaces that lead into namespaces and were there at the first look.
    old: Option<HashSet<u32>>,
    /// Somebody else's TCX programs have been seen at a pod's interface: a CNI's, which will come to every one.
    shared: bool,
    /// Who was last in turn.
    last: Option<u32>,
}

impl Settler {
    /// These are the interfaces that lead into namespaces now.
    pub(super) fn look(&mut self, ends: Vec<u32>) {
        match &mut self.old {
            None => self.old = Some(ends.into_iter().collect()),
            Some(old) => old.retain(|ifindex| ends.contains(ifindex)),
        }
    }

    fn is_new(&self, ifindex: u32) -> bool {
        self.old.as_ref().is_some_and(|old| !old.contains(&ifindex))
    }
}

impl Datapath {
    /// Attaches to an interface, as fast as it can be done without harm; says how.
    pub(super) fn attach_interface(&mut self, ifindex: u32) -> io::Result<Attach> {
        if self.attacher.backend == Backend::Tcx && !self.attacher.is_linked(ifindex) {
            self.settler.shared |= Attacher::is_shared(&self.programs, ifindex)?;
            let hurries = self.settler.is_new(ifindex) && !self.settler.shared;
            // What a former agent has begun goes on so.
            if hurries || attach::has_filter(&mut self.netlink, ifindex)? {
                Attacher::filters(&mut self.netlink, &self.maps, &self.programs, ifindex)?;
                return Ok(Attach::Clsact);
            }
        }
        self.attacher.interface(&mut self.netlink, &self.maps, &self.programs, ifindex)?;
        if self.attacher.backend == Backend::Clsact {
            return Ok(Attach::Clsact);
        }
        self.settler.shared |= Attacher::is_shared(&self.programs, ifindex)?;
        Ok(Attach::Tcx)
    }

    /// Lets one pod settle, if one has to. Takes tens of milliseconds; call it now and then, when no pod is expected.
    pub fn settle_one(&mut self) {
        if self.attacher.backend != Backend::Tcx {
            return;
        }
        let waiting = |endpoint: &&Endpoint| endpoint.info.attach == Attach::Clsact && endpoint.ifindex() > self.settler.last;
        // The next one in turn, so that one that cannot be served keeps nobody waiting.
        let Some(endpoint) = self.endpoints.values().filter(waiting).min_by_key(|endpoint| endpoint.ifindex()) else {
            self.settler.last = None;
            return;
        };
        let (uid, ifindex) = (endpoint.info.uid.clone(), endpoint.info.number);
        self.settler.last = Some(ifindex);
        let settled = self.settling(ifindex).and_then(|()| {
            let attached = self.attacher.interface(&mut self.netlink, &self.maps, &self.programs, ifindex);
            self.settling(0).and(attached)
        });
        match settled {
            Ok(()) => {
                if let Some(endpoint) = self.endpoints.get_mut(&uid) {
                    endpoint.info.attach = Attach::Tcx;
                }
            }
            // Its filters stay; what became of it the next check says.
            Err(error) => tracing::debug!(%error, ifindex, "an interface could not be given its links"),
        }
    }

    /// Puts our programs in front of another's. Neither a link nor a filter can be moved: they go and come again, and where links
    /// do so, filters judge meanwhile.
    pub(super) fn come_first(&mut self, ifindex: u32, backend: Backend) -> io::Result<()> {
        if backend == Backend::Clsact {
            return Attacher::leave_filters(&mut self.netlink, ifindex);
        }
        self.settling(ifindex)?;
        let moved = Attacher::filters(&mut self.netlink, &self.maps, &self.programs, ifindex)
            .and_then(|()| self.attacher.leave_links(ifindex))
            .and_then(|()| self.attacher.interface(&mut self.netlink, &self.maps, &self.programs, ifindex));
        self.settling(0).and(moved)
    }

    /// Nothing settles any more, if a former agent ended while something did.
    pub(super) fn end_settling(&mut self) {
        if self.config.settling != 0
            && let Err(error) = self.settling(0)
        {
            tracing::warn!(%error, "the configuration could not be written");
        }
    }

    fn settling(&mut self, ifindex: u32) -> io::Result<()> {
        self.notice_mode()?;
        self.config.settling = ifindex;
        self.write_config()
    }
}
