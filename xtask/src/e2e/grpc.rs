//! The gRPC API over TCP, as the chart serves it when it is asked to: TLS on the node's addresses, for clients that
//! show a certificate. openssl is the client; what the service says is tested where the service is.

use std::fs;
use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{NAMESPACE, Stage};
use crate::cluster::{certificates, control_plane_netns, ensure_helm, node_addresses, node_name};
use crate::workspace::{output, root};

/// As the chart has it.
const PORT: u16 = 9463;
const SECRET: &str = "sekisho-grpc";

pub(super) fn only_clients_with_a_certificate_are_answered(stage: &Stage) -> Result<()> {
    let read = |name: &str| fs::read_to_string(certificates().join(name)).with_context(|| format!("cannot read {name}"));
    // One certificate for both ends of the test: the node's own, which names the node's addresses.
    let node = node_name(1);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": {"name": SECRET, "namespace": NAMESPACE},
        "stringData": {"tls.crt": read(&format!("{node}.crt"))?, "tls.key": read(&format!("{node}.key"))?, "ca.crt": read("ca.crt")?},
    });
    stage.client.apply(&secret.to_string())?;
    upgrade(stage, true)?;
    let asked = ask_all();
    upgrade(stage, false)?;
    asked?;
    stage.client.run(&["-n", NAMESPACE, "delete", "secret", SECRET])?;
    stage.covered(Duration::from_secs(20))
}

fn upgrade(stage: &Stage, on: bool) -> Result<()> {
    let mut command = stage.client.command(ensure_helm()?);
    let values = format!("grpc.enabled={on},grpc.tls.secretName={SECRET}");
    command.args(["upgrade", "sekisho", "deploy/helm", "--namespace", NAMESPACE, "--reset-then-reuse-values", "--set", &values]);
    command.args(["--wait", "--timeout", "120s"]).current_dir(root());
    output(&mut command)?;
    // A DaemonSet that is being replaced counts as there to Helm.
    stage.agents_are_rolled_out()
}

fn ask_all() -> Result<()> {
    let address = node_addresses(1).into_iter().find(std::net::IpAddr::is_ipv4).context("a node has an IPv4 address")?;
    let target = SocketAddr::new(address, PORT);
    // Under TLS 1.2 a refusal is part of the handshake, and so of how the client ends.
    for version in ["-tls1_2", "-tls1_3"] {
        let (done, told) = handshake(target, &[version, "-cert", "admin.crt", "-key", "admin.key"])?;
        ensure!(done && told.contains("ALPN protocol: h2") && told.contains("Verify return code: 0 (ok)"), "{version}: {told}");
    }
    let (done, told) = handshake(target, &["-tls1_2"])?;
    ensure!(!done && told.contains("alert"), "without a certificate: {told}");
    let (done, told) = handshake(target, &["-tls1_2", "-cert", "stranger.crt", "-key", "stranger.key"])?;
    ensure!(!done && told.contains("alert"), "with a certificate of its own making: {told}");
    Ok(())
}

/// Whether openssl gets through, and what it tells.
fn handshake(target: SocketAddr, words: &[&str]) -> Result<(bool, String)> {
    if !certificates().join("stranger.crt").exists() {
        let mut own = Command::new("openssl");
        own.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1"]);
        own.args(["-config", "openssl.cnf", "-subj", "/CN=stranger", "-keyout", "stranger.key", "-out", "stranger.crt"]);
        output(own.current_dir(certificates()))?;
    }
    let mut client = Command::new("openssl");
    client.args(["s_client", "-connect", &target.to_string(), "-alpn", "h2", "-CAfile", "ca.crt", "-verify_return_error"]).args(words);
    client.current_dir(certificates()).stdin(std::process::Stdio::null());
    let answer = control_plane_netns().within(|| client.output().context("openssl does not start"))?;
    let told = format!("{}{}", String::from_utf8_lossy(&answer.stdout), String::from_utf8_lossy(&answer.stderr));
    Ok((answer.status.success(), told))
}
