//! How bytes get from member to member: plain TCP now. This is the seam for TLS: whoever changes [`channel`] and
//! [`incoming`] changes every connection between members.

use std::io;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

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
    Ok(Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .connect_lazy())
}

/// The connections that members make to us.
pub(crate) fn incoming(listener: TcpListener) -> impl tokio_stream::Stream<Item = io::Result<tokio::net::TcpStream>> {
    use tokio_stream::StreamExt as _;
    TcpListenerStream::new(listener).map(|stream| {
        let stream = stream?;
        stream.set_nodelay(true)?;
        Ok(stream)
    })
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
