//! What a set says about a class: the rows of the kernel's table of rules.

use std::collections::HashMap;
use std::sync::Arc;

use sekisho_core::layout::{PortKey, RuleKey, Rules};

use super::Tables;
use super::blocks::List;
use super::interner::Interner;
use super::ports::{self, PortRange, Table};
use super::sets::{Ports, Set};

/// Ports that pods of a class have by name: `(name, protocol) -> numbers`, ascending.
pub(super) type NamedPorts = Vec<((Arc<str>, u8), Vec<u16>)>;

/// What rules can tell about an address, or about a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// Addresses that match exactly these selectors, of those that rules in use tell apart.
    Address { selectors: List, named: NamedPorts },
    /// Backends that a Service port stands for, ascending, distinct.
    Service(Vec<Backend>),
}

/// What stands behind a Service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Backend {
    pub(super) class: u32,
    pub(super) port: u16,
    pub(super) protocol: u8,
    /// Instance of a pod of this node that its own rules do not let go there: it may all the same, for it is itself. Else 0.
    pub(super) own: u32,
}

/// What a class looks like to one set in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) any: u32,
    pub(super) table: Table,
}

impl Row {
    /// One rule for every protocol and port, or nothing.
    pub(super) fn any(any: u32) -> Self {
        Self { any, table: Table::new() }
    }

    /// Whether it allows nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.any == 0 && self.table.is_empty()
    }

    /// The rule that allows it, as the kernel finds it.
    pub(super) fn allows(&self, protocol: u8, port: u16) -> Option<u32> {
        if self.any != 0 {
            return Some(self.any);
        }
        let covers = |first: u16, bits: u8| bits == 0 || (first ^ port) >> (16 - u32::from(bits)) == 0;
        let hits = self.table.iter().filter(|(p, first, bits, _)| *p == protocol && covers(*first, *bits));
        hits.max_by_key(|(_, _, bits, _)| *bits).map(|(.., rule)| *rule)
    }
}

/// One set seen in one direction, prepared for many classes.
pub(super) struct View<'a> {
    number: u32,
    direction: usize,
    set: &'a Set,
    /// Rules by selector.
    by_selector: HashMap<u32, Vec<usize>>,
    for_all: Vec<usize>,
    uses_names: bool,
    known: HashMap<(Vec<usize>, NamedPorts), Arc<Row>>,
}

impl<'a> View<'a> {
    /// Prepares `set` for `direction`.
    pub(super) fn of(number: u32, set: &'a Set, direction: usize) -> Self {
        let mut view =
            Self { number, direction, set, by_selector: HashMap::new(), for_all: Vec::new(), uses_names: false, known: HashMap::new() };
        for (index, rule) in set.rules[direction].iter().enumerate() {
            match &rule.peers {
                None => view.for_all.push(index),
                Some(peers) => peers.iter().for_each(|p| view.by_selector.entry(*p).or_default().push(index)),
            }
            view.uses_names |= rule.ports.iter().flatten().any(|p| matches!(p, Ports::Named(..)));
        }
        view
    }

    /// Whether the set says anything about anyone here.
    pub(super) fn is_empty(&self) -> bool {
        self.set.rules[self.direction].is_empty()
    }

    /// Whether the set is isolated here.
    pub(super) fn isolated(&self) -> bool {
        self.set.isolated[self.direction]
    }

    /// What it says about addresses of a class.
    pub(super) fn row(&mut self, selectors: &[u32], named: &NamedPorts) -> Arc<Row> {
        let mut rules = self.for_all.clone();
        rules.extend(selectors.iter().filter_map(|s| self.by_selector.get(s)).flatten());
        rules.sort_unstable();
        rules.dedup();
        let named = if self.uses_names { named.clone() } else { NamedPorts::new() };
        let key = (rules, named);
        if let Some(row) = self.known.get(&key) {
            return row.clone();
        }
        let row = Arc::new(self.build(&key.0, &key.1));
        self.known.insert(key, row.clone());
        row
    }

    fn build(&self, rules: &[usize], named: &NamedPorts) -> Row {
        let rules = || rules.iter().map(|index| &self.set.rules[self.direction][*index]);
        if let Some(rule) = rules().find(|rule| rule.ports.is_none()) {
            return Row { any: rule.id, table: Table::new() };
        }
        let ranges: Vec<(u32, Vec<PortRange>)> = rules()
            .map(|rule| {
                let ports = rule.ports.iter().flatten().flat_map(|p| resolve(p, named)).collect();
                (rule.id, ports)
            })
            .collect();
        Row { any: 0, table: ports::table(&ranges) }
    }

    /// What it says about an address of a class; of one that is not in use, as of any that no rule names.
    pub(super) fn class_row(&mut self, class: Option<&Class>) -> Arc<Row> {
        match class {
            Some(Class::Address { selectors, named }) => self.row(selectors, named),
            _ => self.row(&[], &NamedPorts::new()),
        }
    }

    /// What it says about a Service port: a rule if every backend is allowed; and whether backends differ.
    pub(super) fn service(&mut self, backends: &[Backend], classes: &HashMap<u32, Arc<Class>>) -> (Option<u32>, bool) {
        let mut rules = Vec::with_capacity(backends.len());
        for backend in backends {
            let row = self.class_row(classes.get(&backend.class).map(|c| &**c));
            rules.push(row.allows(backend.protocol, backend.port));
        }
        if rules.is_empty() {
            // No one is behind it: only who may go anywhere may go there.
            let any = self.row(&[], &NamedPorts::new()).any;
            return ((any != 0).then_some(any), false);
        }
        let mixed = rules.iter().any(Option::is_some) && rules.iter().any(Option::is_none);
        let all: Option<Vec<u32>> = rules.into_iter().collect();
        let precedence = |id: &u32| self.set.rules[self.direction].iter().position(|rule| rule.id == *id);
        (all.and_then(|ids| ids.into_iter().min_by_key(precedence)), mixed)
    }

    /// The rules that may have to do with a row for a class beside that for everyone, which is that of no class; of a Service, those
    /// that have a say about one of its backends at least.
    pub(super) fn rules_of(&self, class: Option<&Class>, classes: &HashMap<u32, Arc<Class>>) -> Vec<u32> {
        let mut found = match class {
            Some(Class::Address { named, .. }) if named.is_empty() || !self.uses_names => Vec::new(),
            _ => self.for_all.clone(),
        };
        let mut add = |selectors: &[u32]| found.extend(selectors.iter().filter_map(|s| self.by_selector.get(s)).flatten());
        match class {
            Some(Class::Address { selectors, .. }) => add(selectors),
            Some(Class::Service(backends)) => {
                for backend in backends {
                    if let Some(Class::Address { selectors, .. }) = classes.get(&backend.class).map(|c| &**c) {
                        add(selectors);
                    }
                }
            }
            None => {}
        }
        found.sort_unstable();
        found.dedup();
        found.into_iter().map(|index| self.set.rules[self.direction][index].id).collect()
    }

    /// Writes a row; the number of its port table, and how many prefixes are in that.
    pub(super) fn write(&self, class: u32, row: &Row, tables: &mut Interner<Table>, out: &mut Tables) -> (u32, usize) {
        let direction = u32::try_from(self.direction).unwrap_or_default();
        let key = RuleKey { set: self.number, class, direction };
        let (mut rules, far) = near(row);
        if !far.is_empty() {
            rules.ports = tables.number(far.clone());
        }
        let ports = rules.ports;
        out.rules.insert(key, rules);
        for (protocol, port, bits, rule) in &far {
            let key = PortKey { table: ports.to_be_bytes(), protocol: *protocol, port: port.to_be_bytes() };
            out.ports.insert((key, 40 + bits), *rule);
        }
        (ports, far.len())
    }
}

fn resolve(ports: &Ports, named: &NamedPorts) -> Vec<PortRange> {
    match ports {
        Ports::Range(range) => vec![*range],
        Ports::Named(name, protocol) => {
            let found = named.iter().find(|((n, p), _)| n == name && p == protocol);
            let numbers = found.map_or(&[][..], |(_, numbers)| numbers);
            numbers.iter().map(|n| PortRange { protocol: *protocol, first: *n, last: *n }).collect()
        }
    }
}

/// The first single ports stand in the row itself, where no prefix can be longer; the rest is for a port table.
fn near(row: &Row) -> (Rules, Table) {
    let mut rules = Rules::new(row.any, 0);
    let mut far = row.table.clone();
    for slot in 0..rules.rule.len() {
        let Some(at) = far.iter().position(|(_, _, bits, _)| *bits == 16) else { break };
        let (protocol, port, _, rule) = far.remove(at);
        rules.rule[slot] = rule;
        rules.port[slot] = port;
        rules.protocol[slot] = protocol;
    }
    (rules, far)
}
