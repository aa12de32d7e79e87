//! `cargo xtask build-ebpf`: the kernel programs by themselves. The agent's build script calls the same function.

use anyhow::Result;

use crate::workspace::{root, say, target_dir};

pub(crate) fn run() -> Result<()> {
    say("build the kernel programs");
    let object = sekisho_ebpf_build::build(root(), &target_dir().join("ebpf"), &[])?;
    println!("{}", object.display());
    Ok(())
}
