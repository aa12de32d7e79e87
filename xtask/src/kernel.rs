//! `cargo xtask test --kernel VERSION`: the same binaries under Debian's kernel, in an emulated machine.
//!
//! The machine has an initramfs and nothing else: the lab's program as its first process, the agent, the test
//! programs of the journeys that fit one machine, and the kernel modules that they need. All of them are
//! static, so there is no root file system. What the guest says on its console decides.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use sekisho_lab::tool::init::VERDICT;

use crate::setup;
use crate::workspace::{build_agent, build_lab, cache_dir, cargo, output, say, step};

mod initramfs;

/// The journeys that fit one small machine.
const JOURNEYS: [&str; 1] = ["verdicts"];
/// Modules that a node needs and that a cloud kernel does not have built in. What they need comes along.
const MODULES: [&str; 6] = ["veth", "bridge", "sch_ingress", "cls_bpf", "sctp", "8021q"];
/// An emulated machine is slow; a hung one is stopped.
const LIMIT: Duration = Duration::from_mins(15);

pub(crate) fn run(version: &str, filter: Option<&str>) -> Result<()> {
    let begin = Instant::now();
    setup::run(true)?;
    let kernel = fetch(version)?;
    let agent = build_agent()?;
    let lab = build_lab()?;
    let archive = cache_dir("kernels")?.join(format!("initramfs-{version}-{}.cpio", std::process::id()));
    pack(&archive, &kernel, &agent, &lab, filter)?;
    say(&format!("boot {}", kernel.release));
    let booted = boot(&kernel.image, &archive);
    fs::remove_file(&archive)?;
    let (code, passed, failed) = booted?;
    println!();
    println!("under Linux {}: {passed} passed, {failed} failed, {} s", kernel.release, begin.elapsed().as_secs());
    println!("{passed} passed, {failed} failed");
    if code != 0 || failed > 0 || passed == 0 {
        bail!("the journeys did not all pass under Linux {}", kernel.release);
    }
    Ok(())
}

/// An unpacked kernel.
struct Kernel {
    release: String,
    image: PathBuf,
    modules: PathBuf,
}

/// Finds Debian's newest cloud kernel of a version, and unpacks it into the cache. Nothing is installed.
fn fetch(version: &str) -> Result<Kernel> {
    let cache = cache_dir("kernels")?;
    if let Some(kernel) = unpacked(&cache, version)? {
        return Ok(kernel);
    }
    let search = || output(Command::new("apt-cache").args(["search", "--names-only", "^linux-image-.*cloud-amd64$"]));
    let pick = |list: &str| {
        let mut names: Vec<String> = list
            .lines()
            .filter_map(|line| line.split(' ').next())
            .filter(|name| {
                name.strip_prefix("linux-image-")
                    .is_some_and(|rest| rest.starts_with(&format!("{version}.")) || rest.starts_with(&format!("{version}-")))
            })
            .map(str::to_owned)
            .collect();
        names.sort_by_key(|name| numbers(name));
        names.pop()
    };
    let mut package = pick(&search()?);
    if package.is_none() {
        step("refresh Debian's list of packages", Command::new("apt-get").arg("update"))?;
        package = pick(&search()?);
    }
    let package = package
        .with_context(|| format!("Debian offers no cloud kernel {version} here (apt-cache search '^linux-image-.*cloud-amd64$')"))?;
    let download = cache.join(format!("download-{}", std::process::id()));
    fs::create_dir_all(&download)?;
    step(&format!("download {package}"), Command::new("apt-get").args(["download", &package]).current_dir(&download))?;
    let file = fs::read_dir(&download)?.next().context("apt-get download left nothing")??.path();
    let target = cache.join(&package);
    step("unpack it", Command::new("dpkg").arg("-x").arg(&file).arg(&target))?;
    fs::remove_dir_all(&download)?;
    unpacked(&cache, version)?.context("the package holds no kernel")
}

/// The numbers in a name, so that 6.1.0-9 comes before 6.1.0-56.
fn numbers(name: &str) -> Vec<u64> {
    name.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn unpacked(cache: &Path, version: &str) -> Result<Option<Kernel>> {
    for entry in fs::read_dir(cache)?.flatten() {
        let boot = entry.path().join("boot");
        for file in fs::read_dir(&boot).into_iter().flatten().flatten() {
            let name = file.file_name().to_string_lossy().into_owned();
            let Some(release) = name.strip_prefix("vmlinuz-") else { continue };
            if release.starts_with(&format!("{version}.")) || release.starts_with(&format!("{version}-")) {
                let modules =
                    [entry.path().join("lib/modules"), entry.path().join("usr/lib/modules")].into_iter().find(|path| path.is_dir());
                let modules = modules.context("the kernel package has no modules")?.join(release);
                return Ok(Some(Kernel { release: release.to_owned(), image: file.path(), modules }));
            }
        }
    }
    Ok(None)
}

fn pack(archive: &Path, kernel: &Kernel, agent: &Path, lab: &Path, filter: Option<&str>) -> Result<()> {
    let mut files = initramfs::Archive::default();
    for directory in ["dev", "modules", "tests"] {
        files.directory(directory);
    }
    files.device("dev/console", 5, 1);
    files.program("init", &fs::read(lab)?);
    files.program("sekisho", &fs::read(agent)?);
    let mut list = String::new();
    for journey in JOURNEYS {
        files.program(&format!("tests/{journey}"), &fs::read(journey_program(journey)?)?);
        writeln!(list, "{journey} --test-threads=1{}", filter.map(|filter| format!(" {filter}")).unwrap_or_default())?;
    }
    files.file("tests/list", list.as_bytes());
    let mut order = String::new();
    let mut packed = BTreeSet::new();
    let available = modules(&kernel.modules)?;
    for name in MODULES {
        pack_module(name, &available, &mut files, &mut packed, &mut order)?;
    }
    files.file("modules/order", order.as_bytes());
    fs::write(archive, files.finish()).context("cannot write the initramfs")
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

/// Every module's file by its name with underscores.
fn modules(root: &Path) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))?.flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                open.push(path);
            } else if let Some((stem, _)) = name.split_once(".ko") {
                found.push((stem.replace('-', "_"), path));
            }
        }
    }
    Ok(found)
}

/// Packs a module after everything that it depends on. A name without a file is built in.
fn pack_module(
    name: &str,
    available: &[(String, PathBuf)],
    files: &mut initramfs::Archive,
    packed: &mut BTreeSet<String>,
    order: &mut String,
) -> Result<()> {
    let name = name.replace('-', "_");
    let Some((_, path)) = available.iter().find(|(found, _)| *found == name) else { return Ok(()) };
    if !packed.insert(name.clone()) {
        return Ok(());
    }
    let bytes = if path.extension().is_some_and(|extension| extension == "xz") {
        Command::new("xz").arg("-dc").arg(path).stderr(Stdio::inherit()).output().context("xz does not start")?.stdout
    } else {
        fs::read(path)?
    };
    for needed in depends(&bytes) {
        pack_module(&needed, available, files, packed, order)?;
    }
    files.file(&format!("modules/{name}.ko"), &bytes);
    writeln!(order, "{name}.ko")?;
    Ok(())
}

/// What a module says in its `.modinfo` section.
fn depends(module: &[u8]) -> Vec<String> {
    let key = b"\0depends=";
    let Some(at) = module.windows(key.len()).position(|window| window == key) else { return Vec::new() };
    let rest = &module[at + key.len()..];
    let end = rest.iter().position(|&byte| byte == 0).unwrap_or(0);
    String::from_utf8_lossy(&rest[..end]).split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

/// Boots, shows the console, and returns the guest's exit code and how many tests passed and failed.
fn boot(image: &Path, archive: &Path) -> Result<(i32, u32, u32)> {
    let mut child = Command::new("qemu-system-x86_64")
        .args(["-accel", "kvm", "-accel", "tcg", "-m", "1024", "-smp", "2", "-nographic", "-no-reboot", "-nodefaults", "-serial", "stdio"])
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(archive)
        .args(["-append", "console=ttyS0 quiet panic=-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("qemu does not start")?;
    let stdout = child.stdout.take().context("standard output was piped")?;
    let reader = std::thread::spawn(move || read_console(stdout));
    let deadline = Instant::now() + LIMIT;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("the machine still runs after {LIMIT:?}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let (verdict, passed, failed) = reader.join().expect("reading does not panic");
    Ok((verdict.context("the machine stopped without a verdict")?, passed, failed))
}

fn read_console(stdout: std::process::ChildStdout) -> (Option<i32>, u32, u32) {
    use std::io::{BufRead, BufReader};
    let (mut verdict, mut passed, mut failed) = (None, 0, 0);
    for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        println!("    | {line}");
        if let Some((_, code)) = line.split_once(VERDICT) {
            verdict = code.trim().parse().ok();
        }
        if let Some((_, rest)) = line.split_once("test result: ") {
            passed += crate::test::number_before(rest, " passed");
            failed += crate::test::number_before(rest, " failed");
        }
    }
    (verdict, passed, failed)
}
