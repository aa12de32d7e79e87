//! Who is who in the cluster: one authority, a certificate for every part, and a kubeconfig where one is used.
//! Keys of a test cluster: they live as long as it does, in a directory that only root reads.

use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::plan::{self, API_SERVICE, Plan};
use crate::workspace::output;

/// What `openssl req` needs to be told even if it is nothing.
const CONFIG: &str = "[req]\ndistinguished_name = subject\n[subject]\n";

pub(super) fn make(plan: Plan) -> Result<()> {
    fs::create_dir_all(plan::pki())?;
    fs::set_permissions(plan::pki(), fs::Permissions::from_mode(0o700))?;
    fs::write(plan::pki().join("openssl.cnf"), CONFIG)?;
    request("ca", "/CN=sekisho-cluster", &["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"], false)?;
    let api: Vec<IpAddr> = plan::control_plane_addresses().into_iter().chain([API_SERVICE.into(), [127, 0, 0, 1].into()]).collect();
    serving("apiserver", "/CN=kube-apiserver", &["kubernetes", "kubernetes.default.svc", "localhost"], &api)?;
    serving("kubelet-client", "/O=system:masters/CN=kube-apiserver-kubelet-client", &[], &[])?;
    serving("admin", "/O=system:masters/CN=admin", &[], &[])?;
    serving("controller-manager", "/CN=system:kube-controller-manager", &[], &[])?;
    serving("scheduler", "/CN=system:kube-scheduler", &[], &[])?;
    serving("kube-proxy", "/CN=system:kube-proxy", &[], &[])?;
    for number in plan.numbers() {
        let name = plan::node_name(number);
        let subject = format!("/O=system:nodes/CN=system:node:{name}");
        serving(&name, &subject, &[&name], &plan::node_addresses(number))?;
    }
    openssl(Command::new("openssl").args([
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-out",
        "accounts.key",
    ]))?;
    openssl(Command::new("openssl").args(["pkey", "-in", "accounts.key", "-pubout", "-out", "accounts.pub"]))
}

/// Writes a kubeconfig for the holder of the certificate `user`.
pub(super) fn kubeconfig(user: &str, path: &Path) -> Result<PathBuf> {
    let text = include_str!("../../cluster/config/kubeconfig.yaml")
        .replace("{server}", &plan::server())
        .replace("{pki}", &plan::pki().display().to_string())
        .replace("{user}", user);
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path.to_owned())
}

/// A certificate for both ends of a connection.
fn serving(name: &str, subject: &str, names: &[&str], addresses: &[IpAddr]) -> Result<()> {
    let alternatives: Vec<String> =
        names.iter().map(|name| format!("DNS:{name}")).chain(addresses.iter().map(|address| format!("IP:{address}"))).collect();
    let alternatives = format!("subjectAltName={}", alternatives.join(","));
    let mut extensions =
        vec!["basicConstraints=critical,CA:FALSE", "keyUsage=critical,digitalSignature", "extendedKeyUsage=serverAuth,clientAuth"];
    if !names.is_empty() || !addresses.is_empty() {
        extensions.push(&alternatives);
    }
    request(name, subject, &extensions, true)
}

fn request(name: &str, subject: &str, extensions: &[&str], signed: bool) -> Result<()> {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "365"]);
    command.args(["-config", "openssl.cnf", "-subj", subject]);
    command.arg("-keyout").arg(format!("{name}.key")).arg("-out").arg(format!("{name}.crt"));
    if signed {
        command.args(["-CA", "ca.crt", "-CAkey", "ca.key"]);
    }
    for extension in extensions {
        command.args(["-addext", extension]);
    }
    openssl(&mut command).with_context(|| format!("no certificate for {name}"))
}

fn openssl(command: &mut Command) -> Result<()> {
    output(command.current_dir(plan::pki())).map(drop)
}
