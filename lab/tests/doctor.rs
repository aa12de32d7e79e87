//! `sekisho doctor` on a real node: what it says when all is well, and of each thing that is not. Needs root and a kernel
//! with TCX (Linux 6.6).

use std::os::unix::process::CommandExt as _;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use sekisho_lab::{Agent, Finished, Lab, PodSpec, ShortCut};
use serde_json::{Value, json};

/// What the doctor of a lab's node says, and how it ends.
fn doctor(lab: &Lab, more: &[&str]) -> Result<(Option<i32>, Value)> {
    let (pins, socket) = (lab.pin_dir().display().to_string(), lab.socket().display().to_string());
    let answer = lab.sekisho(&[&["doctor", "-o", "json", "--pin-dir", &pins, "--socket", &socket], more].concat())?;
    let json = answer.json().with_context(|| format!("{answer:?}"))?;
    Ok((answer.code, json))
}

/// The findings of one check.
fn findings<'a>(answer: &'a Value, check: &str) -> Vec<&'a Value> {
    answer["findings"].as_array().into_iter().flatten().filter(|finding| finding["check"] == check).collect()
}

fn found<'a>(answer: &'a Value, check: &str) -> Result<&'a Value> {
    findings(answer, check).first().copied().with_context(|| format!("nothing is said of {check}: {answer:#}"))
}

#[test]
fn all_is_well_with_and_without_an_agent() -> Result<()> {
    let lab = Lab::new("doctor-well")?;
    let _server = lab.pod(PodSpec::new("shop", "server"))?;
    let (code, answer) = doctor(&lab, &[])?;
    ensure!(code == Some(0) && answer["verdict"] == "good", "{code:?}: {answer:#}");
    ensure!(found(&answer, "agent")?["state"] == "note", "none runs: {answer:#}");
    let _agent = Agent::start(&lab, &[])?;
    let (code, answer) = doctor(&lab, &[])?;
    ensure!(code == Some(0), "{code:?}: {answer:#}");
    ensure!(found(&answer, "coverage")?["state"] == "good", "{answer:#}");
    ensure!(found(&answer, "hooks")?["state"] == "good", "our own programs are no others: {answer:#}");
    ensure!(found(&answer, "agent")?["found"].as_str().is_some_and(|text| text.contains("MiB")), "the maps' memory: {answer:#}");
    ensure!(found(&answer, "bpffs")?["found"].as_str().is_some_and(|text| text.contains("is pinned")), "{answer:#}");
    // A page for people says the same.
    let socket = lab.socket().display().to_string();
    let page = lab.sekisho(&["doctor", "-o", "compact", "--pin-dir", &lab.pin_dir().display().to_string(), "--socket", &socket])?;
    ensure!(page.success() && page.stdout.ends_with("All is well.\n"), "{page:?}");
    Ok(())
}

/// An agent's programs are its own wherever it has pinned them, and those of a second agent are called what they are.
#[test]
fn an_agent_with_pins_of_its_own_is_no_stranger() -> Result<()> {
    let lab = Lab::new("doctor-pins")?;
    let _server = lab.pod(PodSpec::new("shop", "server"))?;
    let _agent = Agent::start(&lab, &[])?;
    let (pins, socket) = (lab.pin_dir().display().to_string(), lab.socket().display().to_string());
    // Asked without --pin-dir, it looks where the agent that answers has its pins.
    let answer = lab.sekisho(&["doctor", "-o", "json", "--socket", &socket])?;
    let json = answer.json()?;
    ensure!(answer.code == Some(0) && findings(&json, "hooks").len() == 1 && found(&json, "hooks")?["state"] == "good", "{json:#}");
    ensure!(found(&json, "bpffs")?["found"].as_str().is_some_and(|text| text.contains(&pins)), "{json:#}");
    // Examined for an agent with other pins, these programs are another agent's: named, and no reason not to run.
    let other = lab.pin_dir().with_file_name("sekisho-doctor-other").display().to_string();
    let answer = lab.sekisho(&["doctor", "-o", "json", "--socket", "/nowhere", "--pin-dir", &other])?;
    let json = answer.json()?;
    ensure!(answer.code == Some(0), "{json:#}");
    let hooks = findings(&json, "hooks");
    let named = format!("another Sekisho agent, with pin dir {pins}, has programs on");
    ensure!(
        hooks.iter().any(|finding| finding["state"] == "note" && finding["found"].as_str().is_some_and(|text| text.contains(&named))),
        "{json:#}"
    );
    ensure!(hooks.iter().any(|finding| finding["state"] == "good"), "and nobody else's are there: {json:#}");
    Ok(())
}

#[test]
fn without_rights_it_says_which_are_missing() -> Result<()> {
    let lab = Lab::new("doctor-rights")?;
    // Nobody may look into root's folders: the program is put where he can.
    let folder = tempfile_for_all()?;
    let program = folder.join("sekisho");
    std::fs::copy(Agent::binary()?, &program).context("the agent is copied")?;
    let mut command = std::process::Command::new(&program);
    let answer = command.args(["doctor", "-o", "json"]).uid(65534).gid(65534).current_dir("/").stdin(Stdio::null()).output();
    std::fs::remove_dir_all(&folder)?;
    let answer = answer.context("the doctor does not start")?;
    let json: Value = serde_json::from_slice(&answer.stdout).with_context(|| String::from_utf8_lossy(&answer.stderr).into_owned())?;
    ensure!(answer.status.code() == Some(3) && json["verdict"] == "cannot_run", "{}: {json:#}", answer.status);
    let finding = found(&json, "capabilities")?;
    ensure!(
        finding["state"] == "fatal" && finding["found"].as_str().is_some_and(|text| text.contains("BPF, PERFMON, NET_ADMIN")),
        "{finding}"
    );
    // With them, and without a bpffs.
    let (code, answer) = doctor(&lab, &["--kubeconfig", "/nowhere"])?;
    ensure!(code == Some(1) && found(&answer, "rbac")?["state"] == "lack", "a kubeconfig that is not there: {code:?}: {answer:#}");
    let socket = lab.socket().display().to_string();
    let answer: Finished = lab.sekisho(&["doctor", "-o", "json", "--pin-dir", "/tmp/sekisho-doctor", "--socket", &socket])?;
    ensure!(answer.code == Some(3) && found(&answer.json()?, "bpffs")?["state"] == "fatal", "{answer:?}");
    Ok(())
}

fn tempfile_for_all() -> Result<std::path::PathBuf> {
    let folder = std::env::temp_dir().join(format!("sekisho-doctor-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Others' programs at a pod's interface are named; behind ours they are worth a note.
#[test]
fn others_programs_are_named() -> Result<()> {
    let lab = Lab::new("doctor-others")?;
    let server = lab.pod(PodSpec::new("shop", "server"))?;
    let interface = server.interface().context("it has a veth")?.to_owned();
    for words in [
        vec!["qdisc", "add", "dev", &interface, "clsact"],
        vec!["filter", "add", "dev", &interface, "ingress", "bpf", "da", "bytecode", "1,6 0 0 4294967295,"],
    ] {
        let added = lab.node().run("tc", &words)?;
        ensure!(added.success(), "{added:?}");
    }
    let (code, answer) = doctor(&lab, &[])?;
    ensure!(code == Some(0), "{code:?}: {answer:#}");
    // A classic filter is no eBPF program.
    ensure!(found(&answer, "hooks")?["state"] == "good", "{answer:#}");
    let _short_cut = ShortCut::onto(&lab, &interface)?;
    let (code, answer) = doctor(&lab, &[])?;
    let hooks = found(&answer, "hooks")?;
    ensure!(code == Some(0) && hooks["state"] == "note", "{code:?}: {answer:#}");
    ensure!(hooks["found"].as_str().is_some_and(|text| text.contains("tcx") && text.contains(&interface)), "{hooks}");
    let _agent = Agent::start(&lab, &[])?;
    let (code, answer) = doctor(&lab, &[])?;
    ensure!(code == Some(0) && found(&answer, "hooks")?["state"] == "note", "ours runs before it: {code:?}: {answer:#}");
    Ok(())
}

/// A CNI that bypasses the veth is told from what the agent has noticed.
#[test]
fn a_blind_interface_is_told_with_its_cost() -> Result<()> {
    let lab = Lab::new("doctor-blind")?;
    let server = lab.pod(PodSpec::new("shop", "server"))?;
    let _serving = server.serve("tcp", 80)?;
    lab.admit("shop", "server", &json!([{"ports": [{"port": 80}]}]))?;
    let agent = Agent::start(&lab, &[])?;
    let _short_cut = ShortCut::into_pod(&lab, &server)?;
    agent.until_status("judged at its control group", std::time::Duration::from_secs(15), |status| {
        let _either = lab.outside().reaches("tcp", server.v4(), 80);
        status["endpoints"].as_array().into_iter().flatten().any(|endpoint| endpoint["attach"] == "tcx+cgroup")
    })?;
    let (code, answer) = doctor(&lab, &[])?;
    let coverage = found(&answer, "coverage")?;
    ensure!(code == Some(0) && coverage["state"] == "note", "{code:?}: {answer:#}");
    ensure!(coverage["found"].as_str().is_some_and(|text| text.contains("shop/server")) && coverage["cost"].is_string(), "{coverage}");
    Ok(())
}
