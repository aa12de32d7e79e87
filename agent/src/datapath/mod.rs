//! The only room that talks to the kernel: load, attach, pin, adopt, fill maps, read events, sweep flows,
//! prove coverage. It never touches what is not Sekisho's.
//!
//! Nouns. The *pin directory* is the operator's folder on a bpffs; below it lies one directory per *layout*. An *endpoint* is a
//! local pod at one hook: a `tc` endpoint is numbered by the interface index of its veth's host side, a `cgroup` endpoint by a
//! slot. *Adoption* is taking over maps and links that a former agent left at work.
//!
//! Order of use: [`Datapath::open`], then [`Datapath::reconcile`] with the local pods (finds their addresses), compile,
//! [`Datapath::apply`] (writes policy, and only then attaches), and so on at every change.

mod apply;
mod attach;
mod backends;
mod bpf;
mod cgroup;
mod conntrack;
mod coverage;
mod detach;
mod diagnostics;
mod discover;
mod endpoint;
mod entry;
mod error;
mod events;
mod filters;
mod follow;
mod former;
mod hold;
mod journal;
mod load;
mod migrate;
mod netlink;
mod numbers;
mod orphan;
mod os;
pub mod probe;
mod processes;
mod reconcile;
mod settle;
mod shape;
mod sizes;
mod status;
mod sweep;
mod table;
mod watch;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aya::maps::{MapData, RingBuf};
use sekisho_core::layout::{self, Config};

pub use apply::Applied;
pub use backends::ServiceFlow;
pub use conntrack::{Conntrack, udp_timeouts};
pub use coverage::Check;
pub use detach::{DetachReport, detach, set_mode_on_pins};
pub use endpoint::{Attach, ChangeKind, Clocks, Coverage, CoverageEvent, EndpointChange, EndpointInfo, ListenerInfo, MapStatus, Stranger};
pub use error::{ApplyError, DetachError, ModeError, OpenError};
pub use journal::{JOURNAL_VALUE, JournalMap};
pub use reconcile::Look;
pub use sekisho_core::flows::{Sweep, Table};
pub use sizes::LEAST_BUDGET;
pub use watch::Watcher;

use attach::{Attacher, Backend};
use cgroup::Hierarchy;
use diagnostics::Diagnostics;
use follow::Endpoint;
use load::{Pins, Programs};
use netlink::Netlink;
use sizes::Sizes;
use table::Maps;

use crate::policy;

/// Starts a watch on interfaces and control groups of this node, which wakes when pods may have come or gone.
pub fn watch() -> io::Result<Watcher> {
    Watcher::start()
}

/// Which backend attaches to interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TcBackend {
    /// TCX where the kernel has it, else clsact.
    #[default]
    Auto,
    /// TCX only.
    Tcx,
    /// clsact only.
    Clsact,
}

/// How to open the data path.
#[derive(Clone, Debug)]
pub struct Options {
    /// Folder on a bpffs for all that is pinned; made if missing.
    pub pin_dir: PathBuf,
    /// Backend for interfaces.
    pub tc_backend: TcBackend,
    /// Bytes for all maps together.
    pub memory_budget: u64,
    /// This node's name.
    pub node: String,
    /// How long after its first attachment an endpoint may have connections that nobody has seen.
    pub adoption_window: Duration,
}

/// The data path of one node. Used by one thread.
#[expect(clippy::struct_excessive_bools, reason = "they are independent of one another")]
pub struct Datapath {
    /// Held for its lock.
    pins: Pins,
    dir: PathBuf,
    maps: Maps,
    programs: Programs,
    rings: Vec<RingBuf<MapData>>,
    diagnostics: Diagnostics,
    sizes: Sizes,
    netlink: Netlink,
    hierarchy: Hierarchy,
    attacher: Attacher,
    config: Config,
    adopted: bool,
    /// Other layouts, removed once all endpoints are attached here.
    formers: Vec<former::Former>,
    /// This agent has taken over from another layout, and is not through with it.
    migrating: bool,
    /// The tables as the kernel holds them.
    tables: policy::Tables,
    applied_once: bool,
    /// Open flows to Services, for the next epoch.
    service_flows: Vec<ServiceFlow>,
    /// Those that are judged by their backend, as the kernel has them.
    backends: HashMap<layout::FlowKey6, layout::Backend>,
    /// Entries of endpoints have changed since the last epoch: what they had judged is to be judged again.
    repointed: bool,
    endpoints: BTreeMap<Arc<str>, Endpoint>,
    /// Slot of every endpoint number that flows may still bear.
    slots: numbers::Slots,
    cgroups_looked_up: Option<std::time::Instant>,
    /// When all pods were looked at.
    looked: Option<std::time::Instant>,
    /// Who was checked last, in a check that is not through.
    checked: Option<Arc<str>>,
    /// Container ids by cgroup id, as far as somebody asked.
    containers: std::cell::RefCell<HashMap<u64, Option<Arc<str>>>>,
    /// `contact_head` of every slot at the last look.
    contact_heads: Vec<u64>,
    listeners: processes::Listeners,
    /// Closed flows that were popped before their time.
    early: Vec<layout::Closing>,
    sweeper: sweep::Sweeper,
    holding: hold::Holding,
    adoption_window: Duration,
    settler: settle::Settler,
}

/// Whether a data path can run here at all: kernel, rights, BTF, cgroup v2. Touches nothing.
pub fn check_machine() -> Result<(), OpenError> {
    load::require_machine()?;
    Hierarchy::find().map(drop).ok_or(OpenError::NoCgroup2)
}

impl Datapath {
    /// Locks the pins, loads the programs, makes the maps or adopts them, and puts the new programs behind adopted links.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        load::require_machine()?;
        let hierarchy = Hierarchy::find().ok_or(OpenError::NoCgroup2)?;
        let backend = match (options.tc_backend, attach::has_tcx()) {
            (TcBackend::Clsact, _) | (TcBackend::Auto, false) => Backend::Clsact,
            (TcBackend::Tcx | TcBackend::Auto, true) => Backend::Tcx,
            (TcBackend::Tcx, false) => return Err(OpenError::NoTcx),
        };
        let most = os::memory().map_err(|source| OpenError::System { step: "reading the machine's memory", source })?;
        if options.memory_budget > most {
            return Err(OpenError::Budget { asked: options.memory_budget >> 20, most: most >> 20 });
        }
        let cpus = os::possible_cpus().map_err(|source| OpenError::System { step: "counting the CPUs", source })?;
        let sizes = sizes::plan(options.memory_budget, cpus, os::page_size());
        let pins = Pins::lock(&options.pin_dir)?;
        let plane = load::load(&pins, &sizes)?;
        let former: Vec<PathBuf> = pins.layouts().into_iter().filter(|dir| *dir != plane.dir).collect();
        let attacher = Attacher::new(&plane.dir, &former, backend).map_err(|source| OpenError::Pins { path: plane.dir.clone(), source })?;
        let netlink = Netlink::open().map_err(|source| OpenError::System { step: "opening a netlink socket", source })?;
        let mut datapath = Self {
            pins,
            dir: plane.dir,
            maps: plane.maps,
            programs: plane.programs,
            rings: plane.rings,
            diagnostics: plane.diagnostics,
            sizes,
            netlink,
            hierarchy,
            attacher,
            config: Config::ZERO,
            adopted: false,
            formers: Vec::new(),
            migrating: false,
            tables: policy::Tables::default(),
            applied_once: false,
            service_flows: Vec::new(),
            backends: HashMap::new(),
            repointed: false,
            endpoints: BTreeMap::new(),
            slots: numbers::Slots::default(),
            cgroups_looked_up: None,
            looked: None,
            checked: None,
            containers: std::cell::RefCell::default(),
            contact_heads: Vec::new(),
            listeners: processes::Listeners::default(),
            early: Vec::new(),
            sweeper: sweep::Sweeper::default(),
            holding: hold::Holding::default(),
            adoption_window: options.adoption_window,
            settler: settle::Settler::default(),
        };
        datapath.open_formers(&former);
        datapath.take_over()?;
        Ok(datapath)
    }

    /// Whether a former agent's maps were adopted.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    /// Fresh maps get their configuration, adopted ones their programs.
    fn take_over(&mut self) -> Result<(), OpenError> {
        let failed = |step| move |source| OpenError::System { step, source };
        self.config = self.maps.config.get(&0).map_err(failed("reading the configuration map"))?.unwrap_or(Config::ZERO);
        self.adopted = self.config.hz != 0;
        if self.adopted {
            self.read_tables().map_err(failed("reading the policy maps"))?;
            self.read_slots().map_err(failed("reading the endpoint maps"))?;
        } else {
            let hz = self.measure_hz().map_err(failed("measuring the kernel's tick"))?;
            self.config = Config { epoch: 1, mode: layout::mode::ENFORCE, hz, spoof_enforce: self.config.spoof_enforce, ..Config::ZERO };
            self.migrate().map_err(failed("copying flows from a former layout"))?;
        }
        // This version's limits, whoever made the maps.
        self.config = Config {
            linger: self.config.hz,
            event_rate: EVENT_RATE,
            event_burst: EVENT_RATE * 2,
            insert_rate: INSERT_RATE,
            insert_burst: INSERT_RATE * 2,
            denied_rate: self.sizes.denied_rate().min(INSERT_RATE),
            denied_burst: self.sizes.denied_burst().min(INSERT_RATE * 2),
            closing_share: self.sizes.closing_share(),
            ..self.config
        };
        self.write_config().map_err(failed("writing the configuration map"))?;
        self.adopt_slots_of_formers();
        self.attacher.adopt(&self.programs).map_err(failed("adopting links"))?;
        self.attacher.sockets(&self.programs, &self.hierarchy.mount).map_err(failed("attaching to the root of the cgroup tree"))?;
        // Those that the former hooks noted last.
        self.take_processes();
        Ok(())
    }

    fn write_config(&self) -> io::Result<()> {
        self.maps.config.put(&0, &self.config)
    }

    /// The mode in the kernel.
    pub fn mode(&self) -> u32 {
        self.config.mode
    }

    /// The policy epoch in the kernel.
    pub fn epoch(&self) -> u32 {
        self.config.epoch
    }

    /// How interfaces are attached to, as an operator names it.
    pub fn backend_name(&self) -> &'static str {
        match self.attacher.backend {
            Backend::Tcx => "tcx",
            Backend::Clsact => "clsact",
        }
    }

    /// Sets the mode; every cached verdict is judged again. Returns the new epoch.
    pub fn set_mode(&mut self, mode: u32) -> Result<u32, ApplyError> {
        self.notice_mode().map_err(|source| ApplyError::Map { map: "CONFIG", source })?;
        if self.config.mode != mode {
            self.config.mode = mode;
            self.bump_epoch()?;
            for former in self.formers.iter().filter(|former| !former.done) {
                former.set_mode(mode).map_err(|source| ApplyError::Map { map: "CONFIG", source })?;
            }
        }
        Ok(self.config.epoch)
    }

    /// Takes over a mode that was set on the pins while this agent did not answer, so that no later write undoes it. Tells
    /// the epoch that came with it.
    pub fn notice_mode(&mut self) -> io::Result<Option<u32>> {
        let Some(found) = self.maps.config.get(&0)? else { return Ok(None) };
        if (found.mode, found.epoch) == (self.config.mode, self.config.epoch) {
            return Ok(None);
        }
        (self.config.mode, self.config.epoch) = (found.mode, found.epoch);
        Ok(Some(found.epoch))
    }

    fn bump_epoch(&mut self) -> Result<(), ApplyError> {
        // Epoch 0 is what an empty entry has.
        self.config.epoch = self.config.epoch.wrapping_add(1).max(1);
        self.write_config().map_err(|source| ApplyError::Map { map: "CONFIG", source })
    }

    /// Says whether spoofed sources are dropped in mode enforce, or only recorded.
    pub fn set_spoof_enforce(&mut self, enforce: bool) -> Result<(), ApplyError> {
        let wanted = u32::from(enforce);
        if self.config.spoof_enforce != wanted {
            self.config.spoof_enforce = wanted;
            self.bump_epoch()?;
        }
        Ok(())
    }

    /// The journal map, for whoever remembers instances over restarts.
    pub fn journal(&self) -> io::Result<JournalMap> {
        JournalMap::open(&self.dir)
    }

    /// Ends the agent's use. Everything stays at work; with `detach` everything of ours goes.
    pub fn leave(self, detach: bool) -> Result<(), DetachError> {
        if detach {
            let Self { pins, maps, rings, programs, mut netlink, .. } = self;
            drop((maps, rings, programs));
            detach::remove_all(&pins, &mut netlink)?;
        }
        Ok(())
    }
}

/// Events per second that one endpoint may produce, for flows that it opens and for others. A ring holds many times what one endpoint can write between two reads.
const EVENT_RATE: u32 = 60_000;
/// Allowed new flows per second for which one endpoint gets state, for flows that it opens and for others. Beyond it packets are
/// judged one by one. Of denied ones it is [`Sizes::denied_rate`](sizes::Sizes::denied_rate).
const INSERT_RATE: u32 = 80_000;
