//! `bench starts`: a thousand pods start whose first act is to send; what their policy denies never arrives, and what
//! it allows, a datagram or a connection, waits no longer than a person would notice.
//!
//! Processes and veths are started as a kubelet and a CNI do. The same pods start without the agent before: what they wait
//! then is the machine's part, the rest is Sekisho's own.

use std::time::Duration;

use anyhow::Result;
use sekisho_lab::{Agent, Lab, PodSpec, Starts, on_interrupt, starts};
use serde_json::json;

use super::table::Table;
use crate::workspace::{build_agent, build_fast_lab, say};

const STARTS: usize = 1000;
/// Starts that show what the machine takes by itself.
const WITHOUT: usize = 200;
/// Milliseconds of its own that Sekisho may hold 99 of 100 allowed pods.
const LIMIT: f64 = 20.0;

pub(crate) fn run() -> Result<()> {
    sekisho_lab::use_programs(build_agent()?, build_fast_lab()?);
    on_interrupt();
    let lab = Lab::new("bench-starts")?;
    let server = lab.pod(PodSpec::new("shop", "server"))?;
    let _serving = [server.serve("tcp", 80)?, server.serve("udp", 53)?];
    lab.namespace("shop", &[])?;
    say(&format!("{WITHOUT} starts without the agent"));
    let without = starts(&lab, &server, "allowed", WITHOUT, Duration::from_secs(5))?;
    lab.policy("denied", "all", &json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}))?;
    let to_server = json!([{"to": [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "shop"}}}]}]);
    lab.policy("allowed", "all", &json!({"podSelector": {}, "policyTypes": ["Egress"], "egress": to_server}))?;
    let _agent = Agent::start(&lab, &["--posture", "hold"])?;
    say(&format!("{STARTS} starts that are denied everything"));
    let denied = starts(&lab, &server, "denied", STARTS, Duration::from_millis(60))?;
    say(&format!("{STARTS} starts that are allowed"));
    let allowed = starts(&lab, &server, "allowed", STARTS, Duration::from_secs(5))?;
    let mut table = Table::new();
    let part = |with: Duration, without: Duration| milliseconds(with) - milliseconds(without);
    let told = |time: Duration| format!("{:.1} ms", milliseconds(time));
    table.at_most("packets of denied pods that arrived", number(denied.arrived), 0.0, "").at_most(
        "allowed pods that did not connect",
        number((STARTS - allowed.connected()) as u64),
        0.0,
        "",
    );
    for (what, within) in [
        ("first datagram to first answer", Starts::answered_within as fn(&Starts, usize) -> Duration),
        ("connection", Starts::connected_within),
    ] {
        table
            .told(&format!("{what} without the agent, half within"), told(within(&without, 50)))
            .told(&format!("{what} without the agent, 99 of 100 within"), told(within(&without, 99)))
            .told(&format!("{what} with the agent, half within"), told(within(&allowed, 50)))
            .at_most(&format!("{what}, Sekisho's part, 99 of 100 within"), part(within(&allowed, 99), within(&without, 50)), LIMIT, "ms")
            .told(&format!("{what} with the agent, all within"), told(within(&allowed, 100)));
    }
    table.finish()
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

#[expect(clippy::cast_precision_loss, reason = "counts of one bench are far below 2^52")]
fn number(count: u64) -> f64 {
    count as f64
}
