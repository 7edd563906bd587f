//! The seam of the simulation (feature `simulation`): a thread that has [entered](enter) a simulated host uses the clock,
//! network, disk and random numbers of that host instead of the operating system's.
//!
//! A simulated member does everything on the thread that simulates it. So the host is a property of the thread, and the code
//! in between need not know it. Builds without the feature have none of this.

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use palisade_engine::Time;
use palisade_engine::replica::Replica;
use palisade_raft_store::{Inspector, MemoryDisk};
use tokio::io::{AsyncRead, AsyncWrite};

/// A simulated connection between two hosts.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

/// The connections that other hosts make to a listener.
pub type Incoming = BoxStream<'static, io::Result<Box<dyn Connection>>>;

/// A simulated host: what a member uses instead of an operating system.
pub trait Host: Send + Sync {
    /// See [`crate::clock::now`].
    fn now(&self) -> Time;
    /// See [`crate::clock::unix_ms`].
    fn unix_ms(&self) -> u64;
    /// Fills `bytes` with random numbers.
    fn random(&self, bytes: &mut [u8]);
    /// The host's disk.
    fn disk(&self) -> MemoryDisk;
    /// Called when a replica was opened on the disk.
    fn opened(&self, inspector: Inspector<Replica>);
    /// Listens for connections at `at`.
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

/// Makes this thread run on `host`.
pub fn enter(host: Arc<dyn Host>) -> Entered {
    Entered(HOST.replace(Some(host)))
}

/// The simulated host that this thread runs on, if there is one.
pub(crate) fn host() -> Option<Arc<dyn Host>> {
    HOST.with_borrow(Clone::clone)
}

/// Calls `f` with the simulated host that this thread runs on, if there is one.
pub(crate) fn with<T>(f: impl FnOnce(&dyn Host) -> T) -> Option<T> {
    HOST.with_borrow(|host| host.as_deref().map(f))
}
