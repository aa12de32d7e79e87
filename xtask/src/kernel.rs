//! `cargo xtask test --kernel VERSION`: the same binaries under Debian's kernel, in an emulated machine.
//!
//! The machine has an initramfs and nothing else: the lab's program as its first process, the agent, the test
//! programs of the journeys that fit one machine, and the kernel modules that they need. All of them are
//! static, so there is no root file system. What the guest says on its console decides, and a guest that
//! says nothing in time has failed.

pub(crate) mod debian;
mod guest;
mod initramfs;
mod modules;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::setup;
use crate::workspace::{build_agent, build_lab, cache_dir, cargo, output, say};

use debian::Kernel;
use initramfs::Initramfs;

/// The test programs that fit one small machine, in this order: does the verifier take the programs
/// and do they judge packet by packet, does the lab itself work there, and then everything over real interfaces.
const JOURNEYS: [&str; 3] = ["programs", "lab", "verdicts"];
/// Modules that a node needs and that a cloud kernel does not have built in. What they need comes along.
const MODULES: [&str; 6] = ["veth", "bridge", "sch_ingress", "cls_bpf", "sctp", "8021q"];
/// A hung machine is switched off.
const LIMIT: Duration = Duration::from_mins(15);
/// What every build has time for. A machine that does other things beside takes longer.
const WANTED: Duration = Duration::from_secs(300);

pub(crate) fn run(version: &str, filter: Option<&str>) -> Result<()> {
    let begin = Instant::now();
    setup::run(true)?;
    let kernel = debian::kernel(version, &cache_dir("kernels")?)?;
    let agent = match std::env::var_os("SEKISHO_BIN") {
        Some(path) => PathBuf::from(path),
        None => build_agent()?,
    };
    let lab = build_lab()?;
    let archive = cache_dir("kernels")?.join(format!("initramfs-{version}-{}.cpio", std::process::id()));
    fs::write(&archive, pack(&kernel, &agent, &lab, filter)?).context("cannot write the initramfs")?;
    say(&format!("boot Linux {}", kernel.release));
    let booted = Instant::now();
    let report = guest::run(&kernel.image, &archive, LIMIT);
    fs::remove_file(&archive)?;
    let report = report?;
    let (passed, failed) = (report.passed.len(), report.failed.len());
    println!();
    println!(
        "under Linux {}: {passed} passed, {failed} failed; the machine ran for {} s, all of it took {} s",
        kernel.release,
        booted.elapsed().as_secs(),
        begin.elapsed().as_secs()
    );
    if begin.elapsed() > WANTED {
        println!("that is longer than the {} s which every build has time for: was this machine busy?", WANTED.as_secs());
    }
    for name in &report.failed {
        println!("  failed: {name}");
    }
    match report.verdict {
        None => bail!("the machine stopped without a verdict"),
        Some(0) if failed == 0 && passed > 0 => Ok(()),
        Some(0) if passed == 0 => bail!("no test ran under Linux {}", kernel.release),
        Some(code) => bail!("the journeys did not all pass under Linux {} (code {code})", kernel.release),
    }
}

/// Everything that the machine has.
fn pack(kernel: &Kernel, agent: &Path, lab: &Path, filter: Option<&str>) -> Result<Vec<u8>> {
    let mut files = Initramfs::default();
    for directory in ["dev", "modules", "tests"] {
        files.directory(directory);
    }
    files.device("dev/console", 5, 1);
    files.file("init", &read(lab)?).file("sekisho", &read(agent)?);
    files.file("programs.o", &sekisho_lab::programs::object()?);
    let mut list = String::new();
    for journey in JOURNEYS {
        files.file(&format!("tests/{journey}"), &read(&journey_program(journey)?)?);
        let skipped = skipped(journey, &kernel.release);
        let skipped: String = skipped.iter().flat_map(|test| [" --skip ", test]).collect();
        writeln!(list, "{journey}{}{skipped}", filter.map(|filter| format!(" {filter}")).unwrap_or_default())?;
    }
    files.file("tests/list", list.as_bytes());
    let mut order = String::new();
    for module in modules::resolve(&kernel.modules, &MODULES)? {
        files.file(&format!("modules/{}.ko", module.name), &module.bytes);
        writeln!(order, "{}.ko", module.name)?;
    }
    files.file("modules/order", order.as_bytes());
    Ok(files.finish())
}

/// What would only take time there.
fn skipped(journey: &str, release: &str) -> &'static [&'static str] {
    let mut numbers = release.split('.').filter_map(|number| number.parse::<u32>().ok());
    let has_tcx = (numbers.next(), numbers.next()) >= (Some(6), Some(6));
    match journey {
        // Load programs of their own: to fill small maps, which every kernel does alike, and ones that only a build here makes.
        "programs" => &["full_rings_and_tables", "rare_paths_say"],
        // Without TCX they are the tests with clsact again.
        "verdicts" if !has_tcx => &["bridge_tcx", "point_to_point_tcx"],
        _ => &[],
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

/// Builds a journey's test program and says where it is.
fn journey_program(name: &str) -> Result<PathBuf> {
    let messages = output(cargo().args(["test", "--no-run", "--package", "sekisho-lab", "--test", name, "--message-format", "json"]))?;
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo does not say where the journey {name} is"))
}
