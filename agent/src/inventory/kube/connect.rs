//! How to reach the API server, and whether it is being reached.

use std::collections::BTreeMap;
use std::env;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use http::{Request, Response};
use kube::client::{Body, ClientBuilder};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{Layer, Service};

use super::SourceError;
use super::resource::Kind;

/// A connection that says nothing for so long is dead: the server sends a bookmark about once a minute.
const SILENCE: Duration = Duration::from_secs(100);
/// A server that does not take a connection is away.
const CONNECT: Duration = Duration::from_secs(3);

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

/// A client that tells `link` of every answer.
pub(super) fn client(config: Config, link: &Arc<Link>) -> Result<Client, SourceError> {
    let builder = ClientBuilder::try_from(config).map_err(|e| SourceError::Client(e.to_string()))?;
    Ok(builder.with_layer(&Heard(link.clone())).build())
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
