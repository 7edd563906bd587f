//! The seam of the simulation (feature `simulation`): a thread that has [entered](enter) a simulated host finds that one's
//! clock, network, disk and random numbers where it otherwise finds the operating system's.
//!
//! Everything that a simulated member does, it does on the thread that simulates it; so which host it runs on is a
//! property of the thread, and the code in between need not know. Builds without the feature have none of this.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use palisade_engine::Time;
use palisade_engine::replica::Replica;
use palisade_raft_store::{Inspector, MemoryDisk};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::server::Connected;

/// A simulated connection between two hosts.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// The connections that others make to a listener.
pub type Incoming = BoxStream<'static, io::Result<Box<dyn Connection>>>;

/// What a simulated host has instead of an operating system.
pub trait Host: Send + Sync {
    /// See [`crate::clock::now`].
    fn now(&self) -> Time;
    /// See [`crate::clock::unix_ms`].
    fn unix_ms(&self) -> u64;
    /// Random numbers.
    fn random(&self, bytes: &mut [u8]);
    /// Its disk.
    fn disk(&self) -> MemoryDisk;
    /// A replica was opened on the disk.
    fn opened(&self, inspector: Inspector<Replica>);
    /// Listens for connections.
    ///
    /// # Errors
    /// The address is taken, or another host's.
    fn listen(&self, at: SocketAddr) -> io::Result<Incoming>;
    /// Connects to `host:port`.
    fn connect(&self, to: &str) -> BoxFuture<'static, io::Result<Box<dyn Connection>>>;
}

thread_local! {
    static HOST: RefCell<Option<Arc<dyn Host>>> = const { RefCell::new(None) };
}

/// Leaves the host when it is dropped.
#[must_use = "the host is left when this is dropped"]
pub struct Entered(Option<Arc<dyn Host>>);

impl fmt::Debug for Entered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered").finish_non_exhaustive()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        HOST.set(self.0.take());
    }
}

/// From now on this thread runs on `host`.
pub fn enter(host: Arc<dyn Host>) -> Entered {
    Entered(HOST.replace(Some(host)))
}

/// The host that this thread runs on, if that is a simulated one.
pub(crate) fn host() -> Option<Arc<dyn Host>> {
    HOST.with_borrow(Clone::clone)
}

/// Calls `f` with the host that this thread runs on, if that is a simulated one.
pub(crate) fn with<T>(f: impl FnOnce(&dyn Host) -> T) -> Option<T> {
    HOST.with_borrow(|host| host.as_deref().map(f))
}

/// A connection between members: a real one, or a simulated one.
pub(crate) enum Stream {
    Real(TcpStream),
    Simulated(Box<dyn Connection>),
}

impl Connected for Stream {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Real(stream) => Pin::new(stream).poll_read(context, to),
            Stream::Simulated(stream) => Pin::new(stream).poll_read(context, to),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Real(stream) => Pin::new(stream).poll_write(context, bytes),
            Stream::Simulated(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Real(stream) => Pin::new(stream).poll_flush(context),
            Stream::Simulated(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Real(stream) => Pin::new(stream).poll_shutdown(context),
            Stream::Simulated(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
