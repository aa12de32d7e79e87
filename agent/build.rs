//! Builds the kernel programs and hands their object to `include_bytes_aligned!`.

use std::path::{Path, PathBuf};

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for dir in ["ebpf/src", "ebpf/Cargo.toml", "core/src", "rust-toolchain.toml"] {
        println!("cargo:rerun-if-changed={}", root.join(dir).display());
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let all = [("CARGO_FEATURE_KERNEL_LOG", "log"), ("CARGO_FEATURE_NEXT_LAYOUT", "next-layout")];
    let features: Vec<&str> = all.iter().filter(|(name, _)| std::env::var_os(name).is_some()).map(|(_, feature)| *feature).collect();
    let object = sekisho_ebpf_build::build(&root, &out.join("ebpf"), &features)?;
    println!("cargo:rustc-env=SEKISHO_EBPF={}", object.display());
    Ok(())
}
