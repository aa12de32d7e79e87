//! Sees whether anything of a hostile pod arrives: frames that carry its marker, at one interface.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};

use crate::netns::Netns;
use crate::sys::{self, SocketAddress};
use crate::tool::HOSTILE_MARKER;

/// Bytes of a frame that name its shape: Ethernet and IP header, and the first bytes after them.
const HEAD: usize = 58;

/// Watches until it is asked for the result.
#[derive(Debug)]
pub struct Witness {
    socket: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<Vec<u8>, u64>>,
}

impl Witness {
    /// Begins to watch what arrives at `interface` of a namespace.
    pub fn start(netns: &Netns, interface: &str) -> Result<Self> {
        let socket = Arc::new(netns.within(|| open(interface))?);
        let stop = Arc::new(AtomicBool::new(false));
        let (reader, stopped) = (Arc::clone(&socket), Arc::clone(&stop));
        let thread = std::thread::spawn(move || watch(&reader, &stopped));
        Ok(Self { socket, stop, thread })
    }

    /// Stops, and returns the first bytes of every kind of marked frame that arrived, in hex, with their number.
    pub fn stop(self) -> Result<BTreeMap<String, u64>> {
        std::thread::sleep(std::time::Duration::from_millis(50));
        self.stop.store(true, Ordering::Relaxed);
        let found = self.thread.join().expect("the watching thread does not panic");
        let (_, missed) = sys::packet_statistics(&*self.socket)?;
        if missed > 0 {
            bail!("the witness itself missed {missed} frames");
        }
        Ok(found.into_iter().map(|(head, count)| (hex(&head), count)).collect())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn open(interface: &str) -> Result<OwnedFd> {
    // Protocol 0: nothing is queued before the socket is bound to its interface.
    let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).context("cannot open a packet socket")?;
    sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 256 << 20).context("cannot enlarge the buffer")?;
    sys::set_timeout(&socket, 20)?;
    sys::bind(&socket, &SocketAddress::packet(sys::interface_index(interface)?))?;
    Ok(socket)
}

fn watch(socket: &OwnedFd, stop: &AtomicBool) -> BTreeMap<Vec<u8>, u64> {
    let mut found: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
    let mut buffer = vec![0u8; 4096];
    loop {
        match sys::receive_frame(socket, &mut buffer) {
            Ok((_, kind)) if kind == libc::PACKET_OUTGOING => {}
            Ok((len, _)) => {
                let frame = &buffer[..len.min(buffer.len())];
                if frame.windows(HOSTILE_MARKER.len()).any(|window| window == HOSTILE_MARKER) {
                    *found.entry(frame[..frame.len().min(HEAD)].to_vec()).or_default() += 1;
                }
            }
            // Nothing more within the timeout: only now may it stop.
            Err(_) if stop.load(Ordering::Relaxed) => return found,
            Err(_) => {}
        }
    }
}
