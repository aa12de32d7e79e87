//! `cargo xtask e2e`: the product in a real cluster. The cluster comes up, the image that `cargo xtask image`
//! makes is put into its nodes, the chart is installed by Helm, and then every test looks at what really happens:
//! connections between pods, verdicts in the kernel, what the API server's audit log says was asked.
//!
//! Nouns: the [`Stage`] is the cluster with Sekisho installed, on which tests run one after the other. A *probe* is
//! one attempt of a connection, made from inside a pod's network namespace.

mod agents;
mod api;
mod chart;
mod cleanup;
mod events;
mod faults;
mod first;
mod grid;
mod grpc;
mod kinds;
mod latency;
mod life;
mod nodeport;
mod odd;
mod outage;
mod plugin;
mod pods;
mod probe;
mod reuse;
mod rights;
mod rolling;
mod scenarios;
mod services;
mod source;
mod upgrade;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::cluster::{self, Client, Plan, ensure_helm};
use crate::image;
use crate::workspace::{output, root, say};
use api::Api;

/// Where the chart is installed.
const NAMESPACE: &str = "sekisho";
/// Where agents serve metrics, as the chart has it.
const METRICS_PORT: u16 = 9462;

/// The cluster with Sekisho installed.
struct Stage {
    plan: Plan,
    client: Client,
    api: Api,
}

type Test = (&'static str, fn(&Stage) -> Result<()>);

/// In this order: what is cheap first, what disturbs the cluster last.
const TESTS: &[Test] = &[
    ("chart::the_real_tools_take_it", chart::the_real_tools_take_it),
    ("chart::metrics_are_served_on_every_node", chart::metrics_are_served_on_every_node),
    ("life::pods_come_and_go_on_both_nodes", life::pods_come_and_go_on_both_nodes),
    ("grid::the_truth_table_holds_for_every_policy", grid::the_truth_table_holds_for_every_policy),
    ("latency::a_policy_is_in_force_within_150_ms", latency::a_policy_is_in_force_within_150_ms),
    ("life::kubelet_probes_of_an_isolated_pod_keep_passing", life::kubelet_probes_of_an_isolated_pod_keep_passing),
    ("nodeport::outsiders_do_not_pass_isolation", nodeport::outsiders_do_not_pass_isolation),
    ("first::a_pods_first_packets_are_judged", first::a_pods_first_packets_are_judged),
    ("services::a_service_is_judged_by_its_backends", services::a_service_is_judged_by_its_backends),
    ("life::a_reused_address_has_its_new_owner", life::a_reused_address_has_its_new_owner),
    ("plugin::all_nodes_are_asked_and_a_dead_one_is_named", plugin::all_nodes_are_asked_and_a_dead_one_is_named),
    ("reuse::two_hundred_owners_of_one_address", reuse::two_hundred_owners_of_one_address),
    ("kinds::every_kind_of_pod_keeps_its_address_to_its_end", kinds::every_kind_of_pod_keeps_its_address_to_its_end),
    ("events::what_an_operator_should_know_is_an_event", events::what_an_operator_should_know_is_an_event),
    ("odd::objects_that_the_server_lets_through_do_no_harm", odd::objects_that_the_server_lets_through_do_no_harm),
    ("rolling::rolling_updates_fail_no_connection_of_ours", rolling::rolling_updates_fail_no_connection_of_ours),
    ("faults::a_killed_agent_leaks_and_cuts_nothing", faults::a_killed_agent_leaks_and_cuts_nothing),
    ("upgrade::a_rolling_update_leaks_and_cuts_nothing", upgrade::a_rolling_update_leaks_and_cuts_nothing),
    ("grpc::only_clients_with_a_certificate_are_answered", grpc::only_clients_with_a_certificate_are_answered),
    ("rights::the_doctor_names_a_missing_right", rights::the_doctor_names_a_missing_right),
    ("rights::no_capability_can_be_spared", rights::no_capability_can_be_spared),
    (
        "source::the_api_server_is_read_as_files_are_outages_and_many_objects_included",
        source::the_api_server_is_read_as_files_are_outages_and_many_objects_included,
    ),
    ("outage::without_api_server_verdicts_stay", outage::without_api_server_verdicts_stay),
    ("rights::used_and_granted_are_the_same", rights::used_and_granted_are_the_same),
    ("chart::an_uninstall_leaves_nothing_behind", chart::an_uninstall_leaves_nothing_behind),
];

/// Runs the tests whose names contain `filter`, or one of several with commas between, on a cluster as planned.
pub(crate) fn run(plan: Plan, filter: Option<&str>, keep: bool) -> Result<()> {
    let begin = Instant::now();
    let wanted = |name: &str| filter.is_none_or(|filter| filter.split(',').any(|part| name.contains(part)));
    let chosen: Vec<Test> = TESTS.iter().copied().filter(|(name, _)| wanted(name)).collect();
    if chosen.is_empty() {
        bail!("no test's name contains {:?}", filter.unwrap_or_default());
    }
    cleanup::on_interrupt();
    // Whether a cluster was touched that has to go.
    let mut spoiled = false;
    let stage = match Stage::prepare().and_then(|tools| Stage::set(plan, &tools).inspect_err(|_| spoiled = true)) {
        Ok(stage) => stage,
        Err(error) => {
            for (name, _) in &chosen {
                println!("test {name} ... did not run");
            }
            println!("0 passed, 0 failed, {} did not run", chosen.len());
            if spoiled {
                cleanup::after(plan, false, keep)?;
            }
            return Err(error.context("the tests did not run"));
        }
    };
    let mut failed = Vec::new();
    for (name, test) in &chosen {
        say(name);
        let since = Instant::now();
        let outcome = test(&stage);
        let took = since.elapsed().as_secs_f64();
        match &outcome {
            Ok(()) => println!("test {name} ... ok ({took:.1} s)"),
            Err(error) => {
                println!("test {name} ... FAILED ({took:.1} s)\n    {error:#}");
                failed.push(*name);
            }
        }
    }
    drop(stage);
    let cleaned = cleanup::after(plan, failed.is_empty(), keep);
    println!("\n{plan}; took {} s", begin.elapsed().as_secs());
    for name in &failed {
        println!("failed: {name}");
    }
    println!("{} passed, {} failed", chosen.len() - failed.len(), failed.len());
    cleaned?;
    if !failed.is_empty() {
        bail!("tests failed");
    }
    Ok(())
}

impl Stage {
    /// Helm and the image: what can be had without a cluster.
    fn prepare() -> Result<(PathBuf, PathBuf)> {
        Ok((ensure_helm()?, image::build(&[image::Platform::Amd64])?))
    }

    /// Cluster, image, chart.
    fn set(plan: Plan, (helm, archive): &(PathBuf, PathBuf)) -> Result<Self> {
        let client = cluster::up(plan)?;
        cluster::import(archive)?;
        say("install the chart");
        let begin = Instant::now();
        let installed = ["upgrade", "--install", "sekisho", "deploy/helm", "--namespace", NAMESPACE, "--create-namespace"];
        let settings = ["--set", "mode=enforce", "--set", "image.pullPolicy=Never", "--wait", "--timeout", "120s"];
        let mut command = client.command(helm);
        // The same image name may hold another program since the last run: pods take it at their next start.
        let fresh = format!("podAnnotations.sekisho\\.dev/e2e={}", std::process::id());
        command.args(installed).args(settings).args(["--set-string", &fresh]).current_dir(root());
        output(&mut command).with_context(|| agents::describe(&client))?;
        eprintln!("    ready on every node after {:.1} s", begin.elapsed().as_secs_f64());
        let api = Api::start(&client)?;
        Ok(Self { plan, client, api })
    }

    /// An empty namespace of this name; what was in it before is gone.
    fn namespace(&self, name: &str) -> Result<()> {
        self.client.run(&["delete", "namespace", name, "--ignore-not-found", "--wait", "--timeout=60s"])?;
        let manifest = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"ns": name}}});
        self.client.apply(&manifest.to_string())?;
        let account = ["get", "serviceaccount", "default", "-n", name, "-o", "name"];
        self.client.wait(Duration::from_secs(20), "the namespace has its service account", |client| Ok(client.try_run(&account)?.is_some()))
    }

    /// Removes namespaces without waiting for their end.
    fn forget(&self, names: &[&str]) -> Result<()> {
        let mut words = vec!["delete", "namespace", "--wait=false", "--ignore-not-found"];
        words.extend(names);
        self.client.run(&words).map(drop)
    }
}
