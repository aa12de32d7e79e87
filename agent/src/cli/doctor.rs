//! `sekisho doctor`: what is missing on this node, and what that costs.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use sekisho_proto::{StatusRequest, StatusResponse, rfc3339};
use serde_json::{Map, Value, json};

use crate::doctor::{Finding, State};
use crate::inventory::kube::Access;

use super::args::PIN_DIR;
use super::output::{Format, OutputArgs, closed, paint};
use super::{Exit, Failure, Machine, client, render};

/// How long the agent may take: it is one of many things that are looked at.
pub(super) const PATIENCE: Duration = Duration::from_secs(3);
/// Pods in one sentence.
const NAMED: usize = 3;

const EXAMPLES: &str = "Examples:
  sekisho doctor                                     can an agent run here, and what would it not see?
  sekisho doctor -o json | jq '.findings[] | select(.state != \"good\")'
  kubectl -n sekisho exec ds/sekisho -- /sekisho doctor

It looks and changes nothing. What it may not look at it says. Exit code 0 when all is well, 1 when something is missing that \
costs something, 3 when an agent cannot run here.";

/// Arguments of `sekisho doctor`.
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub(super) struct DoctorArgs {
    /// Where the agent's pins lie, or would [default: where the running agent has them, else /sys/fs/bpf/sekisho]
    #[arg(long, value_name = "DIR")]
    pin_dir: Option<PathBuf>,
    /// Credentials whose rights are looked at [default: KUBECONFIG, or the pod's service account]
    #[arg(long, value_name = "PATH")]
    kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(socket: &Path, args: &DoctorArgs, machine: &dyn Machine) -> Result<Exit, Failure> {
    let access = args.kubeconfig.clone().map(Access::Kubeconfig).or_else(Access::found);
    client::converse(async {
        let asked = client::answered_within(PATIENCE, async {
            let mut client = client::connect(socket).await?;
            client.status(StatusRequest {}).await.map_err(|status| client::refused(&status))
        });
        let asked = asked.await.map(tonic::Response::into_inner);
        // The programs of the agent that answers are its own, wherever it has pinned them.
        let running = asked.as_ref().ok().map(|status| status.pin_dir.as_str()).filter(|pins| !pins.is_empty());
        let pin_dir = args.pin_dir.as_deref().or(running.map(Path::new)).unwrap_or(Path::new(PIN_DIR));
        let mut findings = machine.examine(pin_dir, access.as_ref());
        match asked {
            Ok(status) => findings.extend(agent(&status)),
            // Where none runs, what it would lack is told all the same.
            Err(failure) => findings.push(Finding::note("agent", failure.text)),
        }
        print(&findings, args.output)?;
        Ok(exit(&findings))
    })
}

fn exit(findings: &[Finding]) -> Exit {
    match findings.iter().map(|finding| finding.state).max() {
        Some(State::Fatal) => Exit::CannotRun,
        Some(State::Lack) => Exit::NotReady,
        _ => Exit::Done,
    }
}

/// Pods that are judged at their control groups, and what that leaves open.
fn at_groups(status: &StatusResponse) -> Vec<Finding> {
    let only = "they have no interface on the node, and a control group sees sockets only: AF_PACKET frames, replies to pings and RSTs pass \
                unjudged, denied datagrams enter the pod's namespace, and MAC addresses are not seen";
    let too = "packets to them bypass their interface, as with bpf_redirect_peer: denied datagrams among these enter the pod's namespace, and \
               do not reach its sockets";
    let note = |how: &str, cost: &str, wanted: &dyn Fn(&str) -> bool| {
        let pods = status.endpoints.iter().filter(|endpoint| wanted(&endpoint.attach) && !endpoint.host_network);
        let pods: Vec<String> = pods.filter_map(|e| e.pod.as_ref()).map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
        let more = if pods.len() > NAMED { " and others" } else { "" };
        let found = format!("{} pods are judged at their {how}: {}{more}", pods.len(), pods[..pods.len().min(NAMED)].join(", "));
        (!pods.is_empty()).then(|| Finding { cost: Some(cost.to_owned()), ..Finding::note("coverage", found) })
    };
    let notes = [
        note("control group", only, &|attach| attach == "cgroup"),
        note("interface and at their control group", too, &|attach| attach.ends_with("+cgroup")),
    ];
    notes.into_iter().flatten().collect()
}

/// What the running agent says of itself.
fn agent(status: &StatusResponse) -> Vec<Finding> {
    let sum: u64 = status.maps.iter().map(|map| map.bytes).sum();
    let name = format!(
        "version {} runs, mode {}, by {}; its maps take {}",
        status.version,
        status.mode,
        status.tc_backend,
        render::human_bytes(sum)
    );
    let mut findings = vec![if status.ready {
        Finding::good("agent", name)
    } else {
        Finding::lack(
            "agent",
            format!("{name}; it is not ready: {}", status.unready.join("; ")),
            "pods without their policy are held, or pass unjudged",
        )
    }];
    let pods = |word: &str| -> Vec<String> {
        let found = status.endpoints.iter().filter(|endpoint| endpoint.coverage == word);
        found.filter_map(|endpoint| endpoint.pod.as_ref()).map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect()
    };
    for (word, cost) in [
        (
            "one_way",
            "packets to these pods bypass their interface and are not judged, and there is no control group to attach to; failed connections are no evidence of a scan there",
        ),
        ("unseen", "their traffic is neither recorded nor judged"),
    ] {
        let pods = pods(word);
        if !pods.is_empty() {
            let more = if pods.len() > NAMED { " and others" } else { "" };
            let found = format!("{} pods are {word}: {}{more}", pods.len(), pods[..pods.len().min(NAMED)].join(", "));
            findings.push(Finding::lack("coverage", found, cost));
        }
    }
    findings.extend(at_groups(status));
    if findings.len() == 1 {
        findings.push(Finding::good("coverage", format!("all {} pods are seen in both directions", status.endpoints.len())));
    }
    if let Some(since) = status.source.as_ref().and_then(|source| source.stale_since.as_ref()) {
        let found = format!("the API server has not answered since {}", rfc3339(since));
        findings.push(Finding::lack("source", found, "the policy of then stays in force; what has changed is not"));
    }
    if !status.refused.is_empty() {
        let found = format!("{} objects are refused: {}", status.refused.len(), status.refused.join("; "));
        findings.push(Finding::lack("objects", found, "what they said before stays in force"));
    }
    findings
}

fn print(findings: &[Finding], output: OutputArgs) -> Result<(), Failure> {
    let verdict = match exit(findings) {
        Exit::Done => "good",
        Exit::CannotRun => "cannot_run",
        _ => "lacking",
    };
    let mut out = std::io::stdout().lock();
    let text = match output.format() {
        Format::Compact | Format::Wide => render::findings(findings, paint()),
        form => {
            let json = json!({"verdict": verdict, "findings": findings.iter().map(object).collect::<Vec<_>>()}).to_string();
            if form == Format::Json { json } else { render::dict(&json) }
        }
    };
    writeln!(out, "{text}").map_err(|error| closed(&error))
}

/// A finding as JSON; what is not known is absent.
fn object(finding: &Finding) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, value: &str| object.insert(key.to_owned(), value.into());
    put("check", finding.check);
    put("state", finding.state.name());
    put("found", &finding.found);
    for (key, value) in [("cost", &finding.cost), ("remedy", &finding.remedy)] {
        if let Some(value) = value {
            put(key, value);
        }
    }
    Value::Object(object)
}
