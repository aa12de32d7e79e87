//! Builds the kernel programs and hands their object to `include_bytes_aligned!`; records the commit.

use std::fs;
use std::path::{Path, PathBuf};

fn main() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for dir in ["ebpf/src", "ebpf/Cargo.toml", "core/src", "rust-toolchain.toml"] {
        println!("cargo:rerun-if-changed={}", root.join(dir).display());
    }
    println!("cargo:rustc-env=SEKISHO_COMMIT={}", commit(&root));
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let all = [("CARGO_FEATURE_KERNEL_LOG", "log"), ("CARGO_FEATURE_NEXT_LAYOUT", "next-layout")];
    let features: Vec<&str> = all.iter().filter(|(name, _)| std::env::var_os(name).is_some()).map(|(_, feature)| *feature).collect();
    let object = sekisho_ebpf_build::build(&root, &out.join("ebpf"), &features)?;
    println!("cargo:rustc-env=SEKISHO_EBPF={}", object.display());
    Ok(())
}

/// The commit that is built: `SEKISHO_COMMIT` where it is set, which is for builds outside a clone; else what HEAD of the
/// repository is; else `unknown`. The files are read directly, so that no `git` is needed. They change with commits and
/// check-outs only: cargo runs this script again then and not at every build.
fn commit(root: &Path) -> String {
    println!("cargo:rerun-if-env-changed=SEKISHO_COMMIT");
    let given = std::env::var("SEKISHO_COMMIT").ok().filter(|commit| is_commit(commit));
    given.or_else(|| head(root)).unwrap_or_else(|| "unknown".to_owned())
}

fn is_commit(text: &str) -> bool {
    (7..=64).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn head(root: &Path) -> Option<String> {
    let dot_git = root.join(".git");
    // In a worktree, `.git` is a file that names the folder.
    let git = match watched(&dot_git) {
        Some(text) => root.join(text.trim().strip_prefix("gitdir: ")?),
        None => dot_git,
    };
    let shared = fs::read_to_string(git.join("commondir")).map_or_else(|_| git.clone(), |path| git.join(path.trim()));
    let head = watched(&git.join("HEAD"))?;
    let Some(branch) = head.trim().strip_prefix("ref: ") else { return Some(head.trim().to_owned()).filter(|commit| is_commit(commit)) };
    // The next commit of a branch whose reference is packed writes a new file; the log tells of it.
    let packed = || {
        watched(&git.join("logs/HEAD"));
        let all = watched(&shared.join("packed-refs"))?;
        all.lines().find_map(|line| line.strip_suffix(branch)?.strip_suffix(' ').map(str::to_owned))
    };
    let commit = watched(&shared.join(branch)).or_else(packed)?;
    Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
}

/// A file's text; cargo watches it from now on. A file that is missing is not watched: cargo would run this script every time.
fn watched(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    println!("cargo:rerun-if-changed={}", path.display());
    Some(text)
}
