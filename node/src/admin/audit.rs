//! The audit lines: every request that changes something leaves one line in the daemon's log, with who asked for what and
//! what became of it. Their target is `palisade::audit`, so that a filter can tell them apart.

use std::fmt::Display;

use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

use super::socket;

/// The user who asks, as the kernel says.
pub(super) fn user<T>(request: &Request<T>) -> String {
    let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
    peer.map_or_else(|| "unknown".to_owned(), |peer| socket::user(peer.uid()))
}

/// Logs a request that has been carried out or refused, and passes its result on.
pub(super) fn log<T>(user: &str, what: impl Display, result: Result<T, Status>) -> Result<T, Status> {
    match &result {
        Ok(_) => tracing::info!(target: "palisade::audit", user, "{what}"),
        Err(status) => tracing::info!(target: "palisade::audit", user, refused = status.message(), "{what}"),
    }
    result
}
