//! Images without a registry: archives that are put into every node's containerd.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::binaries::Programs;
use super::plan::{self, Plan};
use super::site::Site;
use crate::oci::{Archive, Image};
use crate::workspace::{output, say};

/// What holds a pod's namespaces.
pub(super) const PAUSE: &str = "sekisho.dev/pause:1";
/// The lab's program: servers, clients, scanners.
pub(crate) const PROBE: &str = "sekisho.dev/probe:1";

/// Puts the cluster's own images, both made of the lab's program, into every node.
pub(super) fn import_own(plan: Plan, program: &Path) -> Result<()> {
    let program = std::fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let mut archive = Archive::new();
    for (name, words) in [(PAUSE, &["/sekisho-lab", "pause"][..]), (PROBE, &["/sekisho-lab"][..])] {
        archive.add(name, &[Image::of_program("amd64", "sekisho-lab", &program, words)?]);
    }
    let file = plan::root().join("probe.tar");
    std::fs::write(&file, archive.finish()?).context("cannot write the probe's image")?;
    import_into(plan, &file)
}

/// Puts an archive into every node of the running cluster.
pub(crate) fn import(archive: &Path) -> Result<()> {
    let plan = Plan::read().context("there is no cluster; bring it up with `cargo xtask cluster up`")?;
    say(&format!("import {} into {} nodes", archive.display(), plan.nodes));
    import_into(plan, archive)
}

fn import_into(plan: Plan, archive: &Path) -> Result<()> {
    let programs = Programs::built()?;
    for number in plan.numbers() {
        let site = Site::new(&plan::node_name(number), &programs)?;
        output(ctr(&site)?.args(["images", "import"]).arg(archive))?;
    }
    Ok(())
}

/// containerd's own client on a node, looking at what kubelets see.
pub(super) fn ctr(site: &Site) -> Result<Command> {
    let mut command = site.command(Programs::built()?.path("ctr"))?;
    command.args(["--address", "/run/containerd/containerd.sock", "--namespace", "k8s.io"]);
    Ok(command)
}
