//! Builds the kernel programs for bpfel, and fetches the linker that this needs.
//!
//! The flags live here and nowhere else: the agent's build script and `cargo xtask build-ebpf` call the same
//! function. bpf-linker 0.10 loads the LLVM of the running rustc, so no LLVM package is needed.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

const LINKER_VERSION: &str = "0.10.4";

/// Where tools of ours live: outside the tree, so that a fresh clone finds them again.
pub fn tools_dir() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME") {
        Some(dir) => PathBuf::from(dir),
        None => PathBuf::from(env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?).join(".cache"),
    };
    Ok(base.join("sekisho/tools"))
}

/// The BPF linker, installed from crates.io where it is missing (a minute, once).
pub fn ensure_linker() -> Result<PathBuf> {
    let root = tools_dir()?.join(format!("bpf-linker-{LINKER_VERSION}"));
    let linker = root.join("bin/bpf-linker");
    if linker.exists() {
        return Ok(linker);
    }
    let status = clean(&mut Command::new("cargo"))
        .args(["install", "bpf-linker", "--version", LINKER_VERSION, "--locked", "--target", env!("SEKISHO_HOST"), "--root"])
        .arg(&root)
        .current_dir("/")
        .env("RUSTUP_TOOLCHAIN", TOOLCHAIN)
        .status()
        .context("cargo does not start")?;
    if !status.success() {
        bail!("`cargo install bpf-linker --version {LINKER_VERSION}` failed; crates.io must be reachable");
    }
    Ok(linker)
}

/// The toolchain of `rust-toolchain.toml`.
const TOOLCHAIN: &str = env!("SEKISHO_TOOLCHAIN");

/// Builds `ebpf/` of the repository `root` with its cargo `features` into `target` and returns the object's path. Objects
/// with other features need another `target`.
pub fn build(root: &Path, target: &Path, features: &[&str]) -> Result<PathBuf> {
    let linker = ensure_linker()?;
    // Packet headers are not aligned; without the feature every field is read byte by byte.
    let rustflags = ["-Cdebuginfo=2", "-Clink-arg=--btf", "-Ctarget-cpu=v3", "-Ctarget-feature=+allows-misaligned-mem-access"].join("\x1f");
    let output = clean(&mut Command::new("cargo"))
        .args(["build", "--release", "-Zbuild-std=core", "--target", "bpfel-unknown-none", "--target-dir"])
        .arg(target)
        .args(["--features", &features.join(",")])
        .current_dir(root.join("ebpf"))
        .env("RUSTUP_TOOLCHAIN", TOOLCHAIN)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags)
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &linker)
        .output()
        .context("cargo does not start")?;
    if !output.status.success() {
        bail!("the kernel programs do not build:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    let object = target.join("bpfel-unknown-none/release/sekisho-ebpf");
    fs::metadata(&object).with_context(|| format!("{} is missing after a successful build", object.display()))?;
    Ok(object)
}

/// Removes what an outer cargo sets and an inner one must not inherit.
fn clean(command: &mut Command) -> &mut Command {
    let keep = |name: &OsString| {
        let name = name.to_string_lossy();
        matches!(&*name, "CARGO_HOME" | "CARGO_TERM_COLOR" | "CARGO_HTTP_CAINFO")
            || (name.starts_with("CARGO_HTTP_")
                || name.starts_with("CARGO_NET_")
                || name.starts_with("CARGO_REGISTRIES_")
                || name.starts_with("CARGO_SOURCE_"))
            || !(name.starts_with("CARGO")
                || name.starts_with("RUSTC")
                || name.starts_with("RUSTFLAGS")
                || name == "RUSTUP_TOOLCHAIN"
                || name == "OUT_DIR"
                || name == "TARGET")
    };
    for (name, _) in env::vars_os().filter(|(name, _)| !keep(name)) {
        command.env_remove(name);
    }
    command
}
