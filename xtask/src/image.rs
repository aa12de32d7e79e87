//! `cargo xtask image`: the agent as a container image, one static program on nothing, in a file that any
//! runtime imports. No container engine is needed, and no base image: there is no shell in it.

mod elf;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use crate::oci::{Archive, Image, Weight};
use crate::setup;
use crate::workspace::{build_agent, cargo, output, step, target_dir};

/// The image's name; the chart's default is the same.
pub(crate) const NAME: &str = concat!("ghcr.io/sekisho/sekisho:", env!("CARGO_PKG_VERSION"));
/// An image that weighs more, as it is fetched or as it lies unpacked on a node, has something in it that does not belong there.
const LARGEST: usize = 20_000_000;

/// What images can be built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Platform {
    /// x86-64
    #[value(name = "linux/amd64", aliases = ["amd64", "x86_64"])]
    Amd64,
    /// 64-bit Arm
    #[value(name = "linux/arm64", aliases = ["arm64", "aarch64"])]
    Arm64,
}

impl Platform {
    /// As image formats call the processor.
    fn architecture(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// As program files call it.
    fn machine(self) -> u16 {
        match self {
            Self::Amd64 => 62,
            Self::Arm64 => 183,
        }
    }
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
            Platform::Arm64 => build_for_arm()?,
        };
        let bytes = without_symbols(&program)?;
        elf::must_be_static(&bytes, platform.machine()).with_context(|| program.display().to_string())?;
        let image = Image::of_program(platform.architecture(), "sekisho", &bytes, &["/sekisho"])?
            .label("org.opencontainers.image.title", "sekisho")
            .label("org.opencontainers.image.version", env!("CARGO_PKG_VERSION"))
            .label("org.opencontainers.image.licenses", "Apache-2.0");
        let weight = image.weight();
        eprintln!("    {NAME} for linux/{}: {weight}", platform.architecture());
        must_be_small(weight).with_context(|| format!("the image for linux/{} is too large", platform.architecture()))?;
        images.push(image);
    }
    let mut archive = Archive::new();
    archive.add(NAME, &images);
    let file = target_dir().join("sekisho-image.tar");
    fs::write(&file, archive.finish()?).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// Fails unless an image stays within what a node is asked to fetch and to store.
fn must_be_small(weight: Weight) -> Result<()> {
    ensure!(weight.compressed <= LARGEST, "it has {} bytes compressed; the most is {LARGEST}", weight.compressed);
    ensure!(weight.unpacked <= LARGEST, "it has {} bytes unpacked; the most is {LARGEST}", weight.unpacked);
    Ok(())
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

/// Builds the agent for 64-bit Arm. Rust's own linker does for all processors; the few parts in C need their own compiler.
fn build_for_arm() -> Result<PathBuf> {
    const TARGET: &str = "aarch64-unknown-linux-musl";
    setup::cross(TARGET)?;
    step(
        "build the agent for 64-bit Arm (a few minutes the first time)",
        cargo()
            .args(["build", "--release", "--package", "sekisho", "--target", TARGET])
            .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_MUSL_LINKER", "rust-lld")
            .env("CC_aarch64_unknown_linux_musl", setup::ARM_COMPILER),
    )?;
    Ok(target_dir().join(TARGET).join("release/sekisho"))
}

#[cfg(test)]
mod tests {
    use super::{LARGEST, must_be_small};
    use crate::oci::{Image, Weight};

    fn outcome(compressed: usize, unpacked: usize) -> Result<(), String> {
        must_be_small(Weight { compressed, unpacked }).map_err(|error| error.to_string())
    }

    #[test]
    fn an_image_is_small_compressed_and_unpacked() {
        assert_eq!(outcome(LARGEST, LARGEST), Ok(()));
        assert_eq!(outcome(LARGEST + 1, LARGEST), Err("it has 20000001 bytes compressed; the most is 20000000".to_owned()));
        assert_eq!(outcome(7_600_000, LARGEST + 1), Err("it has 20000001 bytes unpacked; the most is 20000000".to_owned()));
    }

    #[test]
    fn what_compresses_well_is_still_too_large() {
        let program = vec![0; LARGEST + 1];
        let weight = Image::of_program("arm64", "program", &program, &["/program"]).unwrap().weight();
        assert_eq!(weight.unpacked, program.len());
        assert!(weight.compressed < LARGEST / 100, "{weight}");
        assert!(must_be_small(weight).unwrap_err().to_string().contains("unpacked"));
    }
}
