//! Serving: the same services over every listener, until told to stop.

use std::sync::Arc;
use std::time::Duration;

use sekisho_proto::DESCRIPTORS;
use sekisho_proto::sekisho_server::SekishoServer;
use tokio::sync::watch;
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::transport::Server;
use tonic::transport::server::{Router, TcpIncoming};
use tonic_health::ServingStatus;
use tonic_health::server::{HealthReporter, health_reporter};

use super::service::{Reach, Service};
use super::{Agent, Listeners, tls};

/// How long open streams may take to end once the agent stops.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a client beyond this machine may be silent before it is asked whether it is still there: one that vanished would
/// keep its streams for ever.
const TRIED: Duration = Duration::from_secs(10);
/// How long it has for its answer. A client that was stopped for a moment is not one that vanished.
const AWAITED: Duration = Duration::from_secs(20);
/// How often readiness is looked at for the health service.
const PULSE: Duration = Duration::from_secs(1);
/// Name under which health is told, beside the server as a whole.
const SERVICE: &str = "sekisho.v1.Sekisho";

/// Why serving ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors cannot be read back.
    #[error("the protocol's own description is broken: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("gRPC ended: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves until `stopped` says true. Streams end when the book is closed; what has not ended shortly after is cut.
pub async fn serve(mut listeners: Listeners, agent: Arc<dyn Agent>, stopped: watch::Receiver<bool>) -> Result<(), ServeError> {
    let (reporter, _) = health_reporter();
    let health = tokio::spawn(tell_health(Arc::clone(&agent), reporter.clone()));
    let unix = listeners.unix.take().map(|unix| {
        router(&agent, Reach::Local, reporter.clone())
            .map(|router| router.serve_with_incoming_shutdown(UnixListenerStream::new(unix), stop(stopped.clone())))
    });
    let (mut tcp, mut tls) = (None, None);
    match (listeners.tcp.take(), listeners.tls.take()) {
        (Some(listener), Some(files)) => {
            let incoming = ReceiverStream::new(tls::accept(listener, files));
            tls = Some(router(&agent, Reach::Certified, reporter)?.serve_with_incoming_shutdown(incoming, stop(stopped.clone())));
        }
        (Some(listener), None) => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            tcp = Some(router(&agent, Reach::Loopback, reporter)?.serve_with_incoming_shutdown(incoming, stop(stopped.clone())));
        }
        (None, _) => {}
    }
    let unix = unix.transpose()?;
    let all = async {
        let unix = async { if let Some(unix) = unix { unix.await } else { Ok(()) } };
        let tcp = async { if let Some(tcp) = tcp { tcp.await } else { Ok(()) } };
        let tls = async { if let Some(tls) = tls { tls.await } else { Ok(()) } };
        tokio::try_join!(unix, tcp, tls).map(|_| ())
    };
    let farewell = async {
        stop(stopped.clone()).await;
        tokio::time::sleep(FAREWELL).await;
    };
    let served = tokio::select! {
        served = all => served.map_err(ServeError::from),
        () = farewell => Ok(()),
    };
    health.abort();
    served
}

fn router(agent: &Arc<dyn Agent>, reach: Reach, reporter: HealthReporter) -> Result<Router, ServeError> {
    let health = tonic_health::pb::health_server::HealthServer::new(tonic_health::server::HealthService::from_health_reporter(reporter));
    let reflection = || {
        // All that is served, under both versions of reflection.
        let described = [
            DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ];
        let builder = tonic_reflection::server::Builder::configure().include_reflection_service(false);
        described.into_iter().fold(builder, tonic_reflection::server::Builder::register_encoded_file_descriptor_set)
    };
    let tried = (reach == Reach::Certified).then_some(TRIED);
    Ok(Server::builder()
        .http2_keepalive_interval(tried)
        .http2_keepalive_timeout(Some(AWAITED))
        .add_service(SekishoServer::new(Service::new(Arc::clone(agent), reach)))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}

async fn stop(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone stops as well.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

async fn tell_health(agent: Arc<dyn Agent>, reporter: HealthReporter) {
    loop {
        let asked = Arc::clone(&agent);
        let ready = tokio::task::spawn_blocking(move || asked.ready()).await.unwrap_or(false);
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        reporter.set_service_status("", status).await;
        reporter.set_service_status(SERVICE, status).await;
        tokio::time::sleep(PULSE).await;
    }
}
