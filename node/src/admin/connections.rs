//! Connections to the admin socket: who is at the other end, and how many there may be.
//!
//! Names and groups come from the name service (nsswitch.conf(5)), which may ask a directory server and wait for it. So they are
//! looked up once a connection, on a thread that may block, and never for root.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::OwnedSemaphorePermit;
use tonic::transport::server::Connected;

use super::socket;
use crate::kept::Kept;
use crate::limits::{AdminLimits, MAX_CONNECTIONS};

/// How long a name service may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Time after a failed accept.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(100);

/// Who is at the other end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Caller {
    /// The user's number.
    pub(crate) uid: u32,
    /// The user's name, if it was looked up.
    pub(crate) name: Option<String>,
    /// Whether the user may administrate.
    pub(crate) allowed: bool,
}

impl Caller {
    /// The user's name, for the policy's history.
    pub(crate) async fn user(self) -> String {
        match self.name {
            Some(name) => name,
            None => {
                let uid = self.uid;
                tokio::task::spawn_blocking(move || socket::user(uid)).await.unwrap_or_else(|_| format!("uid {uid}"))
            }
        }
    }
}

/// A connection, with its caller and its place.
pub(super) type Connection = Kept<UnixStream, (Caller, OwnedSemaphorePermit)>;

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        self.with.0.clone()
    }
}

/// The connections from now on. Those for which there is no place are closed.
pub(super) fn incoming(listener: UnixListener, limits: Arc<AdminLimits>) -> impl Stream<Item = io::Result<Connection>> {
    futures::stream::unfold(listener, async |listener| Some((accept(&listener).await, listener)))
        .map(move |stream| identify(stream, limits.clone()))
        // More than there are places, so that root never waits behind other users' lookups.
        .buffer_unordered(2 * MAX_CONNECTIONS + 1)
        .filter_map(async |connection| connection.map(Ok))
        .boxed()
}

async fn accept(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => {
                tracing::warn!(%error, "a connection to the admin socket could not be accepted");
                tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
            }
        }
    }
}

async fn identify(stream: UnixStream, limits: Arc<AdminLimits>) -> Option<Connection> {
    let peer = stream.peer_cred().ok()?;
    let (uid, gid) = (peer.uid(), peer.gid());
    let root = socket::is_root(uid);
    let place = limits.connection(root)?;
    if root {
        return Some(Kept { stream, with: (Caller { uid, name: None, allowed: true }, place) });
    }
    // The place stays taken until the lookup returns, so that no more threads than places wait for a name service.
    let lookup = tokio::task::spawn_blocking(move || {
        (Caller { uid, name: Some(socket::user(uid)), allowed: socket::allowed(uid, gid) }, place)
    });
    match tokio::time::timeout(LOOKUP_TIMEOUT, lookup).await {
        Ok(Ok(with)) => Some(Kept { stream, with }),
        Ok(Err(_)) | Err(_) => {
            tracing::warn!(uid, "the user of a connection to the admin socket could not be looked up");
            None
        }
    }
}
