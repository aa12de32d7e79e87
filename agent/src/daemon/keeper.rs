//! Keeps alerts and detections on disk for the next run.
//!
//! One file, written whole beside the old one and then put in its place, on a thread of its own: a slow disk holds up nobody. A run that
//! is killed loses what the last [`EVERY`] brought. A file that cannot be read is set aside, and the agent starts without it.
//!
//! Alerts that were told are for people, and every run takes them over. The detector's own state goes on only in the same boot and with the
//! same journal: it refers to numbers of the one and to times of the other.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use sekisho_proto as proto;
use serde::{Deserialize, Serialize};
use sha1::{Digest as _, Sha1};
use tracing::{error, warn};

use crate::detect::State;
use crate::flow::{Body, Header, Past, Record};

/// How often the file is written at most, where no alert was told.
const EVERY: Duration = Duration::from_secs(5);
/// The same where one was.
const SOON: Duration = Duration::from_secs(1);
/// How long the end of a run waits for the disk.
const PATIENCE: Duration = Duration::from_secs(5);
/// Alerts of earlier runs and this one that are kept.
pub(super) const ALERTS: usize = 256;
/// A larger file is none of ours.
const LARGEST: u64 = 64 << 20;
/// First word of the file, with the version of what follows.
const MAGIC: &str = "sekisho-alerts-1";

/// What the file holds.
#[derive(Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) node: String,
    pub(super) boot: String,
    pub(super) run: String,
    pub(super) detector: State,
    alerts: Vec<KeptAlert>,
}

#[derive(Serialize, Deserialize)]
struct KeptAlert {
    run: String,
    cluster: Option<String>,
    seq: u64,
    time_ns: u64,
    /// The message, encoded and in base64.
    alert: String,
}

impl Kept {
    /// What is to be kept; `earlier` and `alerts` are those of earlier runs and of this one.
    pub(super) fn new(boot: &str, header: &Header, detector: State, earlier: &[Past], alerts: &[Record]) -> Self {
        let earlier = earlier.iter().map(|past| (&*past.header, &past.record));
        let all: Vec<_> = earlier.chain(alerts.iter().map(|record| (header, record))).filter_map(KeptAlert::of).collect();
        let surplus = all.len().saturating_sub(ALERTS);
        Self {
            node: header.node.to_string(),
            boot: boot.to_owned(),
            run: header.run.to_string(),
            detector,
            alerts: all.into_iter().skip(surplus).collect(),
        }
    }

    /// The alerts of earlier runs, oldest first.
    pub(super) fn past(&self) -> Vec<Past> {
        let mut headers: Vec<Arc<Header>> = Vec::new();
        let mut past = Vec::new();
        for kept in &self.alerts {
            let Some(alert) = STANDARD.decode(&kept.alert).ok().and_then(|bytes| proto::Alert::decode(&*bytes).ok()) else { continue };
            let header = Header {
                run: kept.run.as_str().into(),
                node: self.node.as_str().into(),
                cluster: kept.cluster.as_deref().map(Arc::from),
                previous: None,
            };
            let known = headers.iter().find(|known| ***known == header).cloned();
            let header = known.unwrap_or_else(|| {
                headers.push(Arc::new(header));
                headers[headers.len() - 1].clone()
            });
            let record = Record { seq: kept.seq, time_ns: kept.time_ns, body: Body::Alert(Arc::new(alert)) };
            past.push(Past { header, record });
        }
        past
    }

    fn encode(&self) -> Vec<u8> {
        let body = serde_json::to_vec(self).unwrap_or_default();
        let mut whole = format!("{MAGIC} {}\n", STANDARD.encode(Sha1::digest(&body))).into_bytes();
        whole.extend(body);
        whole
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let head = bytes.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
        let (head, body) = (&bytes[..head], &bytes[head + 1..]);
        let head = std::str::from_utf8(head).map_err(|_| "its first line is no text")?;
        let Some((magic, sum)) = head.split_once(' ') else { return Err("its first line is not ours".into()) };
        if magic != MAGIC {
            return Err(format!("it is of another version: {magic}"));
        }
        if sum != STANDARD.encode(Sha1::digest(body)) {
            return Err("its checksum is wrong".into());
        }
        serde_json::from_slice(body).map_err(|e| e.to_string())
    }
}

impl KeptAlert {
    fn of((header, record): (&Header, &Record)) -> Option<Self> {
        let Body::Alert(alert) = &record.body else { return None };
        Some(Self {
            run: header.run.to_string(),
            cluster: header.cluster.as_ref().map(ToString::to_string),
            seq: record.seq,
            time_ns: record.time_ns,
            alert: STANDARD.encode(alert.encode_to_vec()),
        })
    }
}

/// See the module.
pub(super) struct Keeper {
    work: Option<SyncSender<Vec<u8>>>,
    ended: Receiver<()>,
    /// The version of the detector and the number of alerts that were written last, and when.
    written: (u64, u64),
    at: Option<Instant>,
}

/// The file's place: in `folder`, or beside the socket, and named after it.
pub(super) fn place(folder: Option<&Path>, socket: &Path) -> PathBuf {
    let folder = folder.or(socket.parent()).unwrap_or(Path::new("."));
    let name = socket.file_stem().unwrap_or("sekisho".as_ref());
    folder.join(name).with_extension("alerts")
}

/// Reads what an earlier run of `node` kept. What cannot be read is set aside.
pub(super) fn read(path: &Path, node: &str) -> Option<Kept> {
    let read = match fs::metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        Ok(metadata) if metadata.len() > LARGEST => Err(format!("it is larger than {LARGEST} bytes")),
        _ => fs::read(path).map_err(|e| e.to_string()),
    };
    let kept = read.and_then(|bytes| Kept::decode(&bytes));
    match kept {
        Ok(kept) if kept.node == node => Some(kept),
        Ok(kept) => {
            warn!("{}: it is of node {}, not of this one; it is replaced", path.display(), kept.node);
            None
        }
        Err(why) => {
            let aside = path.with_extension("alerts.unreadable");
            let moved = fs::rename(path, &aside);
            let place =
                moved.map_or_else(|e| format!("it cannot be set aside: {e}"), |()| format!("it is set aside as {}", aside.display()));
            error!("{}: what earlier runs kept of alerts cannot be read: {why}; {place}", path.display());
            None
        }
    }
}

impl Keeper {
    /// Starts the thread that writes to `path`.
    pub(super) fn start(path: PathBuf) -> io::Result<Self> {
        let (work, jobs) = sync_channel::<Vec<u8>>(1);
        let (end, ended) = channel();
        thread::Builder::new().name("keeper".into()).spawn(move || {
            let mut complained = false;
            for bytes in jobs {
                match write(&path, &bytes) {
                    Ok(()) => complained = false,
                    Err(_) if complained => {}
                    Err(e) => {
                        complained = true;
                        warn!("{}: alerts cannot be kept for the next run: {e}", path.display());
                    }
                }
            }
            // Who waits for it may have lost patience.
            let _ = end.send(());
        })?;
        Ok(Self { work: Some(work), ended, written: (0, 0), at: None })
    }

    /// Whether there is something to be written by now. `version` is the detector's, `alerts` how many were told.
    pub(super) fn is_due(&self, version: u64, alerts: u64, now: Instant) -> bool {
        let since = self.at.map_or(Duration::MAX, |at| now.saturating_duration_since(at));
        let patience = if alerts == self.written.1 { EVERY } else { SOON };
        (version, alerts) != self.written && since >= patience
    }

    /// Has it written, unless the disk is still busy with the last.
    pub(super) fn keep(&mut self, kept: &Kept, version: u64, alerts: u64, now: Instant) {
        let Some(work) = &self.work else { return };
        match work.try_send(kept.encode()) {
            Ok(()) => (self.written, self.at) = ((version, alerts), Some(now)),
            Err(TrySendError::Full(_)) => {}
            Err(TrySendError::Disconnected(_)) => self.work = None,
        }
    }

    /// Has the last of it written and waits for that, not for ever.
    pub(super) fn finish(mut self, kept: &Kept) {
        let Some(work) = self.work.take() else { return };
        let until = Instant::now() + PATIENCE;
        let mut bytes = kept.encode();
        while let Err(TrySendError::Full(back)) = work.try_send(bytes) {
            if Instant::now() >= until {
                break;
            }
            bytes = back;
            thread::sleep(Duration::from_millis(10));
        }
        drop(work);
        if self.ended.recv_timeout(until.saturating_duration_since(Instant::now())).is_err() {
            warn!("the disk takes too long for what is kept of alerts; the last of them are not there in the next run");
        }
    }
}

/// Writes the file whole, or leaves the old one.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let new = path.with_extension("alerts.new");
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_data()?;
    fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(run: &str) -> Header {
        Header { run: run.into(), node: "n".into(), cluster: Some("c".into()), previous: None }
    }

    fn record(seq: u64) -> Record {
        let alert = proto::Alert { id: format!("alert-{seq}"), count: seq, ..proto::Alert::default() };
        Record { seq, time_ns: seq * 10, body: Body::Alert(Arc::new(alert)) }
    }

    fn keep(path: &Path, kept: &Kept) {
        Keeper::start(path.to_owned()).unwrap().finish(kept);
    }

    #[test]
    fn alerts_come_back_with_their_run_and_the_newest_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = place(Some(folder.path()), Path::new("/run/sekisho/sekisho.sock"));
        assert!(read(&path, "n").is_none());
        let first: Vec<Record> = (1..=200).map(record).collect();
        keep(&path, &Kept::new("boot", &header("a"), State::default(), &[], &first));
        let past = read(&path, "n").expect("it was kept").past();
        assert_eq!((past.len(), &*past[0].header.run, past[199].record.seq), (200, "a", 200));
        let second: Vec<Record> = (1..=100).map(record).collect();
        keep(&path, &Kept::new("boot", &header("b"), State::default(), &past, &second));
        let kept = read(&path, "n").expect("it was kept");
        assert_eq!((kept.boot.as_str(), kept.run.as_str()), ("boot", "b"));
        let past = kept.past();
        assert_eq!(past.len(), ALERTS);
        assert_eq!((&*past[0].header.run, past[0].record.seq, past[0].record.time_ns), ("a", 45, 450));
        assert_eq!((&*past[255].header.run, past[255].record.seq), ("b", 100));
        assert!(read(&path, "other").is_none(), "another node's");
    }

    #[test]
    fn what_cannot_be_read_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = place(Some(folder.path()), Path::new("x.sock"));
        keep(&path, &Kept::new("boot", &header("a"), State::default(), &[], &[record(1)]));
        let whole = fs::read(&path).unwrap();
        let mut bent = whole.clone();
        let last = bent.len() - 3;
        bent[last] ^= 1;
        for broken in [&whole[..whole.len() / 2], &bent, b"", b"nonsense\n{}", b"sekisho-alerts-9 0\n{}"] {
            fs::write(&path, broken).unwrap();
            assert!(read(&path, "n").is_none());
            assert!(!path.exists() && path.with_extension("alerts.unreadable").exists());
            fs::remove_file(path.with_extension("alerts.unreadable")).unwrap();
        }
        fs::write(&path, &whole).unwrap();
        assert!(read(&path, "n").is_some());
    }
}
