//! TCP listeners that only some interfaces reach: the member port and HTTP.
//!
//! ```text
//!  bind ── filter ── listen ──> accept ──> Connection
//!            ▲                                 │ registered while it is open
//!            └─── watcher: interfaces change ──┘ the filter of all of them is exchanged
//! ```
//!
//! The kernel drops what came in by any other interface before a SYN is answered ([`ingress`]), so nobody there learns
//! whether a member listens. The gate's table drops the same again, where there is a gate.
//!
//! An accepted connection inherits the filter of its listener. Its own is exchanged together with the listener's: with the old
//! one, a connection would fall silent when its interface is removed and made again, under a new index.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use miette::Diagnostic;
use nix::sys::eventfd::{EfdFlags, EventFd};
use palisade_metrics::Counter;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::datapath::ingress::{self, Found, Ingress, IngressWatch};
use crate::kept::Kept;
use crate::lab_panic;

/// Interval at which the interfaces are looked up even without a notification.
const CHECK_INTERVAL: Duration = Duration::from_secs(10);
/// Connections that the kernel completes before they are accepted.
const BACKLOG: u32 = 1024;
/// The largest number of interfaces that a listener can have.
pub(crate) const MAX_INTERFACES: usize = ingress::MAX_INDICES - 1;

/// Why a port is not open.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum ListenError {
    /// The address.
    #[error("cannot listen on {address}")]
    #[diagnostic(help("set `{table}.listen` to a free port and an address of this machine"))]
    Bind {
        /// The table of node.toml.
        table: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The address does not say by which interfaces it may be reached.
    #[error("{address} is on the loopback interface, which does not say by which interfaces it may be reached")]
    #[diagnostic(help("name them: `{table}.interfaces = [\"eth2\"]`"))]
    Unnamed {
        /// The table of node.toml.
        table: &'static str,
        /// The address.
        address: SocketAddr,
    },
    /// The interfaces, or the filter.
    #[error("cannot restrict the port {address} to its interfaces")]
    #[diagnostic(help("the port stays closed: an open one would answer on every interface of this machine"))]
    Restrict {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
}

/// The listeners of this machine, each with the indices of its interfaces.
type Listeners = BTreeMap<&'static str, (SocketAddr, BTreeSet<u32>)>;

/// The second lock: where the interfaces of all listeners are enforced once more. The default one does nothing.
#[derive(Clone, Default)]
pub struct SecondLock(Option<Arc<Lock>>);

struct Lock {
    listeners: Mutex<Listeners>,
    apply: Box<dyn Fn(&Listeners) + Send + Sync>,
}

impl SecondLock {
    /// A lock that `apply` sets: it is given all listeners at each change.
    pub(crate) fn new(apply: impl Fn(&Listeners) + Send + Sync + 'static) -> SecondLock {
        SecondLock(Some(Arc::new(Lock { listeners: Mutex::default(), apply: Box::new(apply) })))
    }

    /// Changes, adds or (`None`) removes a listener.
    fn set(&self, port: &Port, indices: Option<BTreeSet<u32>>) {
        let Some(lock) = &self.0 else { return };
        let mut listeners = lock.listeners.lock();
        match indices {
            Some(indices) => drop(listeners.insert(port.table, (port.address, indices))),
            None => drop(listeners.remove(port.table)),
        }
        (lock.apply)(&listeners);
    }
}

impl fmt::Debug for SecondLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SecondLock").field(&self.0.is_some()).finish()
    }
}

/// What is listened on.
#[derive(Clone, Debug)]
pub(crate) struct Port {
    /// The table of node.toml that describes it.
    pub(crate) table: &'static str,
    /// The address.
    pub(crate) address: SocketAddr,
    /// The names of its interfaces; none: the interface that has the address.
    pub(crate) interfaces: Vec<String>,
    /// Whether this machine's own programs may connect.
    pub(crate) own_programs: bool,
    /// Where its interfaces are enforced once more.
    pub(crate) second_lock: SecondLock,
}

/// The sockets with one filter.
#[derive(Debug)]
struct Sockets {
    allowed: BTreeSet<u32>,
    next: u64,
    open: HashMap<u64, OwnedFd>,
}

/// What a listener, its connections and its watcher share.
#[derive(Debug)]
struct Shared {
    port: Port,
    sockets: Mutex<Sockets>,
    stop: AtomicBool,
    stop_fd: EventFd,
}

impl Shared {
    /// Gives a socket the filter, now and at each change, until the result is dropped.
    fn register(self: &Arc<Shared>, socket: impl AsFd) -> io::Result<Registration> {
        let copy = socket.as_fd().try_clone_to_owned()?;
        let mut sockets = self.sockets.lock();
        ingress::accept_only(copy.as_fd(), &sockets.allowed)?;
        let number = sockets.next;
        sockets.next += 1;
        sockets.open.insert(number, copy);
        drop(sockets);
        Ok(Registration { shared: self.clone(), number })
    }

    /// Exchanges the filter of all sockets.
    fn allow(&self, indices: BTreeSet<u32>) -> io::Result<()> {
        let mut sockets = self.sockets.lock();
        let mut result = Ok(());
        for socket in sockets.open.values() {
            result = result.and(ingress::accept_only(socket.as_fd(), &indices));
        }
        // What failed is tried again at the next check.
        if result.is_ok() {
            sockets.allowed = indices;
        }
        result
    }
}

/// A socket whose filter is kept up to date.
#[derive(Debug)]
pub(crate) struct Registration {
    shared: Arc<Shared>,
    number: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.sockets.lock().open.remove(&self.number);
    }
}

/// A listening port. Dropping it closes the port; its connections go on.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
    /// Closed when the watcher ends.
    watcher_died: watch::Receiver<()>,
    _registration: Registration,
}

impl Listener {
    /// Opens the port. What its filter drops is added to `dropped`.
    pub(crate) fn bind<D>(port: Port, dropped: D) -> Result<Listener, ListenError>
    where
        D: Fn(u64) + Send + 'static,
    {
        let (table, address) = (port.table, port.address);
        let bind = |source| ListenError::Bind { table, address, source };
        let restrict = |source| ListenError::Restrict { address, source };
        let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }.map_err(bind)?;
        socket.set_reuseaddr(true).and_then(|()| socket.bind(address)).map_err(bind)?;
        let ingress = Ingress { address, names: port.interfaces.clone(), own_programs: port.own_programs };
        let mut watch = IngressWatch::open().map_err(restrict)?;
        let found = watch.find(&ingress).map_err(restrict)?;
        if found.only_loopback || (address.ip().is_unspecified() && ingress.names.is_empty()) {
            return Err(ListenError::Unnamed { table, address });
        }
        report(&port, &found);
        let stop_fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let stop_fd = stop_fd.map_err(|e| restrict(e.into()))?;
        let sockets = Mutex::new(Sockets { allowed: found.indices.clone(), next: 0, open: HashMap::new() });
        let shared = Arc::new(Shared { port, sockets, stop: AtomicBool::new(false), stop_fd });
        // Before it listens: no SYN is answered without the filter.
        let registration = shared.register(&socket).map_err(restrict)?;
        shared.port.second_lock.set(&shared.port, Some(found.indices.clone()));
        let socket = socket.listen(BACKLOG).map_err(bind)?;
        let counted = socket.as_fd().try_clone_to_owned().map_err(restrict)?;
        let watched = shared.clone();
        let (lives, watcher_died) = watch::channel(());
        let watcher = std::thread::Builder::new()
            .name(format!("{table}-interfaces"))
            .spawn(move || {
                let _lives = lives;
                lab_panic::thread(&format!("{table}-interfaces"));
                follow(&watched, watch, &ingress, found, &counted, &dropped);
            })
            .map_err(restrict)?;
        Ok(Listener { socket, shared, watcher: Some(watcher), watcher_died, _registration: registration })
    }

    /// Takes the next connection. Cancel-safe. Without the thread that follows the interfaces the port would be open to the
    /// wrong ones sooner or later: its panic goes on in the caller, whose end is noticed.
    pub(crate) async fn accept(&self) -> io::Result<(Connection, SocketAddr)> {
        let mut died = self.watcher_died.clone();
        let (stream, peer) = tokio::select! {
            biased;
            _ = died.changed() => {
                let what = "the thread that follows the interfaces of a port died";
                tracing::error!(port = %self.shared.port.address, what);
                std::panic::resume_unwind(Box::new(what))
            }
            accepted = self.socket.accept() => accepted?,
        };
        let registration = self.shared.register(&stream)?;
        Ok((Kept { stream, with: registration }, peer))
    }

    /// The address.
    #[cfg(test)]
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let _ = self.shared.stop_fd.write(1);
        if let Some(watcher) = self.watcher.take()
            && watcher.join().is_err()
        {
            tracing::error!(port = %self.shared.port.address, "the thread that follows the interfaces panicked");
        }
        self.shared.port.second_lock.set(&self.shared.port, None);
    }
}

/// Keeps the filters up to date until the listener is dropped.
fn follow(
    shared: &Shared,
    mut watch: IngressWatch,
    ingress: &Ingress,
    mut found: Found,
    listener: &OwnedFd,
    dropped: &impl Fn(u64),
) {
    let mut counted = 0;
    loop {
        watch.wait(&shared.stop_fd, CHECK_INTERVAL);
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let drops = ingress::dropped(listener.as_fd());
        dropped(drops.wrapping_sub(counted).into());
        counted = drops;
        let now = match watch.find(ingress) {
            Ok(now) => now,
            Err(error) => {
                tracing::warn!(%error, port = %ingress.address, "the interfaces of the port cannot be looked up");
                continue;
            }
        };
        if now == found {
            continue;
        }
        report(&shared.port, &now);
        shared.port.second_lock.set(&shared.port, Some(now.indices.clone()));
        match shared.allow(now.indices.clone()) {
            Ok(()) => found = now,
            Err(error) => {
                tracing::error!(%error, port = %ingress.address, "the filter of the port cannot be exchanged")
            }
        }
    }
}

fn report(port: &Port, found: &Found) {
    let Port { table, address, .. } = port;
    if !found.missing.is_empty() {
        let missing = found.missing.join(", ");
        tracing::warn!(%address, missing, "interfaces of `{table}.interfaces` are missing: nobody reaches the port by them");
    }
    if found.only_loopback {
        tracing::error!(%address, "the address is on the loopback interface now, and `{table}.interfaces` names no other");
    } else if found.indices.is_empty() {
        tracing::warn!(%address, "no interface has the address of `{table}.listen`: nobody reaches the port");
    }
}

/// An accepted connection.
pub(crate) type Connection = Kept<TcpStream, Registration>;

impl Connection {
    pub(crate) fn set_nodelay(&self, on: bool) -> io::Result<()> {
        self.stream.set_nodelay(on)
    }

    /// Reads without taking the bytes away.
    pub(crate) async fn peek(&self, to: &mut [u8]) -> io::Result<usize> {
        self.stream.peek(to).await
    }

    /// The address at this end.
    pub(crate) fn local_addr(&self) -> io::Result<SocketAddr> {
        self.stream.local_addr()
    }
}

/// The part of a counter that a listener adds to.
pub(crate) fn counting<M: Send + Sync + 'static>(
    metrics: Arc<M>,
    counter: fn(&M) -> &Counter,
) -> impl Fn(u64) + Send + 'static {
    move |n| counter(&metrics).add(n)
}
