use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{policy, put};
use crate::inventory::Snapshot;
use crate::inventory::files::{Source, SourceError};

const LONG: Duration = Duration::from_secs(5);
/// Long enough that a change would have been seen.
const QUIET: Duration = Duration::from_millis(60);

struct Bench {
    folder: tempfile::TempDir,
    source: Source,
    seen: u64,
}

impl Bench {
    fn of(files: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let source = Source::start(folder.path()).unwrap();
        let seen = source.current().generation;
        Self { folder, source, seen }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn next(&mut self) -> Arc<Snapshot> {
        let snapshot = self.source.changed(self.seen, LONG);
        assert_ne!(snapshot.generation, self.seen, "nothing changed");
        self.seen = snapshot.generation;
        snapshot
    }

    fn nothing(&mut self, during: Duration) {
        assert_eq!(self.source.changed(self.seen, during).generation, self.seen);
    }
}

fn names(snapshot: &Snapshot) -> Vec<String> {
    snapshot.policies.keys().map(|(_, name)| name.to_string()).collect()
}

fn named(name: &str) -> String {
    policy("{}").replace("name: p", &format!("name: {name}"))
}

#[test]
fn a_folder_must_be_there() {
    assert!(matches!(Source::start(Path::new("/nowhere/at/all")), Err(SourceError::Unreadable { .. })));
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(Source::start(file.path()), Err(SourceError::NotFolder { .. })));
}

#[test]
fn writing_renaming_and_deleting_change_the_state() {
    let mut bench = Bench::of(&[]);
    fs::write(bench.path().join("a.yaml"), named("a")).unwrap();
    assert_eq!(names(&bench.next()), ["a"]);
    put(bench.path(), "a.yaml", &named("b"));
    assert_eq!(names(&bench.next()), ["b"]);
    fs::rename(bench.path().join("a.yaml"), bench.path().join("z.yaml")).unwrap();
    bench.nothing(QUIET);
    fs::rename(bench.path().join("z.yaml"), bench.path().join("z.off")).unwrap();
    assert!(names(&bench.next()).is_empty());
    fs::rename(bench.path().join("z.off"), bench.path().join("z.json.yml")).unwrap();
    assert_eq!(names(&bench.next()), ["b"]);
    fs::remove_file(bench.path().join("z.json.yml")).unwrap();
    assert!(names(&bench.next()).is_empty());
}

#[test]
fn a_broken_edit_leaves_the_file_as_it_was() {
    let mut bench = Bench::of(&[("a.yaml", &named("a")), ("b.yaml", &named("b"))]);
    put(bench.path(), "a.yaml", "kind: [");
    let snapshot = bench.next();
    assert_eq!(names(&snapshot), ["a", "b"]);
    assert!(snapshot.refused[0].contains("a.yaml, document 1"));
    put(bench.path(), "b.yaml", &named("c"));
    assert_eq!(names(&bench.next()), ["a", "c"]);
    put(bench.path(), "a.yaml", &named("d"));
    let snapshot = bench.next();
    assert_eq!((names(&snapshot), snapshot.refused.len()), (vec!["c".into(), "d".into()], 0));
    fs::remove_file(bench.path().join("a.yaml")).unwrap();
    assert_eq!(names(&bench.next()), ["c"]);
}

#[test]
fn half_a_file_is_never_read() {
    let mut bench = Bench::of(&[]);
    let text = format!("{}---\n{}", named("a"), named("b"));
    let (first, second) = text.split_at(text.find("---").unwrap());
    let mut file = fs::File::create(bench.path().join("a.yaml")).unwrap();
    file.write_all(first.as_bytes()).unwrap();
    file.flush().unwrap();
    bench.nothing(QUIET);
    file.write_all(second.as_bytes()).unwrap();
    drop(file);
    assert_eq!(names(&bench.next()), ["a", "b"]);
}

#[test]
fn the_newer_of_two_is_refused_until_the_older_lets_go() {
    let mut bench = Bench::of(&[("b.yaml", &named("x"))]);
    put(bench.path(), "a.yaml", &format!("{}---\n{}", named("y"), named("x")));
    let snapshot = bench.next();
    assert_eq!(names(&snapshot), ["x"]);
    assert!(snapshot.refused[0].contains("a.yaml") && snapshot.refused[0].contains("b.yaml"));
    put(bench.path(), "b.yaml", &named("z"));
    let snapshot = bench.next();
    assert_eq!((names(&snapshot), snapshot.refused.len()), (vec!["x".into(), "y".into(), "z".into()], 0));
    // A move from one file to another, in whatever order, ends well.
    put(bench.path(), "b.yaml", &format!("{}---\n{}", named("z"), named("y")));
    put(bench.path(), "a.yaml", &named("x"));
    let end = Instant::now() + LONG;
    while !bench.source.current().refused.is_empty() || names(&bench.source.current()) != ["x", "y", "z"] {
        assert!(Instant::now() < end, "{:?}", bench.source.current().refused);
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_mounted_config_map_swaps_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let fill = |version: &str, text: &[(&str, String)]| {
        let data = folder.path().join(version);
        fs::create_dir(&data).unwrap();
        for (name, text) in text {
            fs::write(data.join(name), text).unwrap();
        }
    };
    fill("..one", &[("a.yaml", named("a")), ("b.yaml", named("b"))]);
    symlink("..one", folder.path().join("..data")).unwrap();
    symlink("..data/a.yaml", folder.path().join("a.yaml")).unwrap();
    symlink("..data/b.yaml", folder.path().join("b.yaml")).unwrap();
    let source = Source::start(folder.path()).unwrap();
    assert_eq!(names(&source.current()), ["a", "b"]);
    fill("..two", &[("a.yaml", named("b")), ("b.yaml", named("c"))]);
    symlink("..two", folder.path().join("..data_tmp")).unwrap();
    fs::rename(folder.path().join("..data_tmp"), folder.path().join("..data")).unwrap();
    let end = Instant::now() + LONG;
    while names(&source.current()) != ["b", "c"] {
        assert!(Instant::now() < end, "{:?} {:?}", names(&source.current()), source.current().refused);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(source.current().refused.is_empty());
}

#[test]
fn a_link_to_elsewhere_is_followed() {
    let elsewhere = tempfile::tempdir().unwrap();
    let target = elsewhere.path().join("t");
    fs::write(&target, named("a")).unwrap();
    let mut bench = Bench::of(&[]);
    symlink(&target, bench.path().join("a.yaml")).unwrap();
    assert_eq!(names(&bench.next()), ["a"]);
    fs::write(&target, named("b")).unwrap();
    assert_eq!(names(&bench.next()), ["b"]);
}

#[test]
fn without_its_folder_the_last_state_stays() {
    let mut bench = Bench::of(&[("a.yaml", &named("a"))]);
    let path = bench.path().to_owned();
    fs::remove_dir_all(&path).unwrap();
    bench.nothing(Duration::from_millis(100));
    assert_eq!(names(&bench.source.current()), ["a"]);
    fs::create_dir(&path).unwrap();
    fs::write(path.join("a.yaml"), named("b")).unwrap();
    assert_eq!(names(&bench.next()), ["b"]);
    put(&path, "a.yaml", &named("c"));
    assert_eq!(names(&bench.next()), ["c"]);
}

#[test]
fn an_edit_is_seen_within_milliseconds() {
    let mut bench = Bench::of(&[("a.yaml", &named("p0"))]);
    let mut times: Vec<Duration> = (1..=100)
        .map(|i| {
            let began = Instant::now();
            fs::write(bench.path().join("a.yaml"), named(&format!("p{i}"))).unwrap();
            assert_eq!(names(&bench.next()), [format!("p{i}")]);
            began.elapsed()
        })
        .collect();
    times.sort();
    // The tail belongs to the machine that also runs every other test; the lab measures it on the kernel.
    assert!(times[50] < Duration::from_millis(20), "median {:?}, p99 {:?}", times[50], times[98]);
}
