//! Arguments, values and exit codes.

use std::cell::RefCell;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::CommandFactory as _;
use sekisho_proto::{Kind, Verdict};

use super::args::{Cli, Command};
use super::values::{self, Last};
use super::*;

fn words(line: &str) -> Vec<OsString> {
    std::iter::once("sekisho").chain(line.split_whitespace()).map(OsString::from).collect()
}

fn parse(line: &str) -> Result<Cli, clap::Error> {
    super::parse(words(line))
}

/// What an error says, and the exit code that clap gives it.
fn refused(line: &str) -> String {
    let error = parse(line).expect_err(line);
    assert_eq!(error.exit_code(), 2, "{line}");
    error.to_string()
}

fn agent(line: &str) -> AgentArgs {
    match parse(line).expect(line).command {
        Command::Agent(args) => *args,
        other => panic!("not an agent: {other:?}"),
    }
}

fn observed(line: &str) -> sekisho_proto::FlowsRequest {
    match parse(line).expect(line).command {
        Command::Observe(args) => args.request().expect(line),
        other => panic!("not observe: {other:?}"),
    }
}

/// Notes what it is told.
#[derive(Default)]
struct Notes {
    agent: RefCell<Option<AgentArgs>>,
    pins: RefCell<Vec<PathBuf>>,
    in_use: bool,
    findings: Vec<Finding>,
}

impl Machine for Notes {
    fn agent(&self, args: &AgentArgs) -> ExitCode {
        *self.agent.borrow_mut() = Some(args.clone());
        ExitCode::SUCCESS
    }

    fn detach(&self, pin_dir: &Path) -> Result<Vec<String>, Failure> {
        if self.in_use {
            return Err(Failure::new(Exit::CannotRun, "an agent runs on these pins"));
        }
        self.pins.borrow_mut().push(pin_dir.to_owned());
        Ok(Vec::new())
    }

    fn examine(&self, pin_dir: &Path, _: Option<&Access>) -> Vec<Finding> {
        self.pins.borrow_mut().push(pin_dir.to_owned());
        self.findings.clone()
    }

    fn observe_on_pins(&self, pin_dir: &Path) -> Result<u32, Failure> {
        self.pins.borrow_mut().push(pin_dir.to_owned());
        Ok(5)
    }
}

fn exit(line: &str, machine: &Notes) -> String {
    format!("{:?}", run(words(line), machine))
}

fn code(exit: Exit) -> String {
    format!("{:?}", ExitCode::from(exit))
}

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn the_agent_as_in_the_contract() {
    let line = "agent --manifests /tmp --node-name n1 --socket /s --pin-dir /p --listen 127.0.0.1:99 --jsonl - --mode audit \
                --tc-backend clsact --memory-budget 64M --detach-on-exit --log-format json";
    let args = agent(line);
    assert_eq!(args.manifests.as_deref(), Some(Path::new("/tmp")));
    assert_eq!(
        (args.node_name.as_str(), args.mode(), args.tc_backend, args.log_format),
        ("n1", Mode::Audit, TcBackend::Clsact, LogFormat::Json)
    );
    assert_eq!(args.listen, Some(SocketAddr::from(([127, 0, 0, 1], 99))));
    assert_eq!((args.jsonl.as_deref(), args.pin_dir.as_path()), (Some(Path::new("-")), Path::new("/p")));
    assert_eq!((args.memory_budget, args.detach_on_exit), (64_000_000, true));
}

#[test]
fn under_tls_the_agent_listens_anywhere() {
    let args = agent("agent --manifests /tmp --node-name n1 --listen 0.0.0.0:99 --tls-cert c --tls-key k --tls-client-ca a");
    assert_eq!(args.tls.files().map(|files| files.client_authority), Some("a".into()));
}

#[test]
fn the_agent_has_defaults() {
    let args = agent("agent --manifests /tmp --node-name n1");
    assert_eq!((args.mode(), args.tc_backend, args.log_format), (Mode::Enforce, TcBackend::Auto, LogFormat::Text));
    assert_eq!(args.pin_dir, Path::new("/sys/fs/bpf/sekisho"));
    assert_eq!(args.update_interval, Duration::from_secs(30));
    assert!(!args.detach_on_exit && args.jsonl.is_none() && args.listen.is_none());
    assert_eq!((args.udp_timeout, args.udp_stream_timeout), (None, None), "as the kernel has it");
    let args = agent("agent --manifests /tmp --node-name n1 --udp-timeout 10s --udp-stream-timeout 3m");
    assert_eq!((args.udp_timeout, args.udp_stream_timeout), (Some(Duration::from_secs(10)), Some(Duration::from_mins(3))));
}

#[test]
fn without_manifests_the_api_server_is_the_source_and_nothing_is_dropped_yet() {
    let args = agent("agent --kubeconfig /k --node-name n1");
    assert_eq!(args.mode(), Mode::Audit);
    assert_eq!(args.source(), Some(Origin::Cluster(crate::inventory::kube::Access::Kubeconfig("/k".into()))));
    assert_eq!(agent("agent --kubeconfig /k --node-name n1 --mode enforce").mode(), Mode::Enforce);
}

#[test]
fn the_agent_refuses_in_sentences() {
    assert!(refused("agent --node-name n").contains("--manifests"));
    assert!(refused("agent --node-name n").contains("--kubeconfig"));
    assert!(refused("agent --manifests /tmp").contains("--node-name"));
    assert!(refused("agent --manifests /tmp --kubeconfig /k --node-name n").contains("cannot be used with"));
    assert!(refused("agent --manifests /tmp --node-name n --listen 0.0.0.0:1").contains("not a loopback address"));
    assert!(refused("agent --manifests /tmp --node-name n --listen 10.0.0.1:1").contains("not a loopback address"));
    assert!(refused("agent --manifests /tmp --node-name n --listen 10.0.0.1:1").contains("--tls-client-ca"));
    assert!(refused("agent --manifests /tmp --node-name n --listen 127.0.0.1:1 --tls-cert c --tls-key k").contains("--tls-client-ca"));
    assert!(refused("agent --manifests /tmp --node-name n --tls-cert c --tls-key k --tls-client-ca a").contains("--listen"));
    assert!(refused("agent --manifests /tmp --node-name n --listen here").contains("127.0.0.1:4317"));
    assert!(refused("agent --manifests /tmp --node-name n --mode maybe").contains("observe, audit, enforce"));
    assert!(refused("agent --manifests /tmp --node-name n --memory-budget lots").contains("256Mi"));
    assert!(refused("agent --manifests /tmp --node-name n --memory-budget 1M").contains("at least 8Mi"));
    assert!(refused("agent --manifests /tmp --node-name n --log-level a=b=c").contains("by module"));
}

#[test]
fn the_socket_goes_before_or_after_the_command_and_reaches_the_agent() {
    for line in ["--socket /a status", "status --socket /a"] {
        assert_eq!(parse(line).expect(line).socket, Path::new("/a"));
    }
    assert_eq!(parse("status").expect("good").socket, Path::new("/run/sekisho/sekisho.sock"));
    let notes = Notes::default();
    exit("agent --manifests /tmp --node-name n1 --socket /b", &notes);
    assert_eq!(notes.agent.borrow().as_ref().expect("run").socket, Path::new("/b"));
}

#[test]
fn observe_asks_for_a_little_of_the_past_or_for_what_comes() {
    let request = observed("observe");
    assert_eq!((request.last, request.all, request.follow), (Some(20), false, false));
    let request = observed("observe --follow");
    assert_eq!((request.last, request.all, request.follow), (None, false, true));
    let request = observed("observe -f --last 5");
    assert_eq!((request.last, request.all, request.follow), (Some(5), false, true));
    let request = observed("observe --last all --follow");
    assert_eq!((request.last, request.all, request.follow), (None, true, true));
    let request = observed("observe --since 2026-11-21T12:00:00Z");
    assert_eq!((request.last, request.all), (None, true));
    assert_eq!(request.since.expect("a time").seconds, 1_795_262_400);
}

#[test]
fn observe_carries_every_filter() {
    let line = "observe --verdict denied,audit --namespace shop --pod shop/web --from-pod a/b --to-pod c --ip 10.0.0.0/8 --ip ::1 \
                --port 80,443 --protocol tcp --kind start --kind alert";
    let filter = observed(line).filter.expect("a filter");
    assert_eq!(filter.verdicts, [Verdict::Denied as i32, Verdict::Audit as i32]);
    assert_eq!(filter.kinds, [Kind::Start as i32, Kind::Alert as i32]);
    assert_eq!((filter.namespaces, filter.pods), (vec!["shop".to_owned()], vec!["shop/web".to_owned()]));
    assert_eq!((filter.from_pods, filter.to_pods), (vec!["a/b".to_owned()], vec!["shop/c".to_owned()]));
    assert_eq!((filter.ips.len(), filter.ports, filter.protocols), (2, vec![80, 443], vec!["tcp".to_owned()]));
}

#[test]
fn the_end_of_a_pod_may_be_said_beside_it() {
    let ends = |line: &str| {
        let filter = observed(line).filter.expect("a filter");
        (filter.pods.concat(), filter.from_pods.concat(), filter.to_pods.concat())
    };
    let at = |pods: &str, from: &str, to: &str| (pods.to_owned(), from.to_owned(), to.to_owned());
    assert_eq!(ends("observe --pod a/b --from-pod"), at("", "a/b", ""));
    assert_eq!(ends("observe --to-pod --pod a/b --verdict denied"), at("", "", "a/b"));
    assert_eq!(ends("observe --pod a/b --from-pod --to-pod"), at("a/b", "", ""));
    assert_eq!(ends("observe --pod a/b --from-pod --to-pod c/d"), at("", "a/b", "c/d"));
    let Command::Observe(args) = parse("observe --from-pod --verdict denied").expect("parses").command else { panic!("not observe") };
    let failure = args.request().expect_err("of nobody");
    assert_eq!(failure.exit, Exit::Usage);
    assert!(failure.text.contains("--pod NS/POD --from-pod"), "{failure}");
}

#[test]
fn observe_refuses_in_sentences() {
    assert!(refused("observe --verdict dropped").contains("allowed, denied, audit"));
    assert!(refused("observe --kind flow").contains("start, update, end, alert, ledger, policy, coverage, summarised"));
    assert!(refused("observe --last many").contains("or `all`"));
    assert!(refused("observe --since yesterday").contains("how long ago"));
    assert!(refused("observe --ip 10.0.0.0/33").contains("CIDR"));
    assert!(refused("observe --pod a/b/c").contains("NAMESPACE/POD"));
    assert!(refused("observe --protocol http").contains("ICMPv6"));
    assert!(refused("observe --port 70000").contains("70000"));
    assert!(refused("observe --port 0").contains("from 1 to 65535"));
    assert!(refused("observe --output xml").contains("compact, wide, json, dict"));
    assert!(refused("observe -l app=we=b").contains("label selector"));
    assert!(refused("observe --workload a/b/c/d").contains("KIND/NAME"));
    assert!(refused("observe --reason boredom").contains("default_deny"));
    assert!(refused("observe --not").contains("--not --namespace"));
    assert!(refused("observe --not --follow --pod a/b").contains("directly before"));
    assert!(refused("alerts --severity dire").contains("high"));
    assert!(refused("alerts --verdict denied").contains("--verdict"));
}

#[test]
fn explain_takes_pods_addresses_and_ports() {
    let request = |line: &str| match parse(line).expect(line).command {
        Command::Explain(args) => args.request(),
        other => panic!("not explain: {other:?}"),
    };
    let asked = request("explain --from shop/web --to 10.0.0.1 --port 53/udp");
    assert_eq!((asked.from.as_str(), asked.to.as_str(), asked.port, asked.protocol.as_str()), ("shop/web", "10.0.0.1", 53, "UDP"));
    let asked = request("explain --from fd00::1 --to shop/db --port 80");
    assert_eq!((asked.port, asked.protocol.as_str()), (80, "TCP"));
    let asked = request("explain -n shop --from web --to 10.0.0.1 --port 80");
    assert_eq!((asked.from.as_str(), asked.to.as_str()), ("shop/web", "10.0.0.1"));
    assert_eq!(request("explain --from web --to shop/db --port 80").from, "default/web");
    assert!(refused("explain --from shop/web/x --to shop/db --port 80").contains("NAMESPACE/POD or an address"));
    assert!(refused("explain --from a/b --to c/d --port http").contains("`http` is a name"));
    assert!(refused("explain --from a/b --to c/d --port 80/HTTP").contains("PORT/TCP"));
    assert!(refused("explain --from a/b --to c/d --port 0").contains("port 0"));
    assert!(refused("explain --from a/b --to c/d").contains("--port"));
}

#[test]
fn values() {
    assert_eq!(values::size("64M"), Ok(64_000_000));
    assert_eq!(values::size("256Mi"), Ok(256 << 20));
    assert_eq!(values::size("1GiB"), Ok(1 << 30));
    assert_eq!(values::size("4096"), Ok(4096));
    for wrong in ["", "M", "0", "1T5", "-1", "99999999999999999999", "20000000000Gi"] {
        assert!(values::size(wrong).is_err(), "{wrong}");
    }
    assert_eq!(values::duration("1h30m"), Ok(Duration::from_mins(90)));
    assert_eq!(values::duration("500ms"), Ok(Duration::from_millis(500)));
    for wrong in ["", "5", "m", "5x", "0s", "-5m", "1 month", "1é"] {
        assert!(values::duration(wrong).is_err(), "{wrong}");
    }
    assert_eq!(values::duration("5m 3s"), Ok(Duration::from_secs(303)));
    assert_eq!(values::duration("2d"), Ok(Duration::from_hours(48)));
    assert_eq!(values::last("ALL"), Ok(Last::All));
    assert_eq!(values::last("7"), Ok(Last::Count(7)));
    assert!(values::last("-1").is_err());
}

#[test]
fn exits() {
    let notes = Notes::default();
    assert_eq!(exit("--help", &notes), code(Exit::Done));
    assert_eq!(exit("--version", &notes), code(Exit::Done));
    assert_eq!(exit("", &notes), code(Exit::Usage));
    assert_eq!(exit("fly", &notes), code(Exit::Usage));
    assert_eq!(exit("status --socket /nowhere/sekisho.sock", &notes), code(Exit::NotReady));
    assert_eq!(exit("observe --socket /nowhere/sekisho.sock", &notes), code(Exit::NotReady));
    assert_eq!(exit("mode enforce --socket /nowhere/sekisho.sock", &notes), code(Exit::NotReady));
    assert!(notes.pins.borrow().is_empty());
}

#[test]
fn the_kill_switch_works_on_the_pins_when_no_agent_answers() {
    let notes = Notes::default();
    assert_eq!(exit("mode observe --socket /nowhere/sekisho.sock --pin-dir /pins", &notes), code(Exit::Done));
    assert_eq!(*notes.pins.borrow(), [PathBuf::from("/pins")]);
}

#[test]
fn detach_of_nothing_is_done_and_of_a_running_agent_refused() {
    let notes = Notes::default();
    assert_eq!(exit("detach", &notes), code(Exit::Done));
    assert_eq!(*notes.pins.borrow(), [PathBuf::from("/sys/fs/bpf/sekisho")]);
    assert_eq!(exit("detach", &Notes { in_use: true, ..Notes::default() }), code(Exit::CannotRun));
}

#[test]
fn the_doctor_ends_with_the_worst_that_it_found() {
    let ends = |findings: Vec<Finding>| exit("doctor --socket /nowhere/sekisho.sock -o json", &Notes { findings, ..Notes::default() });
    let (good, lack) = (Finding::good("a", "b"), Finding::lack("a", "b", "c"));
    assert_eq!(ends(vec![good.clone(), Finding::note("a", "b")]), code(Exit::Done));
    assert_eq!(ends(vec![lack.clone(), good]), code(Exit::NotReady));
    assert_eq!(ends(vec![Finding::fatal("a", "b", "c"), lack]), code(Exit::CannotRun));
}

#[test]
fn completion_for_every_shell_and_man_pages_for_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(parse(&format!("completion {shell}")).is_ok(), "{shell}");
    }
    let dir = std::env::temp_dir().join(format!("sekisho-man-{}", std::process::id()));
    assert_eq!(exit(&format!("man --dir {}", dir.display()), &Notes::default()), code(Exit::Done));
    let page = std::fs::read_to_string(dir.join("sekisho-observe.1")).expect("a page");
    assert!(page.contains("\\-\\-follow") && dir.join("sekisho.1").exists());
    std::fs::remove_dir_all(dir).expect("removed");
}

#[test]
fn a_cluster_is_asked_when_a_flag_or_the_name_says_so() {
    let cluster = |line: &str, plugin: bool| match parse(line).expect(line).command {
        Command::Observe(args) => matches!(cluster::Target::new(Path::new("/s"), &args.cluster, plugin), cluster::Target::Cluster(_)),
        other => panic!("not observe: {other:?}"),
    };
    assert!(!cluster("observe", false));
    for line in ["observe --all-nodes", "observe --node a,b", "observe --context c", "observe --kubeconfig /k"] {
        assert!(cluster(line, false), "{line}");
    }
    assert!(cluster("observe", true));
    assert!(refused("observe --all-nodes --node a").contains("cannot be used with"));
    let called = |name: &str| Called::by(Some(&name.into()));
    assert_eq!(called("/usr/local/bin/kubectl-sekisho"), Called::Plugin);
    assert_eq!(called("kubectl_complete-sekisho"), Called::Completer);
    assert_eq!((called("/usr/local/bin/sekisho"), Called::by(None)), (Called::Plainly, Called::Plainly));
}

#[test]
fn a_plugin_does_nothing_to_the_machine_at_which_it_is_typed() {
    for command in ["doctor", "detach", "agent --manifests /tmp --node-name n"] {
        let notes = Notes::default();
        let words = std::iter::once("kubectl-sekisho").chain(command.split(' ')).map(OsString::from);
        assert_eq!(format!("{:?}", run(words, &notes)), code(Exit::Usage), "{command}");
        assert!(notes.pins.borrow().is_empty() && notes.agent.borrow().is_none());
    }
}

#[test]
fn a_moment_is_how_long_ago_or_a_time_of_any_form() {
    // Noon in Tokyo.
    let now: jiff::Zoned = "2026-11-21T12:00:00+09:00[+09:00]".parse().expect("a time");
    let at = |text: &str| values::moment_at(text, &now).map(|time| (time.seconds, time.nanos)).ok();
    let noon = 1_795_262_400 - 9 * 3600;
    assert_eq!(at("2026-11-21T13:00:00.5+01:00"), Some((1_795_262_400, 500_000_000)));
    assert_eq!(at("2026-11-21 12:00:00Z"), Some((1_795_262_400, 0)));
    assert_eq!(at("5m"), Some((noon - 300, 0)));
    assert_eq!(at("1h30m"), Some((noon - 5400, 0)));
    for local in ["2026-11-21 11:30", "2026-11-21T11:30:00", "11:30"] {
        assert_eq!(at(local), Some((noon - 1800, 0)), "{local}");
    }
    assert_eq!(at("2026-11-21"), Some((noon - 12 * 3600, 0)));
    for wrong in ["yesterday", "", "5", "2026-13-01", "25:00", "1900-01-01T00:00:00Z"] {
        assert_eq!(at(wrong), None, "{wrong}");
    }
}

#[test]
fn not_turns_round_the_next_filter_and_no_other() {
    let request = observed("observe --not -n kube-system,default --pod shop/web --not --port 53 --port 80 --not --pod=a/b");
    let filter = request.filter.expect("a filter");
    assert_eq!((filter.pods, filter.ports), (vec!["shop/web".to_owned()], vec![80]));
    assert!(filter.namespaces.is_empty());
    let mut exclude = request.exclude;
    exclude.sort_by_key(|filter| (filter.ports.len(), filter.pods.len()));
    assert_eq!(exclude.len(), 3);
    assert_eq!(exclude[0].namespaces, ["kube-system", "default"]);
    assert_eq!((exclude[1].pods.clone(), exclude[2].ports.clone()), (vec!["a/b".to_owned()], vec![53]));
}

#[test]
fn names_are_in_the_namespace_that_n_gives() {
    let pods = |line: &str| observed(line).filter.expect("a filter").pods;
    assert_eq!(pods("observe --pod web"), ["default/web"]);
    assert_eq!(pods("observe -n shop --pod web"), ["shop/web"]);
    assert_eq!(pods("observe -n a,b --pod web,c/d"), ["a/web", "b/web", "c/d"]);
    assert_eq!(pods("observe -A --pod web"), ["/web"]);
    assert_eq!(pods("observe -n shop -A --pod web"), ["/web"]);
    assert_eq!(pods("observe --pod shop/"), ["shop/"]);
    let all = observed("observe -n shop -A").filter.expect("a filter");
    assert!(all.namespaces.is_empty());
    let of = observed("observe -n shop --policy p --service s --to-workload deploy/w").filter.expect("a filter");
    assert_eq!((of.policies, of.services), (vec!["shop/p".to_owned()], vec!["shop/s".to_owned()]));
    let workload = &of.to_workloads[0];
    assert_eq!((workload.namespace.as_deref(), workload.kind.as_deref(), workload.name.as_str()), (Some("shop"), Some("Deployment"), "w"));
}

#[test]
fn a_workload_is_named_with_or_without_kind_and_namespace() {
    let parts = |text: &str| values::workload(text).ok();
    assert_eq!(parts("web").as_deref(), Some("//web"));
    assert_eq!(parts("sts/db").as_deref(), Some("/StatefulSet/db"));
    assert_eq!(parts("shop/db").as_deref(), Some("shop//db"));
    assert_eq!(parts("shop/CronJob/nightly").as_deref(), Some("shop/CronJob/nightly"));
    assert_eq!(parts("shop/rollout/web").as_deref(), Some("shop/rollout/web"));
    assert_eq!((parts(""), parts("a/"), parts("a/b/c/d")), (None, None, None));
}

#[test]
fn every_filter_of_kubectl_and_hubble_reaches_the_agent() {
    let line = "observe --from-namespace a --to-namespace b --from-ip 10.0.0.0/8 --to-ip ::1 --from-port 1 --to-port 2 -l app=web,!x \
                --label tier=db --from-label a --to-selector b=c --reason default_deny,not_ready --type start --until 2026-11-21T12:00:00Z";
    let request = observed(line);
    assert_eq!(request.until.map(|until| until.seconds), Some(1_795_262_400));
    let filter = request.filter.expect("a filter");
    assert_eq!((filter.from_namespaces.concat(), filter.to_namespaces.concat()), ("a".to_owned(), "b".to_owned()));
    assert_eq!((filter.from_ips.concat(), filter.to_ips.concat()), ("10.0.0.0/8".to_owned(), "::1".to_owned()));
    assert_eq!((filter.from_ports, filter.to_ports), (vec![1], vec![2]));
    assert_eq!(
        (filter.selectors, filter.from_selectors, filter.to_selectors.concat()),
        (vec!["app=web,!x".to_owned(), "tier=db".to_owned()], vec!["a".to_owned()], "b=c".to_owned())
    );
    assert_eq!((filter.reasons.len(), filter.kinds), (2, vec![Kind::Start as i32]));
}

#[test]
fn alerts_are_asked_for_by_severity_rule_time_and_namespace() {
    let Command::Alerts(args) =
        parse("alerts --severity high,critical --rule scan -n shop --since 1h --not --rule scan.vertical").expect("good").command
    else {
        panic!("not alerts")
    };
    let request = args.request().expect("good");
    let filter = request.filter.expect("a filter");
    assert_eq!(
        (filter.severities, filter.rules, filter.namespaces),
        (vec!["high".to_owned(), "critical".to_owned()], vec!["scan".to_owned()], vec!["shop".to_owned()])
    );
    assert_eq!(request.exclude[0].rules, ["scan.vertical"]);
    assert!(request.all && request.since.is_some());
}

#[test]
fn text_is_compact_unless_json_is_asked_for() {
    use super::output::Format;
    let format = |line: &str| match parse(line).expect(line).command {
        Command::Version(args) => args.format(),
        other => panic!("not version: {other:?}"),
    };
    // The tests' own stdout is no terminal.
    assert_eq!(format("version"), Format::Compact);
    for line in ["version -o json", "version -o jsonl", "version --output jsonpb"] {
        assert_eq!(format(line), Format::Json, "{line}");
    }
}
