//! The policy changes while connections are open.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use sekisho_core::counters as c;
use sekisho_core::layout::{EGRESS, INGRESS, Rules, end_reason, endpoint_flags, event, verdict};
use sekisho_core::tcp::{ACK, SYN};

use super::frames::Who;
use super::{frames, node};

/// A connection that the pod (or its peer) opened.
fn open(node: &node::Node, v6: bool, by_pod: bool) {
    let (pod, peer) = if by_pod { (4000, 80) } else { (80, 4000) };
    for (opener, flags) in [(true, SYN), (false, SYN | ACK), (true, ACK)] {
        let egress = opener == by_pod;
        assert_eq!(node::send(node, egress, &frames::tcp_of(v6, egress, pod, peer, flags)), node::PASS);
    }
}

#[test]
fn a_new_epoch_judges_again_and_cuts() {
    for (v6, by_pod) in [(false, true), (false, false), (true, true), (true, false)] {
        let mut node = node::start(node::BOTH);
        let (pod, peer, direction) = if by_pod { (4000, 80, EGRESS) } else { (80, 4000, INGRESS) };
        open(&node, v6, by_pod);
        let again = |egress| frames::tcp_of(v6, egress, pod, peer, ACK);
        node.put("CONFIG", &0u32, &node::config(2)).expect("writes");
        assert_eq!(node::send(&node, !by_pod, &again(!by_pod)), node::PASS);
        assert_eq!(node::flow_with(&node, "ESTABLISHED", Who::Peer, v6, (pod, peer, 6)).expect("stays").epoch, 2);
        node.remove("RULES", &node::key_of(direction)).expect("removes");
        node.put("CONFIG", &0u32, &node::config(3)).expect("writes");
        for egress in [!by_pod, by_pod, !by_pod] {
            assert_eq!(node::send(&node, egress, &again(egress)), node::DROP);
        }
        assert!(node::flow_with(&node, "ESTABLISHED", Who::Peer, v6, (pod, peer, 6)).is_none());
        let denied = node::flow_with(&node, "EMBRYONIC", Who::Peer, v6, (pod, peer, 6)).expect("kept");
        assert_eq!((denied.verdict, denied.packets), (verdict::DENIED, [1, 2]), "counted from zero");
        // Allowed again, the connection goes on.
        node.put("RULES", &node::key_of(direction), &Rules::new(0, 3)).expect("writes");
        node.put("CONFIG", &0u32, &node::config(4)).expect("writes");
        assert_eq!(node::send(&node, by_pod, &again(by_pod)), node::PASS);
        let flow = node::flow_with(&node, "ESTABLISHED", Who::Peer, v6, (pod, peer, 6)).expect("back");
        let events = node.told();
        let kinds: Vec<_> = events.iter().map(|e| (e.kind, e.end_reason)).collect();
        let changed = (event::END, end_reason::VERDICT_CHANGED);
        assert_eq!(kinds, [(event::START, 0), changed, (event::START, 0), changed, (event::START, 0)]);
        assert_eq!((events[1].flow.packets, events[3].flow.packets), ([2, 2], [1, 2]), "totals of each life");
        assert!(events.iter().all(|e| e.flow.born_ns == flow.born_ns), "one flow");
        node.counted();
    }
}

/// Both directions on both processors while the policy flips: each change ends the flow once.
#[test]
fn two_processors_change_a_verdict_once() {
    let mut node = node::start(endpoint_flags::ISOLATED_EGRESS);
    open(&node, false, true);
    let stop = AtomicBool::new(false);
    let sent = [AtomicU64::new(0), AtomicU64::new(0)];
    let programs: &sekisho_lab::programs::Programs = &node;
    let rounds = 100u32;
    let run = std::thread::scope(|scope| {
        for egress in [true, false] {
            let (stop, sent) = (&stop, &sent[usize::from(egress)]);
            scope.spawn(move || {
                let frame = frames::tcp(egress, 4000, 80, ACK);
                while !stop.load(Ordering::Relaxed) {
                    node::send(programs, egress, &frame);
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut epoch = 1;
        let mut flip = || -> anyhow::Result<()> {
            for round in 0..rounds {
                epoch += 1;
                let denied = round % 2 == 0;
                // The map first, the epoch behind it, as the agent does.
                if denied {
                    programs.remove("RULES", &node::key_of(EGRESS))?;
                } else {
                    programs.put("RULES", &node::key_of(EGRESS), &Rules::new(0, 3))?;
                }
                programs.put("CONFIG", &0u32, &node::config(epoch))?;
                // Both have sent something under the new policy before the next.
                let seen = sent.each_ref().map(|sent| sent.load(Ordering::Relaxed));
                while sent.iter().zip(seen).any(|(sent, seen)| sent.load(Ordering::Relaxed) < seen + 2) {
                    std::thread::yield_now();
                }
            }
            Ok(())
        };
        let done = flip();
        stop.store(true, Ordering::Relaxed);
        done
    });
    run.expect("the maps take it");
    let events = node.told();
    let kinds: Vec<_> = events.iter().map(|e| e.kind).collect();
    let of = |kind| events.iter().filter(|e| e.kind == kind).count();
    let (starts, ends) = (of(event::START), of(event::END));
    assert_eq!(starts, ends + 1, "every end begins another life");
    assert_eq!(ends, rounds as usize, "one for each change");
    assert!(kinds.chunks(2).all(|pair| pair[0] == event::START && pair.get(1).is_none_or(|&k| k == event::END)), "one after the other");
    let verdicts: Vec<_> = events.iter().filter(|e| e.kind == event::START).map(|e| e.flow.verdict).collect();
    assert!(verdicts.windows(2).all(|pair| pair[0] != pair[1]), "each start has the other verdict");
    assert_eq!(node.count(c::VERDICT_CHANGED), ends as u64);
}
