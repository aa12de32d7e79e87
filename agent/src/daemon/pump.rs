//! The pump: one thread that owns the datapath, the policy compiler, the flow engine and the detections.
//!
//! It turns on a short beat: a changed manifest is in the kernel within a beat, an event in the book within one. What is rarer has a
//! period of its own, each a [`Timer`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use sekisho_core::layout::{self, FlowEvent};
use sekisho_proto as proto;
use tracing::{error, info, warn};

use super::control::{Command, Shared};
use super::kernel::Asked;
use super::rest::{Rest, processor_time};
use super::translate::Translator;
use crate::cli::{AgentArgs, Exit, Failure, Mode, Origin, TcBackend};
use crate::datapath::{self, Coverage, Datapath, Options};
use crate::detect::Detector;
use crate::flow::{Body, Book, BootSeed, Context, Directory, Engine, Header, Journal, KernelTally, Ledger, Now, RunState, Settings};
use crate::inventory::{Pod, Snapshot, Source, files, kube};
use crate::policy::{Compiled, Compiler, Instances as _};

/// How often rings are read and changes looked for.
const BEAT: Duration = Duration::from_millis(10);
/// How long closed flows may wait for their end beyond their linger.
const REAP: Duration = Duration::from_millis(100);
/// How often the flow tables are walked, and what part of the time that may take: great tables are walked less often.
const SWEEP: Duration = Duration::from_secs(2);
const SWEEP_SHARE: u32 = 100;
const SWEEP_RAREST: Duration = Duration::from_secs(5);
/// How often attachments and coverage are checked.
const CHECK: Duration = Duration::from_secs(2);
/// How often one of the pods that came in a hurry settles, if missing ones are looked for no oftener, and nothing changed for so long.
const SETTLE: Duration = Duration::from_millis(500);
const UNHURRIED: Duration = Duration::from_secs(2);
const CALM: Duration = Duration::from_millis(300);
/// How often pods are looked for without being woken, when some are missing first and otherwise.
const LOOK_MISSING: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_secs(5);
/// How often the run's progress is written down for the next run.
const NOTE: Duration = Duration::from_secs(1);
/// How often the journal forgets.
const FORGET: Duration = Duration::from_secs(60);

/// Something with a period.
struct Timer {
    period: Duration,
    due: Instant,
}

impl Timer {
    fn every(period: Duration) -> Self {
        Self { period, due: Instant::now() + period }
    }

    /// Whether it is due; if so, it is set again.
    fn rings(&mut self, now: Instant) -> bool {
        let rings = now >= self.due;
        if rings {
            self.due = now + self.period;
        }
        rings
    }
}

/// See the module.
pub(super) struct Pump {
    pub(super) args: AgentArgs,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    pub(super) datapath: Datapath,
    /// The lookout has seen something since the last look.
    woken: bool,
    pub(super) source: Source,
    pub(super) snapshot: Arc<Snapshot>,
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
}

impl Pump {
    /// Opens the node: reads the manifests, adopts or loads the programs, puts the policy in force.
    pub(super) fn open(args: &AgentArgs, commands: Receiver<Command>, shared: Arc<Shared>) -> Result<Self, Failure> {
        let cannot = |e: &dyn std::fmt::Display| Failure::new(Exit::CannotRun, e);
        check_source(args)?;
        let options = Options {
            pin_dir: args.pin_dir.clone(),
            tc_backend: match args.tc_backend {
                TcBackend::Auto => datapath::TcBackend::Auto,
                TcBackend::Tcx => datapath::TcBackend::Tcx,
                TcBackend::Clsact => datapath::TcBackend::Clsact,
            },
            memory_budget: args.memory_budget,
            node: args.node_name.clone(),
        };
        let mut datapath = Datapath::open(&options).map_err(|e| cannot(&e))?;
        let source = open_source(args)?;
        datapath.set_mode(mode_number(args.mode())).map_err(|e| cannot(&e))?;
        datapath.set_spoof_enforce(true).map_err(|e| cannot(&e))?;
        let now = now(&mut datapath);
        let used = datapath.used_ids();
        let store = datapath.journal().map_err(|e| cannot(&format!("the journal cannot be opened: {e}")))?;
        let journal = Journal::open(Box::new(store), used.instance);
        let previous = journal.previous_run();
        let header = Arc::new(Header {
            run: run_id().into(),
            node: args.node_name.as_str().into(),
            cluster: args.cluster.as_deref().map(Arc::from),
            previous: previous.as_ref().map(|p| (p.run.as_str().into(), p.seq)),
        });
        let counters = datapath.counters();
        let kernel = KernelTally::new(&counters, previous.as_ref().map(|p| p.counters.as_slice()));
        if datapath.adopted() {
            info!(unattended = kernel.unattended(), "adopted what an earlier agent left at work");
        }
        let settings = Settings {
            first_update_ns: nanoseconds(args.first_update),
            update_ns: nanoseconds(args.update_interval),
            ..Settings::default()
        };
        let directory = journal.directory(now.boot_ns);
        let mut engine = Engine::new(BootSeed::new(&boot_id()), &now, directory.clone(), settings);
        engine.tally_mut().begin(&counters);
        engine.adopt_summarised(&datapath.summarised());
        let mut pump = Self {
            snapshot: source.current(),
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
            detector: Detector::new(&args.node_name, now.wall_ns),
            directory,
            ledger: Ledger::new(kernel),
            book: Arc::new(Book::new(args.history as usize)),
            header,
            started_ns: now.wall_ns,
            known: HashMap::new(),
            translator: Translator::start()
                .map_err(|e| warn!("connection tracking cannot be asked, records do not say what stands behind Services: {e}"))
                .ok(),
            events: Vec::with_capacity(4096),
            datapath,
        };
        // Before the first list is complete there is nothing to act on: what an earlier agent left stays at work.
        if pump.source.state().synced {
            pump.take_snapshot();
        }
        Ok(pump)
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
            timers.sweep = Timer::every((began.elapsed() * SWEEP_SHARE).clamp(SWEEP, SWEEP_RAREST));
        }
        if timers.check.rings(instant) {
            self.check();
        }
        // One that is missing for long is not waited for; a change of policy must not wait for this.
        if timers.settle.rings(instant) && timers.look.period >= UNHURRIED && self.rest.quiet_for(instant) >= CALM {
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
        let next = Some(self.source.current()).filter(|s| s.generation != self.snapshot.generation && self.may_take(s, instant));
        let news = std::mem::take(&mut self.woken) || next.is_some();
        if let Some(next) = next {
            self.snapshot = next;
            let before = processor_time();
            self.take_snapshot();
            self.rest_from(Instant::now(), processor_time().saturating_sub(before));
        } else if !self.synced {
            return;
        } else if news || timers.look.rings(instant) {
            self.look_for_pods();
        } else {
            return;
        }
        let missing = self.datapath.endpoints().any(|e| !e.ready);
        // One that never starts is looked for less and less: the lookout wakes when there is something new.
        let again = if news { LOOK_MISSING } else { (timers.look.period * 2).min(LOOK) };
        timers.look = Timer::every(if missing { again } else { LOOK });
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

    /// Has the attachments checked and says what was found.
    fn check(&mut self) {
        self.notice_mode();
        if !self.synced {
            return;
        }
        let found = self.datapath.check();
        let changed = !found.is_empty();
        for event in found {
            warn!(interface = event.interface.as_deref(), "{}: {}", self.pod_text(&event.uid), event.message);
            let coverage = proto::Coverage {
                event: event.event.to_owned(),
                pod: self.local.iter().find(|p| p.uid == event.uid).map(|p| super::status::pod(p)),
                interface: event.interface.as_deref().map(str::to_owned),
                attach: event.attach.name().to_owned(),
                message: event.message,
            };
            self.engine.push(Body::Coverage(Arc::new(coverage)));
        }
        if changed {
            self.look_for_pods();
            self.tell_endpoints();
        }
        self.tell_ready();
    }

    /// The pod by name where it is known.
    pub(super) fn pod_text(&self, uid: &str) -> String {
        let pod = self.local.iter().find(|p| *p.uid == *uid);
        pod.map_or_else(|| format!("pod {uid}"), |p| format!("{}/{}", p.namespace, p.name))
    }

    pub(super) fn tell_ready(&self) {
        self.shared.set_ready(self.unready().is_empty());
    }

    /// Writes down how far this run is, for the next one.
    fn note(&mut self) {
        self.journal.keep(&self.engine.newly_borne());
        let counters = self.datapath.counters().to_vec();
        self.journal.note_run(&RunState { run: self.header.run.to_string(), seq: self.book.last_seq(), counters });
    }

    pub(super) fn ledger(&mut self) -> proto::Ledger {
        self.ledger.record(&self.datapath.counters(), self.engine.tally(), &self.book.lines())
    }

    fn answer(&mut self, command: Command) {
        // Who asked may have gone meanwhile; that is its own affair.
        match command {
            Command::Status(answer) => drop(answer.send(self.status())),
            Command::Explain(request, answer) => drop(answer.send(self.explain(&request))),
            Command::Mode(set, answer) => drop(answer.send(self.mode(set))),
            Command::Look | Command::Stop => {}
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
        self.book.close();
        let detach = self.args.detach_on_exit;
        let left = self.datapath.leave(detach);
        if let Err(e) = &left {
            error!("{e}");
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

struct Timers {
    reap: Timer,
    sweep: Timer,
    check: Timer,
    settle: Timer,
    look: Timer,
    ledger: Timer,
    note: Timer,
    forget: Timer,
}

impl Timers {
    fn new(ledger: Duration) -> Self {
        Self {
            reap: Timer::every(REAP),
            sweep: Timer::every(SWEEP),
            check: Timer::every(CHECK),
            settle: Timer::every(SETTLE),
            look: Timer::every(LOOK_MISSING),
            ledger: Timer::every(ledger),
            note: Timer::every(NOTE),
            forget: Timer::every(FORGET),
        }
    }
}

/// The kernel's number of a mode.
fn mode_number(mode: Mode) -> u32 {
    match mode {
        Mode::Observe => layout::mode::OBSERVE,
        Mode::Audit => layout::mode::AUDIT,
        Mode::Enforce => layout::mode::ENFORCE,
    }
}

/// All clocks at this moment.
pub(super) fn now(datapath: &mut Datapath) -> Now {
    let clocks = datapath.clock();
    Now { boot_ns: clocks.boot_ns, wall_ns: clocks.wall_ns, jiffies: clocks.jiffies, hz: clocks.hz }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A random UUID, from the kernel.
fn run_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_or_else(|_| "unknown".into(), |id| id.trim().to_owned())
}

/// This boot's id: flows of another boot have other ids.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}
