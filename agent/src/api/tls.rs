//! TLS with client certificates for gRPC beyond this machine: who shows no certificate of the given authority is
//! not answered.
//!
//! The files may be replaced at any time, as a mounted Secret's are: they are looked at before every handshake. What does not fit
//! together yet is not taken, and what was there before stays in use. A connection that is open stays so.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};
use tokio_rustls::server::TlsStream;
use tracing::{debug, info, warn};

/// A handshake must be over by then.
const PATIENCE: Duration = Duration::from_secs(10);
/// Handshakes at a time; more wait.
const AT_ONCE: usize = 32;
/// Connections that wait to be served.
const HAND: usize = 16;

/// Where certificate, key and the clients' authority lie, all PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The agent's certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// Certificates of the authorities whose clients are answered.
    pub client_authority: PathBuf,
}

/// Why TLS cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("{} holds no {what} in PEM: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What should be in it.
        what: &'static str,
        /// Why not.
        why: String,
    },
    /// They do not fit together.
    #[error("certificate and key cannot be used: {0}")]
    Unfit(String),
    /// The authority cannot be used.
    #[error("the clients' authority cannot be used: {0}")]
    Authority(String),
}

/// What tells one state of a file from another: a replaced file is another inode, or was written later.
type Stamp = [(u64, u64, i64, i64); 3];

#[derive(Debug)]
struct Current {
    config: Arc<ServerConfig>,
    stamp: Stamp,
    /// The state that was refused, so that it is said once.
    refused: Option<Stamp>,
}

/// The configuration, as the files have it.
#[derive(Debug)]
pub struct Tls {
    files: TlsFiles,
    current: Mutex<Current>,
}

impl Tls {
    /// Reads the files.
    pub fn load(files: TlsFiles) -> Result<Self, TlsError> {
        // Before they are read: what changes meanwhile is read again.
        let stamp = stamp(&files);
        let config = Arc::new(read(&files)?);
        Ok(Self { current: Mutex::new(Current { config, stamp, refused: None }), files })
    }

    /// The configuration for the next connection.
    fn config(&self) -> Arc<ServerConfig> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let now = stamp(&self.files);
        if now != current.stamp && current.refused != Some(now) {
            match read(&self.files) {
                Ok(config) => {
                    *current = Current { config: Arc::new(config), stamp: now, refused: None };
                    info!(certificate = %self.files.certificate.display(), "the certificate was read again");
                }
                Err(error) => {
                    warn!(%error, "the certificate cannot be read again; the former one stays in use");
                    current.refused = Some(now);
                }
            }
        }
        Arc::clone(&current.config)
    }
}

fn stamp(files: &TlsFiles) -> Stamp {
    let of = |path: &Path| fs::metadata(path).map_or((0, 0, 0, 0), |file| (file.ino(), file.size(), file.mtime(), file.mtime_nsec()));
    [of(&files.certificate), of(&files.key), of(&files.client_authority)]
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |why: String| TlsError::File { path: path.to_owned(), what: "certificate", why };
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|e| wrong(e.to_string()))?;
    if read.is_empty() { Err(wrong("there is none in it".to_owned())) } else { Ok(read) }
}

fn read(files: &TlsFiles) -> Result<ServerConfig, TlsError> {
    let key = PrivateKeyDer::from_pem_file(&files.key);
    let key = key.map_err(|e| TlsError::File { path: files.key.clone(), what: "private key", why: e.to_string() })?;
    let mut authorities = RootCertStore::empty();
    for authority in certificates(&files.client_authority)? {
        authorities.add(authority).map_err(|e| TlsError::Authority(e.to_string()))?;
    }
    let provider = Arc::new(ring::default_provider());
    let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), Arc::clone(&provider)).build();
    let clients = clients.map_err(|e| TlsError::Authority(e.to_string()))?;
    let unfit = |e: tokio_rustls::rustls::Error| TlsError::Unfit(e.to_string());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unfit)?
        .with_client_cert_verifier(clients)
        .with_single_cert(certificates(&files.certificate)?, key)
        .map_err(unfit)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Connections whose clients have shown who they are. Ends with the receiver.
pub(super) fn accept(listener: TcpListener, tls: Arc<Tls>) -> mpsc::Receiver<io::Result<TlsStream<TcpStream>>> {
    let (connections, served) = mpsc::channel(HAND);
    let places = Arc::new(Semaphore::new(AT_ONCE));
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = connections.closed() => return,
            };
            let Ok((stream, client)) = accepted else {
                // Out of file descriptors, most likely: it passes.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let (tls, connections) = (Arc::clone(&tls), connections.clone());
            tokio::spawn(async move {
                let shaken = tokio::time::timeout(PATIENCE, shake(stream, &tls)).await;
                drop(place);
                match shaken {
                    // A server that has ended serves nobody.
                    Ok(Ok(stream)) => drop(connections.send(Ok(stream)).await),
                    Ok(Err(error)) => refuse(client, &error.to_string()),
                    Err(_) => refuse(client, "it did not finish the handshake"),
                }
            });
        }
    });
    served
}

async fn shake(stream: TcpStream, tls: &Tls) -> io::Result<TlsStream<TcpStream>> {
    stream.set_nodelay(true)?;
    TlsAcceptor::from(tls.config()).accept(stream).await
}

fn refuse(client: SocketAddr, why: &str) {
    debug!(%client, why, "a client was refused");
}
