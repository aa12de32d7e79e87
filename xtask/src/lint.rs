//! `cargo xtask lint`: formatting, clippy, whether what is generated is current, and the rules of the house that no other tool knows.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::workspace::{cargo, root, say, step};
use crate::{generate, promtool};

/// Longer files hold more than one idea.
const LONGEST_FILE: usize = 500;
/// Longer functions hold more than one thought.
const LONGEST_FUNCTION: usize = 80;

pub(crate) fn run() -> Result<()> {
    step("formatting", cargo().args(["fmt", "--all", "--check"]))?;
    step("formatting of the kernel programs", cargo().args(["fmt", "--check", "--manifest-path", "ebpf/Cargo.toml"]))?;
    step("clippy", cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    generate::check()?;
    promtool::check_rules()?;
    say("rules of the house");
    let mut found = Vec::new();
    for file in sources()? {
        let text = fs::read_to_string(&file)?;
        let name = file.strip_prefix(root()).unwrap_or(&file).display().to_string();
        sizes(&name, &text, &mut found);
    }
    counters(&mut found)?;
    dependencies(&mut found)?;
    for line in &found {
        println!("{line}");
    }
    if !found.is_empty() {
        bail!("{} rules of the house are broken", found.len());
    }
    Ok(())
}

/// Every Rust file of ours.
fn sources() -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for room in ["core", "ebpf", "agent", "proto", "lab", "xtask"] {
        collect(&root().join(room), "rs", &mut found)?;
    }
    Ok(found)
}

fn collect(directory: &Path, extension: &str, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let path = entry?.path();
        if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
            collect(&path, extension, found)?;
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    Ok(())
}

/// Files and functions stay short. A function ends where its closing brace stands under its first letter.
fn sizes(name: &str, text: &str, found: &mut Vec<String>) {
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() > LONGEST_FILE {
        found.push(format!("{name}: {} lines; a file has at most {LONGEST_FILE}", lines.len()));
    }
    for (at, line) in lines.iter().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let starts = ["fn ", "pub fn ", "pub(crate) fn ", "pub(super) fn ", "async fn ", "pub async fn ", "pub(crate) async fn "];
        if !starts.iter().any(|start| code.starts_with(start)) || code.ends_with([';', '}']) {
            continue;
        }
        let close = format!("{}}}", " ".repeat(indent));
        let len = lines[at..].iter().position(|line| *line == close).unwrap_or(0);
        if len > LONGEST_FUNCTION {
            found.push(format!("{name}:{}: a function of {len} lines; at most {LONGEST_FUNCTION}", at + 1));
        }
    }
}

/// Every kernel counter is incremented somewhere.
fn counters(found: &mut Vec<String>) -> Result<()> {
    let declared = fs::read_to_string(root().join("core/src/counters.rs"))?;
    let mut programs = String::new();
    let mut files = Vec::new();
    collect(&root().join("ebpf/src"), "rs", &mut files)?;
    collect(&root().join("core/src"), "rs", &mut files)?;
    for file in files.iter().filter(|file| !file.ends_with("core/src/counters.rs") && !file.ends_with("tests.rs")) {
        programs.push_str(&fs::read_to_string(file)?);
    }
    for line in declared.lines().map(str::trim) {
        let Some((name, _)) = line
            .split_once(" = ")
            .filter(|(name, rest)| rest.ends_with("\",") && name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'))
        else {
            continue;
        };
        let used = programs.match_indices(name).any(|(at, _)| {
            let after = programs[at + name.len()..].chars().next();
            let before = programs[..at].chars().next_back();
            !after.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') && !before.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_')
        });
        if !used {
            found.push(format!("core/src/counters.rs: nothing increments {name}"));
        }
    }
    Ok(())
}

/// Every direct dependency has its line in DEPENDENCIES.md.
fn dependencies(found: &mut Vec<String>) -> Result<()> {
    let page = fs::read_to_string(root().join("DEPENDENCIES.md")).unwrap_or_default();
    for room in ["core", "ebpf", "ebpf/build", "agent", "proto", "lab", "xtask"] {
        let manifest = fs::read_to_string(root().join(room).join("Cargo.toml"))?;
        let mut listed = false;
        for line in manifest.lines() {
            if line.starts_with('[') {
                listed = line.ends_with("dependencies]");
            } else if let Some(name) =
                line.split(['=', '.', ' ']).next().filter(|name| listed && !name.is_empty() && !name.starts_with('#'))
                && !name.starts_with("sekisho")
                && !page.contains(&format!("`{name}`"))
            {
                found.push(format!("{room}/Cargo.toml: DEPENDENCIES.md does not say what {name} is for"));
            }
        }
    }
    Ok(())
}
