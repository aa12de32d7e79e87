//! etcd, API server, controller manager, scheduler.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::binaries::Programs;
use super::client::Client;
use super::pki;
use super::plan::{self, CONTROL_PLANE};
use super::site::{self, Site};

/// The daemons, in the order in which they start.
pub(super) const DAEMONS: [&str; 4] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"];

/// Starts it and waits until the API server answers.
pub(super) fn start(programs: &Programs) -> Result<Client> {
    let site = Site::new(CONTROL_PLANE, programs)?;
    fs::create_dir_all(site.directory())?;
    fs::write(site.directory().join("audit-policy.yaml"), include_str!("../../cluster/config/audit.yaml"))?;
    pki::kubeconfig("admin", &plan::root().join("admin.kubeconfig"))?;
    start_etcd(&site)?;
    start_api_server(&site, &[])?;
    let client = Client::connect()?;
    client
        .wait(Duration::from_secs(60), "the API server is ready", |client| {
            site.must_live("etcd")?;
            site.must_live("kube-apiserver")?;
            Ok(client.try_run(&["get", "--raw", "/readyz"])?.is_some())
        })
        .with_context(|| site.log("kube-apiserver"))?;
    start_managers(&site)?;
    Ok(client)
}

/// Ends the API server, as a crash would.
pub(crate) fn kill_api_server() -> Result<()> {
    let pid = site::pid(CONTROL_PLANE, "kube-apiserver").context("the API server does not run")?;
    sekisho_lab::kill(pid, 9).context("cannot end the API server")
}

/// Starts the API server again, with the same certificates and the same data, and further arguments.
pub(crate) fn restart_api_server(more: &[&str]) -> Result<()> {
    start_api_server(&Site::new(CONTROL_PLANE, &Programs::built()?)?, more)
}

/// Lets etcd forget all that was before: whoever watched from an earlier version on must list anew.
pub(crate) fn compact_history() -> Result<()> {
    let status = ask_etcd("/v3/maintenance/status", "{}")?;
    let status: serde_json::Value = serde_json::from_str(&status).context("etcd does not answer JSON")?;
    let revision = status["header"]["revision"].as_str().context("etcd says no revision")?;
    let answer = ask_etcd("/v3/kv/compaction", &serde_json::json!({"revision": revision, "physical": true}).to_string())?;
    anyhow::ensure!(answer.contains("header"), "etcd does not compact: {answer}");
    Ok(())
}

fn ask_etcd(path: &str, body: &str) -> Result<String> {
    super::control_plane_netns().within(|| {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 2379)).context("etcd does not answer")?;
        write!(
            stream,
            "POST {path} HTTP/1.0\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
    })
}

/// Where the API server writes who asked for what.
pub(crate) fn audit_log() -> PathBuf {
    plan::root().join(CONTROL_PLANE).join("audit.log")
}

fn start_etcd(site: &Site) -> Result<()> {
    let data = site.directory().join("etcd").display().to_string();
    let arguments = ["--name=default", "--listen-peer-urls=http://127.0.0.1:2380", "--listen-client-urls=http://127.0.0.1:2379"];
    let more = ["--advertise-client-urls=http://127.0.0.1:2379", "--log-level=warn", "--unsafe-no-fsync"];
    site.start("etcd", &words(arguments.into_iter().chain(more), [format!("--data-dir={data}")]))
}

fn start_api_server(site: &Site, more: &[&str]) -> Result<()> {
    let directory = site.directory().display().to_string();
    let pki = plan::pki().display().to_string();
    let address = plan::control_plane_addresses()[0];
    let fixed = [
        "--etcd-servers=http://127.0.0.1:2379",
        "--bind-address=::",
        "--secure-port=6443",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--audit-log-maxsize=1000",
        "--profiling=false",
    ];
    let found = [
        format!("--advertise-address={address}"),
        format!("--service-cluster-ip-range={}", plan::SERVICES),
        format!("--client-ca-file={pki}/ca.crt"),
        format!("--tls-cert-file={pki}/apiserver.crt"),
        format!("--tls-private-key-file={pki}/apiserver.key"),
        format!("--kubelet-certificate-authority={pki}/ca.crt"),
        format!("--kubelet-client-certificate={pki}/kubelet-client.crt"),
        format!("--kubelet-client-key={pki}/kubelet-client.key"),
        format!("--service-account-key-file={pki}/accounts.pub"),
        format!("--service-account-signing-key-file={pki}/accounts.key"),
        format!("--audit-policy-file={directory}/audit-policy.yaml"),
        format!("--audit-log-path={directory}/audit.log"),
        format!("--cert-dir={directory}/certificates"),
    ];
    site.start("kube-apiserver", &words(fixed.into_iter().chain(more.iter().copied()), found))
}

fn start_managers(site: &Site) -> Result<()> {
    let pki_dir = plan::pki().display().to_string();
    let directory = site.directory();
    let config = pki::kubeconfig("controller-manager", &directory.join("controller-manager.kubeconfig"))?;
    let fixed = ["--leader-elect=false", "--use-service-account-credentials", "--controllers=*,-nodeipam,-node-route-controller"];
    let found = [
        format!("--kubeconfig={}", config.display()),
        format!("--authentication-kubeconfig={}", config.display()),
        format!("--authorization-kubeconfig={}", config.display()),
        format!("--cert-dir={}/certificates", directory.display()),
        format!("--service-account-private-key-file={pki_dir}/accounts.key"),
        format!("--root-ca-file={pki_dir}/ca.crt"),
        format!("--cluster-cidr={}", plan::PODS),
        format!("--service-cluster-ip-range={}", plan::SERVICES),
    ];
    site.start("kube-controller-manager", &words(fixed, found))?;
    let config = pki::kubeconfig("scheduler", &directory.join("scheduler.kubeconfig"))?;
    let found = [
        format!("--kubeconfig={}", config.display()),
        format!("--authentication-kubeconfig={}", config.display()),
        format!("--authorization-kubeconfig={}", config.display()),
        format!("--cert-dir={}/certificates", directory.display()),
    ];
    site.start("kube-scheduler", &words(["--leader-elect=false"], found))
}

/// Fixed words and those that were put together.
pub(super) fn words<'a>(fixed: impl IntoIterator<Item = &'a str>, found: impl IntoIterator<Item = String>) -> Vec<String> {
    fixed.into_iter().map(str::to_owned).chain(found).collect()
}
