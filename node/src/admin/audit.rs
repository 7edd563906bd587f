//! The audit lines: every request that changes something leaves one line in the daemon's log, with who asked for what and
//! what became of it. Their target is `palisade::audit`, so that a filter can tell them apart.

use std::fmt::Display;

use tonic::{Request, Status};

use super::connections::Caller;

/// The user who asks, as the kernel says.
pub(super) fn user<T>(request: &Request<T>) -> impl Future<Output = String> + Send + use<T> {
    let caller = request.extensions().get::<Caller>().cloned();
    async move {
        match caller {
            Some(caller) => caller.user().await,
            None => "unknown".to_owned(),
        }
    }
}

/// Logs a request that has been carried out or refused, and passes its result on.
pub(super) fn log<T>(user: &str, what: impl Display, result: Result<T, Status>) -> Result<T, Status> {
    match &result {
        Ok(_) => tracing::info!(target: "palisade::audit", user, "{what}"),
        Err(status) => tracing::info!(target: "palisade::audit", user, refused = status.message(), "{what}"),
    }
    result
}
