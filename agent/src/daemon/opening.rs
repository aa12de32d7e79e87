//! What a pump is made of, as the arguments say.

use std::sync::Arc;
use std::time::Duration;

use sekisho_core::layout;

use crate::cli::{AgentArgs, Mode, TcBackend};
use crate::datapath::{self, Options};
use crate::detect;
use crate::flow::{Book, BootSeed, Directory, Engine, Header, Now, RunState, Settings};

/// What the data path is opened with.
pub(super) fn options(args: &AgentArgs) -> Options {
    Options {
        pin_dir: args.pin_dir.clone(),
        tc_backend: match args.tc_backend {
            TcBackend::Auto => datapath::TcBackend::Auto,
            TcBackend::Tcx => datapath::TcBackend::Tcx,
            TcBackend::Clsact => datapath::TcBackend::Clsact,
        },
        memory_budget: args.memory_budget,
        node: args.node_name.clone(),
        adoption_window: args.adoption_window,
    }
}

/// An engine without flows.
pub(super) fn engine(args: &AgentArgs, seed: BootSeed, now: &Now, directory: Arc<Directory>) -> Engine {
    let settings =
        Settings { first_update_ns: nanoseconds(args.first_update), update_ns: nanoseconds(args.update_interval), ..Settings::default() };
    let mut engine = Engine::new(seed, now, directory, settings);
    super::idle::follow(args, &mut engine);
    engine
}

/// What all records of a new run have in common.
pub(super) fn header(args: &AgentArgs, previous: Option<&RunState>) -> Arc<Header> {
    Arc::new(Header {
        run: run_id().into(),
        node: args.node_name.as_str().into(),
        cluster: args.cluster.as_deref().map(Arc::from),
        previous: previous.map(|p| (p.run.as_str().into(), p.seq)),
    })
}

/// An empty book that knows every kind of alert.
pub(super) fn open_book(args: &AgentArgs) -> Arc<Book> {
    let book = Book::new(args.history as usize);
    book.expect_alerts(detect::rules());
    Arc::new(book)
}

/// The kernel's number of a mode.
pub(super) fn mode_number(mode: Mode) -> u32 {
    match mode {
        Mode::Observe => layout::mode::OBSERVE,
        Mode::Audit => layout::mode::AUDIT,
        Mode::Enforce => layout::mode::ENFORCE,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// A random UUID, from the kernel.
fn run_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_or_else(|_| "unknown".into(), |id| id.trim().to_owned())
}
