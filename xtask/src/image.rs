//! `cargo xtask image`: the agent as a container image, one static program on nothing, in a file that any
//! runtime imports. No container engine is needed, and no base image: there is no shell in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::oci::{Archive, Image};
use crate::workspace::{build_agent, cargo, output, step, target_dir};

/// The image's name; the chart's default is the same.
pub(crate) const NAME: &str = concat!("ghcr.io/sekisho/sekisho:", env!("CARGO_PKG_VERSION"));
/// An image that is larger has something in it that does not belong there.
const LARGEST: usize = 20_000_000;

/// What images can be built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Platform {
    /// x86-64
    #[value(name = "linux/amd64")]
    Amd64,
    /// 64-bit Arm
    #[value(name = "linux/arm64")]
    Arm64,
}

/// Builds it and prints where it is as the last line.
pub(crate) fn run(platforms: &[Platform]) -> Result<()> {
    println!("{}", build(platforms)?.display());
    Ok(())
}

/// Builds it and returns the archive's path.
pub(crate) fn build(platforms: &[Platform]) -> Result<PathBuf> {
    let mut images = Vec::new();
    for platform in platforms {
        let program = match platform {
            Platform::Amd64 => build_agent()?,
            Platform::Arm64 => build_for("aarch64-unknown-linux-musl")?,
        };
        let bytes = without_symbols(&program)?;
        if bytes.len() > LARGEST {
            bail!("{} has {} bytes; an image has at most {LARGEST}", program.display(), bytes.len());
        }
        let architecture = match platform {
            Platform::Amd64 => "amd64",
            Platform::Arm64 => "arm64",
        };
        images.push(
            Image::of_program(architecture, "sekisho", &bytes, &["/sekisho"])
                .label("org.opencontainers.image.title", "sekisho")
                .label("org.opencontainers.image.version", env!("CARGO_PKG_VERSION"))
                .label("org.opencontainers.image.licenses", "Apache-2.0"),
        );
    }
    let mut archive = Archive::new();
    archive.add(NAME, &images);
    let file = target_dir().join("sekisho-image.tar");
    let bytes = archive.finish();
    eprintln!("    {NAME}, {} MiB", bytes.len() >> 20);
    fs::write(&file, bytes).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// The program without its symbol table, a fifth of it. The compiler brings the tool along.
fn without_symbols(program: &Path) -> Result<Vec<u8>> {
    let sysroot = PathBuf::from(output(Command::new("rustc").args(["--print", "sysroot"]))?.trim());
    let host = output(Command::new("rustc").args(["--print", "host-tuple"]))?;
    let tool = sysroot.join("lib/rustlib").join(host.trim()).join("bin/rust-objcopy");
    // A program that was given may be the first thing in it.
    fs::create_dir_all(target_dir())?;
    let stripped = target_dir().join("sekisho-image.elf");
    let mut command = Command::new(&tool);
    command.arg("--strip-all").args([program, &stripped]).env("LD_LIBRARY_PATH", sysroot.join("lib"));
    output(&mut command).with_context(|| format!("cannot strip {}", program.display()))?;
    fs::read(&stripped).with_context(|| format!("cannot read {}", stripped.display()))
}

/// Builds the agent for another processor; the compiler's own linker does for all of them, as nothing is in C.
fn build_for(target: &str) -> Result<PathBuf> {
    let sysroot = output(Command::new("rustc").args(["--print", "sysroot"]))?;
    if !PathBuf::from(sysroot.trim()).join("lib/rustlib").join(target).is_dir() {
        bail!("Rust's library for {target} is missing: `rustup target add {target}`");
    }
    step(
        &format!("build the agent for {target}"),
        cargo()
            .args(["build", "--release", "--package", "sekisho", "--target", target])
            .env(format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_")), "rust-lld"),
    )?;
    Ok(target_dir().join(target).join("release/sekisho"))
}
