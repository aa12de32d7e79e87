use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use proptest::prelude::*;

use super::{Body, Book, Filter, Line, Reader, Record, SLOW, Start};

fn body(n: u64) -> Body {
    Body::Summary(Arc::new(sekisho_proto::Summary { pod: None, flows: n }))
}

fn even() -> Filter {
    Arc::new(|r: &Record| r.seq.is_multiple_of(2))
}

fn balanced(line: &Line) -> bool {
    line.made == line.delivered + line.filtered + line.lost.values().sum::<u64>() + line.queued
}

fn seqs(reader: &mut Reader) -> Vec<u64> {
    std::iter::from_fn(|| reader.try_next()).map(|r| r.seq).collect()
}

fn filled(capacity: usize, records: u64) -> Arc<Book> {
    let book = Arc::new(Book::new(capacity));
    for n in 1..=records {
        assert_eq!(book.append_one(n * 10, body(n)), n);
    }
    book
}

#[test]
fn readers_begin_where_they_ask() {
    let book = filled(100, 50);
    let read = |start, filter: Option<Filter>| seqs(&mut book.reader("r", filter, start, false));
    assert_eq!(read(Start::Oldest, None), (1..=50).collect::<Vec<_>>());
    assert_eq!(read(Start::Next, None), Vec::<u64>::new());
    assert_eq!(read(Start::Last(3), None), [48, 49, 50]);
    assert_eq!(read(Start::Last(3), Some(even())), [46, 48, 50]);
    assert_eq!(read(Start::Last(0), None), Vec::<u64>::new());
    assert_eq!(read(Start::Last(1000), None).len(), 50);
    assert_eq!(read(Start::Since(475), None), [48, 49, 50]);
    assert_eq!(read(Start::LastSince(2, 475), None), [49, 50]);
    assert_eq!(read(Start::LastSince(5, 475), None), [48, 49, 50]);
}

#[test]
fn what_readers_came_to_stays_when_they_end() {
    let book = filled(10, 0);
    let mut first = book.reader("grpc:1", Some(even()), Start::Next, true);
    let slow = book.reader("grpc:2", None, Start::Next, true);
    for n in 1..=20 {
        book.append_one(n, body(n));
        first.try_next();
    }
    drop(slow);
    let totals = |book: &Book| book.sinks()["grpc"].clone();
    let open = totals(&book);
    assert_eq!((open.made, open.delivered, open.filtered, open.lost.get(SLOW)), (40, 10, 10, Some(&10)));
    drop(first);
    assert_eq!(totals(&book), open, "an end takes nothing away");
    assert!(book.lines().is_empty());
    let mut third = book.reader("grpc:3", None, Start::Last(2), false);
    third.try_next();
    drop(third);
    assert_eq!((totals(&book).made, totals(&book).delivered), (42, 11));
    assert_eq!(book.sinks().len(), 1, "streams have a number each and one line together");
}

#[test]
fn a_slow_reader_loses_its_own_stream_and_nobody_elses() {
    let book = filled(10, 0);
    let mut slow = book.reader("slow", None, Start::Oldest, true);
    let mut quick = book.reader("quick", None, Start::Oldest, true);
    for n in 1..=100 {
        book.append_one(n, body(n));
        assert_eq!(quick.try_next().map(|r| r.seq), Some(n));
    }
    assert_eq!(slow.line().lost.get(SLOW), Some(&90));
    assert_eq!(seqs(&mut slow), (91..=100).collect::<Vec<_>>());
    assert!(quick.line().lost.is_empty());
    assert_eq!(book.lines().iter().map(|l| (&*l.name, l.delivered)).collect::<Vec<_>>(), [("slow", 10), ("quick", 100)]);
    drop(slow);
    assert_eq!(book.lines().len(), 1, "a closed reader keeps nothing");
}

#[tokio::test]
async fn a_follower_wakes_and_ends_with_the_book() {
    let book = filled(100, 0);
    let mut reader = book.reader("r", Some(even()), Start::Next, true);
    let writer = book.clone();
    let task = tokio::spawn(async move {
        for n in 1..=1000 {
            writer.append_one(n, body(n));
            if n % 7 == 0 {
                tokio::task::yield_now().await;
            }
        }
        writer.close();
    });
    let mut last = 0;
    while let Some(record) = reader.next().await {
        assert!(record.seq > last && record.seq % 2 == 0);
        last = record.seq;
    }
    task.await.unwrap();
    let line = reader.line();
    assert_eq!((line.made, line.queued), (1000, 0));
    assert!(balanced(&line));
}

/// Threads: whoever looks, whenever, the line balances.
#[test]
fn lines_balance_while_everyone_is_busy() {
    let book = filled(64, 0);
    let done = Arc::new(AtomicBool::new(false));
    let mut reader = book.reader("r", Some(even()), Start::Oldest, true);
    let reading = std::thread::spawn(move || {
        let mut count = 0;
        while !reader.ended() {
            reader.wait(Duration::from_millis(1));
            let taken = reader.take();
            let (kept, lost) = taken.split_at(taken.len() / 2);
            reader.settle_delivered(kept.len() as u64);
            reader.settle_lost("write_error", lost.len() as u64);
            count += taken.len();
        }
        (count, reader.line())
    });
    let watching = std::thread::spawn({
        let (book, done) = (book.clone(), done.clone());
        move || {
            while !done.load(Ordering::Relaxed) {
                assert!(book.lines().iter().all(balanced));
            }
        }
    });
    for n in 1..=20_000 {
        book.append(n, &mut vec![body(n); 3]);
    }
    book.close();
    let (count, line) = reading.join().unwrap();
    done.store(true, Ordering::Relaxed);
    watching.join().unwrap();
    assert_eq!((line.made, line.queued), (60_000, 0));
    assert_eq!(count as u64, line.delivered + line.lost.get("write_error").copied().unwrap_or(0));
    assert!(balanced(&line));
}

#[derive(Clone, Debug)]
enum Step {
    Append(usize),
    Open(bool, u8),
    Next(usize),
    Take(usize, usize),
    Drop(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..30usize).prop_map(Step::Append),
        1 => (any::<bool>(), 0..5u8).prop_map(|(f, s)| Step::Open(f, s)),
        4 => (0..4usize).prop_map(Step::Next),
        2 => (0..4usize, 0..20usize).prop_map(|(r, n)| Step::Take(r, n)),
        1 => (0..4usize).prop_map(Step::Drop),
    ]
}

proptest! {
    /// Any interleaving: numbers without a gap except where lost, and a balanced line after every step.
    #[test]
    fn any_interleaving_balances(steps in proptest::collection::vec(step(), 1..80), capacity in 1..40usize) {
        let book = filled(capacity, 0);
        let mut readers: Vec<(Reader, u64)> = Vec::new();
        let mut written = 0;
        for step in steps {
            match step {
                Step::Append(n) => {
                    written += n as u64;
                    prop_assert_eq!(book.append(written, &mut vec![body(1); n]), written);
                }
                Step::Open(filtered, start) => {
                    let start = [Start::Oldest, Start::Next, Start::Last(3), Start::Since(5), Start::LastSince(4, 9)][usize::from(start)];
                    readers.push((book.reader("r", filtered.then(even), start, true), 0));
                }
                Step::Next(place) => {
                    if let Some((reader, last)) = readers.get_mut(place)
                        && let Some(record) = reader.try_next()
                    {
                        prop_assert!(record.seq > *last);
                        *last = record.seq;
                    }
                }
                Step::Take(place, delivered) => {
                    if let Some((reader, last)) = readers.get_mut(place) {
                        let taken = reader.take();
                        if let Some(first) = taken.first() {
                            prop_assert!(first.seq > *last);
                            *last = taken[taken.len() - 1].seq;
                        }
                        let delivered = delivered.min(taken.len());
                        reader.settle_delivered(delivered as u64);
                        reader.settle_lost("write_error", (taken.len() - delivered) as u64);
                    }
                }
                Step::Drop(place) => {
                    if place < readers.len() {
                        drop(readers.swap_remove(place));
                    }
                }
            }
            for (reader, _) in &readers {
                let line = reader.line();
                prop_assert!(balanced(&line), "{:?}", line);
            }
        }
    }
}
