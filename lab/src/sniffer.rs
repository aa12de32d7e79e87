//! Counts what really passes an interface: packets on the wire and their IP bytes, per flow and direction.
//!
//! A frame of a packet socket may stand for many packets (GSO); the socket's virtio header says how the
//! kernel will cut it, so the counts equal those of the wire. A sniffer that dropped a frame says so.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use anyhow::{Context, Result, bail};

use crate::netns::Netns;
use crate::sys::{self, SocketAddress};

const PACKET_VNET_HDR: i32 = 15;
const VNET_HEADER: usize = 10;

/// Which way a packet went, seen from the sniffed interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Heading {
    /// Arrived.
    In,
    /// Left.
    Out,
}

/// One direction of one conversation. ICMP has ports 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Arrived or left.
    pub heading: Heading,
    /// IP protocol number.
    pub protocol: u8,
    /// Source.
    pub source: (IpAddr, u16),
    /// Destination.
    pub destination: (IpAddr, u16),
}

/// How much passed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets on the wire.
    pub packets: u64,
    /// IP bytes: headers and payload of every packet.
    pub bytes: u64,
}

/// Counts at one interface until it is asked for the result.
#[derive(Debug)]
pub struct Sniffer {
    socket: Arc<OwnedFd>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<BTreeMap<Flow, Count>>,
}

impl Sniffer {
    /// Begins to count at `interface` of a namespace.
    pub fn start(netns: &Netns, interface: &str) -> Result<Self> {
        let socket = Arc::new(netns.within(|| open(interface))?);
        let stop = Arc::new(AtomicBool::new(false));
        let (reader, stopped) = (Arc::clone(&socket), Arc::clone(&stop));
        let thread = std::thread::spawn(move || count(&reader, &stopped));
        Ok(Self { socket, stop, thread })
    }

    /// Stops, and returns what passed. What was on its way is waited for.
    pub fn stop(self) -> Result<BTreeMap<Flow, Count>> {
        std::thread::sleep(std::time::Duration::from_millis(50));
        self.stop.store(true, Ordering::Relaxed);
        let counts = self.thread.join().expect("the counting thread does not panic");
        let (_, dropped) = sys::packet_statistics(&*self.socket)?;
        if dropped > 0 {
            bail!("the sniffer itself missed {dropped} frames");
        }
        Ok(counts)
    }

    /// Stops, and returns the sum of the flows that `wanted` picks.
    pub fn total(self, wanted: impl Fn(&Flow) -> bool) -> Result<Count> {
        Ok(sum(&self.stop()?, wanted))
    }
}

/// The sum of the flows that `wanted` picks.
pub fn sum(counts: &BTreeMap<Flow, Count>, wanted: impl Fn(&Flow) -> bool) -> Count {
    counts
        .iter()
        .filter(|(flow, _)| wanted(flow))
        .fold(Count::default(), |total, (_, count)| Count { packets: total.packets + count.packets, bytes: total.bytes + count.bytes })
}

/// Fails unless the last record of a client's connection says what passed at its interface, packet by packet.
pub fn counts_are_the_wires(end: &serde_json::Value, wire: &BTreeMap<Flow, Count>, server: (IpAddr, u16)) -> Result<()> {
    let port = end["source"]["port"].as_u64().context("a record without a port")?;
    let passed = |heading| {
        sum(wire, |flow| {
            let (own, other) = if heading == Heading::Out { (flow.source, flow.destination) } else { (flow.destination, flow.source) };
            flow.heading == heading && u64::from(own.1) == port && other == server
        })
    };
    let (out, back) = (passed(Heading::Out), passed(Heading::In));
    let counted = |field: &str, way: &str| end[field][way].as_u64().unwrap_or(0);
    let recorded = [counted("packets", "forward"), counted("packets", "reply"), counted("bytes", "forward"), counted("bytes", "reply")];
    anyhow::ensure!(
        recorded == [out.packets, back.packets, out.bytes, back.bytes],
        "port {port}: {recorded:?} recorded, {out:?} {back:?} on the wire"
    );
    Ok(())
}

fn open(interface: &str) -> Result<OwnedFd> {
    // Protocol 0: nothing is queued before the socket is bound to its interface.
    let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).context("cannot open a packet socket")?;
    sys::set_option(&socket, libc::SOL_PACKET, PACKET_VNET_HDR, 1).context("cannot ask for virtio headers")?;
    sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 256 << 20).context("cannot enlarge the buffer")?;
    sys::set_timeout(&socket, 20)?;
    sys::bind(&socket, &SocketAddress::packet(sys::interface_index(interface)?))?;
    Ok(socket)
}

fn count(socket: &OwnedFd, stop: &AtomicBool) -> BTreeMap<Flow, Count> {
    let mut counts: BTreeMap<Flow, Count> = BTreeMap::new();
    let mut buffer = [0u8; 256];
    loop {
        match sys::receive_frame(socket, &mut buffer) {
            Ok((len, kind)) => {
                let heading = if kind == libc::PACKET_OUTGOING { Heading::Out } else { Heading::In };
                let seen = len.min(buffer.len());
                if let Some((flow, more)) = read(&buffer[..seen], len, heading) {
                    let total = counts.entry(flow).or_default();
                    total.packets += more.packets;
                    total.bytes += more.bytes;
                }
            }
            // Nothing more within the timeout: only now may it stop.
            Err(_) if stop.load(Ordering::Relaxed) => return counts,
            Err(_) => {}
        }
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// What a frame (virtio header first, `len` bytes in all) is and counts.
fn read(frame: &[u8], len: usize, heading: Heading) -> Option<(Flow, Count)> {
    let gso_size = usize::from(u16::from_ne_bytes([*frame.get(4)?, *frame.get(5)?]));
    let ethernet = frame.get(VNET_HEADER..)?;
    let ip = ethernet.get(14..)?;
    let wire = len - VNET_HEADER - 14;
    let (source, destination, protocol, header, total) = match word(ethernet, 12)? {
        0x0800 => {
            let address = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?)));
            (address(12)?, address(16)?, *ip.get(9)?, usize::from(ip.first()? & 15) * 4, usize::from(word(ip, 2)?))
        }
        0x86dd => {
            let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?)));
            (address(8)?, address(24)?, *ip.get(6)?, 40, 40 + usize::from(word(ip, 4)?))
        }
        _ => return None,
    };
    let transport = ip.get(header..)?;
    let ported = matches!(protocol, 6 | 17 | 132);
    let ports = if ported { (word(transport, 0)?, word(transport, 2)?) } else { (0, 0) };
    let headers = header
        + match protocol {
            6 => usize::from(transport.get(12)? >> 4) * 4,
            17 => 8,
            _ => 0,
        };
    let (packets, bytes) = if gso_size > 0 && wire > headers {
        let segments = (wire - headers).div_ceil(gso_size);
        (segments, wire + (segments - 1) * headers)
    } else {
        (1, total.min(wire))
    };
    let flow = Flow { heading, protocol, source: (source, ports.0), destination: (destination, ports.1) };
    Some((flow, Count { packets: packets as u64, bytes: bytes as u64 }))
}
