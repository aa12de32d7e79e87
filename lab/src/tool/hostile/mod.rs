//! A pod that has been taken over: raw frames of every shape that policy must stop, over and over.
//!
//! It has `NET_RAW` and `NET_ADMIN` in its namespace and knows how the agent works. Every frame carries
//! [`MARKER`], so that a test recognises at any other interface what came through.

mod packet;
mod shapes;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::sys::{self, SocketAddress};

/// Bytes that every frame of a hostile pod carries and no other frame does.
pub const MARKER: &[u8; 16] = b"sekisho-hostile!";

/// Frames per second, over all shapes.
const RATE: u32 = 2_000;

/// One address in both families, and the MAC through which it is reached.
#[derive(Clone, Copy, Debug)]
struct Target {
    v4: Ipv4Addr,
    v6: Ipv6Addr,
    mac: [u8; 6],
}

/// The pod's surroundings, as the test describes them.
#[derive(Clone, Copy, Debug)]
struct Scene {
    /// The hostile pod itself.
    own: Target,
    /// A pod that admits nobody.
    victim: Target,
    /// A pod in whose name frames are sent.
    neighbour: Target,
    /// The one server that policy allows, UDP port 53.
    allowed: Target,
    /// The node's side of the pod's link.
    gateway: Target,
    /// A machine outside; its MAC is the gateway's.
    outside: Target,
}

/// Sends every shape in turn for `time`; prints how many frames of each shape were sent.
///
/// `scene` is a JSON object with `own`, `victim`, `neighbour`, `allowed`, `gateway` and `outside`, each `[v4, v6, MAC]`.
pub(super) fn main(interface: &str, scene: &str, time: Duration) -> Result<bool> {
    let scene = Scene::read(&serde_json::from_str(scene).context("the scene is not JSON")?)?;
    let socket = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0).context("cannot open a packet socket")?;
    let address = SocketAddress::packet(sys::interface_index(interface)?);
    sys::bind(&socket, &address)?;
    let mut sent: BTreeMap<&str, u64> = BTreeMap::new();
    let begin = Instant::now();
    let mut frames = 0u32;
    for round in 0u16.. {
        if begin.elapsed() >= time {
            break;
        }
        for (name, frame) in shapes::all(&scene, round) {
            let due = Duration::from_secs_f64(f64::from(frames) / f64::from(RATE));
            std::thread::sleep(due.saturating_sub(begin.elapsed()));
            frames += 1;
            // A full queue loses the frame before the node sees it.
            if sys::send_to(&socket, &frame, &address).is_ok() {
                *sent.entry(name).or_default() += 1;
            }
        }
    }
    println!("{}", json!({"sent": sent.values().sum::<u64>(), "shapes": sent, "seconds": begin.elapsed().as_secs_f64()}));
    Ok(true)
}

impl Scene {
    fn read(value: &Value) -> Result<Self> {
        let target = |name: &str| Target::read(&value[name]).with_context(|| format!("{name} is not [v4, v6, MAC]"));
        Ok(Self {
            own: target("own")?,
            victim: target("victim")?,
            neighbour: target("neighbour")?,
            allowed: target("allowed")?,
            gateway: target("gateway")?,
            outside: target("outside")?,
        })
    }
}

impl Target {
    fn read(value: &Value) -> Result<Self> {
        let text = |at: usize| value[at].as_str().context("not text");
        let mut mac = [0; 6];
        let parts: Vec<&str> = text(2)?.split(':').collect();
        if parts.len() != mac.len() {
            bail!("not a MAC");
        }
        for (byte, part) in mac.iter_mut().zip(parts) {
            *byte = u8::from_str_radix(part, 16)?;
        }
        Ok(Self { v4: text(0)?.parse()?, v6: text(1)?.parse()?, mac })
    }

    fn address(&self, v6: bool) -> IpAddr {
        if v6 { self.v6.into() } else { self.v4.into() }
    }
}
