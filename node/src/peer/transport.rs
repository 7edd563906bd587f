//! The transport between members: how connections are made and accepted.
//!
//! [`Connector`] and [`Acceptor`] are the seam: they are told which member is meant, and know who is at the other end. TCP and
//! the simulation's network implement them; what is above (HTTP/2, addressing) is the same for both. Today nothing proves who
//! the other end is, so [`Peer`] is what was asked for at a connector, and unknown at an acceptor.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use hyper_util::rt::TokioIo;
use palisade_engine::MemberId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::codegen::http::Uri;
use tonic::transport::server::Connected;
use tonic::transport::{Channel, Endpoint, Server};

use crate::listen::{self, Connection, ListenError, Listener, Port};
use crate::replication_metrics::ReplicationMetrics;

/// How long making a connection may take: on a cluster's own network a slower one is not worth waiting for.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(500);
/// Interval of HTTP/2 pings, and how long their answer may take. A member that was powered off sends no RST, and TCP alone
/// would notice after minutes.
const PING_INTERVAL: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes in flight per stream and connection. Large enough for a fast link, small enough to bound what a stalled member makes
/// its peers keep.
const WINDOW_BYTES: u32 = 1 << 20;
/// Streams that a peer may have open in one connection.
const MAX_STREAMS: u32 = 256;
/// What every HTTP/2 connection begins with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long the preface of a connection may take.
const PREFACE_TIMEOUT: Duration = Duration::from_secs(1);
/// Interval between two looks at an incomplete preface.
const PREFACE_POLL_INTERVAL: Duration = Duration::from_millis(5);
/// Connections whose preface is awaited at once; the kernel keeps further ones waiting.
const MAX_AWAITED_PREFACES: usize = 256;
/// Time after a failed accept: out of file descriptors, perhaps.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// The other end of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Peer {
    /// This member.
    Member(MemberId),
    /// Any machine: one that is to be asked for admission, or one that connected to us.
    Unknown,
}

/// Bytes in both directions.
pub(crate) trait ByteStream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> ByteStream for T {}

/// Makes connections to members.
pub(crate) trait Connector: fmt::Debug + Send + Sync {
    /// Connects to `to` at `address` (`host:port`).
    fn connect(&self, to: Peer, address: String) -> BoxFuture<'static, io::Result<Box<dyn ByteStream>>>;
}

/// Accepts connections of members.
pub(crate) trait Acceptor: Send {
    /// The connections that are made to this member from now on.
    fn incoming(self: Box<Self>) -> BoxStream<'static, io::Result<Stream>>;
}

/// A connection that another machine made.
pub(crate) struct Stream {
    bytes: Box<dyn ByteStream>,
    peer: Peer,
}

impl Connected for Stream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().bytes).poll_read(context, to)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().bytes).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().bytes).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().bytes).poll_shutdown(context)
    }

    fn is_write_vectored(&self) -> bool {
        self.bytes.is_write_vectored()
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().bytes).poll_write_vectored(context, slices)
    }
}

/// The connector of this machine.
pub(crate) fn connector() -> Arc<dyn Connector> {
    #[cfg(feature = "simulation")]
    if let Some(host) = crate::simulation::host() {
        return Arc::new(simulated::SimulatedConnector(host));
    }
    Arc::new(TcpConnector)
}

/// Opens the member port.
pub(crate) fn bind(port: Port, metrics: Arc<ReplicationMetrics>) -> Result<Box<dyn Acceptor>, ListenError> {
    #[cfg(feature = "simulation")]
    if let Some(incoming) = crate::simulation::with(|host| host.listen(port.address)) {
        let (table, address) = (port.table, port.address);
        let incoming = incoming.map_err(|source| ListenError::Bind { table, address, source })?;
        return Ok(Box::new(simulated::SimulatedAcceptor(incoming)));
    }
    let dropped = listen::counting(metrics.clone(), |metrics: &ReplicationMetrics| &metrics.port_dropped);
    Ok(Box::new(TcpAcceptor { listener: Listener::bind(port, dropped)?, metrics }))
}

/// A channel to `to` at `address` (`host:port`). The connection is made when it is first used, and again when it broke.
///
/// # Errors
/// The address is no `host:port`.
pub(crate) fn channel(
    connector: Arc<dyn Connector>,
    to: Peer,
    address: &str,
) -> Result<Channel, tonic::transport::Error> {
    // No `connect_timeout`: it would count the name lookup too. The connector limits each step.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: Uri| {
        let address = uri.authority().map_or_else(String::new, ToString::to_string);
        connector.connect(to, address).map(|connected| connected.map(TokioIo::new))
    })))
}

/// The settings of the accepting side.
pub(crate) fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
}

/// Connections over TCP.
#[derive(Debug)]
struct TcpConnector;

impl Connector for TcpConnector {
    fn connect(&self, _: Peer, address: String) -> BoxFuture<'static, io::Result<Box<dyn ByteStream>>> {
        async move {
            let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
            // Each address has its share of the time: the first may lead nowhere.
            let share = CONNECT_TIMEOUT / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
            let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
            for address in addresses {
                match tokio::time::timeout(share, TcpStream::connect(address)).await {
                    Ok(Ok(stream)) => {
                        stream.set_nodelay(true)?;
                        return Ok(Box::new(stream) as Box<dyn ByteStream>);
                    }
                    Ok(Err(error)) => last = error,
                    Err(_) => last = io::ErrorKind::TimedOut.into(),
                }
            }
            Err(last)
        }
        .boxed()
    }
}

/// Accepts connections over TCP.
struct TcpAcceptor {
    listener: Listener,
    metrics: Arc<ReplicationMetrics>,
}

impl Acceptor for TcpAcceptor {
    /// A connection that does not speak HTTP/2, or says nothing at all, is closed and counted here: further in it would cost
    /// memory for as long as it stays open, and no metric would show it.
    fn incoming(self: Box<Self>) -> BoxStream<'static, io::Result<Stream>> {
        let TcpAcceptor { listener, metrics } = *self;
        futures::stream::unfold(listener, async |listener| Some((next(&listener).await, listener)))
            .map(move |stream| accept(stream, metrics.clone()))
            .buffer_unordered(MAX_AWAITED_PREFACES)
            .filter_map(std::future::ready)
            .boxed()
    }
}

/// The next connection that can be accepted.
async fn next(listener: &Listener) -> Connection {
    loop {
        match listener.accept().await {
            Ok((connection, _)) => return connection,
            Err(error) => {
                tracing::warn!(%error, "a connection to the member port could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

async fn accept(stream: Connection, metrics: Arc<ReplicationMetrics>) -> Option<io::Result<Stream>> {
    match tokio::time::timeout(PREFACE_TIMEOUT, begins_with_preface(&stream)).await {
        Ok(Ok(true)) => {
            Some(stream.set_nodelay(true).map(|()| Stream { bytes: Box::new(stream), peer: Peer::Unknown }))
        }
        Ok(Ok(false) | Err(_)) | Err(_) => {
            metrics.rejected_connections.add(1);
            None
        }
    }
}

/// Whether a connection begins with the preface. Only peeks: the bytes stay for the next reader.
async fn begins_with_preface(stream: &Connection) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let n = stream.peek(&mut seen).await?;
        let begun = seen.get(..n).is_some_and(|seen| !seen.is_empty() && PREFACE.starts_with(seen));
        if !begun || n == PREFACE.len() {
            return Ok(begun);
        }
        tokio::time::sleep(PREFACE_POLL_INTERVAL).await;
    }
}

#[cfg(feature = "simulation")]
mod simulated {
    //! Connections on the simulated network.

    use super::*;
    use crate::simulation::{Host, Incoming};

    pub(super) struct SimulatedConnector(pub(super) Arc<dyn Host>);

    impl fmt::Debug for SimulatedConnector {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("SimulatedConnector").finish_non_exhaustive()
        }
    }

    impl Connector for SimulatedConnector {
        fn connect(&self, _: Peer, address: String) -> BoxFuture<'static, io::Result<Box<dyn ByteStream>>> {
            let connection = self.0.connect(&address);
            async move { Ok(Box::new(connection.await?) as Box<dyn ByteStream>) }.boxed()
        }
    }

    pub(super) struct SimulatedAcceptor(pub(super) Incoming);

    impl Acceptor for SimulatedAcceptor {
        fn incoming(self: Box<Self>) -> BoxStream<'static, io::Result<Stream>> {
            let stream = |connection| Stream { bytes: Box::new(connection), peer: Peer::Unknown };
            self.0.map(move |connection| connection.map(stream)).boxed()
        }
    }
}
