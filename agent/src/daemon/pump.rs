//! The pump: one thread that owns the datapath, the policy compiler, the flow engine and the detections.
//!
//! It turns on a short beat, and at once when the source or the lookout has news: an event is in the book within a beat. What is rarer
//! has a period of its own, see [`Timers`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use sekisho_core::layout::FlowEvent;
use sekisho_proto as proto;
use tracing::{error, info, warn};

use super::control::{Command, Shared};
use super::keeper::{self, Keeper, Kept};
use super::kernel::Asked;
use super::opening;
use super::rest::{Rest, processor_time};
use super::timers::{BEAT, Timers};
use super::translate::Translator;
use crate::cli::{AgentArgs, Exit, Failure, Origin};
use crate::datapath::{Coverage, Datapath};
use crate::detect::Detector;
use crate::flow::{Body, Book, BootSeed, Context, Directory, Engine, Header, Journal, KernelTally, Ledger, Now, RunState};
use crate::inventory::{Pod, Snapshot, Source, files, kube};
use crate::policy::{Compiled, Compiler, Instances as _};

/// See the module.
pub(super) struct Pump {
    pub(super) args: AgentArgs,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    pub(super) datapath: Datapath,
    /// The lookout has seen something since the last look.
    woken: bool,
    pub(super) source: Source,
    /// What the source says.
    pub(super) base: Arc<Snapshot>,
    /// The same with lingering pods.
    pub(super) snapshot: Arc<Snapshot>,
    /// Pods of this node that the source does not name any more, and that are still at work.
    pub(super) lingering: Vec<Arc<Pod>>,
    /// A snapshot has been taken over.
    pub(super) synced: bool,
    /// What rests of changes far away.
    pub(super) rest: Rest,
    pub(super) local: Vec<Arc<Pod>>,
    pub(super) node_addresses: Vec<IpAddr>,
    pub(super) compiler: Compiler,
    pub(super) compiled: Option<Arc<Compiled>>,
    /// Why the last compile is not in force, if it is not.
    pub(super) refused: Option<String>,
    /// When it is tried again.
    pub(super) retry: Option<Instant>,
    /// When the policy in force was applied, nanoseconds since 1970 UTC.
    pub(super) applied_ns: u64,
    pub(super) journal: Journal,
    pub(super) engine: Engine,
    pub(super) detector: Detector,
    pub(super) directory: Arc<Directory>,
    pub(super) ledger: Ledger,
    book: Arc<Book>,
    header: Arc<Header>,
    pub(super) started_ns: u64,
    pub(super) known: HashMap<Arc<str>, Vec<IpAddr>>,
    /// Absent where connection tracking cannot be asked.
    pub(super) translator: Option<Translator>,
    events: Vec<FlowEvent>,
    /// Absent where its thread does not start.
    keeper: Option<Keeper>,
    boot: String,
}

impl Pump {
    /// Opens the node: reads the manifests, adopts or loads the programs, puts the policy in force.
    pub(super) fn open(args: &AgentArgs, commands: Receiver<Command>, shared: Arc<Shared>) -> Result<Self, Failure> {
        let cannot = |e: &dyn std::fmt::Display| Failure::new(Exit::CannotRun, e);
        check_source(args)?;
        let mut datapath = Datapath::open(&opening::options(args)).map_err(|e| cannot(&e))?;
        let source = open_source(args)?;
        datapath.set_mode(opening::mode_number(args.mode())).map_err(|e| cannot(&e))?;
        datapath.set_spoof_enforce(true).map_err(|e| cannot(&e))?;
        let now = now(&mut datapath);
        let used = datapath.used_ids();
        let store = datapath.journal().map_err(|e| cannot(&format!("the journal cannot be opened: {e}")))?;
        let journal = Journal::open(Box::new(store), used.instance);
        let previous = journal.previous_run();
        let header = opening::header(args, previous.as_ref());
        let counters = datapath.counters();
        let kernel = KernelTally::new(&counters, previous.as_ref().map(|p| p.counters.as_slice()));
        if datapath.adopted() {
            info!(unattended = kernel.unattended(), "adopted what an earlier agent left at work");
        }
        let boot = boot_id();
        let place = keeper::place(args.state_dir.as_deref(), &args.socket);
        let kept = keeper::read(&place, &args.node_name);
        let book = opening::open_book(args);
        let mut detector = Detector::new(&args.node_name, now.wall_ns);
        if let Some(kept) = kept {
            book.remember(kept.past());
            // The journal says which run was the last one with these numbers.
            if kept.boot == boot && previous.as_ref().is_some_and(|previous| previous.run == kept.run) {
                detector.restore(kept.detector);
            }
        }
        let directory = journal.directory(now.boot_ns);
        let mut engine = opening::engine(args, BootSeed::new(&boot), &now, directory.clone());
        engine.tally_mut().begin(&counters);
        engine.adopt_summarised(&datapath.summarised());
        let mut pump = Self {
            base: source.current(),
            snapshot: source.current(),
            lingering: Vec::new(),
            synced: false,
            rest: Rest::default(),
            args: args.clone(),
            commands,
            shared,
            woken: false,
            source,
            local: Vec::new(),
            node_addresses: datapath.node_addresses(),
            compiler: Compiler::new(used).knowing(journal.rules()),
            compiled: None,
            refused: None,
            retry: None,
            applied_ns: now.wall_ns,
            journal,
            engine,
            detector,
            directory,
            ledger: Ledger::new(kernel),
            book,
            header,
            started_ns: now.wall_ns,
            known: HashMap::new(),
            translator: Translator::start()
                .map_err(|e| warn!(error = %e, "connection tracking cannot be asked, records do not say what stands behind Services"))
                .ok(),
            events: Vec::with_capacity(4096),
            keeper: Keeper::start(place).map_err(|e| warn!("alerts are not kept for the next run: {e}")).ok(),
            boot,
            datapath,
        };
        // Before the first list is complete there is nothing to act on: what an earlier agent left stays at work.
        if pump.source.state().synced {
            pump.take_snapshot();
        }
        Ok(pump)
    }

    /// Turns at once when the source has news.
    pub(super) fn wake_on_news(&self, commands: Sender<Command>) {
        // A pump that has ended needs no waking.
        self.source.on_news(Box::new(move || drop(commands.send(Command::News))));
    }

    pub(super) fn book(&self) -> Arc<Book> {
        self.book.clone()
    }

    pub(super) fn header(&self) -> Arc<Header> {
        self.header.clone()
    }

    /// Turns until told to stop, then ends in order.
    pub(super) fn run(mut self) -> Result<(), Failure> {
        let mut timers = Timers::new(self.args.ledger_interval);
        loop {
            // All that have come by now: one beat is enough for many looks.
            let mut next = self.commands.recv_timeout(BEAT);
            while let Ok(command) = next {
                match command {
                    Command::Stop => return self.end(),
                    Command::Look => self.woken = true,
                    Command::News => {}
                    command => self.answer(command),
                }
                next = self.commands.recv_timeout(Duration::ZERO);
            }
            if matches!(next, Err(RecvTimeoutError::Disconnected)) {
                return self.end();
            }
            self.beat(&mut timers);
        }
    }

    fn beat(&mut self, timers: &mut Timers) {
        let instant = Instant::now();
        self.look_for_changes(timers, instant);
        // Afterwards: a great change takes a while, and what passed meanwhile is not of the future.
        let now = now(&mut self.datapath);
        self.drain(now);
        self.translate(now, instant);
        if timers.reap.rings(instant) {
            self.reap(now);
        }
        if timers.sweep.rings(instant) {
            let began = Instant::now();
            self.sweep(now);
            timers.swept(began.elapsed());
        }
        if timers.check.rings(instant) && !self.check() {
            timers.check_on(instant);
        }
        if timers.may_settle(instant, self.rest.quiet_for(instant)) {
            self.datapath.settle_one();
        }
        if timers.ledger.rings(instant) {
            self.engine.on_summarised(&self.datapath.summarised());
            let ledger = self.ledger();
            self.engine.push(Body::Ledger(Arc::new(ledger)));
        }
        if timers.note.rings(instant) {
            self.note();
        }
        if timers.forget.rings(instant) {
            let directory = self.journal.expire(now.boot_ns);
            self.set_directory(directory);
            super::idle::follow(&self.args, &mut self.engine);
        }
        for alert in self.detector.tick(&now) {
            self.tell_alert(alert);
        }
        self.engine.flush(&self.book, &now);
    }

    fn tell_alert(&mut self, alert: proto::Alert) {
        self.notice_alert(&alert);
        self.engine.push(Body::Alert(Arc::new(alert)));
    }

    /// Who is who, for everybody who writes names.
    pub(super) fn set_directory(&mut self, directory: Arc<Directory>) {
        self.engine.set_directory(directory.clone());
        self.detector.set_directory(directory.clone());
        self.directory = directory;
    }

    fn look_for_changes(&mut self, timers: &mut Timers, instant: Instant) {
        let next = Some(self.source.current()).filter(|s| s.generation != self.base.generation && self.may_take(s, instant));
        let news = std::mem::take(&mut self.woken) || next.is_some();
        let whole = if let Some(next) = next {
            self.base = next;
            let before = processor_time();
            let whole = self.take_snapshot();
            self.rest_from(Instant::now(), processor_time().saturating_sub(before));
            whole
        } else if self.synced && (news || timers.look.rings(instant)) {
            self.look_for_pods()
        } else {
            return;
        };
        timers.looked(news, self.datapath.endpoints().any(|e| !e.ready), whole);
    }

    /// Reads the rings into records.
    fn drain(&mut self, now: Now) {
        let events = &mut self.events;
        self.datapath.drain(&mut |event| events.push(*event));
        let mut context = Context { now, kernel: &mut Asked(&mut self.datapath), witness: &mut self.detector };
        self.engine.on_events(&mut self.events, &mut context);
        // The memory of a burst is not kept.
        self.events.shrink_to(16_384);
    }

    /// Has flows to Services looked up, and tells of starts that waited.
    fn translate(&mut self, now: Now, instant: Instant) {
        let mut context = Context { now, kernel: &mut Asked(&mut self.datapath), witness: &mut self.detector };
        if let Some(translator) = &mut self.translator {
            while let Some((dialled, found)) = translator.answer() {
                self.engine.on_translated(&dialled, found, &mut context);
            }
            translator.ask(self.engine.dialled());
            self.engine.allow_look_ups(translator.room(instant));
        }
        self.engine.release_waiting(&mut context);
    }

    fn reap(&mut self, now: Now) {
        let engine = &mut self.engine;
        self.datapath.reap(&mut |key, family, reason, flow| engine.on_reaped(family, key, reason, flow));
        let (detector, directory, journal) = (&mut self.detector, &self.directory, &self.journal);
        self.datapath.contacts(&mut |endpoint, contact| {
            if let Some(source) = directory.identities.get(&journal.pod(&endpoint.uid)) {
                detector.kernel_contact(source, contact, endpoint.coverage == Coverage::OneWay, &now);
            }
        });
        self.engine.settle(&mut Context { now, kernel: &mut Asked(&mut self.datapath), witness: &mut self.detector });
    }

    /// Walks the flow tables.
    fn sweep(&mut self, now: Now) {
        self.engine.begin_sweep(&self.datapath.counters());
        let engine = std::cell::RefCell::new(&mut self.engine);
        let whole = self.datapath.sweep(
            &mut |table, family, key, flow| engine.borrow_mut().on_swept(table, family, key, flow, &now),
            &mut |table, family, key, flow| engine.borrow_mut().on_removed(table, family, key, flow),
        );
        self.drain(now);
        let mut context = Context { now, kernel: &mut Asked(&mut self.datapath), witness: &mut self.detector };
        if whole {
            self.engine.end_sweep(&mut context);
        } else {
            self.engine.break_off_sweep(&mut context);
        }
    }

    /// Has some attachments checked and says what was found; `false` where there are more.
    fn check(&mut self) -> bool {
        self.notice_mode();
        if !self.synced {
            return true;
        }
        let check = self.datapath.check();
        let changed = !check.events.is_empty();
        for event in check.events {
            let (namespace, pod) = self.pod_name(&event.uid);
            let (interface, uid) = (event.interface.as_deref(), &*event.uid);
            warn!(namespace, pod, uid, interface, event = event.event, "{}", event.message);
            let coverage = proto::Coverage {
                event: event.event.to_owned(),
                pod: self.here(&event.uid).map(|p| super::status::pod(p)),
                interface: event.interface.as_deref().map(str::to_owned),
                attach: event.attach.to_owned(),
                message: event.message,
            };
            self.engine.push(Body::Coverage(Arc::new(coverage)));
        }
        if changed {
            self.look_for_pods();
            self.tell_endpoints();
        }
        self.tell_ready();
        check.through
    }

    /// Namespace and name of a pod, where it is known.
    pub(super) fn pod_name(&self, uid: &str) -> (Option<&str>, Option<&str>) {
        self.here(uid).map(|p| (&*p.namespace, &*p.name)).unzip()
    }

    pub(super) fn tell_ready(&self) {
        self.shared.set_ready(self.unready().is_empty());
    }

    /// Writes down how far this run is, for the next one.
    fn note(&mut self) {
        self.journal.keep(&self.engine.newly_borne());
        let counters = self.datapath.counters().to_vec();
        self.journal.note_run(&RunState { run: self.header.run.to_string(), seq: self.book.last_seq(), counters });
        let (version, alerts, instant) = (self.detector.version(), self.book.alerts_made(), Instant::now());
        if self.keeper.as_ref().is_some_and(|keeper| keeper.is_due(version, alerts, instant)) {
            let kept = self.kept();
            if let Some(keeper) = &mut self.keeper {
                keeper.keep(&kept, version, alerts, instant);
            }
        }
    }

    /// What the next run is to know of alerts.
    fn kept(&mut self) -> Kept {
        let now = now(&mut self.datapath);
        Kept::new(&self.boot, &self.header, self.detector.state(&now), self.book.past(), &self.book.alerts())
    }

    pub(super) fn ledger(&mut self) -> proto::Ledger {
        self.ledger.record(&self.datapath.counters(), self.engine.tally(), &self.book.lines())
    }

    fn answer(&mut self, command: Command) {
        // Who asked may have gone meanwhile; that is its own affair.
        match command {
            Command::Status(answer) => drop(answer.send(self.status())),
            Command::Explain(request, answer) => drop(answer.send(self.explain(&request))),
            Command::Names(request, answer) => drop(answer.send(self.names(&request))),
            Command::Mode(set, answer) => drop(answer.send(self.mode(set))),
            Command::Look | Command::News | Command::Stop => {}
        }
    }

    /// Ends open records, closes the book, leaves or removes enforcement.
    fn end(mut self) -> Result<(), Failure> {
        let now = now(&mut self.datapath);
        self.drain(now);
        self.reap(now);
        self.engine.begin_shutdown(!self.args.detach_on_exit);
        self.sweep(now);
        self.engine.shutdown(&mut Context { now, kernel: &mut Asked(&mut self.datapath), witness: &mut self.detector });
        self.engine.on_summarised(&self.datapath.summarised());
        for alert in self.detector.last_words(&now) {
            self.tell_alert(alert);
        }
        self.engine.flush(&self.book, &now);
        let ledger = self.ledger();
        self.engine.push(Body::Ledger(Arc::new(ledger)));
        self.engine.flush(&self.book, &now);
        self.note();
        let kept = self.kept();
        if let Some(keeper) = self.keeper.take() {
            keeper.finish(&kept);
        }
        self.book.close();
        let detach = self.args.detach_on_exit;
        let left = self.datapath.leave(detach);
        if let Err(e) = &left {
            error!(error = %e, "the data path could not be left in order");
        }
        info!("{}", if detach { "ended; nothing is enforced any more" } else { "ended; enforcement stays in place" });
        left.map_err(|e| Failure::new(Exit::CannotRun, e))
    }
}

/// Whether the source that the arguments name can be one, before anything is touched.
fn check_source(args: &AgentArgs) -> Result<(), Failure> {
    match args.source() {
        Some(Origin::Folder(folder)) => files::Source::check(&folder).map_err(|e| Failure::new(Exit::CannotRun, e)),
        Some(Origin::Cluster(_)) | None => Ok(()),
    }
}

/// The source that the arguments name.
fn open_source(args: &AgentArgs) -> Result<Source, Failure> {
    let cannot = |e: &dyn std::fmt::Display| Failure::new(Exit::CannotRun, e);
    match args.source() {
        Some(Origin::Folder(folder)) => Ok(Source::Files(files::Source::start(&folder).map_err(|e| cannot(&e))?)),
        Some(Origin::Cluster(access)) => Ok(Source::Kube(kube::Source::start(&access, &args.node_name).map_err(|e| cannot(&e))?)),
        None => Err(Failure::new(Exit::Usage, "neither manifests nor an API server to learn the cluster from")),
    }
}

/// All clocks at this moment.
pub(super) fn now(datapath: &mut Datapath) -> Now {
    let clocks = datapath.clock();
    Now { boot_ns: clocks.boot_ns, wall_ns: clocks.wall_ns, jiffies: clocks.jiffies, hz: clocks.hz }
}

/// This boot's id: flows of another boot have other ids.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}
