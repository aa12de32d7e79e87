//! How to reach the API server, and whether it is being reached.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use hyper_timeout::TimeoutConnector;
use hyper_util::client::legacy::Builder;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, Layer, Service, ServiceBuilder};

use super::SourceError;
use super::resource::Kind;

/// A connection that says nothing for so long is dead: the server sends a bookmark about once a minute.
const SILENCE: Duration = Duration::from_secs(100);
/// A server that does not take a connection is away.
const CONNECT: Duration = Duration::from_secs(3);
/// A path that drops packets says nothing. After so long without a word the kernel asks the other end, and asks again; nobody
/// answers for so long in all: the connection is dead.
const QUIET: Duration = Duration::from_secs(8);
const ASK_AGAIN: Duration = Duration::from_secs(3);
const DEAD: Duration = Duration::from_secs(17);

/// Whose credentials are used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// The pod's own service account.
    InCluster,
    /// This file.
    Kubeconfig(PathBuf),
    /// What the variable KUBECONFIG names.
    Environment,
}

impl Access {
    /// What there is without being told: KUBECONFIG, else the service account where this is a pod of a cluster.
    pub fn found() -> Option<Self> {
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        if set("KUBECONFIG") {
            Some(Self::Environment)
        } else {
            (set("KUBERNETES_SERVICE_HOST") && set("KUBERNETES_SERVICE_PORT")).then_some(Self::InCluster)
        }
    }
}

/// Reads where the API server is and who we are.
pub(super) async fn config(access: &Access) -> Result<Config, SourceError> {
    let options = KubeConfigOptions::default();
    let mut config = match access {
        Access::InCluster => Config::incluster().map_err(|e| SourceError::InCluster(e.to_string()))?,
        Access::Kubeconfig(path) => {
            let fail = |e: &dyn std::fmt::Display| SourceError::Kubeconfig { path: path.display().to_string(), error: e.to_string() };
            let file = Kubeconfig::read_from(path).map_err(|e| fail(&e))?;
            Config::from_custom_kubeconfig(file, &options).await.map_err(|e| fail(&e))?
        }
        Access::Environment => {
            let path = env::var("KUBECONFIG").unwrap_or_default();
            let fail = |e: &dyn std::fmt::Display| SourceError::Kubeconfig { path: path.clone(), error: e.to_string() };
            let file = Kubeconfig::from_env().map_err(|e| fail(&e))?.ok_or_else(|| fail(&"no such file"))?;
            Config::from_custom_kubeconfig(file, &options).await.map_err(|e| fail(&e))?
        }
    };
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENCE);
    // The watches have a back-off of their own, with jitter.
    config.default_retry = false;
    Ok(config)
}

/// A client that tells `link` of every answer. All is as kube's own client has it, but for sockets that notice a dead path.
pub(super) fn client(config: Config, link: &Arc<Link>) -> Result<Client, SourceError> {
    let fail = |e: kube::Error| SourceError::Client(e.to_string());
    if config.proxy_url.is_some() {
        return Err(SourceError::Client("it asks for a proxy (proxy-url, or HTTPS_PROXY), which is not supported".to_owned()));
    }
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(sockets()).map_err(fail)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    let service = ServiceBuilder::new()
        .layer(Heard(link.clone()))
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(fail)?)
        .layer(config.extra_headers_layer().map_err(fail)?)
        .map_err(BoxError::from)
        .service(Builder::new(TokioExecutor::new()).build::<_, Body>(connector));
    Ok(Client::new(service, config.default_namespace))
}

/// Sockets that do not wait for ever. A probe that is lost kills none: three in a row must be.
fn sockets() -> HttpConnector {
    let mut sockets = HttpConnector::new();
    // TLS is what comes upon it.
    sockets.enforce_http(false);
    sockets.set_keepalive(Some(QUIET));
    sockets.set_keepalive_interval(Some(ASK_AGAIN));
    // For data that nobody acknowledges; it bounds the probes, too.
    sockets.set_tcp_user_timeout(Some(DEAD));
    sockets
}

/// Which watches are broken, and since when.
#[derive(Debug, Default)]
pub(super) struct Link {
    broken: Mutex<BTreeMap<Kind, (SystemTime, String)>>,
}

impl Link {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<Kind, (SystemTime, String)>> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A watch has failed; `true` if all went well before.
    pub(super) fn fail(&self, kind: Kind, why: String) -> bool {
        let mut broken = self.lock();
        let first = broken.is_empty();
        let since = broken.get(&kind).map_or_else(SystemTime::now, |(since, _)| *since);
        broken.insert(kind, (since, why));
        first
    }

    /// The server has answered a watch; `true` if it was the last one broken.
    pub(super) fn heal(&self, kind: Kind) -> bool {
        let mut broken = self.lock();
        broken.remove(&kind).is_some() && broken.is_empty()
    }

    /// Since when something is broken, and what is.
    pub(super) fn stale(&self) -> Option<(SystemTime, String)> {
        self.lock().values().min().cloned()
    }
}

/// Wraps the client's transport.
struct Heard(Arc<Link>);

impl<S> Layer<S> for Heard {
    type Service = Hearing<S>;
    fn layer(&self, inner: S) -> Hearing<S> {
        Hearing { inner, link: self.0.clone() }
    }
}

struct Hearing<S> {
    inner: S,
    link: Arc<Link>,
}

impl<S, B> Service<Request<Body>> for Hearing<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let asked = request.uri().path().rsplit('/').next().unwrap_or_default();
        let kind = Kind::ALL.into_iter().find(|kind| kind.plural() == asked);
        let link = self.link.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(kind) = kind.filter(|_| answer.status().is_success())
                && link.heal(kind)
            {
                tracing::info!("the API server answers again");
            }
            Ok(answer)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::net::TcpListener;

    use super::*;

    /// What the kernel says of the socket that leads to `port`: which timer runs, and for how long, in hundredths of a second.
    fn timer(port: u16) -> Option<(u8, u32)> {
        let table = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("the kernel's table");
        let line = table.lines().find(|line| line.split_whitespace().nth(2).is_some_and(|to| to.ends_with(&format!(":{port:04X}"))))?;
        let (kind, left) = line.split_whitespace().nth(5)?.split_once(':')?;
        Some((kind.parse().ok()?, u32::from_str_radix(left, 16).ok()?))
    }

    /// That it is dead is noticed on a real path, see the tests on a real API server.
    #[tokio::test]
    async fn the_kernel_asks_after_a_silent_server() {
        const KEEPALIVE: u8 = 2;
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its address").port();
        let url = format!("http://127.0.0.1:{port}").parse().expect("a URL");
        let client = client(Config::new(url), &Arc::default()).expect("a client");
        let asking = tokio::spawn(async move { client.apiserver_version().await });
        let serving = tokio::task::spawn_blocking(move || {
            let (mut served, _) = listener.accept().expect("a connection");
            let _some = served.read(&mut [0; 16]).expect("a request");
            served
        });
        let _open = serving.await.expect("no panic");
        tokio::time::sleep(Duration::from_millis(300)).await;
        let (kind, left) = timer(port).expect("its socket");
        assert!(kind == KEEPALIVE && Duration::from_millis(u64::from(left) * 10) <= QUIET, "timer {kind}, {left} left");
        asking.abort();
    }

    #[test]
    fn a_proxy_is_not_passed_over() {
        let mut config = Config::new("https://127.0.0.1:1".parse().expect("a URL"));
        config.proxy_url = Some("http://user:secret@proxy:3128".parse().expect("a URL"));
        let said = client(config, &Arc::default()).err().expect("refused").to_string();
        assert!(said.contains("proxy") && !said.contains("secret"), "{said}");
    }
}
