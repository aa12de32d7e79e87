//! Filters on the command line: one table for `observe` and `alerts`. `--not` turns round the option that comes next.
//!
//! Every value is checked here and applied by the agent, so that a busy node sends only what is wanted.

use std::collections::BTreeSet;

use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use clap_complete::engine::ArgValueCompleter;
use sekisho_proto::{Filter, Kind, Name, Reason, Verdict, WorkloadName};

use super::{Exit, Failure, complete, values};

const NOT: &str = "not";
const ALL_NAMESPACES: &str = "all_namespaces";
const HEADING: &str = "Filters";
const SEVERITIES: [&str; 5] = ["info", "low", "medium", "high", "critical"];

/// One option.
struct Choice {
    name: &'static str,
    value_name: &'static str,
    help: &'static str,
    parser: fn() -> ValueParser,
    /// Adds one value.
    put: fn(&mut Filter, String),
    /// Whether alerts have it.
    of_alerts: bool,
}

macro_rules! choice {
    ($name:literal, $value:literal, $help:literal, $parser:expr, $alerts:literal, |$filter:ident, $text:ident| $put:expr) => {
        Choice { name: $name, value_name: $value, help: $help, parser: || $parser, put: |$filter, $text| $put, of_alerts: $alerts }
    };
}

fn names<E: Name>() -> ValueParser {
    PossibleValuesParser::new(E::NAMES.iter().map(|(_, name)| *name)).into()
}

/// The number of a name that a parser has let through.
fn number<E: Name + Into<i32>>(text: &str) -> Option<i32> {
    E::from_name(text).map(Into::into)
}

const CHOICES: [Choice; 31] = [
    choice!("verdict", "V", "How it was judged", names::<Verdict>(), false, |f, text| f.verdicts.extend(number::<Verdict>(&text))),
    choice!("reason", "R", "Why it was denied", names::<Reason>(), false, |f, text| f.reasons.extend(number::<Reason>(&text))),
    choice!("policy", "NS/POLICY", "Policy that decided, or that isolates", ValueParser::new(values::name_of), false, |f, text| f
        .policies
        .push(text)),
    choice!("kind", "K", "Which moment of a flow's life, or what else the record is about", names::<Kind>(), false, |f, text| f
        .kinds
        .extend(number::<Kind>(&text))),
    choice!("protocol", "P", "TCP, UDP, SCTP, ICMP, ICMPv4, ICMPv6, or a number", ValueParser::new(values::protocol), false, |f, text| f
        .protocols
        .push(text)),
    choice!("severity", "S", "Severity of an alert", PossibleValuesParser::new(SEVERITIES).into(), true, |f, text| f.severities.push(text)),
    choice!(
        "rule",
        "RULE",
        "Rule of an alert, such as spoof.ip; scan is every rule that begins with scan.",
        ValueParser::string(),
        true,
        |f, text| f.rules.push(text)
    ),
    choice!(
        "namespace",
        "NS",
        "Namespace of either end, and of names that are given without one",
        ValueParser::string(),
        true,
        |f, text| f.namespaces.push(text)
    ),
    choice!("from-namespace", "NS", "Namespace that opened the flow", ValueParser::string(), true, |f, text| f.from_namespaces.push(text)),
    choice!("to-namespace", "NS", "Namespace to which it was opened", ValueParser::string(), true, |f, text| f.to_namespaces.push(text)),
    choice!(
        "pod",
        "NS/POD",
        "Pod at either end: the beginning of its name, or its workload's name",
        ValueParser::new(values::pod),
        true,
        |f, text| f.pods.push(text)
    ),
    choice!(
        "from-pod",
        "NS/POD",
        "Pod that opened the flow; without a value: it is the one of --pod",
        ValueParser::new(values::pod_or_bare),
        true,
        |f, text| f.from_pods.push(text)
    ),
    choice!(
        "to-pod",
        "NS/POD",
        "Pod to which the flow was opened; without a value: it is the one of --pod",
        ValueParser::new(values::pod_or_bare),
        true,
        |f, text| f.to_pods.push(text)
    ),
    choice!(
        "workload",
        "[NS/][KIND/]NAME",
        "Workload at either end, such as deployment/web",
        ValueParser::new(values::workload),
        true,
        |f, text| f.workloads.push(workload(&text))
    ),
    choice!("from-workload", "[NS/][KIND/]NAME", "Workload that opened the flow", ValueParser::new(values::workload), true, |f, text| f
        .from_workloads
        .push(workload(&text))),
    choice!("to-workload", "[NS/][KIND/]NAME", "Workload to which it was opened", ValueParser::new(values::workload), true, |f, text| f
        .to_workloads
        .push(workload(&text))),
    choice!(
        "service",
        "NS/SERVICE",
        "Service that was dialled: the beginning of its name",
        ValueParser::new(values::name_of),
        false,
        |f, text| f.services.push(text)
    ),
    choice!("from-service", "NS/SERVICE", "Service whose address opened the flow", ValueParser::new(values::name_of), false, |f, text| f
        .from_services
        .push(text)),
    choice!("to-service", "NS/SERVICE", "Service to which it was opened", ValueParser::new(values::name_of), false, |f, text| f
        .to_services
        .push(text)),
    choice!(
        "selector",
        "SELECTOR",
        "Labels of a pod at either end: app=web,tier!=db,env in (a,b),!canary",
        ValueParser::new(values::selector),
        false,
        |f, text| f.selectors.push(text)
    ),
    choice!("from-selector", "SELECTOR", "Labels of the pod that opened the flow", ValueParser::new(values::selector), false, |f, text| f
        .from_selectors
        .push(text)),
    choice!("to-selector", "SELECTOR", "Labels of the pod to which it was opened", ValueParser::new(values::selector), false, |f, text| f
        .to_selectors
        .push(text)),
    choice!("ip", "CIDR", "Address of either end, or a CIDR that holds it", ValueParser::new(values::network), true, |f, text| f
        .ips
        .push(text)),
    choice!("from-ip", "CIDR", "Address that opened the flow", ValueParser::new(values::network), true, |f, text| f.from_ips.push(text)),
    choice!("to-ip", "CIDR", "Address to which it was opened", ValueParser::new(values::network), true, |f, text| f.to_ips.push(text)),
    choice!("port", "P", "Port of either end", ValueParser::new(values::port), true, |f, text| f.ports.extend(text.parse::<u32>())),
    choice!("from-port", "P", "Port from which the flow was opened", ValueParser::new(values::port), true, |f, text| f
        .from_ports
        .extend(text.parse::<u32>())),
    choice!("to-port", "P", "Port to which it was opened", ValueParser::new(values::port), true, |f, text| f
        .to_ports
        .extend(text.parse::<u32>())),
    choice!("label", "SELECTOR", "", ValueParser::new(values::selector), false, |f, text| f.selectors.push(text)),
    choice!("from-label", "SELECTOR", "", ValueParser::new(values::selector), false, |f, text| f.from_selectors.push(text)),
    choice!("to-label", "SELECTOR", "", ValueParser::new(values::selector), false, |f, text| f.to_selectors.push(text)),
];

impl Choice {
    fn arg(&self) -> Arg {
        let arg = Arg::new(self.name).long(self.name).value_name(self.value_name).help(self.help).help_heading(HEADING);
        let arg = arg.action(ArgAction::Append).value_parser((self.parser)()).ignore_case(true);
        // A selector holds commas of its own.
        let arg = if self.value_name == "SELECTOR" { arg } else { arg.value_delimiter(',') };
        let arg = match self.name {
            "namespace" => arg.short('n'),
            "selector" => arg.short('l'),
            // As hubble spells it.
            "label" | "from-label" | "to-label" => arg.hide(true),
            "kind" => arg.visible_short_alias('t').visible_alias("type"),
            "from-pod" | "to-pod" => arg.num_args(0..=1).default_missing_value(""),
            _ => arg,
        };
        match self.value_name {
            "NS" => arg.add(ArgValueCompleter::new(complete::names("namespaces"))),
            "NS/POD" => arg.add(ArgValueCompleter::new(complete::names("pods"))),
            "NS/POLICY" => arg.add(ArgValueCompleter::new(complete::names("policies"))),
            "NS/SERVICE" => arg.add(ArgValueCompleter::new(complete::names("services"))),
            "[NS/][KIND/]NAME" => arg.add(ArgValueCompleter::new(complete::names("workloads"))),
            _ => arg,
        }
    }
}

/// Which records are wanted, out of the options.
#[derive(Clone, Debug, Default)]
pub(super) struct FilterArgs<const ALERTS: bool> {
    /// What a record must match.
    wanted: Filter,
    /// What it must not match: an entry for each `--not`.
    unwanted: Vec<Filter>,
    all_namespaces: bool,
}

impl<const ALERTS: bool> Args for FilterArgs<ALERTS> {
    fn augment_args(command: Command) -> Command {
        let all = Arg::new(ALL_NAMESPACES).short('A').long("all-namespaces").action(ArgAction::SetTrue).help_heading(HEADING);
        let all = all.help("Every namespace, which is the default; names without a namespace may then be in any");
        let not = Arg::new(NOT).long(NOT).action(ArgAction::Append).num_args(0).default_missing_value("").help_heading(HEADING);
        let not = not.value_parser(ValueParser::string()).help("Leave out what the next filter names");
        let choices = CHOICES.iter().filter(|choice| !ALERTS || choice.of_alerts).map(Choice::arg);
        command.args([not, all]).args(choices)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<const ALERTS: bool> FromArgMatches for FilterArgs<ALERTS> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut found = Self { all_namespaces: matches.get_flag(ALL_NAMESPACES), ..Self::default() };
        let nots: BTreeSet<usize> = matches.indices_of(NOT).into_iter().flatten().collect();
        for choice in CHOICES.iter().filter(|choice| !ALERTS || choice.of_alerts) {
            let mut indices = matches.indices_of(choice.name).into_iter().flatten();
            for occurrence in matches.get_occurrences::<String>(choice.name).into_iter().flatten() {
                let values: Vec<String> = occurrence.cloned().collect();
                // Between the place of `--not` and that of the value is the option's own.
                let first = indices.by_ref().take(values.len()).min();
                let turned = first.and_then(|first| first.checked_sub(2)).is_some_and(|place| nots.contains(&place));
                if turned {
                    found.unwanted.push(Filter::default());
                }
                let filter = if turned { found.unwanted.last_mut().unwrap_or(&mut found.wanted) } else { &mut found.wanted };
                for value in values {
                    (choice.put)(filter, value);
                }
            }
        }
        if found.unwanted.len() < nots.len() {
            let text = "--not must stand directly before the filter that it turns round, as in --not --namespace kube-system";
            return Err(clap::Error::raw(clap::error::ErrorKind::ValueValidation, format!("{text}\n")));
        }
        Ok(found)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<const ALERTS: bool> FilterArgs<ALERTS> {
    /// What a record must match, and what it must not, with every name in its namespace.
    pub(super) fn messages(&self) -> Result<(Filter, Vec<Filter>), Failure> {
        let mut wanted = self.wanted.clone();
        sort_ends(&mut wanted)?;
        if self.all_namespaces {
            wanted.namespaces.clear();
        }
        let home = if self.all_namespaces { vec![String::new()] } else { wanted.namespaces.clone() };
        let mut unwanted = self.unwanted.clone();
        for filter in unwanted.iter_mut().chain([&mut wanted]) {
            let ends = [&filter.from_pods, &filter.to_pods];
            if ends.iter().any(|pods| pods.iter().any(String::is_empty)) {
                return Err(Failure::new(Exit::Usage, "--not --from-pod and --not --to-pod need a pod: give NS/POD"));
            }
            settle(filter, &home);
        }
        Ok((wanted, unwanted))
    }
}

/// Puts names without a namespace into those of `-n`, or into `default`; a workload may be anywhere.
fn settle(filter: &mut Filter, home: &[String]) {
    let fallback = [String::from("default")];
    let lists = [&mut filter.pods, &mut filter.from_pods, &mut filter.to_pods, &mut filter.policies];
    let services = [&mut filter.services, &mut filter.from_services, &mut filter.to_services];
    for list in lists.into_iter().chain(services) {
        let names = std::mem::take(list);
        for name in names {
            if name.contains('/') {
                list.push(name);
            } else {
                let namespaces = if home.is_empty() { &fallback } else { home };
                list.extend(namespaces.iter().map(|namespace| format!("{namespace}/{name}")));
            }
        }
    }
    if home.iter().any(String::is_empty) {
        return;
    }
    for list in [&mut filter.workloads, &mut filter.from_workloads, &mut filter.to_workloads] {
        let names = std::mem::take(list);
        for name in names {
            if name.namespace.is_some() || home.is_empty() {
                list.push(name);
            } else {
                list.extend(home.iter().map(|namespace| WorkloadName { namespace: Some(namespace.clone()), ..name.clone() }));
            }
        }
    }
}

/// `--from-pod` and `--to-pod` without a value say at which end the pods of `--pod` are.
fn sort_ends(filter: &mut Filter) -> Result<(), Failure> {
    let bare = |pods: &mut Vec<String>| {
        let before = pods.len();
        pods.retain(|pod| !pod.is_empty());
        pods.len() < before
    };
    match (bare(&mut filter.from_pods), bare(&mut filter.to_pods)) {
        (false, false) => {}
        (from, _) if filter.pods.is_empty() => {
            let option = if from { "--from-pod" } else { "--to-pod" };
            return Err(Failure::new(Exit::Usage, format!("{option} of which pod? Give {option} NS/POD, or --pod NS/POD {option}")));
        }
        // At either end is what --pod says without them.
        (true, true) => {}
        (true, false) => filter.from_pods.append(&mut filter.pods),
        (false, true) => filter.to_pods.append(&mut filter.pods),
    }
    Ok(())
}

/// A workload's name as its parser has written it: `NAMESPACE/KIND/NAME`, empty where not given.
fn workload(text: &str) -> WorkloadName {
    let mut parts = text.splitn(3, '/').map(|part| Some(part.to_owned()).filter(|part| !part.is_empty()));
    let mut next = || parts.next().flatten();
    WorkloadName { namespace: next(), kind: next(), name: next().unwrap_or_default() }
}
