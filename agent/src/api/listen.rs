//! The sockets: bound before anything is served, so that what is in the way is said at once.

use std::fs;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::{TcpListener, UnixListener, UnixStream};

use super::tls::Tls;

/// Owner and group may talk to the agent, nobody else.
const SOCKET_MODE: u32 = 0o660;

/// Why a socket cannot be had. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another agent.
    #[error("another agent answers on {}: stop it, or give this one another --socket", .0.display())]
    LiveAgent(PathBuf),
    /// Something that is not a socket lies there.
    #[error("{} is there and is not a socket: remove it, or give another --socket", .0.display())]
    NotSocket(PathBuf),
    /// The folder cannot be made.
    #[error("the folder {} cannot be made: {source}", folder.display())]
    Folder {
        /// Which.
        folder: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The Unix socket cannot be made.
    #[error("the socket {} cannot be made: {source}", path.display())]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not a loopback address.
    #[error(
        "{0} is not a loopback address: --listen takes only 127.0.0.1:PORT or [::1]:PORT, since what it serves is not encrypted; other addresses need --tls-cert, --tls-key and --tls-client-ca"
    )]
    NotLoopback(SocketAddr),
    /// The port is taken.
    #[error("port {} of {} is in use: give another with --listen", .0.port(), .0.ip())]
    PortInUse(SocketAddr),
    /// TCP cannot be had for another reason.
    #[error("{address} cannot be listened on: {source}")]
    Tcp {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// Refuses an address that others than this machine could reach.
pub fn check_loopback(address: SocketAddr) -> Result<(), BindError> {
    if address.ip().to_canonical().is_loopback() { Ok(()) } else { Err(BindError::NotLoopback(address)) }
}

/// The bound sockets. The Unix socket's file goes when they are dropped.
#[derive(Debug)]
pub struct Listeners {
    pub(super) unix: Option<UnixListener>,
    pub(super) tcp: Option<TcpListener>,
    pub(super) tls: Option<Arc<Tls>>,
    path: PathBuf,
    inode: u64,
}

impl Listeners {
    /// Where TCP listens, if it does; tells the port that the kernel chose for port 0.
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok())
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        // A later agent may have put its own socket there.
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Binds the Unix socket, replacing a stale one, and TCP if asked for; without TLS on loopback only.
pub async fn bind(socket: &Path, listen: Option<SocketAddr>, tls: Option<Tls>) -> Result<Listeners, BindError> {
    let tcp = match listen {
        Some(address) => {
            if tls.is_none() {
                check_loopback(address)?;
            }
            Some(bind_tcp(address).await.map_err(|source| match source.kind() {
                io::ErrorKind::AddrInUse => BindError::PortInUse(address),
                _ => BindError::Tcp { address, source },
            })?)
        }
        None => None,
    };
    make_folder(socket)?;
    make_way(socket).await?;
    let failed = |source| BindError::Socket { path: socket.to_owned(), source };
    let unix = UnixListener::bind(socket).map_err(failed)?;
    fs::set_permissions(socket, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed)?;
    let inode = fs::symlink_metadata(socket).map_err(failed)?.ino();
    Ok(Listeners { unix: Some(unix), tcp, tls: tls.map(Arc::new), path: socket.to_owned(), inode })
}

/// Binds an address. `[::]` is every address of both families; where the kernel has no IPv6, every one of IPv4.
pub(super) async fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && error.kind() != io::ErrorKind::AddrInUse => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await.map_err(|_| error)
        }
        bound => bound,
    }
}

fn make_folder(socket: &Path) -> Result<(), BindError> {
    match socket.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => {
            fs::create_dir_all(folder).map_err(|source| BindError::Folder { folder: folder.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Removes the socket of an agent that has ended; refuses where one still answers.
async fn make_way(socket: &Path) -> Result<(), BindError> {
    match fs::symlink_metadata(socket) {
        Err(_) => return Ok(()),
        Ok(found) if !found.file_type().is_socket() => return Err(BindError::NotSocket(socket.to_owned())),
        Ok(_) => {}
    }
    match UnixStream::connect(socket).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(socket).map_err(|source| BindError::Socket { path: socket.to_owned(), source })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // It accepts, or its queue is full.
        _ => Err(BindError::LiveAgent(socket.to_owned())),
    }
}
