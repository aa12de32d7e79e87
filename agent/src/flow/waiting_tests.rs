use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use sekisho_core::layout::{Flow, FlowKey6, end_reason, event, flow_flags, reason, verdict};

use super::testing::{Bench, Nobody, SECOND, at, flow, ip, jiffies, pod_identity};
use super::{Context, Dialled, Directory, Holding, Moment, NAME_NS, Sighting, Table};

const MILLISECOND: u64 = SECOND / 1000;

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// What the bench knows, and that some pod in 10.0.0.0/16 runs without an address; `late` has 10.0.0.77 since then.
fn directory(late: Option<u64>, expecting: bool) -> Arc<Directory> {
    let mut directory = Directory::default();
    for identity in [pod_identity(1, "web-1", "web", "10.0.0.1"), pod_identity(2, "db-1", "db", "10.0.0.2")] {
        directory.identities.insert(identity.instance, identity);
    }
    if let Some(since) = late {
        let identity = pod_identity(9, "late-1", "late", "10.0.0.77");
        directory.by_address.insert(address("10.0.0.77"), Holding { identity, since, until: None });
    }
    if expecting {
        directory.expecting = Arc::new([address("10.0.0.0")].into());
    }
    Arc::new(directory)
}

/// A denied flow to an address that nobody has.
fn nameless(to: &str) -> (FlowKey6, Flow) {
    let (mut key, mut flow) = flow(2 * SECOND, 80);
    key.remote = ip(to);
    (flow.remote_instance, flow.verdict, flow.reason) = (0, verdict::DENIED, reason::DEFAULT_DENY);
    (key, flow)
}

fn release(bench: &mut Bench, now: u64) {
    bench.engine.release_waiting(&mut Context { now: at(now), kernel: &mut Nobody, witness: &mut bench.told });
}

#[test]
fn a_start_waits_two_seconds_at_most_for_a_name_that_may_come() {
    let (key, flow) = nameless("10.0.0.77");
    let mut bench = Bench::new(SECOND);
    bench.engine.set_directory(directory(None, true));
    bench.start(key, flow);
    release(&mut bench, 2 * SECOND + NAME_NS - MILLISECOND);
    assert!(bench.records().is_empty() && bench.told.0.is_empty());
    release(&mut bench, 2 * SECOND + NAME_NS);
    let records = bench.records();
    assert_eq!((records.len(), records[0].moment, records[0].late_identity), (1, Moment::Start, false));
    assert!(records[0].remote.is_none());
    assert_eq!(bench.told.0, [(Sighting::Started, records[0].flow_id)]);
}

#[test]
fn a_name_that_comes_ends_the_wait_and_is_marked_late() {
    let (key, flow) = nameless("10.0.0.77");
    let mut bench = Bench::new(SECOND);
    bench.engine.set_directory(directory(None, true));
    bench.start(key, flow);
    // Other names change nothing for it.
    bench.engine.set_directory(directory(None, true));
    release(&mut bench, 2 * SECOND + 100 * MILLISECOND);
    assert!(bench.records().is_empty());
    bench.engine.set_directory(directory(Some(2 * SECOND + 300 * MILLISECOND), true));
    release(&mut bench, 2 * SECOND + 310 * MILLISECOND);
    let records = bench.records();
    assert_eq!(records.len(), 1);
    assert!(records[0].late_identity);
    assert_eq!(records[0].remote.as_ref().unwrap().instance, 9);
}

#[test]
fn nobody_waits_where_no_name_can_come() {
    // An address of the world; one whose pod would be known; one that has its name.
    for (to, expecting) in [("203.0.113.9", true), ("10.0.0.77", false)] {
        let (key, flow) = nameless(to);
        let mut bench = Bench::new(SECOND);
        bench.engine.set_directory(directory(None, expecting));
        bench.start(key, flow);
        assert_eq!(bench.moments(), [Moment::Start], "{to}");
    }
    let mut bench = Bench::new(SECOND);
    bench.engine.set_directory(directory(None, true));
    let (key, flow) = flow(2 * SECOND, 80);
    bench.start(key, flow);
    assert_eq!(bench.moments(), [Moment::Start]);
}

#[test]
fn whatever_comes_next_of_a_flow_comes_after_its_start() {
    // The verdict changes because the name has come: the first life ends, the second begins, both in order.
    let (key, mut flow) = nameless("10.0.0.77");
    let mut bench = Bench::new(SECOND);
    bench.engine.set_directory(directory(None, true));
    bench.start(key, flow);
    bench.engine.set_directory(directory(Some(2 * SECOND + 300 * MILLISECOND), true));
    bench.event(event::END, end_reason::VERDICT_CHANGED, key, flow, 3 * SECOND);
    (flow.start_ns, flow.verdict, flow.reason, flow.remote_instance) = (3 * SECOND, verdict::ALLOWED, 0, 9);
    bench.start(key, flow);
    let records = bench.records();
    assert_eq!(bench.moments(), [Moment::Start, Moment::End(end_reason::VERDICT_CHANGED), Moment::Start]);
    assert!(records.iter().all(|record| record.flow_id == records[0].flow_id));
    assert!(records[0].late_identity && records[1].late_identity && !records[2].late_identity);

    // So does a sweep's update, and a refusal.
    let (key, flow) = nameless("10.0.0.78");
    bench.start(key, flow);
    let mut swept = flow;
    (swept.packets[0], swept.last) = (3, jiffies(8 * SECOND));
    bench.sweep(9 * SECOND, 1, &mut HashMap::from([(key, (Table::Embryonic, swept))]));
    assert_eq!(bench.moments()[3..], [Moment::Start, Moment::Update]);
    let (key, flow) = nameless("10.0.0.79");
    bench.start(key, flow);
    bench.event(event::REFUSED, 0, key, flow, 2 * SECOND + MILLISECOND);
    assert_eq!(bench.moments()[5..], [Moment::Start]);

    // Nothing is forgotten at the end.
    let (key, flow) = nameless("10.0.0.80");
    bench.start(key, flow);
    bench.engine.begin_shutdown(true);
    bench.engine.shutdown(&mut Context { now: at(3 * SECOND), kernel: &mut Nobody, witness: &mut bench.told });
    assert_eq!(bench.moments()[6], Moment::Start);
}

#[test]
fn waiting_has_a_limit() {
    let mut bench = Bench::new(SECOND);
    bench.engine.set_directory(directory(None, true));
    for port in 0..3000 {
        let (mut key, flow) = nameless("10.0.0.77");
        key.local_port = port;
        bench.start(key, flow);
    }
    assert_eq!(bench.records().len(), 3000 - 2048);
    release(&mut bench, 9 * SECOND);
    assert_eq!(bench.records().len(), 3000);
}

/// A flow to a Service, and the question that it makes.
fn dialled(bench: &mut Bench) -> (FlowKey6, Flow, Dialled) {
    let (mut key, mut flow) = flow(2 * SECOND, 80);
    key.remote = ip("10.96.0.10");
    flow.flags |= flow_flags::SERVICE;
    bench.start(key, flow);
    let asked = bench.engine.dialled();
    assert_eq!(asked.len(), 1);
    assert_eq!((asked[0].source, asked[0].destination), ((address("10.0.0.1"), 40_000), (address("10.96.0.10"), 80)));
    (key, flow, asked[0])
}

fn answer(bench: &mut Bench, asked: &Dialled, found: bool, now: u64) {
    let found = found.then(|| ((address("10.0.0.1"), 40_000), (address("10.0.0.2"), 8080)));
    let mut context = Context { now: at(now), kernel: &mut Nobody, witness: &mut bench.told };
    bench.engine.on_translated(asked, found, &mut context);
}

/// A bench with room for look-ups, in which db-1 has 10.0.0.2.
fn looking() -> Bench {
    let mut bench = Bench::new(SECOND);
    let mut known = (*directory(None, false)).clone();
    let identity = known.identities[&2].clone();
    known.by_address.insert(address("10.0.0.2"), Holding { identity, since: 0, until: None });
    bench.engine.set_directory(Arc::new(known));
    bench.engine.allow_look_ups(10);
    bench
}

#[test]
fn what_stands_behind_a_service_is_on_all_records_of_the_flow() {
    let mut bench = looking();
    let (key, mut flow, asked) = dialled(&mut bench);
    assert!(bench.records().is_empty(), "the start waits");
    answer(&mut bench, &asked, true, 2 * SECOND + 10 * MILLISECOND);
    assert_eq!(bench.moments(), [Moment::Start]);
    (flow.packets, flow.last) = ([5, 5], jiffies(7 * SECOND));
    bench.sweep(8 * SECOND, 1, &mut HashMap::from([(key, (Table::Established, flow))]));
    bench.event(event::END, end_reason::FIN, key, flow, 9 * SECOND);
    let records = bench.records();
    assert_eq!(bench.moments(), [Moment::Start, Moment::Update, Moment::End(end_reason::FIN)]);
    for record in records {
        let behind = record.translated.as_ref().expect("known from the start");
        assert_eq!((behind.destination, behind.owner.as_ref().unwrap().instance), ((address("10.0.0.2"), 8080), 2));
    }
}

#[test]
fn an_answer_that_comes_late_is_on_what_follows() {
    let mut bench = looking();
    let (key, flow, asked) = dialled(&mut bench);
    release(&mut bench, 2 * SECOND + 200 * MILLISECOND);
    assert_eq!(bench.moments(), [Moment::Start]);
    answer(&mut bench, &asked, true, 3 * SECOND);
    bench.event(event::END, end_reason::FIN, key, flow, 9 * SECOND);
    let known: Vec<bool> = bench.records().iter().map(|record| record.translated.is_some()).collect();
    assert_eq!(known, [false, true]);
}

#[test]
fn no_answer_and_no_room_hold_nothing_up() {
    let mut bench = looking();
    let (_, _, asked) = dialled(&mut bench);
    answer(&mut bench, &asked, false, 2 * SECOND + 30 * MILLISECOND);
    assert_eq!(bench.moments(), [Moment::Start]);
    bench.engine.allow_look_ups(0);
    let (mut key, mut flow) = flow(2 * SECOND, 81);
    key.remote = ip("10.96.0.10");
    flow.flags |= flow_flags::SERVICE;
    bench.start(key, flow);
    assert_eq!((bench.moments().len(), bench.engine.dialled().len(), bench.engine.not_looked_up()), (2, 0, 1));
    // What is denied never gets there.
    flow.verdict = verdict::DENIED;
    key.local_port = 7;
    bench.start(key, flow);
    assert_eq!((bench.moments().len(), bench.engine.not_looked_up()), (3, 1));
}

#[test]
fn flows_of_an_earlier_run_are_looked_up_at_their_first_update() {
    let mut bench = looking();
    let (mut key, mut flow) = flow(SECOND / 2, 80);
    key.remote = ip("10.96.0.10");
    flow.flags |= flow_flags::SERVICE;
    (flow.packets, flow.last) = ([5, 5], jiffies(8 * SECOND));
    bench.sweep(8 * SECOND, 0, &mut HashMap::from([(key, (Table::Established, flow))]));
    let asked = bench.engine.dialled();
    assert_eq!(asked.len(), 1);
    answer(&mut bench, &asked[0], true, 8 * SECOND);
    bench.event(event::END, end_reason::FIN, key, flow, 9 * SECOND);
    let known: Vec<bool> = bench.records().iter().map(|record| record.translated.is_some()).collect();
    assert_eq!(known, [false, true]);
}
