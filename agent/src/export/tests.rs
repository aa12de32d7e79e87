use std::fs;
use std::sync::Arc;

use super::*;
use crate::export::{Runner, WRITE_ERROR, spawn};
use crate::flow::{Body, Book};

fn book(records: u64) -> Arc<Book> {
    let book = Arc::new(Book::new(100_000));
    for n in 0..records {
        book.append_one(n, Body::Summary(Arc::new(sekisho_proto::Summary { pod: None, flows: n })));
    }
    book
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("sekisho-jsonl-{}-{name}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    folder
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    fs::read_to_string(path).unwrap().lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

#[test]
fn every_record_is_one_line_in_order() {
    let folder = folder("order");
    let path = folder.join("flows.jsonl");
    let book = book(1000);
    let sink = JsonLines::open(Target::File(path.clone()), Rotation::default()).unwrap();
    let runner = spawn(Box::new(sink), &book, Header::default()).unwrap();
    book.append_one(5, Body::Summary(Arc::new(sekisho_proto::Summary { pod: None, flows: 7 })));
    book.close();
    assert!(runner.join());
    let seqs: Vec<u64> = lines(&path).iter().map(|l| l["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs, (1..=1001).collect::<Vec<_>>());
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_full_file_makes_room_and_five_are_kept() {
    let folder = folder("rotate");
    let path = folder.join("flows.jsonl");
    let book = book(4000);
    let sink = JsonLines::open(Target::File(path.clone()), Rotation { size: 40_000, keep: 5 }).unwrap();
    let runner = spawn(Box::new(sink), &book, Header::default()).unwrap();
    book.close();
    assert!(runner.join());
    let mut names: Vec<_> = fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let expected = ["flows.jsonl", "flows.jsonl.1", "flows.jsonl.2", "flows.jsonl.3", "flows.jsonl.4", "flows.jsonl.5"];
    assert_eq!(names, expected);
    let mut seqs = Vec::new();
    for name in names.iter().rev() {
        assert!(fs::metadata(folder.join(name)).unwrap().len() <= 40_000, "{name}");
        seqs.extend(lines(&folder.join(name)).iter().map(|l| l["seq"].as_u64().unwrap()));
    }
    let first = seqs[0];
    assert_eq!(seqs, (first..=4000).collect::<Vec<_>>(), "no gap over the files");
    fs::remove_dir_all(folder).unwrap();
}

/// `/dev/full` fails every write with ENOSPC.
#[test]
fn a_full_disk_loses_its_own_stream_and_says_how_much() {
    let book = book(300);
    let sink = JsonLines::open(Target::File("/dev/full".into()), Rotation::default()).unwrap();
    let runner = spawn(Box::new(sink), &book, Header::default()).unwrap();
    let until = Instant::now() + Duration::from_secs(10);
    let line = loop {
        let line = book.lines().remove(0);
        if line.lost.get(WRITE_ERROR) == Some(&300) || Instant::now() > until {
            break line;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    assert_eq!((line.made, line.delivered, line.queued, line.lost.get(WRITE_ERROR)), (300, 0, 0, Some(&300)));
    book.close();
    assert!(runner.join());
}

#[test]
fn a_torn_last_line_is_closed_first() {
    let folder = folder("torn");
    let path = folder.join("flows.jsonl");
    fs::write(&path, "{\"seq\":1}\n{\"se").unwrap();
    let book = book(1);
    let sink = JsonLines::open(Target::File(path.clone()), Rotation::default()).unwrap();
    let runner = spawn(Box::new(sink), &book, Header::default()).unwrap();
    book.close();
    assert!(runner.join());
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.lines().nth(1), Some("{\"se"));
    assert!(serde_json::from_str::<serde_json::Value>(text.lines().nth(2).unwrap()).is_ok());
    fs::remove_dir_all(folder).unwrap();
}

/// An operator moved the file: the next one begins all the same, and nothing is lost.
#[test]
fn a_file_that_was_taken_away_is_begun_anew() {
    let folder = folder("taken");
    let path = folder.join("flows.jsonl");
    for keep in [0, 2] {
        let book = book(100);
        let mut sink = JsonLines::open(Target::File(path.clone()), Rotation { size: 2000, keep }).unwrap();
        let mut reader = book.reader("test", None, crate::flow::Start::Oldest, false);
        for record in std::iter::from_fn(|| reader.try_next()) {
            let _gone = fs::remove_file(&path);
            assert_eq!(sink.write(&[record], &Header::default()), Outcome { delivered: 1, lost: 0 });
        }
    }
    fs::remove_dir_all(folder).unwrap();
}

/// What cannot be put aside grows; a device never is put aside.
#[test]
fn a_file_that_cannot_rotate_is_written_on() {
    let folder = folder("stuck");
    let path = folder.join("flows.jsonl");
    fs::create_dir_all(folder.join("flows.jsonl.1/in the way")).unwrap();
    let book = book(100);
    let sink = JsonLines::open(Target::File(path.clone()), Rotation { size: 2000, keep: 1 }).unwrap();
    let device = JsonLines::open(Target::File("/dev/null".into()), Rotation { size: 1, keep: 0 }).unwrap();
    let runners = [sink, device].map(|sink| spawn(Box::new(sink), &book, Header::default()).unwrap());
    book.close();
    assert_eq!(runners.map(Runner::join), [true, true]);
    assert_eq!(lines(&path).len(), 100);
    assert!(Path::new("/dev/null").exists());
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_missing_folder_is_named() {
    let error = JsonLines::open(Target::File("/nowhere/at/all".into()), Rotation::default()).err().unwrap();
    assert!(error.to_string().contains("/nowhere/at/all"), "{error}");
}
