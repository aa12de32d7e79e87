//! The programs that the cluster is made of, built from their Go modules. The modules' exact versions are in
//! xtask/cluster/ROOM/go.mod; what is built lies in the user's cache under the version, so it is built once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::workspace::{cache_dir, output, root, say, step};

/// One Go module file and what is built from it.
struct Room {
    name: &'static str,
    /// The module whose version names the cache.
    module: &'static str,
    /// Package and program, the one that fills the compiler's cache first.
    programs: &'static [(&'static str, &'static str)],
    /// Whether its programs tell Kubernetes' version.
    kubernetes: bool,
}

const KUBERNETES: Room = Room {
    name: "kubernetes",
    module: "k8s.io/kubernetes",
    programs: &[
        ("k8s.io/kubernetes/cmd/kube-apiserver", "kube-apiserver"),
        ("go.etcd.io/etcd/server/v3", "etcd"),
        ("k8s.io/kubernetes/cmd/kubectl", "kubectl"),
        ("k8s.io/kubernetes/cmd/kubelet", "kubelet"),
        ("k8s.io/kubernetes/cmd/kube-controller-manager", "kube-controller-manager"),
        ("k8s.io/kubernetes/cmd/kube-scheduler", "kube-scheduler"),
        ("k8s.io/kubernetes/cmd/kube-proxy", "kube-proxy"),
    ],
    kubernetes: true,
};

const CONTAINERD: Room = Room {
    name: "containerd",
    module: "github.com/containerd/containerd/v2",
    programs: &[
        ("github.com/containerd/containerd/v2/cmd/containerd", "containerd"),
        ("github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2", "containerd-shim-runc-v2"),
        ("github.com/containerd/containerd/v2/cmd/ctr", "ctr"),
    ],
    kubernetes: false,
};

const HELM: Room = Room { name: "helm", module: "helm.sh/helm/v4", programs: &[("helm.sh/helm/v4/cmd/helm", "helm")], kubernetes: false };

const KUBECONFORM: Room = Room {
    name: "kubeconform",
    module: "github.com/yannh/kubeconform",
    programs: &[("github.com/yannh/kubeconform/cmd/kubeconform", "kubeconform")],
    kubernetes: false,
};

/// Where the cluster's programs are.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    kubernetes: PathBuf,
    containerd: PathBuf,
}

impl Programs {
    /// Those that are built already, without looking whether all are.
    pub(super) fn built() -> Result<Self> {
        Ok(Self { kubernetes: KUBERNETES.directory()?, containerd: CONTAINERD.directory()? })
    }

    /// One of them.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        let room = if CONTAINERD.programs.iter().any(|(_, program)| *program == name) { &self.containerd } else { &self.kubernetes };
        room.join(name)
    }

    /// A search path on which they find each other.
    pub(super) fn search_path(&self) -> String {
        format!("{}:{}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.kubernetes.display(), self.containerd.display())
    }
}

/// Builds what the cluster needs and is not built yet.
pub(super) fn ensure_cluster() -> Result<Programs> {
    let missing = KUBERNETES.missing()?.len() + CONTAINERD.missing()?.len();
    if missing > 0 {
        say(&format!("{missing} programs of the cluster are not built yet; all of them take ten minutes, once per version"));
    }
    Ok(Programs { kubernetes: KUBERNETES.ensure()?, containerd: CONTAINERD.ensure()? })
}

/// Of Kubernetes, what an API server alone needs.
const SERVERS: [&str; 2] = ["kube-apiserver", "etcd"];

/// Why etcd and the API server cannot be had: they are not built, and there is no Go that could build them.
pub(crate) fn servers_obstacle() -> Result<Option<String>> {
    if missing_servers()?.is_empty() {
        return Ok(None);
    }
    Ok(go().err().map(|error| format!("{error:#}")))
}

/// Builds etcd and the API server where they are not built yet, and says where they are. Others may print meanwhile, so it
/// tells what it did when it is done.
pub(crate) fn ensure_servers() -> Result<PathBuf> {
    let directory = KUBERNETES.directory()?;
    for (package, program) in missing_servers()? {
        let begin = Instant::now();
        output(&mut KUBERNETES.go_build(package, &part_of(&directory.join(program)))?)?;
        complete(&directory.join(program))?;
        say(&format!("built {program} {} in {} s, beside other work", KUBERNETES.version()?, begin.elapsed().as_secs()));
    }
    Ok(directory)
}

fn missing_servers() -> Result<Vec<(&'static str, &'static str)>> {
    Ok(KUBERNETES.missing()?.into_iter().filter(|(_, program)| SERVERS.contains(program)).collect())
}

/// Helm, built if it is not yet.
pub(crate) fn ensure_helm() -> Result<PathBuf> {
    Ok(HELM.ensure()?.join("helm"))
}

/// kubeconform, built if it is not yet.
pub(crate) fn ensure_kubeconform() -> Result<PathBuf> {
    Ok(KUBECONFORM.ensure()?.join("kubeconform"))
}

impl Room {
    fn source(&self) -> PathBuf {
        root().join("xtask/cluster").join(self.name)
    }

    fn version(&self) -> Result<String> {
        let file = self.source().join("go.mod");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        version_of(&text, self.module).with_context(|| format!("{} does not require {}", file.display(), self.module))
    }

    fn directory(&self) -> Result<PathBuf> {
        cache_dir(&format!("{}-{}/bin", self.name, self.version()?))
    }

    fn missing(&self) -> Result<Vec<(&'static str, &'static str)>> {
        let directory = self.directory()?;
        Ok(self.programs.iter().copied().filter(|(_, program)| !directory.join(program).is_file()).collect())
    }

    fn ensure(&self) -> Result<PathBuf> {
        let directory = self.directory()?;
        let missing = self.missing()?;
        if missing.is_empty() {
            return Ok(directory);
        }
        go()?;
        for (at, (package, program)) in missing.iter().enumerate() {
            let what = format!("build {program} {} ({} of {})", self.version()?, at + 1, missing.len());
            self.build(&what, package, &directory.join(program))?;
        }
        Ok(directory)
    }

    /// Builds a program where it does not look whole, and puts it in its place.
    fn build(&self, what: &str, package: &str, target: &Path) -> Result<()> {
        step(what, &mut self.go_build(package, &part_of(target))?)?;
        complete(target)
    }

    /// The command that builds it, behind everything else on this machine.
    fn go_build(&self, package: &str, target: &Path) -> Result<Command> {
        let mut flags = "-s -w".to_owned();
        if self.kubernetes {
            let version = self.version()?;
            let mut parts = version.split('.');
            for (name, value) in [("gitVersion", format!("v{version}")), ("gitMajor", part(&mut parts)), ("gitMinor", part(&mut parts))] {
                flags = format!("{flags} -X k8s.io/component-base/version.{name}={value}");
            }
        }
        let mut command = Command::new("nice");
        command
            .args(["-n", "19", "go", "build", "-mod=readonly", "-trimpath", "-ldflags", &flags, "-o"])
            .args([target.as_os_str(), package.as_ref()])
            .current_dir(self.source())
            .envs([("CGO_ENABLED", "0"), ("GOTOOLCHAIN", "local"), ("GOWORK", "off")]);
        Ok(command)
    }
}

/// Where a program is built, so that a broken build leaves nothing that looks whole.
fn part_of(target: &Path) -> PathBuf {
    target.with_extension("part")
}

fn complete(target: &Path) -> Result<()> {
    fs::rename(part_of(target), target).with_context(|| format!("cannot put {} in its place", target.display()))
}

fn part<'a>(parts: &mut impl Iterator<Item = &'a str>) -> String {
    parts.next().unwrap_or_default().to_owned()
}

/// The version that a go.mod requires, without its `v`.
fn version_of(text: &str, module: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word == "require");
        (words.next()? == module).then(|| words.next())??.strip_prefix('v').map(str::to_owned)
    })
}

/// Go, new enough.
fn go() -> Result<()> {
    const NEEDED: u32 = 26;
    let advice = format!("the cluster's programs are built from source and need Go 1.{NEEDED} or newer");
    let answer = output(Command::new("go").args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"));
    let Ok(version) = answer else {
        bail!("{advice}, and there is no `go` here: install it and put it on the path");
    };
    let minor = version.trim().strip_prefix("go1.").and_then(|rest| rest.split('.').next()?.parse::<u32>().ok());
    if minor.is_none_or(|minor| minor < NEEDED) {
        bail!("{advice}; here is {}", version.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::version_of;

    #[test]
    fn versions_are_read_from_a_block_and_from_a_line() {
        let text = "require helm.sh/helm/v4 v4.3.1\nrequire (\n\tk8s.io/kubernetes v1.36.3\n\tk8s.io/api v0.36.3 // indirect\n)\n";
        assert_eq!(version_of(text, "helm.sh/helm/v4").as_deref(), Some("4.3.1"));
        assert_eq!(version_of(text, "k8s.io/kubernetes").as_deref(), Some("1.36.3"));
        assert_eq!(version_of(text, "k8s.io/kube"), None);
    }

    #[test]
    fn every_room_names_its_version() {
        for room in [super::KUBERNETES, super::CONTAINERD, super::HELM, super::KUBECONFORM] {
            assert!(room.version().unwrap().starts_with(|c: char| c.is_ascii_digit()), "{}", room.name);
        }
    }
}
