//! The running agent: wires the rooms together and owns the threads.
//!
//! Nouns. The *pump* is the one thread that talks to the kernel and makes records. *Control* is how everybody else asks it
//! something: a command goes in, an answer comes out. The tokio runtime serves gRPC, sinks have threads of their own, and both only read the
//! book: nothing that a client does can hold up the pump.

mod control;
mod explain;
mod idle;
mod keeper;
mod kernel;
mod lingering;
mod logging;
mod lookout;
mod names;
mod notices;
mod opening;
mod policy;
mod pump;
mod rest;
mod status;
mod timers;
mod translate;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use sekisho_core::layout::mode;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, info, warn};

use crate::cli::{AgentArgs, Exit, Failure, Machine};
use crate::doctor::{self, Finding};
use crate::export::{JsonLines, Rotation, Target};
use crate::inventory::kube::Access;
use crate::{api, datapath, export};

use control::Control;
use pump::Pump;

/// This machine, for the commands that work without asking an agent.
pub struct Node;

impl Machine for Node {
    fn agent(&self, args: &AgentArgs) -> ExitCode {
        logging::start(args);
        match run(args) {
            Ok(()) => Exit::Done.into(),
            Err(failure) => {
                error!("{failure}");
                failure.exit.into()
            }
        }
    }

    fn detach(&self, pin_dir: &Path) -> Result<Vec<String>, Failure> {
        let report = datapath::detach(pin_dir).map_err(|e| Failure::new(Exit::CannotRun, e))?;
        let counted = [(report.links, "pinned links"), (report.filters, "clsact filters"), (report.maps, "pinned maps")];
        Ok(counted.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect())
    }

    fn examine(&self, pin_dir: &Path, access: Option<&Access>) -> Vec<Finding> {
        doctor::examine(pin_dir, access)
    }

    fn observe_on_pins(&self, pin_dir: &Path) -> Result<u32, Failure> {
        datapath::set_mode_on_pins(pin_dir, mode::OBSERVE).map_err(|e| Failure::new(Exit::NotReady, e))
    }
}

/// Runs until SIGTERM or SIGINT.
fn run(args: &AgentArgs) -> Result<(), Failure> {
    let cannot = |e: &dyn std::fmt::Display| Failure::new(Exit::CannotRun, e);
    // What the machine lacks is said before what follows from it.
    datapath::check_machine().map_err(|e| cannot(&e))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("api")
        .enable_all()
        .build()
        .map_err(|e| cannot(&format!("the runtime does not start: {e}")))?;
    // Signals are caught from here on, so that an early SIGTERM ends the agent in order.
    let mut signals = runtime.block_on(async { Signals::catch() }).map_err(|e| cannot(&e))?;
    let sink = args.jsonl.as_deref().map(|path| open_jsonl(path, args)).transpose()?;
    let tls = args.tls.files().map(api::Tls::load).transpose().map_err(|e| cannot(&e))?;
    let encrypted = tls.is_some();
    let listeners = runtime.block_on(api::bind(&args.socket, args.listen, tls)).map_err(|e| cannot(&e))?;
    let probes = args.metrics.map(|address| runtime.block_on(api::Probes::bind(address))).transpose().map_err(|e| cannot(&e))?;
    let (control, commands) = Control::new();
    lookout::start(control.sender());
    let pump = Pump::open(args, commands, control.shared())?;
    pump.wake_on_news(control.sender());
    let control = Arc::new(control.with_book(pump.book(), pump.header()));
    let sink = sink
        .map(|sink| export::spawn(Box::new(sink), &pump.book(), (*pump.header()).clone()))
        .transpose()
        .map_err(|e| cannot(&format!("a thread does not start: {e}")))?;
    let (stop, stopped) = watch::channel(false);
    let thread = thread::Builder::new()
        .name("pump".into())
        .spawn(move || pump.run())
        .map_err(|e| cannot(&format!("a thread does not start: {e}")))?;
    if let Some(address) = listeners.tcp_address() {
        info!(%address, tls = encrypted, "serving gRPC over TCP");
    }
    info!(node = %args.node_name, mode = %args.mode(), socket = %args.socket.display(), "running");
    let served = runtime.block_on(async {
        if let Some(probes) = probes {
            info!(address = probes.address().map(tracing::field::display), "serving metrics and probes");
            tokio::spawn(probes.serve(control.clone(), stopped.clone()));
        }
        let serving = tokio::spawn(api::serve(listeners, control.clone(), stopped));
        let ended = tokio::task::spawn_blocking(move || thread.join());
        tokio::pin!(ended);
        let early = tokio::select! {
            () = signals.wait() => None,
            ended = &mut ended => Some(ended),
        };
        info!("stopping");
        control.stop();
        let ended = match early {
            Some(ended) => ended,
            None => ended.await,
        };
        stop.send_replace(true);
        if let Ok(Err(e)) = serving.await {
            warn!(error = %e, "serving gRPC has ended with an error");
        }
        ended
    });
    if sink.is_some_and(|sink| !sink.join()) {
        warn!("the sink of JSON lines took too long for what was left; those records are lost");
    }
    match served {
        Ok(Ok(Ok(()))) => Ok(()),
        Ok(Ok(Err(failure))) => Err(failure),
        _ => Err(cannot(&"a thread of the agent ended in a panic; enforcement stays in place, start the agent again")),
    }
}

fn open_jsonl(path: &Path, args: &AgentArgs) -> Result<JsonLines, Failure> {
    let target = if path == Path::new("-") { Target::Stdout } else { Target::File(path.to_owned()) };
    let rotation = Rotation { size: args.jsonl_max_size, keep: args.jsonl_keep };
    JsonLines::open(target, rotation).map_err(|e| Failure::new(Exit::CannotRun, e))
}

/// The signals that end the agent.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, int: signal(SignalKind::interrupt())? })
    }

    async fn wait(&mut self) {
        tokio::select! { _ = self.term.recv() => {}, _ = self.int.recv() => {} }
    }
}
