//! The inventory's own tests against an API server: the same snapshot as from files, outages, many objects. They start etcd
//! and kube-apiserver for themselves, from the cluster's binaries.

use anyhow::{Context, Result};

use super::Stage;
use crate::workspace::{build_agent, cargo, step};

pub(super) fn the_api_server_is_read_as_files_are_outages_and_many_objects_included(_: &Stage) -> Result<()> {
    let mut command = cargo();
    command.args(["test", "--package", "sekisho", "--test", "kube", "--", "--ignored", "--nocapture", "--test-threads", "1"]);
    // What is measured is the agent as it is shipped.
    command.env("SEKISHO_BINARY", build_agent()?);
    step("test the source on API servers of its own", &mut command).context("see its output above")
}
