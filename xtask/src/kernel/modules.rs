//! Kernel modules: found by name, unpacked, and put into the order in which a kernel can take them.
//!
//! The packages carry no `modules.dep` (that is made at installation), so the modules themselves are asked:
//! each names what it needs in its `.modinfo` section.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// One module, unpacked.
#[derive(Debug)]
pub(crate) struct Module {
    /// With underscores, as the kernel says it.
    pub(crate) name: String,
    /// The object.
    pub(crate) bytes: Vec<u8>,
}

/// The modules `wanted` and all that they need, needed ones first. Names that the kernel has built in are
/// left out.
pub(crate) fn resolve(directory: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    collect(directory, &mut files)?;
    let builtin = fs::read_to_string(directory.join("modules.builtin")).context("the kernel's package lists no built-in modules")?;
    let builtin: Vec<String> = builtin.lines().filter_map(|line| name_of(Path::new(line))).collect();
    let mut ordered = Vec::new();
    for name in wanted {
        add(name, &files, &builtin, &mut ordered)?;
    }
    Ok(ordered)
}

fn add(name: &str, files: &BTreeMap<String, PathBuf>, builtin: &[String], ordered: &mut Vec<Module>) -> Result<()> {
    let name = name.replace('-', "_");
    if builtin.contains(&name) || ordered.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let path = files.get(&name).with_context(|| format!("this kernel has no module {name}"))?;
    let bytes = unpack(path)?;
    for needed in depends(&bytes) {
        add(&needed, files, builtin, ordered)?;
    }
    ordered.push(Module { name, bytes });
    Ok(())
}

/// `net/sch_ingress.ko.xz` is `sch_ingress`.
fn name_of(path: &Path) -> Option<String> {
    let (name, extension) = path.file_name()?.to_str()?.split_once('.')?;
    extension.starts_with("ko").then(|| name.replace('-', "_"))
}

fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else if let Some(name) = name_of(&entry.path()) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

fn unpack(path: &Path) -> Result<Vec<u8>> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => fs::read(path).with_context(|| path.display().to_string()),
        Some("xz") => {
            let output = Command::new("xz").arg("-dc").arg(path).output().context("xz does not start (run `cargo xtask setup`)")?;
            if !output.status.success() {
                bail!("{} cannot be unpacked: {}", path.display(), String::from_utf8_lossy(&output.stderr).trim());
            }
            Ok(output.stdout)
        }
        _ => bail!("{} is packed in a way that nobody here unpacks", path.display()),
    }
}

/// What a module says that it needs: `depends=a,b` among the zero-terminated texts of its `.modinfo`.
fn depends(module: &[u8]) -> Vec<String> {
    let text = module.split(|&byte| byte == 0).find_map(|text| text.strip_prefix(b"depends="));
    let text = text.map(String::from_utf8_lossy).unwrap_or_default();
    text.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{depends, name_of};

    #[test]
    fn a_module_tells_what_it_needs() {
        assert_eq!(depends(b"\x7fELF\0name=bridge\0depends=stp,llc\0x"), ["stp", "llc"]);
        assert!(depends(b"name=veth\0depends=\0").is_empty());
        assert!(depends(b"nothing").is_empty());
    }

    #[test]
    fn names_have_underscores() {
        assert_eq!(name_of(Path::new("kernel/net/sch-ingress.ko.xz")).as_deref(), Some("sch_ingress"));
        assert_eq!(name_of(Path::new("kernel/net/veth.ko")).as_deref(), Some("veth"));
        assert_eq!(name_of(Path::new("kernel/modules.order")), None);
    }
}
