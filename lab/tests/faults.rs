//! What cannot work says so: one clear sentence, the right exit code, within ten seconds. Needs root.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use sekisho_lab::{Agent, AgentOptions, Finished, Lab, PodSpec};

/// Exit 3 with one sentence that says `named`, no panic and no dump.
fn refused(what: &str, answer: &Finished, named: &str) -> Result<()> {
    let text = answer.stderr.trim();
    ensure!(answer.code == Some(3), "{what}: exit {:?}: {text}", answer.code);
    ensure!(!text.is_empty() && !text.contains("panicked") && !text.contains("RUST_BACKTRACE"), "{what}: {text}");
    ensure!(text.to_lowercase().contains(&named.to_lowercase()), "{what}: does not say {named:?}: {text}");
    ensure!(text.lines().count() == 1, "{what}: more than a sentence: {text}");
    Ok(())
}

struct Attempt<'a> {
    lab: &'a Lab,
    manifests: String,
    pin_dir: String,
    more: Vec<&'a str>,
}

impl<'a> Attempt<'a> {
    fn new(lab: &'a Lab) -> Self {
        Self { lab, manifests: lab.manifests().display().to_string(), pin_dir: lab.pin_dir().display().to_string(), more: Vec::new() }
    }

    /// Runs the agent behind `wrapper`, if any, to its end. An agent that starts is ended after ten seconds.
    fn run(&self, wrapper: &[&str]) -> Result<Finished> {
        let socket = self.lab.directory().join("other.sock").display().to_string();
        let sekisho = Agent::binary()?.display().to_string();
        let mut words = vec!["timeout", "10"];
        words.extend(wrapper);
        words.extend([
            &*sekisho,
            "agent",
            "--manifests",
            &self.manifests,
            "--node-name",
            "node-1",
            "--socket",
            &socket,
            "--pin-dir",
            &self.pin_dir,
        ]);
        words.extend(&self.more);
        let begin = Instant::now();
        let answer = self.lab.node().run(words[0], &words[1..])?;
        ensure!(begin.elapsed() < Duration::from_secs(10), "still undecided after ten seconds: {}", answer.stderr);
        Ok(answer)
    }
}

#[test]
fn missing_pieces() -> Result<()> {
    let lab = Lab::new("faults-missing")?;
    let mut no_folder = Attempt::new(&lab);
    no_folder.manifests = "/nonexistent/manifests".to_owned();
    refused("no folder", &no_folder.run(&[])?, "/nonexistent/manifests")?;
    no_folder.manifests = "/proc/version".to_owned();
    refused("a file for a folder", &no_folder.run(&[])?, "not a folder")?;
    let mut no_bpffs = Attempt::new(&lab);
    no_bpffs.pin_dir = lab.directory().join("plain").display().to_string();
    refused("pins outside a bpffs", &no_bpffs.run(&[])?, "bpf")?;
    let mut nowhere = Attempt::new(&lab);
    nowhere.more = vec!["--jsonl", "/nonexistent/flows.jsonl"];
    refused("no place for records", &nowhere.run(&[])?, "/nonexistent/flows.jsonl")?;
    let mut too_much = Attempt::new(&lab);
    too_much.more = vec!["--memory-budget", "1000000G"];
    refused("more memory than there is", &too_much.run(&[])?, "memory")?;
    ensure!(!lab.pin_dir().exists(), "who cannot run leaves nothing behind");
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    refused("no root", &Attempt::new(&lab).run(&nobody)?, "root")?;
    let hidden = |path: &'static str| ["unshare", "--mount", "sh", "-c", path, "sh"];
    refused("no BTF", &Attempt::new(&lab).run(&hidden("mount -t tmpfs none /sys/kernel/btf && exec \"$@\""))?, "BTF")?;
    let no_cgroup = "for m in $(awk '$0 ~ / - cgroup2 / {print $5}' /proc/self/mountinfo); do umount -l $m; done; exec \"$@\"";
    refused("no cgroup v2", &Attempt::new(&lab).run(&hidden(no_cgroup))?, "cgroup")?;
    Ok(())
}

#[test]
fn somebody_is_there_already() -> Result<()> {
    let lab = Lab::new("faults-taken")?;
    let _pod = lab.pod(PodSpec::new("shop", "server"))?;
    let mut agent = Agent::start(&lab, &["--listen", "127.0.0.1:7878"])?;
    refused("a second agent on these pins", &Attempt::new(&lab).run(&[])?, "agent")?;
    let mut other = Attempt::new(&lab);
    other.pin_dir = lab.directory().join("bpf/other").display().to_string();
    other.more = vec!["--listen", "127.0.0.1:7878"];
    refused("a port in use", &other.run(&[])?, "7878")?;
    let mut everybody = Attempt::new(&lab);
    everybody.pin_dir = other.pin_dir.clone();
    everybody.more = vec!["--listen", "0.0.0.0:7879"];
    let answer = everybody.run(&[])?;
    ensure!(matches!(answer.code, Some(2 | 3)) && answer.stderr.contains("loopback"), "only loopback: {answer:?}");
    ensure!(agent.alive()?, "the first agent is not disturbed");
    ensure!(agent.status()?["ready"] == true);
    Ok(())
}

#[test]
fn wrong_usage_and_no_agent() -> Result<()> {
    let lab = Lab::new("faults-usage")?;
    let socket = lab.socket().display().to_string();
    for words in [&["agent"][..], &["observe", "--last", "many"], &["mode", "sleep"], &["explain"], &["nonsense"]] {
        let answer = lab.sekisho(words)?;
        ensure!(answer.code == Some(2), "{words:?}: {answer:?}");
    }
    for words in [&["status"][..], &["observe"], &["alerts"]] {
        let answer = lab.sekisho(&[words, &["--socket", &socket]].concat())?;
        ensure!(matches!(answer.code, Some(1 | 3)) && !answer.stderr.is_empty(), "no agent: {words:?}: {answer:?}");
        ensure!(!answer.stderr.contains("panicked"), "{answer:?}");
    }
    Ok(())
}

/// An empty folder is no error; it is said, and the agent is ready when somebody comes.
#[test]
fn an_empty_folder() -> Result<()> {
    let lab = Lab::new("faults-empty")?;
    lab.remove_manifest("node.json")?;
    let agent = Agent::start(&lab, &[])?;
    ensure!(agent.log().contains("empty") || agent.log().contains("no "), "it says so: {}", agent.log());
    let server = lab.pod(PodSpec::new("shop", "server"))?;
    agent.until_status("the first pod is an endpoint", Duration::from_secs(5), |status| {
        status["ready"] == true && status["endpoints"].as_array().is_some_and(|endpoints| endpoints.len() == 1)
    })?;
    drop(server);
    Ok(())
}

/// The socket of a killed agent is replaced; one killed while starting leaves nothing in the way.
#[test]
fn killed_while_starting() -> Result<()> {
    let lab = Lab::new("faults-start")?;
    let _pod = lab.pod(PodSpec::new("shop", "server"))?;
    for delay in [1, 5, 20, 50, 100, 200] {
        let agent = Agent::launch(&lab, &AgentOptions::default())?;
        std::thread::sleep(Duration::from_millis(delay));
        agent.kill()?;
    }
    let agent = Agent::start(&lab, &[])?;
    ensure!(agent.status()?["ready"] == true);
    Ok(())
}
