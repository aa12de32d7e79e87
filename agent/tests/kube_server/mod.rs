//! A real etcd and a real kube-apiserver of this test's own, on loopback, and a client to write objects with.
//!
//! The binaries are those of `cargo xtask cluster`: `~/.cache/sekisho/kubernetes-*/bin`, or the folder that SEKISHO_KUBERNETES names.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::{Value, json};

/// How long a server may take to answer: the machine may be busy.
const PATIENCE: Duration = Duration::from_secs(90);

/// A process that ends with the test.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// See the module.
pub(crate) struct Cluster {
    folder: tempfile::TempDir,
    bin: PathBuf,
    etcd_port: u16,
    port: u16,
    api: Option<Server>,
    _etcd: Server,
}

impl Cluster {
    /// Starts both servers and waits until they answer.
    pub(crate) fn start() -> Result<Self> {
        let bin = binaries()?;
        let folder = tempfile::tempdir()?;
        let [etcd_port, peer_port, port] = [free_port()?, free_port()?, free_port()?];
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let etcd = Command::new(bin.join("etcd"))
            .args(["--unsafe-no-fsync", "--log-level", "error", "--data-dir"])
            .arg(folder.path().join("etcd"))
            .args(["--listen-client-urls", &url(etcd_port), "--advertise-client-urls", &url(etcd_port)])
            .args(["--listen-peer-urls", &url(peer_port), "--initial-advertise-peer-urls", &url(peer_port)])
            .args(["--initial-cluster", &format!("default={}", url(peer_port))])
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("etcd.log"))?)
            .spawn()?;
        let etcd = Server(etcd);
        let key = folder.path().join("sa.key");
        let made = Command::new("openssl").args(["genrsa", "-out"]).arg(&key).arg("2048").stderr(Stdio::null()).status()?;
        ensure!(made.success(), "openssl makes no key");
        fs::write(folder.path().join("tokens"), "secret,admin,admin,system:masters\n")?;
        let mut cluster = Self { folder, bin, etcd_port, port, api: None, _etcd: etcd };
        cluster.start_api()?;
        Ok(cluster)
    }

    /// Starts the API server (again) on its port.
    pub(crate) fn start_api(&mut self) -> Result<()> {
        self.api = Some(self.launch(self.port)?);
        self.wait(self.port)
    }

    /// Ends the API server as a crash does.
    pub(crate) fn kill_api(&mut self) {
        self.api = None;
    }

    /// A second API server on the same store, which the source under test does not know; `then` works with it.
    pub(crate) fn with_another<T>(&self, then: impl FnOnce(&Objects) -> Result<T>) -> Result<T> {
        let port = free_port()?;
        let _server = self.launch(port)?;
        self.wait(port)?;
        then(&Objects::connect(&self.kubeconfig(port)?)?)
    }

    /// From now on every packet to and from the API server is dropped, and nobody is told, until what is returned is. To be used in a
    /// network namespace of the test's own.
    pub(crate) fn silence(&self) -> Result<Silence> {
        let port = self.port;
        nft(&format!(
            "table inet sekisho_silence {{
                chain arriving {{
                    type filter hook input priority 0
                    tcp dport {port} drop
                    tcp sport {port} drop
                }}
            }}
            "
        ))?;
        Ok(Silence)
    }

    /// Throws all history away.
    pub(crate) fn compact(&self) -> Result<()> {
        let ask = |path: &str, body: &str| http(self.etcd_port, "POST", path, body);
        let status = ask("/v3/maintenance/status", "{}")?;
        let header: Value = serde_json::from_str(&status)?;
        let revision = header["header"]["revision"].as_str().context("etcd says no revision")?.to_owned();
        let answer = ask("/v3/kv/compaction", &json!({"revision": revision, "physical": true}).to_string())?;
        ensure!(answer.contains("header"), "etcd does not compact: {answer}");
        Ok(())
    }

    /// A kubeconfig for the API server.
    pub(crate) fn config(&self) -> Result<PathBuf> {
        self.kubeconfig(self.port)
    }

    /// A client for the API server.
    pub(crate) fn objects(&self) -> Result<Objects> {
        Objects::connect(&self.config()?)
    }

    fn kubeconfig(&self, port: u16) -> Result<PathBuf> {
        let path = self.folder.path().join(format!("kubeconfig-{port}"));
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {"server": format!("https://127.0.0.1:{port}"), "insecure-skip-tls-verify": true}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        });
        fs::write(&path, config.to_string())?;
        Ok(path)
    }

    fn launch(&self, port: u16) -> Result<Server> {
        let at = |name: &str| self.folder.path().join(name).display().to_string();
        let child = Command::new(self.bin.join("kube-apiserver"))
            // What it tells others of itself; without it, it looks for a default route.
            .args([
                "--advertise-address",
                "192.0.2.1",
                "--bind-address",
                "127.0.0.1",
                "--secure-port",
                &port.to_string(),
                "--cert-dir",
                &at(&format!("certs-{port}")),
            ])
            .args(["--etcd-servers", &format!("http://127.0.0.1:{}", self.etcd_port), "--token-auth-file", &at("tokens")])
            .args(["--service-account-issuer", "https://sekisho", "--service-account-key-file", &at("sa.key")])
            .args(["--service-account-signing-key-file", &at("sa.key"), "--service-cluster-ip-range", "10.96.0.0/12,fd96::/108"])
            .args(["--authorization-mode", "AlwaysAllow", "--disable-admission-plugins", "ServiceAccount", "-v", "0"])
            .args(["--max-requests-inflight", "2000", "--max-mutating-requests-inflight", "1000"])
            .stdout(Stdio::null())
            .stderr(fs::File::create(at(&format!("api-{port}.log")))?)
            .spawn()?;
        Ok(Server(child))
    }

    fn wait(&self, port: u16) -> Result<()> {
        let objects = Objects::connect(&self.kubeconfig(port)?)?;
        let until = Instant::now() + PATIENCE;
        loop {
            match objects.list("v1", "Namespace").map(|list| list.iter().any(|ns| ns["metadata"]["name"] == "default")) {
                Ok(true) => return Ok(()),
                answer if Instant::now() > until => {
                    let log = fs::read_to_string(self.folder.path().join(format!("api-{port}.log"))).unwrap_or_default();
                    let tail = log.lines().rev().take(20).collect::<Vec<_>>().join("\n");
                    bail!("kube-apiserver does not answer: {answer:?}\n{tail}");
                }
                _ => std::thread::sleep(Duration::from_millis(200)),
            }
        }
    }
}

/// Packets are dropped as long as this lives.
pub(crate) struct Silence;

impl Drop for Silence {
    fn drop(&mut self) {
        if let Err(error) = nft("delete table inet sekisho_silence") {
            eprintln!("{error:#}");
        }
    }
}

fn nft(rules: &str) -> Result<()> {
    let mut child = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn().context("nft does not start")?;
    child.stdin.take().context("its input was piped")?.write_all(rules.as_bytes())?;
    ensure!(child.wait()?.success(), "nft does not take {rules:?} (are you root?)");
    Ok(())
}

/// Objects behind an API server, as plain JSON.
pub(crate) struct Objects {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

impl Objects {
    fn connect(kubeconfig: &Path) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let client = runtime.block_on(async {
            let mut config = Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &KubeConfigOptions::default()).await?;
            config.default_retry = false;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        Ok(Self { runtime, client })
    }

    fn api(&self, version: &str, kind: &str, namespace: Option<&str>) -> Api<DynamicObject> {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let plural = match kind {
            "NetworkPolicy" => "networkpolicies".to_owned(),
            kind => format!("{}s", kind.to_lowercase()),
        };
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), &plural);
        match namespace {
            Some(namespace) => Api::namespaced_with(self.client.clone(), namespace, &resource),
            None => Api::all_with(self.client.clone(), &resource),
        }
    }

    fn of(&self, object: &Value) -> Result<(Api<DynamicObject>, String)> {
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let version = text(&object["apiVersion"]).context("apiVersion")?;
        let kind = text(&object["kind"]).context("kind")?;
        let name = text(&object["metadata"]["name"]).context("metadata.name")?;
        Ok((self.api(&version, &kind, object["metadata"]["namespace"].as_str()), name))
    }

    /// All objects of a kind.
    pub(crate) fn list(&self, version: &str, kind: &str) -> Result<Vec<Value>> {
        let api = self.api(version, kind, None);
        let list =
            self.runtime.block_on(async { tokio::time::timeout(Duration::from_secs(10), api.list(&ListParams::default())).await })??;
        list.items.into_iter().map(|item| Ok(serde_json::to_value(item)?)).collect()
    }

    /// Creates an object, and its status if it has one. A server that has just started may not know the namespace yet.
    pub(crate) fn create(&self, object: &Value) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match self.runtime.block_on(self.create_async(object)) {
                Err(_) if Instant::now() < until => std::thread::sleep(Duration::from_millis(200)),
                done => return done,
            }
        }
    }

    async fn create_async(&self, object: &Value) -> Result<()> {
        let (api, name) = self.of(object)?;
        let body: DynamicObject = serde_json::from_value(object.clone())?;
        api.create(&PostParams::default(), &body).await.with_context(|| format!("creating {name}"))?;
        if !object["status"].is_null() {
            let patch = json!({"status": object["status"]});
            api.patch_status(&name, &PatchParams::default(), &Patch::Merge(&patch)).await.with_context(|| format!("status of {name}"))?;
        }
        Ok(())
    }

    /// Creates many, some at a time.
    pub(crate) fn create_all(&self, objects: &[Value]) -> Result<()> {
        use futures_util::StreamExt as _;
        self.runtime.block_on(async {
            let mut done = futures_util::stream::iter(objects.iter().map(|object| self.create_async(object))).buffer_unordered(64);
            while let Some(result) = done.next().await {
                result?;
            }
            Ok(())
        })
    }

    /// Merges `patch` into an object.
    pub(crate) fn patch(&self, object: &Value, patch: &Value) -> Result<()> {
        let (api, name) = self.of(object)?;
        self.runtime.block_on(api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)))?;
        Ok(())
    }

    /// Deletes an object at once.
    pub(crate) fn delete(&self, object: &Value) -> Result<()> {
        let (api, name) = self.of(object)?;
        let now = kube::api::DeleteParams { grace_period_seconds: Some(0), ..kube::api::DeleteParams::default() };
        self.runtime.block_on(api.delete(&name, &now))?;
        Ok(())
    }
}

fn binaries() -> Result<PathBuf> {
    let complete = |bin: &PathBuf| ["etcd", "kube-apiserver"].iter().all(|name| bin.join(name).is_file());
    if let Some(folder) = std::env::var_os("SEKISHO_KUBERNETES") {
        return Some(PathBuf::from(folder)).filter(complete).context("SEKISHO_KUBERNETES holds no etcd and kube-apiserver");
    }
    let cache = PathBuf::from(std::env::var_os("HOME").context("HOME is not set")?).join(".cache/sekisho");
    let mut found: Vec<PathBuf> = fs::read_dir(&cache)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("kubernetes-"))
        .map(|entry| entry.path().join("bin"))
        .filter(complete)
        .collect();
    found.sort();
    found.pop().with_context(|| format!("no etcd and kube-apiserver under {}; run `cargo xtask cluster up` once", cache.display()))
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn http(port: u16, method: &str, path: &str, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}
