//! Debian's kernels for clouds: found, fetched and unpacked into a cache outside the tree, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace::{output, say};

/// A kernel with its modules, unpacked.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// `6.1.0-56-cloud-amd64`
    pub(crate) release: String,
    /// What qemu boots.
    pub(crate) image: PathBuf,
    /// `.../lib/modules/RELEASE`: its modules lie below, the list of built-in ones in it.
    pub(crate) modules: PathBuf,
}

/// The newest kernel of a series (`6.1`), from the cache where the package lists name no newer one.
pub(crate) fn kernel(series: &str, cache: &Path) -> Result<Kernel> {
    let mut package = newest(&offered(series)?);
    if package.is_none() && cached(cache, series)?.is_empty() {
        // A machine that never had package lists.
        output(Command::new("apt-get").args(["update", "-q"]))?;
        package = newest(&offered(series)?);
    }
    if package.is_none() {
        package = newest(&cached(cache, series)?);
    }
    let package = package.with_context(|| format!("no package linux-image-{series}.*-cloud-amd64 is offered by apt"))?;
    let directory = cache.join(&package);
    if !directory.exists() {
        fetch(&package, &directory).with_context(|| format!("cannot get {package}"))?;
    }
    open(&directory, &package)
}

/// Whether `package` is a real kernel of the series: `linux-image-6.1.0-56-cloud-amd64`, no meta package.
fn belongs(package: &str, series: &str) -> bool {
    package
        .strip_prefix("linux-image-")
        .and_then(|rest| rest.strip_prefix(series))
        .and_then(|rest| rest.strip_suffix("-cloud-amd64"))
        .is_some_and(|rest| rest.starts_with('.'))
}

fn offered(series: &str) -> Result<Vec<String>> {
    let text = output(Command::new("apt-cache").args(["search", "--names-only", "^linux-image-.*cloud-amd64$"]))
        .context("kernels come from Debian's packages")?;
    Ok(text.lines().filter_map(|line| line.split(' ').next()).filter(|name| belongs(name, series)).map(str::to_owned).collect())
}

fn cached(cache: &Path, series: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(cache)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if belongs(&name, series) {
            found.push(name);
        }
    }
    Ok(found)
}

/// The numbers in a package's name, in order: 6.12.117 is newer than 6.12.99.
fn version(package: &str) -> Vec<u64> {
    package.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
}

fn newest(packages: &[String]) -> Option<String> {
    packages.iter().max_by_key(|package| version(package)).cloned()
}

/// Downloads and unpacks; the directory appears whole or not at all.
pub(crate) fn fetch(package: &str, directory: &Path) -> Result<()> {
    say(&format!("fetch {package}"));
    let draft = directory.with_file_name(format!("draft-{}", std::process::id()));
    fs::create_dir_all(&draft)?;
    let work = || -> Result<()> {
        output(Command::new("apt-get").args(["download", "-q", "-o", "APT::Sandbox::User=root", package]).current_dir(&draft))?;
        // The only file there; its name carries the version, with some characters escaped.
        let archive = entry(&draft, |_| true)?;
        output(Command::new("dpkg").arg("-x").arg(&archive).arg(draft.join("root")))?;
        fs::rename(draft.join("root"), directory)?;
        Ok(())
    };
    let done = work();
    fs::remove_dir_all(&draft)?;
    done
}

fn open(directory: &Path, package: &str) -> Result<Kernel> {
    let release = package.trim_start_matches("linux-image-").to_owned();
    let image = entry(&directory.join("boot"), |name| name.starts_with("vmlinuz-"))?;
    // Debian moved /lib to /usr/lib between releases.
    let modules = ["lib/modules", "usr/lib/modules"]
        .into_iter()
        .map(|base| directory.join(base).join(&release))
        .find(|path| path.is_dir())
        .with_context(|| format!("{} holds no modules", directory.display()))?;
    Ok(Kernel { release, image, modules })
}

fn entry(directory: &Path, wanted: impl Fn(&str) -> bool) -> Result<PathBuf> {
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        if wanted(&entry.file_name().to_string_lossy()) {
            return Ok(entry.path());
        }
    }
    bail!("{} does not hold what a kernel's package should", directory.display())
}

#[cfg(test)]
mod tests {
    use super::{belongs, newest};

    #[test]
    fn a_series_is_not_its_prefix() {
        assert!(belongs("linux-image-6.1.0-56-cloud-amd64", "6.1"));
        assert!(!belongs("linux-image-6.12.117+deb12-cloud-amd64", "6.1"));
        assert!(belongs("linux-image-6.12.117+deb12-cloud-amd64", "6.12"));
        assert!(!belongs("linux-image-6.12-cloud-amd64", "6.12"), "a meta package holds no kernel");
        assert!(!belongs("linux-image-cloud-amd64", "6.12"));
    }

    #[test]
    fn versions_are_numbers() {
        let names = ["linux-image-6.12.99+deb12-cloud-amd64", "linux-image-6.12.117+deb12-cloud-amd64"].map(str::to_owned);
        assert_eq!(newest(&names).as_deref(), Some("linux-image-6.12.117+deb12-cloud-amd64"));
    }
}
