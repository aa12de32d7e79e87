//! Which process it was: whoever connects, sends without connecting, or listens, however short it lives. Needs root.

use std::time::Duration;

use anyhow::{Result, ensure};
use sekisho_lab::{Agent, Lab, PodSpec, tool, until};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(8);

fn start<'a>(direction: &'a str, port: u16, ip: &'a str) -> impl Fn(&Value) -> bool + 'a {
    move |record| {
        record["kind"] == "start"
            && record["direction"] == direction
            && record["destination"]["port"] == port
            && record["destination"]["ip"] == ip
    }
}

#[test]
fn records_name_who_dialled_and_who_listens() -> Result<()> {
    let lab = Lab::new("processes")?;
    let [server, client] = lab.pods("shop", ["server", "client"])?;
    // One of them listens since before the agent.
    let old = server.serve("tcp", 79)?;
    let agent = Agent::start(&lab, &[])?;
    let (web, dns, log) = (server.serve("tcp", 80)?, server.serve("udp", 53)?, server.serve("udp", 54)?);
    // The last one sends without ever connecting its socket.
    let calls: [(&str, u16, &[&str], &sekisho_lab::Running); 4] =
        [("tcp", 79, &[], &old), ("tcp", 80, &[], &web), ("udp", 53, &[], &dns), ("udp", 54, &["--connect", "no"], &log)];
    for v6 in [false, true] {
        let ip = server.address(v6).to_string();
        for (protocol, port, how, listener) in calls {
            let what = format!("{protocol} {port} {how:?} v6 {v6}");
            let target = std::net::SocketAddr::new(server.address(v6), port).to_string();
            let words = [&["dial", protocol, &target, "--user", "4711"], how].concat();
            let dial = client.spawn(tool::binary()?, &words)?;
            let pid = dial.pid();
            ensure!(dial.finish(SOON)?.success(), "{what}: the exchange works");
            let sent = agent.record(&what, SOON, start("egress", port, &ip))?;
            let process = &sent["process"];
            ensure!(process["pid"] == pid && process["comm"] == "sekisho-lab" && process["uid"] == 4711, "{what}: {pid} dialled: {sent:#}");
            let got = agent.record(&what, SOON, start("ingress", port, &ip))?;
            ensure!(got["process"].is_null(), "{what}: nobody of the server's dialled: {got:#}");
            let heard = &got["listener"];
            ensure!(
                heard["pid"] == listener.pid() && heard["comm"] == "sekisho-lab" && heard["uid"] == 0,
                "{what}: {} listens: {got:#}",
                listener.pid()
            );
            ensure!(sent["listener"].is_null(), "{what}: nobody of the client's listens: {sent:#}");
        }
    }
    Ok(())
}

/// Many at once are asked for together.
#[test]
fn a_burst_of_sockets_is_named_too() -> Result<()> {
    const SOCKETS: usize = 1000;
    let lab = Lab::new("processes-burst")?;
    let client = lab.pod(PodSpec::new("shop", "client"))?;
    let agent = Agent::start(&lab, &[])?;
    let target = std::net::SocketAddr::new(lab.outside_v4(), 9000).to_string();
    let count = SOCKETS.to_string();
    let spray = client.spawn(tool::binary()?, &["spray", "sockets", &client.v4().to_string(), &target, &count, "20000"])?;
    let pid = spray.pid();
    ensure!(spray.finish(SOON)?.success(), "all were sent");
    let starts = || agent.records_of(&["--kind", "start", "--port", "9000"]);
    until(SOON, "a record of each", || Ok(starts()?.len() == SOCKETS))?;
    for record in starts()? {
        ensure!(record["process"]["pid"] == pid && record["process"]["comm"] == "sekisho-lab", "{pid} sent it: {record:#}");
    }
    Ok(())
}
