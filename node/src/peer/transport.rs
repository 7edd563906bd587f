//! How bytes get from member to member: plain TCP now. This is the seam for TLS: whoever changes [`channel`] and
//! [`listen`] changes every connection between members.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
#[cfg(feature = "simulation")]
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

use crate::replication_metrics::ReplicationMetrics;
#[cfg(feature = "simulation")]
use crate::simulation;
#[cfg(feature = "simulation")]
pub(crate) use crate::simulation::Stream;

/// A connection that another member made.
#[cfg(not(feature = "simulation"))]
pub(crate) type Stream = TcpStream;

/// A connection that is not made within this time is not worth waiting for on a cluster's own network.
const CONNECT: Duration = Duration::from_millis(500);
/// A connection whose other end does not answer HTTP/2 pings is given up after these: a member that was powered off
/// sends no RST, and TCP alone would notice after minutes.
const PING_EVERY: Duration = Duration::from_secs(1);
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes in flight per stream and connection. Large enough for a fast link, small enough to be the bound of what a
/// stalled member makes its peers keep.
const WINDOW: u32 = 1 << 20;

/// A connection to the member at `address` (`host:port`), made when it is first used and made again when it broke.
///
/// # Errors
/// The address is no `host:port`.
pub(crate) fn channel(address: &str) -> Result<Channel, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    #[cfg(feature = "simulation")]
    if let Some(machine) = simulation::machine() {
        return Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |to: tonic::codegen::http::Uri| {
            let connection = machine.connect(to.authority().map_or("", |a| a.as_str()));
            async move { connection.await.map(|c| TokioIo::new(Stream::Simulated(c))) }
        })));
    }
    Ok(endpoint.connect_lazy())
}

/// Opens the member port.
pub(crate) async fn listen(
    at: SocketAddr,
    metrics: Arc<ReplicationMetrics>,
) -> io::Result<BoxStream<'static, io::Result<Stream>>> {
    #[cfg(feature = "simulation")]
    if let Some(incoming) = simulation::with(|machine| machine.listen(at)) {
        return Ok(incoming?.map(|stream| stream.map(Stream::Simulated)).boxed());
    }
    let incoming = incoming(TcpListener::bind(at).await?, metrics);
    #[cfg(feature = "simulation")]
    let incoming = incoming.map(|stream| stream.map(Stream::Real));
    Ok(incoming.boxed())
}

/// What every connection of HTTP/2 begins with (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// A connection that has not said so by then is closed.
const GREETING: Duration = Duration::from_secs(1);
/// Connections that may be in their greeting; the kernel keeps the next ones waiting.
const GREETINGS: usize = 256;

/// The connections that members make to us. What does not even speak HTTP/2, or nothing at all, is closed and counted
/// here: further in it would cost memory for as long as it stays open, and nobody would know.
fn incoming(
    listener: TcpListener,
    metrics: Arc<ReplicationMetrics>,
) -> impl futures::Stream<Item = io::Result<TcpStream>> {
    TcpListenerStream::new(listener)
        .map(move |stream| {
            let metrics = metrics.clone();
            async move {
                let stream = match stream {
                    Ok(stream) => stream,
                    Err(error) => {
                        // Out of file descriptors, perhaps: not again at once.
                        tracing::warn!(%error, "a connection to the member port could not be accepted");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        return None;
                    }
                };
                match tokio::time::timeout(GREETING, greeted(&stream)).await {
                    Ok(Ok(true)) => Some(stream.set_nodelay(true).map(|()| stream)),
                    Ok(Ok(false) | Err(_)) | Err(_) => {
                        metrics.strangers.add(1);
                        None
                    }
                }
            }
        })
        .buffer_unordered(GREETINGS)
        .filter_map(std::future::ready)
}

/// Does it begin as it should? Only looks: the bytes stay for whoever reads next.
async fn greeted(stream: &TcpStream) -> io::Result<bool> {
    let mut seen = [0; PREFACE.len()];
    loop {
        let n = stream.peek(&mut seen).await?;
        let begun = seen.get(..n).is_some_and(|seen| !seen.is_empty() && PREFACE.starts_with(seen));
        if !begun || n == PREFACE.len() {
            return Ok(begun);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The listening side's settings.
pub(crate) fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(PING_EVERY))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .max_concurrent_streams(256)
}
