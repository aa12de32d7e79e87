//! Where things are, and how other programs are run: one line says what happens, another how long it took.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

/// The target for which everything but the kernel programs is built, as `.cargo/config.toml` has it.
const TARGET: &str = "x86_64-unknown-linux-musl";

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository")
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// A built program.
pub(crate) fn program(profile: &str, name: &str) -> PathBuf {
    target_dir().join(TARGET).join(profile).join(name)
}

/// A directory of ours that outlives the clone.
pub(crate) fn cache_dir(name: &str) -> Result<PathBuf> {
    let tools = sekisho_ebpf_build::tools_dir()?;
    let dir = tools.parent().context("the tools directory has a parent")?.join(name);
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// The cargo that runs us, at the repository's root.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Says what is about to happen.
pub(crate) fn say(what: &str) {
    eprintln!("==> {what}");
}

/// Runs a program to its end with its output shown; its failure is ours.
pub(crate) fn step(what: &str, command: &mut Command) -> Result<()> {
    say(what);
    let begin = Instant::now();
    let status = command.status().with_context(|| format!("{} does not start", command.get_program().display()))?;
    if !status.success() {
        bail!("{what}: failed ({status})");
    }
    eprintln!("    done in {:.1} s", begin.elapsed().as_secs_f64());
    Ok(())
}

/// Runs a program to its end and returns what it printed.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{} does not start", command.get_program().display()))?;
    if !output.status.success() {
        bail!("{:?}: {}\n{}", command, output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Builds the agent as it is shipped, and returns where it is; or takes the one that `SEKISHO_BIN` names.
pub(crate) fn build_agent() -> Result<PathBuf> {
    if let Some(given) = env::var_os("SEKISHO_BIN") {
        return Ok(given.into());
    }
    step("build the agent (a few minutes the first time)", cargo().args(["build", "--release", "--package", "sekisho"]))?;
    Ok(program("release", "sekisho"))
}

/// Builds the agent with the layout of a next version, for the upgrade test, and returns where it is.
pub(crate) fn build_next_layout() -> Result<PathBuf> {
    let words = ["build", "--package", "sekisho", "--features", "next-layout", "--bin", "sekisho-next"];
    step("build the agent of another layout", cargo().args(words))?;
    Ok(program("debug", "sekisho-next"))
}

/// Builds the lab's programs, and returns where they are.
pub(crate) fn build_lab() -> Result<PathBuf> {
    step("build the lab", cargo().args(["build", "--package", "sekisho-lab", "--bins"]))?;
    Ok(program("debug", "sekisho-lab"))
}

/// Builds the lab's programs for measuring: they share the processors with what is measured.
pub(crate) fn build_fast_lab() -> Result<PathBuf> {
    step("build the lab for measuring", cargo().args(["build", "--release", "--package", "sekisho-lab", "--bins"]))?;
    Ok(program("release", "sekisho-lab"))
}
