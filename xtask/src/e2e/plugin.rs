//! `kubectl sekisho`: every node's agent, asked through the API server, as an operator asks it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sekisho_lab::until;
use serde_json::{Value, json};

use super::Stage;
use super::pods::{Pod, server};
use super::probe::{PATIENCE, Protocol, answered_from};
use crate::cluster::{kubelet, node_name};
use crate::workspace::build_agent;

const NAMESPACE: &str = "e2e-plugin";
const SIGINT: i32 = 2;
const SIGCONT: i32 = 18;
const SIGSTOP: i32 = 19;

/// The agent's binary under the names by which kubectl finds it.
struct Plugin<'a> {
    stage: &'a Stage,
    directory: PathBuf,
}

/// What makes a record that one and no other.
type Number = (String, u64);

impl<'a> Plugin<'a> {
    fn install(stage: &'a Stage) -> Result<Self> {
        let directory = std::env::temp_dir().join(format!("sekisho-plugin-{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        for name in ["kubectl-sekisho", "kubectl_complete-sekisho"] {
            std::os::unix::fs::symlink(build_agent()?, directory.join(name)).context("cannot install the plugin")?;
        }
        Ok(Self { stage, directory })
    }

    fn command(&self, line: &str) -> Command {
        self.kubectl(&format!("sekisho {line}"))
    }

    fn kubectl(&self, line: &str) -> Command {
        let words: Vec<&str> = line.split_whitespace().collect();
        let mut command = self.stage.client.kubectl(&words);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.directory.display()));
        command
    }

    fn run(&self, line: &str) -> Result<Output> {
        self.command(line).stdin(Stdio::null()).output().context("kubectl does not start")
    }

    /// What it prints when all goes well, and nothing on stderr.
    fn says(&self, line: &str) -> Result<String> {
        let output = self.run(line)?;
        let complaint = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() && complaint.is_empty(), "kubectl sekisho {line}: {}: {complaint}", output.status);
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

impl Drop for Plugin<'_> {
    fn drop(&mut self) {
        // A temporary directory that stays is no harm.
        let _removed = fs::remove_dir_all(&self.directory);
    }
}

/// A stopped process, which goes on at the end whatever happens.
struct Stopped(u32);

impl Stopped {
    fn stop(pid: u32) -> Result<Self> {
        sekisho_lab::kill(pid, SIGSTOP)?;
        Ok(Self(pid))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It can only have ended.
        let _going = sekisho_lab::kill(self.0, SIGCONT);
    }
}

fn lines(text: &str) -> Result<Vec<Value>> {
    text.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

fn number(record: &Value) -> Number {
    (record["run"].as_str().unwrap_or_default().to_owned(), record["seq"].as_u64().unwrap_or_default())
}

fn numbers(records: &[Value]) -> BTreeSet<Number> {
    records.iter().map(number).collect()
}

fn time(record: &Value) -> &str {
    record["time"].as_str().unwrap_or_default()
}

/// Fails if a record comes twice.
fn once(records: &[Value]) -> Result<()> {
    ensure!(numbers(records).len() == records.len(), "{} records, {} of them different", records.len(), numbers(records).len());
    Ok(())
}

/// Connections both ways, so that both nodes have records by turns.
fn talk(pods: &[Pod], times: u32) -> Result<()> {
    for _ in 0..times {
        for (from, to) in [(0, 1), (1, 0)] {
            let answered = answered_from(&pods[from].netns(), Protocol::Tcp, pods[to].addresses[0], 80, PATIENCE)?;
            ensure!(answered, "{} does not reach {}", pods[from].name, pods[to].name);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Every node's own records, asked one by one.
fn by_node(stage: &Stage) -> Result<BTreeMap<String, Vec<Value>>> {
    stage.plan.numbers().map(|number| Ok((node_name(number), stage.records(&node_name(number))?))).collect()
}

pub(super) fn all_nodes_are_asked_and_a_dead_one_is_named(stage: &Stage) -> Result<()> {
    let plugin = Plugin::install(stage)?;
    stage.namespace(NAMESPACE)?;
    for (name, node) in [("a", "node-1"), ("b", "node-2")] {
        stage.make(&server(NAMESPACE, name, Some(node), &json!({"app": name})))?;
    }
    let pods = stage.ready(NAMESPACE, 2)?;
    talk(&pods, 10)?;
    history_is_merged(stage, &plugin)?;
    questions_are_answered(&plugin)?;
    a_node_that_goes_away_is_named_and_told_from_where_it_broke_off(stage, &plugin, &pods)?;
    until(Duration::from_secs(20), "no relay is left in an agent's pod", || Ok(relays()? == 0))?;
    stage.forget(&[NAMESPACE])
}

fn history_is_merged(stage: &Stage, plugin: &Plugin<'_>) -> Result<()> {
    let before = by_node(stage)?;
    let merged = lines(&plugin.says("observe --all-nodes --last all -o json")?)?;
    let after = by_node(stage)?;
    once(&merged)?;
    ensure!(merged.is_sorted_by(|a, b| time(a) <= time(b)), "not in the order of time");
    for (node, before) in &before {
        let own: Vec<Value> = merged.iter().filter(|record| record["node"] == node.as_str()).cloned().collect();
        // A full memory forgets its oldest meanwhile.
        let stayed: BTreeSet<Number> = numbers(before).intersection(&numbers(&after[node])).cloned().collect();
        let told = numbers(&own);
        let missing: Vec<&Number> = stayed.difference(&told).collect();
        ensure!(missing.is_empty(), "of {node}'s records these are missing: {missing:?}");
        let known: BTreeMap<Number, &Value> = before.iter().chain(&after[node]).map(|record| (number(record), record)).collect();
        let invented = own.iter().find(|record| known.get(&number(record)) != Some(record));
        ensure!(invented.is_none(), "{node} has no such record: {invented:?}");
    }
    ensure!(merged.iter().all(|record| before.contains_key(record["node"].as_str().unwrap_or_default())), "records of no node");
    // The newest over all nodes.
    // Without the kubelets' probes, which go on meanwhile.
    let filter = format!("observe --all-nodes -o json --from-pod {NAMESPACE}/a,{NAMESPACE}/b --kind start --last");
    let (all, five) = (lines(&plugin.says(&format!("{filter} all"))?)?, lines(&plugin.says(&format!("{filter} 5"))?)?);
    ensure!(all.len() >= 40, "20 connections have two ends each, and {} were told", all.len());
    ensure!(five == all[all.len() - 5..], "the last five are {:?} of {:?}", numbers(&five), numbers(&all));
    // One node alone.
    let one = lines(&plugin.says(&format!("{} --node node-2", filter.replace("--all-nodes", "").replace("--last", "--last all")))?)?;
    ensure!(!one.is_empty() && one.iter().all(|record| record["node"] == "node-2"), "not node-2's alone");
    eprintln!("    {} records of {} nodes merged", merged.len(), before.len());
    Ok(())
}

fn questions_are_answered(plugin: &Plugin<'_>) -> Result<()> {
    // What kubectl's own completion offers behind the plugin's name.
    let offered = plugin.kubectl("__complete sekisho observe --verd").stdin(Stdio::null()).output().context("kubectl does not start")?;
    let offered = String::from_utf8_lossy(&offered.stdout).into_owned();
    ensure!(offered.contains("--verdict\t"), "completion offers: {offered}");
    let table = plugin.says("status -o compact")?;
    ensure!(table.lines().count() == 3 && table.matches(" yes ").count() == 2, "two nodes, both ready:\n{table}");
    let status = lines(&plugin.says("status --all-nodes -o json")?)?;
    ensure!(status.len() == 2 && status.iter().all(|status| status["ready"] == true), "{status:?}");
    // Each end is judged on its own node, and one answer tells of both.
    let explain = format!("explain --all-nodes --from {NAMESPACE}/a --to {NAMESPACE}/b --port 80 -o json");
    let answer = &lines(&plugin.says(&explain)?)?[0];
    ensure!(
        answer["verdict"] == "allowed" && answer["egress"].is_object() && answer["ingress"].is_object(),
        "both ends should be explained: {answer}"
    );
    let unknown = plugin.run(&explain.replace("/b", "/nobody"))?;
    let complaint = String::from_utf8_lossy(&unknown.stderr);
    ensure!(unknown.status.code() == Some(1) && complaint.contains("nobody is not known"), "{}: {complaint}", unknown.status);
    let modes = |mode: &str| -> Result<()> {
        let told = lines(&plugin.says(&format!("mode {mode} --all-nodes -o json"))?)?;
        let told: Vec<(&str, &str)> =
            told.iter().map(|line| (line["node"].as_str().unwrap_or_default(), line["mode"].as_str().unwrap_or_default())).collect();
        let wanted = if mode.is_empty() { "enforce" } else { mode };
        ensure!(told == [("node-1", wanted), ("node-2", wanted)], "{told:?}");
        Ok(())
    };
    modes("")?;
    modes("audit")?;
    modes("enforce")?;
    plugin.says("alerts --all-nodes --last all -o json").map(drop)
}

fn a_node_that_goes_away_is_named_and_told_from_where_it_broke_off(stage: &Stage, plugin: &Plugin<'_>, pods: &[Pod]) -> Result<()> {
    let mut followed = Followed::start(plugin)?;
    talk(pods, 10)?;
    {
        let _stopped = Stopped::stop(kubelet("node-2")?)?;
        followed.complains("node-2: ", Duration::from_secs(40))?;
        // Who asks now is told as well, and gets what there is.
        let begin = Instant::now();
        let output = plugin.run("observe --all-nodes --last all -o json")?;
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.code() == Some(1) && complaint.contains("node-2: "), "{}: {complaint}", output.status);
        let told = lines(&String::from_utf8_lossy(&output.stdout))?;
        once(&told)?;
        ensure!(!told.is_empty() && told.iter().all(|record| record["node"] == "node-1"), "node-1's records and no others");
        eprintln!("    {} after {:.1} s", complaint.trim(), begin.elapsed().as_secs_f64());
        let table = plugin.run("status --all-nodes -o compact")?;
        let text = String::from_utf8_lossy(&table.stdout).into_owned();
        ensure!(table.status.code() == Some(1) && text.contains("no answer"), "{}:\n{text}", table.status);
        talk(pods, 5)?;
    }
    followed.complains("node-2: its agent answers again", Duration::from_secs(60))?;
    talk(pods, 5)?;
    std::thread::sleep(Duration::from_secs(3));
    let (records, status) = followed.end()?;
    ensure!(status == Some(1), "a hole was reported, so it should end with 1 and not {status:?}");
    once(&records)?;
    let told = numbers(&records);
    for (node, own) in by_node(stage)? {
        let first = records.iter().filter(|record| record["node"] == node.as_str()).map(number).min().context("a node told nothing")?;
        let last = records.iter().filter(|record| record["node"] == node.as_str()).map(number).max().context("a node told nothing")?;
        let own: Vec<Value> = own.into_iter().filter(|record| (first.clone()..=last.clone()).contains(&number(record))).collect();
        let (own, whole) = (numbers(&own), own.len());
        let seen: BTreeSet<Number> = told.iter().filter(|number| number.0 == first.0).cloned().collect();
        ensure!(own == seen, "{node} has {whole} records from first to last, and {} were told", seen.len());
    }
    eprintln!("    {} records followed over the break, none missing, none twice", records.len());
    Ok(())
}

/// `kubectl sekisho observe --follow`, with its output gathered.
struct Followed {
    child: Child,
    complaint: PathBuf,
    records: PathBuf,
}

impl Followed {
    fn start(plugin: &Plugin<'_>) -> Result<Self> {
        let (records, complaint) = (plugin.directory.join("records"), plugin.directory.join("complaint"));
        let child = plugin
            .command("observe --all-nodes --follow -o json")
            .stdin(Stdio::null())
            .stdout(fs::File::create(&records)?)
            .stderr(fs::File::create(&complaint)?)
            .spawn()
            .context("kubectl does not start")?;
        let followed = Self { child, complaint, records };
        // Both nodes write a ledger record every ten seconds.
        until(Duration::from_secs(40), "both nodes are heard", || {
            let text = fs::read_to_string(&followed.records)?;
            Ok(["node-1", "node-2"].iter().all(|node| text.contains(&format!("\"node\":\"{node}\""))))
        })?;
        Ok(followed)
    }

    fn complains(&self, text: &str, limit: Duration) -> Result<()> {
        until(limit, text, || Ok(fs::read_to_string(&self.complaint)?.contains(text)))
            .with_context(|| fs::read_to_string(&self.complaint).unwrap_or_default())
    }

    /// Interrupts it, as a person does.
    fn end(&mut self) -> Result<(Vec<Value>, Option<i32>)> {
        sekisho_lab::kill(self.child.id(), SIGINT).context("it has ended already")?;
        let status = self.child.wait()?;
        Ok((lines(&fs::read_to_string(&self.records)?)?, status.code()))
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        // Both fail only if it has ended already.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// How many relays run on this machine, and so in any agent's pod.
fn relays() -> Result<usize> {
    let mut found = 0;
    for process in fs::read_dir("/proc")? {
        let mut words = Vec::new();
        // Processes come and go meanwhile.
        if let Ok(mut file) = fs::File::open(process?.path().join("cmdline")) {
            let _read = file.read_to_end(&mut words);
        }
        found += usize::from(words.starts_with(b"/sekisho\0relay"));
    }
    Ok(found)
}
