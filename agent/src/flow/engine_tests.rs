use std::collections::{HashMap, HashSet};

use proptest::prelude::*;
use sekisho_core::layout::{self, Flow, FlowEvent, FlowKey6, end_reason, event, reason, verdict};

use sekisho_core::tcp::state;

use super::testing::{Bench, Nobody, SECOND, at, event as told, flow, jiffies, layout_counters, view};
use super::{Context, Moment, Now, Sighting, Table};

#[test]
fn a_short_connection_is_a_start_and_an_end_and_leaves_nothing() {
    let mut bench = Bench::new(SECOND);
    let (key, mut flow) = flow(2 * SECOND, 80);
    bench.start(key, flow);
    (flow.packets, flow.bytes, flow.tcp_flags) = ([5, 4], [500, 4000], [0x1b, 0x1b]);
    bench.event(event::END, end_reason::FIN, key, flow, 3 * SECOND);
    let records = bench.records();
    assert_eq!(bench.moments(), [Moment::Start, Moment::End(end_reason::FIN)]);
    assert_eq!(records[0].flow_id, records[1].flow_id);
    assert_eq!(records[1].delta, Some([[5, 4], [500, 4000]]));
    assert_eq!(records[1].local.as_ref().unwrap().instance, 1);
    assert_eq!(records[1].remote.as_ref().unwrap().instance, 2);
    assert_eq!(bench.engine.open_flows(), 0);
}

#[test]
fn a_jump_of_the_wall_clock_moves_times_and_nothing_else() {
    let hour = 3600 * SECOND;
    let mut bench = Bench::new(SECOND);
    let (key, mut flow) = flow(2 * SECOND, 80);
    bench.start(key, flow);
    (flow.packets[0], flow.last) = (9, jiffies(5 * SECOND));
    let later = at(6 * SECOND);
    let mut context = Context { now: Now { wall_ns: later.wall_ns - hour, ..later }, kernel: &mut Nobody, witness: &mut bench.told };
    bench.engine.on_event(&told(event::END, end_reason::FIN, key, flow), &mut context);
    let records = bench.records();
    let [start, end] = &records[..] else { panic!("{} records", records.len()) };
    assert_eq!(end.flow_id, start.flow_id);
    assert_eq!((end.start_ns, end.last_ns), (start.start_ns - hour, at(5 * SECOND).wall_ns - hour), "as the clock now stands");
    assert_eq!(end.delta, Some([[9, 0], [60, 0]]));
    assert_eq!((start.flow.start_ns, end.flow.start_ns), (2 * SECOND, 2 * SECOND));
}

#[test]
fn updates_come_early_then_every_interval_and_deltas_add_up() {
    let mut bench = Bench::new(SECOND);
    let (key, mut flow) = flow(2 * SECOND, 80);
    bench.start(key, flow);
    let mut table = HashMap::new();
    let mut updates = Vec::new();
    for second in 3..100 {
        flow.packets[0] += 10;
        flow.bytes[0] += 1000;
        flow.last = jiffies(second * SECOND);
        table.insert(key, (Table::Established, flow));
        let before = bench.records().len();
        bench.sweep(second * SECOND, 1, &mut table);
        if bench.records().len() > before {
            updates.push(second);
        }
    }
    assert_eq!(updates, [7, 37, 67, 97]);
    flow.tcp_flags = [4, 0];
    bench.event(event::END, end_reason::RST, key, flow, 100 * SECOND);
    let records = bench.records();
    let sum: u64 = records.iter().filter_map(|r| r.delta).map(|d| d[1][0]).sum();
    assert_eq!(sum, flow.bytes[0]);
    assert_eq!(records.last().unwrap().moment, Moment::End(end_reason::RST));
    assert_eq!(bench.engine.open_flows(), 0);
}

#[test]
fn flows_of_an_earlier_run_get_no_second_start_and_keep_their_totals() {
    let mut bench = Bench::new(100 * SECOND);
    let (key, mut flow) = flow(2 * SECOND, 80);
    (flow.packets, flow.last) = ([70, 60], jiffies(99 * SECOND));
    let mut table = HashMap::from([(key, (Table::Established, flow))]);
    bench.sweep(101 * SECOND, 0, &mut table);
    let records = bench.records();
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].moment, records[0].delta, records[0].flow.packets), (Moment::Update, None, [70, 60]));
    assert_eq!(records[0].start_ns, at(0).wall_ns + 2 * SECOND);
    let ledger = bench.engine.tally().ledger(&vec![0; layout_counters()]);
    assert_eq!((ledger.created, ledger.open, ledger.ended, ledger.evicted_unseen), (1, 1, 0, 0));
}

#[test]
fn denied_flows_are_told_by_count_and_end_denied() {
    let mut bench = Bench::new(SECOND);
    let (key, mut flow) = flow(2 * SECOND, 80);
    (flow.verdict, flow.reason) = (verdict::DENIED, reason::DEFAULT_DENY);
    bench.start(key, flow);
    (flow.packets[0], flow.last) = (3, jiffies(5 * SECOND));
    let mut table = HashMap::from([(key, (Table::Embryonic, flow))]);
    for second in 3..160 {
        bench.sweep(second * SECOND, 1, &mut table);
    }
    assert_eq!(bench.moments(), [Moment::Start, Moment::Update, Moment::End(end_reason::DENIED)]);
    assert!(table.is_empty());
}

#[test]
fn time_outs_by_table_and_protocol() {
    let cases = [
        (Table::Embryonic, 6, [2, 0], 30, end_reason::TIMEOUT),
        (Table::Embryonic, 17, [0, 0], 30, end_reason::TIMEOUT),
        (Table::Answered, 17, [0, 0], 120, end_reason::IDLE),
        (Table::Answered, 132, [0, 0], 600, end_reason::IDLE),
        (Table::Answered, 1, [0, 0], 30, end_reason::IDLE),
        (Table::Established, 6, [0x12, 0x12], 7200, end_reason::IDLE),
        (Table::Established, 6, [0x13, 0x12], 600, end_reason::IDLE),
        (Table::Established, 6, [0x13, 0x13], 10, end_reason::FIN),
        (Table::Established, 6, [0x16, 0x12], 10, end_reason::RST),
    ];
    for (place, protocol, flags, seconds, reason) in cases {
        let mut bench = Bench::new(SECOND);
        let (mut key, mut flow) = flow(2 * SECOND, 80);
        key.protocol = protocol;
        flow.tcp_flags = flags;
        let mut table = HashMap::from([(key, (place, flow))]);
        bench.sweep((2 + seconds) * SECOND - SECOND / 10, 1, &mut table);
        assert_eq!(table.len(), 1, "{place:?} {protocol} too early");
        bench.sweep((2 + seconds) * SECOND + SECOND / 10, 1, &mut table);
        assert!(table.is_empty(), "{place:?} {protocol} too late");
        assert_eq!(bench.moments().last(), Some(&Moment::End(reason)), "{place:?} {protocol}");
    }
}

/// A connection that policy cut tries again after two minutes at the latest, and must still be known as denied then.
#[test]
fn what_was_cut_is_known_for_longer_than_tcp_waits() {
    for (state, seconds) in [(state::SYN_SENT, 30), (state::PROBE, 30), (state::ESTABLISHED, 150), (state::ADOPTED_REPLY, 150)] {
        let mut bench = Bench::new(SECOND);
        let (key, mut flow) = flow(2 * SECOND, 80);
        (flow.verdict, flow.reason, flow.state) = (verdict::DENIED, reason::DEFAULT_DENY, state);
        let mut table = HashMap::from([(key, (Table::Embryonic, flow))]);
        bench.sweep((1 + seconds) * SECOND, 1, &mut table);
        assert_eq!(table.len(), 1, "{state} too early");
        bench.sweep((3 + seconds) * SECOND, 1, &mut table);
        assert!(table.is_empty(), "{state} too late");
        assert_eq!(bench.moments().last(), Some(&Moment::End(end_reason::DENIED)));
    }
}

#[test]
fn evicted_flows_end_if_they_were_open_and_are_counted_if_not() {
    let mut bench = Bench::new(SECOND);
    let (open_key, mut open) = flow(2 * SECOND, 80);
    let (unseen_key, unseen) = flow(2 * SECOND, 81);
    bench.start(open_key, open);
    bench.start(unseen_key, unseen);
    (open.packets, open.last) = ([9, 9], jiffies(8 * SECOND));
    let mut table = HashMap::from([(open_key, (Table::Answered, open)), (unseen_key, (Table::Embryonic, unseen))]);
    bench.sweep(9 * SECOND, 2, &mut table);
    table.clear();
    for second in 10..14 {
        bench.sweep(second * SECOND, 2, &mut table);
    }
    let ends: Vec<_> = bench.moments().into_iter().filter(|m| matches!(m, Moment::End(_))).collect();
    assert_eq!(ends, [Moment::End(end_reason::EVICTED)]);
    let mut counters = vec![0; layout_counters()];
    counters[sekisho_core::counters::CREATED as usize] = 2;
    let ledger = bench.engine.tally().ledger(&counters);
    assert_eq!((ledger.created, ledger.ended, ledger.open, ledger.evicted_unseen), (2, 1, 0, 1));
}

/// A sweep that the kernel broke off says nothing about what it did not show.
#[test]
fn a_sweep_that_broke_off_evicts_nobody() {
    let mut bench = Bench::new(SECOND);
    let (key, mut flow) = flow(2 * SECOND, 80);
    bench.start(key, flow);
    (flow.packets, flow.last) = ([9, 9], jiffies(8 * SECOND));
    let mut table = HashMap::from([(key, (Table::Established, flow))]);
    bench.sweep(9 * SECOND, 1, &mut table);
    for second in 10..20 {
        bench.engine.begin_sweep(&vec![0; layout_counters()]);
        bench.engine.break_off_sweep(&mut Context { now: at(second * SECOND), kernel: &mut Nobody, witness: &mut bench.told });
    }
    bench.sweep(20 * SECOND, 1, &mut table);
    assert_eq!(bench.moments(), [Moment::Start, Moment::Update]);
    let mut counters = vec![0; layout_counters()];
    counters[sekisho_core::counters::CREATED as usize] = 1;
    let ledger = bench.engine.tally().ledger(&counters);
    assert_eq!((ledger.created, ledger.ended, ledger.open, ledger.evicted_unseen), (1, 0, 1, 0));
}

#[test]
fn flows_end_with_their_endpoint_and_with_the_agent() {
    let mut bench = Bench::new(SECOND);
    let (key, flow_1) = flow(2 * SECOND, 80);
    let mut table = HashMap::from([(key, (Table::Established, flow_1))]);
    bench.sweep(8 * SECOND, 1, &mut table);
    bench.engine.on_endpoint_gone(5);
    bench.sweep(9 * SECOND, 1, &mut table);
    assert_eq!(bench.moments(), [Moment::Update, Moment::End(end_reason::ENDPOINT_GONE)]);
    assert!(table.is_empty());

    // The number comes back as another pod's: the old pod's flows are not the new one's.
    let mut bench = Bench::new(SECOND);
    let mut table = HashMap::from([(key, (Table::Established, flow_1))]);
    bench.engine.set_endpoint(5, view(9));
    bench.sweep(8 * SECOND, 1, &mut table);
    assert_eq!(bench.moments(), [Moment::End(end_reason::ENDPOINT_GONE)]);

    let mut bench = Bench::new(SECOND);
    let (young_key, young) = flow(8 * SECOND, 81);
    let mut table = HashMap::from([(key, (Table::Established, flow_1))]);
    bench.sweep(8 * SECOND, 1, &mut table);
    table.insert(young_key, (Table::Embryonic, young));
    bench.engine.begin_shutdown(true);
    bench.sweep(9 * SECOND, 2, &mut table);
    assert_eq!(table.len(), 2, "enforcement stays");
    let end = Moment::End(end_reason::SHUTDOWN);
    assert_eq!(bench.moments(), [Moment::Update, end, end]);
}

fn shut_down(bench: &mut Bench, succeeded: bool, table: &mut HashMap<FlowKey6, (Table, Flow)>) {
    bench.engine.begin_shutdown(succeeded);
    bench.sweep(9 * SECOND, 1, table);
    bench.engine.shutdown(&mut Context { now: at(9 * SECOND), kernel: &mut Nobody, witness: &mut bench.told });
}

#[test]
fn a_closed_connection_that_lingers_ends_once_over_a_restart() {
    let (key, mut flow) = flow(2 * SECOND, 80);
    let told = |succeeded| {
        let mut bench = Bench::new(SECOND);
        bench.sweep(8 * SECOND, 1, &mut HashMap::from([(key, (Table::Established, flow))]));
        let closed = Flow { tcp_flags: [0x13, 0x13], last: jiffies(9 * SECOND), ..flow };
        shut_down(&mut bench, succeeded, &mut HashMap::from([(key, (Table::Established, closed))]));
        bench.moments()
    };
    assert_eq!(told(true), [Moment::Update], "the kernel tells the next agent");
    assert_eq!(told(false), [Moment::Update, Moment::End(end_reason::FIN)]);

    // It is over before its first sweep.
    let mut bench = Bench::new(SECOND);
    flow.tcp_flags = [0x13, 0x13];
    shut_down(&mut bench, true, &mut HashMap::from([(key, (Table::Established, flow))]));
    assert!(bench.records().is_empty());
}

#[test]
fn what_ends_during_a_sweep_ends_once_and_last() {
    let (key, mut old) = flow(2 * SECOND, 80);
    (old.packets, old.last) = ([5, 5], jiffies(8 * SECOND));
    let new = Flow { start_ns: 8 * SECOND, packets: [1, 0], verdict: verdict::DENIED, ..old };
    let mut bench = Bench::new(SECOND);
    bench.engine.begin_sweep(&vec![0; layout_counters()]);
    bench.engine.on_swept(Table::Established, 4, &key, &old, &at(8 * SECOND));
    bench.event(event::END, end_reason::VERDICT_CHANGED, key, old, 8 * SECOND);
    bench.start(key, new);
    bench.engine.end_sweep(&mut Context { now: at(8 * SECOND), kernel: &mut Nobody, witness: &mut bench.told });
    let mut told = vec![Moment::End(end_reason::VERDICT_CHANGED), Moment::Start];
    assert_eq!(bench.moments(), told);
    let mut table = HashMap::from([(key, (Table::Embryonic, new))]);
    for second in 9..40 {
        bench.sweep(second * SECOND, 2, &mut table);
    }
    told.push(Moment::End(end_reason::DENIED));
    assert_eq!(bench.moments(), told);

    // A shutdown's sweep meets it, then the kernel ends it.
    let mut bench = Bench::new(SECOND);
    bench.engine.begin_shutdown(true);
    bench.engine.begin_sweep(&vec![0; layout_counters()]);
    bench.engine.on_swept(Table::Established, 4, &key, &old, &at(8 * SECOND));
    bench.event(event::END, end_reason::RST, key, old, 8 * SECOND);
    bench.engine.end_sweep(&mut Context { now: at(8 * SECOND), kernel: &mut Nobody, witness: &mut bench.told });
    assert_eq!(bench.moments(), [Moment::End(end_reason::RST)]);
}

/// After a pause the rings hold whole lives, and a start may lie in a later ring than its end.
#[test]
fn rings_are_read_in_the_order_of_time() {
    let mut bench = Bench::new(SECOND);
    let (key, flow) = flow(2 * SECOND, 80);
    let end = FlowEvent { time_ns: 4 * SECOND, ..told(event::END, end_reason::RST, key, flow) };
    let mut events = vec![end, told(event::START, 0, key, flow)];
    let mut context = Context { now: at(5 * SECOND), kernel: &mut Nobody, witness: &mut bench.told };
    bench.engine.on_events(&mut events, &mut context);
    assert_eq!(bench.moments(), [Moment::Start, Moment::End(end_reason::RST)]);
    assert!(events.is_empty());
}

#[test]
fn a_changed_verdict_ends_and_starts_under_one_id() {
    let mut bench = Bench::new(SECOND);
    let (key, old) = flow(2 * SECOND, 80);
    bench.start(key, old);
    let mut table = HashMap::from([(key, (Table::Established, old))]);
    bench.sweep(8 * SECOND, 1, &mut table);
    let new = Flow { start_ns: 9 * SECOND, packets: [0, 0], verdict: verdict::DENIED, last: jiffies(9 * SECOND), ..old };
    bench.event(event::END, end_reason::VERDICT_CHANGED, key, old, 9 * SECOND);
    bench.start(key, new);
    // A sweep that still meets the old life, then one that meets the new one.
    bench.sweep(9 * SECOND, 2, &mut table);
    table.insert(key, (Table::Embryonic, new));
    for second in 10..165 {
        bench.sweep(second * SECOND, 2, &mut table);
    }
    let records = bench.records();
    let ids: HashSet<u64> = records.iter().map(|r| r.flow_id).collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(
        bench.moments(),
        [Moment::Start, Moment::Update, Moment::End(end_reason::VERDICT_CHANGED), Moment::Start, Moment::End(end_reason::DENIED)]
    );
}

#[test]
fn silence_is_told_after_three_seconds_and_an_answer_ends_it() {
    let mut bench = Bench::new(SECOND);
    let (silent_key, silent) = flow(2 * SECOND, 80);
    let (answered_key, mut answered) = flow(2 * SECOND, 81);
    answered.packets[1] = 1;
    let mut table = HashMap::from([(silent_key, (Table::Embryonic, silent)), (answered_key, (Table::Embryonic, answered))]);
    bench.sweep(4 * SECOND, 2, &mut table);
    assert!(bench.told.0.is_empty());
    for second in 6..20 {
        bench.sweep(second * SECOND, 2, &mut table);
    }
    let sightings: Vec<Sighting> = bench.told.0.iter().map(|(s, _)| *s).collect();
    assert_eq!(sightings, [Sighting::Silent]);
}

/// What a kernel may do with one flow, in any order that it can happen.
#[derive(Clone, Debug)]
enum Step {
    Open(u16),
    Packets(u16),
    Promote(u16),
    Close(u16),
    Evict(u16),
    Rejudge(u16),
    LoseEnd(u16),
    Sweep,
    Wait(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let port = 0..6u16;
    prop_oneof![
        3 => port.clone().prop_map(Step::Open),
        3 => port.clone().prop_map(Step::Packets),
        2 => port.clone().prop_map(Step::Promote),
        2 => port.clone().prop_map(Step::Close),
        1 => port.clone().prop_map(Step::Evict),
        1 => port.clone().prop_map(Step::Rejudge),
        1 => port.prop_map(Step::LoseEnd),
        4 => Just(Step::Sweep),
        3 => (0..40u8).prop_map(Step::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever order: one start and at most one end per life, nothing after the end, deltas that add up, sums that hold.
    #[test]
    fn no_order_of_events_and_sweeps_tells_a_life_twice(steps in proptest::collection::vec(step(), 1..120)) {
        let mut bench = Bench::new(SECOND);
        let mut now = 2 * SECOND;
        let mut created = 0;
        let mut table: HashMap<FlowKey6, (Table, Flow)> = HashMap::new();
        for step in steps {
            now += SECOND / 50;
            match step {
                Step::Wait(seconds) => now += u64::from(seconds) * SECOND,
                Step::Sweep => bench.sweep(now, created, &mut table),
                Step::Open(port) => {
                    let (key, flow) = flow(now, 80 + port);
                    if let std::collections::hash_map::Entry::Vacant(entry) = table.entry(key) {
                        entry.insert((Table::Embryonic, flow));
                        created += 1;
                        bench.start(key, flow);
                    }
                }
                Step::Packets(port) => {
                    if let Some((_, flow)) = table.get_mut(&flow(0, 80 + port).0) {
                        flow.packets[0] += 3;
                        flow.bytes[0] += 300;
                        flow.last = jiffies(now);
                    }
                }
                Step::Promote(port) => {
                    if let Some((place, flow)) = table.get_mut(&flow(0, 80 + port).0)
                        && flow.verdict == verdict::ALLOWED
                    {
                        *place = Table::Established;
                    }
                }
                Step::Close(port) => {
                    if let Some((_, mut flow)) = table.remove(&flow(0, 80 + port).0) {
                        flow.tcp_flags[0] |= 4;
                        bench.event(event::END, end_reason::RST, flow_key(port), flow, now);
                    }
                }
                Step::Evict(port) | Step::LoseEnd(port) => drop(table.remove(&flow_key(port))),
                Step::Rejudge(port) => {
                    let key = flow_key(port);
                    if let Some((_, old)) = table.remove(&key) {
                        bench.event(event::END, end_reason::VERDICT_CHANGED, key, old, now);
                        let verdict = if old.verdict == verdict::DENIED { verdict::ALLOWED } else { verdict::DENIED };
                        let new = Flow { start_ns: now, packets: [0; 2], bytes: [0; 2], verdict, last: jiffies(now), ..old };
                        created += 1;
                        bench.start(key, new);
                        table.insert(key, (Table::Embryonic, new));
                    }
                }
            }
        }
        for _ in 0..4 {
            now += SECOND;
            bench.sweep(now, created, &mut table);
        }
        check_lives(&mut bench, &table)?;
        let mut counters = vec![0; layout_counters()];
        counters[sekisho_core::counters::CREATED as usize] = created;
        let ledger = bench.engine.tally().ledger(&counters);
        prop_assert_eq!(ledger.created, created);
        prop_assert_eq!(ledger.open, table.len() as u64);
        prop_assert_eq!(ledger.created, ledger.ended + ledger.open + ledger.evicted_unseen);
    }
}

fn flow_key(port: u16) -> FlowKey6 {
    flow(0, 80 + port).0
}

fn check_lives(bench: &mut Bench, table: &HashMap<FlowKey6, (Table, Flow)>) -> Result<(), TestCaseError> {
    let mut lives: HashMap<(u64, u64), Vec<_>> = HashMap::new();
    for record in bench.records() {
        lives.entry((record.flow_id, record.flow.start_ns)).or_default().push(record);
    }
    let still: HashSet<u64> = table.values().map(|(_, flow)| flow.start_ns).collect();
    for ((_, start), records) in &lives {
        let starts = records.iter().filter(|r| r.moment == Moment::Start).count();
        let ends = records.iter().filter(|r| matches!(r.moment, Moment::End(_))).count();
        prop_assert_eq!(starts, 1);
        prop_assert!(ends <= 1);
        prop_assert_eq!(records[0].moment, Moment::Start);
        if ends == 1 {
            prop_assert!(matches!(records.last().unwrap().moment, Moment::End(_)), "nothing comes after the end");
            prop_assert!(!still.contains(start), "what ended is gone");
        }
        let told: u64 = records.iter().filter_map(|r| r.delta).map(|d| d[0][0]).sum();
        if records.len() > 1 {
            prop_assert_eq!(told, records.last().unwrap().flow.packets[0]);
        }
    }
    Ok(())
}

/// The unknown direction is told, not guessed.
#[test]
fn a_flow_that_began_before_us_says_so() {
    let mut bench = Bench::new(SECOND);
    let (key, mut flow) = flow(2 * SECOND, 80);
    (flow.opened, flow.flags) = (layout::UNKNOWN, layout::flow_flags::ADOPTED);
    bench.start(key, flow);
    bench.engine.flush(&bench.book, &at(0));
    let record = bench.book.reader("test", None, super::Start::Oldest, false).try_next().unwrap();
    let out = super::project(&record, &super::Header::default());
    let Some(sekisho_proto::record::Body::Flow(flow)) = out.body else { panic!("a flow") };
    assert_eq!((flow.direction(), flow.adopted), (sekisho_proto::Direction::Unknown, Some(true)));
}
